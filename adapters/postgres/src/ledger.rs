//! The ledger of dead letters.

use std::time::Duration;

use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::ledger::{Ledger, Letter, LetterEvent, LetterFilter, LetterStatus};
use backstop_core::{AdapterError, header_column, identity};
use futures_core::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres};

use crate::failure::failed;
use crate::lease;
use crate::ledger_row::{self, COLUMNS};
use crate::seat::Seat;
use crate::storable::storable;
use crate::tables::PgTables;
use crate::time;

/// Closes the older letters of a message that was redriven and died again: from now on the new letter stands for it,
/// so that as many letters are open as messages are dead. One may be open again because the confirmation of its redrive
/// was lost; the higher generation proves that the redrive arrived.
const SUPERSEDE: &str = "
    WITH older AS (
        UPDATE {letter} SET status = 'superseded'
        WHERE message_key = $1 AND consumer IS NOT DISTINCT FROM $2 AND status IN ('open', 'redriving')
        AND generation < $4 AND id <> $3
        RETURNING n
    )
    INSERT INTO {event} (letter, what, detail) SELECT n, 'failed-again', $3 FROM older";

const INSERT_EVENT: &str = "
    INSERT INTO {event} (letter, what, detail) SELECT n, $2, $3 FROM {letter} WHERE id = ANY($1)";

const MARK: &str = "
    WITH moved AS (
        UPDATE {letter} SET status = $3 WHERE id = ANY($1) AND status = $2 RETURNING n, id
    ), written AS (
        INSERT INTO {event} (letter, what, detail) SELECT n, $4, $5 FROM moved
    )
    SELECT id FROM moved ORDER BY n";

const HISTORY: &str = "
    SELECT {at}, e.what, e.detail FROM {event} AS e JOIN {letter} AS l ON l.n = e.letter WHERE l.id = $1 ORDER BY e.n";

const FILTER: &str = "(cardinality($1::text[]) = 0 OR id = ANY($1)) AND ($2::text IS NULL OR consumer = $2) \
                      AND ($3::text IS NULL OR place = $3) AND ($4::text IS NULL OR fingerprint = $4) \
                      AND ($5::text IS NULL OR status = $5)";

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
}

type Bound<'q> = Query<'q, Postgres, PgArguments>;

impl PgLedger {
    /// The ledger among those tables.
    pub fn new(pool: PgPool, tables: PgTables) -> Self {
        Self { pool, seat: Seat::default(), tables }
    }

    fn sql(&self, statement: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(self.tables.fill(statement))
    }

    async fn record_all(&self, letters: &[Letter]) -> Result<u64, AdapterError> {
        let doing = || failed("record dead letters");
        let mut tx = self.pool.begin().await.map_err(doing())?;
        let mut new = 0;
        for letter in letters {
            new += u64::from(self.record_one(&mut tx, letter).await?);
        }
        tx.commit().await.map_err(doing())?;
        Ok(new)
    }

    /// Whether the letter was new.
    async fn record_one(&self, tx: &mut PgConnection, letter: &Letter) -> Result<bool, AdapterError> {
        let doing = || failed("record a dead letter");
        let insert = self.sql(&format!(
            "INSERT INTO {{letter}} ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
             $14, $15, $16, $17, $18, $19) ON CONFLICT (id) DO NOTHING"
        ));
        let inserted = bind(sqlx::query(insert), letter)?.execute(&mut *tx).await.map_err(doing())?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        let id = stored_id(&letter.id);
        sqlx::query(self.sql(INSERT_EVENT))
            .bind(std::slice::from_ref(&id))
            .bind("collected")
            .bind(storable(&letter.found_in))
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        if let Some(message_key) = &letter.message_key {
            sqlx::query(self.sql(SUPERSEDE))
                .bind(storable(message_key))
                .bind(stored(letter.consumer.as_deref()))
                .bind(id)
                .bind(letter.generation)
                .execute(&mut *tx)
                .await
                .map_err(doing())?;
        }
        Ok(true)
    }

    async fn list_some(
        &self,
        filter: &LetterFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Letter>, AdapterError> {
        let sql = self.sql(&format!(
            "SELECT {}, {} FROM {{letter}} WHERE {FILTER} \
             AND ($6::text IS NULL OR n > (SELECT n FROM {{letter}} WHERE id = $6)) ORDER BY n LIMIT $7",
            ledger_row::columns(),
            time::clamped("collected_at")
        ));
        let rows = narrowed(sqlx::query(sql), filter)
            .bind(after.map(stored_id))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list dead letters"))?;
        rows.iter().map(ledger_row::read).collect()
    }

    async fn count_some(&self, filter: &LetterFilter) -> Result<u64, AdapterError> {
        use sqlx::Row;
        let sql = self.sql(&format!("SELECT count(*) FROM {{letter}} WHERE {FILTER}"));
        let row = narrowed(sqlx::query(sql), filter).fetch_one(&self.pool).await;
        let count: i64 = row.and_then(|row| row.try_get(0)).map_err(failed("count dead letters"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

/// An id as the ledger keeps it: long ones, and such as PostgreSQL cannot store, by their hash.
fn stored_id(id: &str) -> String {
    identity::storable(id.as_bytes()).into_owned()
}

fn stored(text: Option<&str>) -> Option<String> {
    text.map(storable)
}

fn bind<'q>(query: Bound<'q>, letter: &'q Letter) -> Result<Bound<'q>, AdapterError> {
    Ok(query
        .bind(stored_id(&letter.id))
        .bind(stored(letter.message_key.as_deref()))
        .bind(stored(letter.consumer.as_deref()))
        .bind(stored(letter.place.as_deref()))
        .bind(storable(&letter.found_in))
        .bind(stored(letter.door.as_deref()))
        .bind(stored(letter.reason.as_deref()))
        .bind(stored(letter.class.as_deref()))
        .bind(stored(letter.error_type.as_deref()))
        .bind(stored(letter.error.as_deref()))
        .bind(stored(letter.fingerprint.as_deref()))
        .bind(letter.attempts)
        .bind(letter.generation)
        .bind(letter.first_failed_at)
        .bind(letter.dead_at)
        .bind(letter.status.as_str())
        .bind(letter.envelope.key.as_deref())
        .bind(header_column::encode(&letter.envelope.headers)?)
        .bind(letter.envelope.body.as_deref()))
}

fn narrowed<'q>(query: Bound<'q>, filter: &LetterFilter) -> Bound<'q> {
    let ids: Vec<String> = filter.ids.iter().map(|id| stored_id(id)).collect();
    query
        .bind(ids)
        .bind(stored(filter.consumer.as_deref()))
        .bind(stored(filter.place.as_deref()))
        .bind(stored(filter.fingerprint.as_deref()))
        .bind(filter.status.map(LetterStatus::as_str))
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

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(lease::holder(&self.pool, &self.tables, name))
    }
}

impl Ledger for PgLedger {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(self.record_all(letters))
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

    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>> {
        Box::pin(async move {
            let events: Vec<(_, String, Option<String>)> =
                sqlx::query_as(self.sql(&HISTORY.replace("{at}", &time::clamped("e.at"))))
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
            let ids: Vec<String> = ids.iter().map(|id| stored_id(id)).collect();
            sqlx::query_scalar(self.sql(MARK))
                .bind(ids)
                .bind(from.as_str())
                .bind(to.as_str())
                .bind(storable(what))
                .bind(stored(detail))
                .fetch_all(&self.pool)
                .await
                .map_err(failed("mark dead letters"))
        })
    }
}
