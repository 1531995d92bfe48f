//! The ledger of dead letters.

mod audit;
mod change;
mod choice;
mod edit;
mod expiry;
mod find;
mod outcomes;
mod record;
mod redrive_row;
mod redrives;
mod reopen;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::ledger::{
    AuditEntry, AuditFilter, AuditLog, Change, Edit, Expired, Expiry, Guard, Ledger, Letter, LetterEvent,
    LetterFilter, LetterGroup, LetterMinute, LetterStatus, NewAuditEntry, NewBody, NewRedrive, PlanGroup,
    Redrive, Redrives, Sent, Standing,
};
use backstop_core::{AdapterError, ConsumerReport, FaultKind, Receipt, identity};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, PgPool};

use crate::failure::failed;
use crate::lease;
use crate::seat::Seat;
use crate::storable::storable;
use crate::tables::PgTables;
use crate::{stranded, time};

const MARK: &str = "
    WITH moved AS (
        UPDATE {letter} SET status = $3 WHERE id = ANY($1) AND status = $2 RETURNING n, id
    ), written AS (
        INSERT INTO {event} (letter, what, detail) SELECT n, $4, $5 FROM moved
    )
    SELECT id FROM moved ORDER BY n";

/// The events `e` of letters `l`. What a history begins with is in the letter's own row.
const EVENTS: &str = "{letter} AS l CROSS JOIN LATERAL (
        SELECT 0 AS n, l.collected_at AS at, 'collected' AS what, l.found_in AS detail
        UNION ALL SELECT n, at, what, detail FROM {event} WHERE letter = l.n AND what <> 'collected'
    ) AS e";

const HISTORY: &str = "SELECT {at}, e.what, e.detail FROM {events} WHERE l.id = $1 ORDER BY e.n";

/// Dead letters in `backstop_letter`, with their history in `backstop_letter_event`.
///
/// When a message that was redriven fails again, its new letter is open and the older one becomes
/// [`Superseded`](LetterStatus::Superseded), with the event `failed-again` that names the new one.
#[derive(Debug, Clone)]
pub struct PgLedger {
    pool: PgPool,
    /// For the lease.
    seat: Seat,
    tables: PgTables,
    /// Whether it was said that old reports of consumers cannot be forgotten.
    cannot_forget: Arc<AtomicBool>,
}

impl PgLedger {
    /// The ledger among those tables.
    pub fn new(pool: PgPool, tables: PgTables) -> Self {
        Self { pool, seat: Seat::default(), tables, cannot_forget: Arc::default() }
    }

    /// A statement that reads histories.
    fn history_sql(&self, statement: &str) -> AssertSqlSafe<String> {
        self.sql(&statement.replace("{events}", EVENTS).replace("{at}", &time::clamped("e.at")))
    }

    fn sql(&self, statement: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.tables.fill(statement))
    }
}

/// An id as the ledger keeps it: long ones, and such as PostgreSQL cannot store, by their hash.
fn stored_id(id: &str) -> String {
    identity::storable(id.as_bytes()).into_owned()
}

fn stored(text: Option<&str>) -> Option<String> {
    text.map(storable)
}

impl Leases for PgLedger {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(lease::acquire(&self.pool, &self.seat, &self.tables, name, owner, ttl))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::release(&self.pool, &self.tables, lease))
    }

    fn report<'a>(&'a self, lease: &'a Lease, text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::report(&self.pool, &self.tables, lease, text))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.pool, &self.tables, name))
    }
}

impl Ledger for PgLedger {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(|| self.record_all(letters)))
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        Box::pin(self.list_some(filter, after, limit))
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.count_some(filter))
    }

    fn groups<'a>(
        &'a self,
        filter: &'a LetterFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<LetterGroup>, AdapterError>> {
        Box::pin(self.group_some(filter, limit))
    }

    fn minutes<'a>(
        &'a self,
        fingerprint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LetterMinute>, AdapterError>> {
        Box::pin(self.recent_minutes(fingerprint))
    }

    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>> {
        Box::pin(async move {
            let events: Vec<(_, String, Option<String>)> = sqlx::query_as(self.history_sql(HISTORY))
                .bind(stored_id(id))
                .fetch_all(&self.pool)
                .await
                .map_err(failed("read the history of a dead letter"))?;
            Ok(events.into_iter().map(|(at, what, detail)| LetterEvent { at, what, detail }).collect())
        })
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>, AdapterError>> {
        Box::pin(async move {
            let doing = || failed("mark dead letters");
            let ids: Vec<String> = ids.iter().map(|id| stored_id(id)).collect();
            let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
            let marked = sqlx::query_scalar(self.sql(MARK))
                .bind(ids)
                .bind(from.as_str())
                .bind(to.as_str())
                .bind(storable(what))
                .bind(stored(detail))
                .fetch_all(&mut *tx)
                .await
                .map_err(doing())?;
            tx.commit().await.map_err(doing())?;
            Ok(marked)
        })
    }

    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(move || self.tell_all(filter, what, detail)))
    }

    fn change<'a>(
        &'a self,
        filter: &'a LetterFilter,
        change: &'a Change,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(move || self.change_some(filter, change, limit)))
    }

    fn edit<'a>(&'a self, edit: &'a Edit) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(again(|| self.put_in_place(edit)))
    }

    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(move || self.replace_all(bodies)))
    }

    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Expired>, AdapterError>> {
        Box::pin(self.find_expired(expiry, after, limit))
    }

    fn time(&self) -> BoxFuture<'_, Result<DateTime<Utc>, AdapterError>> {
        Box::pin(async {
            let now = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&self.pool).await;
            now.map_err(failed("ask what time it is"))
        })
    }

    fn purge<'a>(
        &'a self,
        expiry: &'a Expiry,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(move || self.delete_expired(expiry, ids)))
    }

    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(again(|| self.take_receipts(receipts)))
    }

    fn record_reports<'a>(
        &'a self,
        reports: &'a [ConsumerReport],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(again(|| self.take_reports(reports)))
    }

    fn consumers(&self) -> BoxFuture<'_, Result<Vec<ConsumerReport>, AdapterError>> {
        Box::pin(self.read_reports())
    }
}

impl Redrives for PgLedger {
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> BoxFuture<'a, Result<Vec<PlanGroup>, AdapterError>> {
        Box::pin(self.plan_one(filter, guard, most))
    }

    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> BoxFuture<'a, Result<Redrive, AdapterError>> {
        Box::pin(self.create_one(new))
    }

    fn redrives<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Redrive>, AdapterError>> {
        Box::pin(self.read_page(after, limit))
    }

    fn redrive<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Redrive>, AdapterError>> {
        Box::pin(self.read_one(id))
    }

    fn running_redrives(&self) -> BoxFuture<'_, Result<Vec<Redrive>, AdapterError>> {
        Box::pin(self.read_running())
    }

    fn steer_redrive<'a>(
        &'a self,
        id: &'a str,
        from: &'a Standing,
        to: &'a Standing,
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(again(move || self.steer(id, from, to)))
    }

    fn set_redrive_rate<'a>(
        &'a self,
        id: &'a str,
        rate: Option<f64>,
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(self.set_rate(id, rate))
    }

    fn claim_letters<'a>(
        &'a self,
        lease: &'a Lease,
        id: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Option<Vec<Letter>>, AdapterError>> {
        Box::pin(again(move || self.claim(lease, id, limit)))
    }

    fn letters_in_flight<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        Box::pin(self.in_flight(id))
    }

    fn settle_letters<'a>(
        &'a self,
        id: &'a str,
        sent: &'a [(String, Sent)],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(again(move || self.settle(id, sent)))
    }

    fn fall_silent(&self) -> BoxFuture<'_, Result<u64, AdapterError>> {
        Box::pin(again(|| self.silence()))
    }
}

impl AuditLog for PgLedger {
    fn write_audit<'a>(&'a self, entry: &'a NewAuditEntry) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(self.write_entry(entry))
    }

    fn read_audit<'a>(
        &'a self,
        filter: &'a AuditFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<AuditEntry>, AdapterError>> {
        Box::pin(self.read_entries(filter, limit))
    }
}

/// Does what lost a race, such as a deadlock over the counters, once more, up to three times.
async fn again<T, F: Future<Output = Result<T, AdapterError>>>(
    work: impl Fn() -> F,
) -> Result<T, AdapterError> {
    for _ in 0..3 {
        match work().await {
            Err(error) if error.kind() == FaultKind::Conflict => {}
            other => return other,
        }
    }
    work().await
}
