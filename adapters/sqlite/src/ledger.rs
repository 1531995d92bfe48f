//! The ledger of dead letters.

mod audit;
mod choice;
mod expiry;
mod find;
mod outcomes;
mod record;
mod redrive_row;
mod redrives;
mod reopen;

use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::ledger::{
    AuditEntry, AuditFilter, AuditLog, Change, Edit, Expired, Expiry, Guard, Ledger, Letter, LetterEvent,
    LetterFilter, LetterGroup, LetterMinute, LetterStatus, NewAuditEntry, NewBody, NewRedrive, PlanGroup,
    Redrive, Redrives, Sent, Standing,
};
use backstop_core::{AdapterError, ConsumerReport, FaultKind, Receipt};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use sqlx::{AssertSqlSafe, SqlitePool};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::lease;
use crate::tables::SqliteTables;
use crate::time;

/// Dead letters in one file, with their history.
///
/// When a message that was redriven fails again, its new letter is open and the older one becomes
/// [`Superseded`](LetterStatus::Superseded), with the event `failed-again` that names the new one: as many letters are
/// open as messages are dead.
#[derive(Debug, Clone)]
pub struct SqliteLedger {
    database: Arc<Database>,
}

impl SqliteLedger {
    /// The ledger in these tables.
    pub fn new(pool: SqlitePool, tables: SqliteTables) -> Self {
        Self { database: Arc::new(Database::new(pool, tables)) }
    }

    async fn read_history(&self, id: &str) -> Result<Vec<LetterEvent>, AdapterError> {
        let sql = format!(
            "SELECT at, what, detail FROM {} WHERE letter = (SELECT n FROM {} WHERE id = ?) ORDER BY n",
            self.database.tables.letter_event(),
            self.database.tables.letter()
        );
        let mut connection = self.database.connection().await?;
        let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| adapter("cannot read a letter's history", error))?;
        let event = |(at, what, detail): (String, String, Option<String>)| match time::parse(&at) {
            Some(at) => Ok(LetterEvent { at, what, detail }),
            None => Err(AdapterError::new(
                FaultKind::Other,
                format!("the history of letter {id:?} has no time: {at:.40?}"),
            )
            .with_hint("somebody wrote to the ledger's table; mend the row or delete it")),
        };
        rows.into_iter().map(event).collect()
    }

    async fn move_letters(
        &self,
        ids: &[String],
        from: LetterStatus,
        to: LetterStatus,
        what: &str,
        detail: Option<&str>,
    ) -> Result<Vec<String>, AdapterError> {
        let sql = format!(
            "UPDATE {} SET status = ? WHERE id IN (SELECT value FROM json_each(?)) AND status = ? RETURNING n, id",
            self.database.tables.letter()
        );
        let mut tx = self.database.write("cannot mark dead letters").await?;
        let mut moved: Vec<(i64, String)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(to.as_str())
            .bind(serde_json::json!(ids).to_string())
            .bind(from.as_str())
            .fetch_all(&mut *tx)
            .await
            .map_err(|error| adapter("cannot mark dead letters", error))?;
        moved.sort_unstable();
        for (n, _) in &moved {
            self.note(&mut tx, *n, what, detail).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(moved.into_iter().map(|(_, id)| id).collect())
    }
}

impl Leases for SqliteLedger {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(lease::acquire(&self.database, name, owner, ttl))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::release(&self.database, lease))
    }

    fn report<'a>(&'a self, lease: &'a Lease, text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(lease::report(&self.database, lease, text))
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.database, name))
    }
}

impl Ledger for SqliteLedger {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.write_letters(letters))
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        Box::pin(self.read_letters(filter, after, limit))
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.count_letters(filter))
    }

    fn groups<'a>(
        &'a self,
        filter: &'a LetterFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<LetterGroup>, AdapterError>> {
        Box::pin(self.read_groups(filter, limit))
    }

    fn minutes<'a>(
        &'a self,
        fingerprint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LetterMinute>, AdapterError>> {
        Box::pin(self.recent_minutes(fingerprint))
    }

    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>> {
        Box::pin(self.read_history(id))
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>, AdapterError>> {
        Box::pin(self.move_letters(ids, from, to, what, detail))
    }

    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.tell_all(filter, what, detail))
    }

    fn change<'a>(
        &'a self,
        filter: &'a LetterFilter,
        change: &'a Change,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.change_letters(filter, change, limit))
    }

    fn edit<'a>(&'a self, edit: &'a Edit) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(self.put_in_place(edit))
    }

    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.write_bodies(bodies))
    }

    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Expired>, AdapterError>> {
        Box::pin(self.find_expired(expiry, after, limit))
    }

    /// SQLite has the clock of its process.
    fn time(&self) -> BoxFuture<'_, Result<DateTime<Utc>, AdapterError>> {
        Box::pin(std::future::ready(Ok(Utc::now())))
    }

    fn purge<'a>(
        &'a self,
        expiry: &'a Expiry,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.delete_expired(expiry, ids))
    }

    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.take_receipts(receipts))
    }

    fn record_reports<'a>(
        &'a self,
        reports: &'a [ConsumerReport],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(self.take_reports(reports))
    }

    fn consumers(&self) -> BoxFuture<'_, Result<Vec<ConsumerReport>, AdapterError>> {
        Box::pin(self.read_reports())
    }
}

impl Redrives for SqliteLedger {
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> BoxFuture<'a, Result<Vec<PlanGroup>, AdapterError>> {
        Box::pin(self.plan(filter, guard, most))
    }

    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> BoxFuture<'a, Result<Redrive, AdapterError>> {
        Box::pin(self.create(new))
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
        Box::pin(self.steer(id, from, to))
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
        Box::pin(self.claim(lease, id, limit))
    }

    fn letters_in_flight<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        Box::pin(self.in_flight(id))
    }

    fn settle_letters<'a>(
        &'a self,
        id: &'a str,
        sent: &'a [(String, Sent)],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(self.settle(id, sent))
    }

    fn fall_silent(&self) -> BoxFuture<'_, Result<u64, AdapterError>> {
        Box::pin(self.silence())
    }
}

impl AuditLog for SqliteLedger {
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
