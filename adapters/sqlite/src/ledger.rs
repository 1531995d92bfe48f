//! The ledger of dead letters.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::ledger::{Ledger, Letter, LetterEvent, LetterFilter, LetterStatus};
use backstop_core::{AdapterError, FaultKind};
use futures_core::future::BoxFuture;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Row, Sqlite, SqliteConnection, SqlitePool};

use crate::commit::commit;
use crate::database::{Database, plain};
use crate::error::adapter;
use crate::lease;
use crate::letter_row::{COLUMNS, insert, letter};
use crate::tables::SqliteTables;
use crate::time;

/// The conditions of a filter, each true where its field is not set.
const CONDITIONS: &str = "(?1 IS NULL OR l.id IN (SELECT value FROM json_each(?1))) \
    AND (?2 IS NULL OR l.consumer = ?2) AND (?3 IS NULL OR l.place = ?3) \
    AND (?4 IS NULL OR l.fingerprint = ?4) AND (?5 IS NULL OR l.status = ?5)";

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

    async fn write_letters(&self, letters: &[Letter]) -> Result<u64, AdapterError> {
        let failed = |error| adapter("cannot write dead letters", error);
        let table = self.database.tables.letter();
        let mut new = 0;
        let mut tx = self.database.write("cannot write dead letters").await?;
        for letter in letters {
            let row = insert(&table, letter).fetch_optional(&mut *tx).await.map_err(failed)?;
            let Some(row) = row else { continue };
            new += 1;
            self.note(&mut tx, row.get("n"), "collected", Some(&letter.found_in)).await?;
            self.supersede(&mut tx, letter).await?;
        }
        commit(tx).await.map_err(plain)?;
        Ok(new)
    }

    /// Closes older letters of the same message: this one says how their redrive ended. One may be open again because
    /// the confirmation of its redrive was lost; the higher generation proves that the redrive arrived.
    async fn supersede(&self, connection: &mut SqliteConnection, newer: &Letter) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET status = ? WHERE consumer IS ? AND message_key = ? AND status IN (?, ?) AND generation < ? \
             AND id <> ? RETURNING n",
            self.database.tables.letter()
        );
        let older: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(LetterStatus::Superseded.as_str())
            .bind(newer.consumer.as_deref())
            .bind(newer.message_key.as_deref())
            .bind(LetterStatus::Open.as_str())
            .bind(LetterStatus::Redriving.as_str())
            .bind(newer.generation)
            .bind(&newer.id)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| adapter("cannot close the older letter", error))?;
        for n in older {
            self.note(connection, n, "failed-again", Some(&newer.id)).await?;
        }
        Ok(())
    }

    async fn note(
        &self,
        connection: &mut SqliteConnection,
        letter: i64,
        what: &str,
        detail: Option<&str>,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "INSERT INTO {} (letter, what, detail) VALUES (?, ?, ?)",
            self.database.tables.letter_event()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(letter).bind(what).bind(detail);
        query.execute(connection).await.map_err(|error| adapter("cannot write a letter's history", error))?;
        Ok(())
    }

    async fn read_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Letter>, AdapterError> {
        let table = self.database.tables.letter();
        let mut connection = self.database.connection().await?;
        let after = match after {
            Some(id) => self.number(&mut connection, id).await?,
            None => i64::MIN,
        };
        let sql = format!(
            "SELECT {COLUMNS}, collected_at FROM {table} l WHERE {CONDITIONS} AND l.n > ?6 ORDER BY l.n LIMIT ?7"
        );
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments(filter)?).bind(after).bind(limit);
        let rows = query.fetch_all(&mut *connection).await;
        let rows = rows.map_err(|error| adapter("cannot read dead letters", error))?;
        rows.iter().map(letter).collect()
    }

    async fn number(&self, connection: &mut SqliteConnection, id: &str) -> Result<i64, AdapterError> {
        let sql = format!("SELECT n FROM {} WHERE id = ?", self.database.tables.letter());
        let n: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(connection)
            .await
            .map_err(|error| adapter("cannot read dead letters", error))?;
        n.ok_or_else(|| {
            AdapterError::new(FaultKind::Missing, format!("there is no letter {id:?}"))
                .with_hint("list from the beginning")
        })
    }

    async fn count_letters(&self, filter: &LetterFilter) -> Result<u64, AdapterError> {
        let sql = format!("SELECT count(*) FROM {} l WHERE {CONDITIONS}", self.database.tables.letter());
        let mut connection = self.database.connection().await?;
        let query = sqlx::query_scalar_with::<_, i64, _>(AssertSqlSafe(sql), arguments(filter)?);
        let count = query.fetch_one(&mut *connection).await;
        count.map(i64::unsigned_abs).map_err(|error| adapter("cannot count dead letters", error))
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

/// The arguments of [`CONDITIONS`].
fn arguments(filter: &LetterFilter) -> Result<SqliteArguments, AdapterError> {
    use sqlx::Arguments;
    let ids = (!filter.ids.is_empty()).then(|| serde_json::json!(filter.ids).to_string());
    let status = filter.status.map(|status| status.as_str().to_owned());
    let mut arguments = <Sqlite as sqlx::Database>::Arguments::default();
    let fields = [ids, filter.consumer.clone(), filter.place.clone(), filter.fingerprint.clone(), status];
    for field in fields {
        arguments.add(field).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "the filter cannot be sent to SQLite").with_source(error)
        })?;
    }
    Ok(arguments)
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
}
