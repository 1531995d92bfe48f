//! The outbox as an application writes to it.

use std::sync::Arc;

use backstop_core::identity::MAX_ID_BYTES;
use backstop_core::outbox::headers_to_json;
use backstop_core::{AdapterError, FaultKind, Outgoing, trace};
use chrono::{DateTime, Datelike, Utc};
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, Transaction};

use crate::error::adapter;
use crate::tables::SqliteTables;
use crate::time;
use crate::tx::SqliteTx;

mod sealed {
    pub trait Sealed {}
    impl Sealed for sqlx::Transaction<'_, sqlx::Sqlite> {}
    impl Sealed for crate::tx::SqliteTx {}
}

/// An open transaction: sqlx's own, or the one that a handler is lent. A bare connection is none, since what is
/// enqueued outside of a transaction does not share the fate of the effects that it tells of.
pub trait SqliteTransaction: sealed::Sealed + Send {
    /// The connection that the transaction is on.
    #[doc(hidden)]
    fn connection(&mut self) -> &mut SqliteConnection;
}

impl SqliteTransaction for Transaction<'_, Sqlite> {
    fn connection(&mut self) -> &mut SqliteConnection {
        self
    }
}

impl SqliteTransaction for SqliteTx {
    fn connection(&mut self) -> &mut SqliteConnection {
        self
    }
}

/// Writes messages into the outbox, in the transaction that makes them true.
///
/// ```no_run
/// # async fn place(pool: sqlx::SqlitePool) -> Result<(), Box<dyn std::error::Error>> {
/// use backstop_core::{Message, Outgoing};
/// use backstop_sqlite::SqliteOutbox;
///
/// let outbox = SqliteOutbox::default();
/// let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
/// sqlx::query("UPDATE orders SET state = 'placed' WHERE id = 7").execute(&mut *tx).await?;
/// outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("order.placed").key("7"))).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SqliteOutbox {
    insert: Arc<str>,
    later: Arc<str>,
}

impl Default for SqliteOutbox {
    /// The table `backstop_outbox`.
    fn default() -> Self {
        Self::with_tables(&SqliteTables::default())
    }
}

impl SqliteOutbox {
    /// The outbox among those tables.
    pub fn with_tables(tables: &SqliteTables) -> Self {
        const COLUMNS: &str = "id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
                               headers, payload";
        const VALUES: &str = "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?";
        let insert = format!("INSERT INTO {} ({COLUMNS}) VALUES ({VALUES})", tables.outbox());
        let later = format!(
            "INSERT INTO {} ({COLUMNS}, publish_after) VALUES ({VALUES}, ?)",
            tables.outbox_scheduled()
        );
        Self { insert: insert.into(), later: later.into() }
    }

    /// Writes one message. It is published if and only if the transaction commits.
    ///
    /// The current span's trace context, and inside a handler the message that is its cause, are written into its
    /// headers.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] when the message cannot be stored (its destination or id is empty, its id or source
    /// longer than 255 bytes, its key or a header not UTF-8, a text holds a NUL); otherwise when the database
    /// refuses the row. The transaction goes on after either.
    pub async fn enqueue(
        &self,
        tx: &mut impl SqliteTransaction,
        outgoing: Outgoing,
    ) -> Result<(), AdapterError> {
        self.write(tx.connection(), NewRow::new(outgoing)?).await
    }

    /// Writes one message that is to be published later: the relay moves it into the outbox within a second after
    /// `at` has passed. A time that has passed already is fine. Until then the row can be taken back, by
    /// `DELETE FROM backstop_outbox_scheduled WHERE id = …`.
    ///
    /// Its place among messages of the same key is that of the moment when it is moved.
    ///
    /// # Errors
    /// As [`enqueue`](SqliteOutbox::enqueue); and when `at` is outside the years 0 to 9999.
    pub async fn enqueue_at(
        &self,
        tx: &mut impl SqliteTransaction,
        outgoing: Outgoing,
        at: DateTime<Utc>,
    ) -> Result<(), AdapterError> {
        if !(0..=9999).contains(&at.year()) {
            return Err(invalid("the time of publication is outside the years 0 to 9999"));
        }
        let insert = NewRow::new(outgoing)?.bound(&self.later).bind(time::text(at));
        insert
            .execute(tx.connection())
            .await
            .map_err(|error| adapter("cannot write to the outbox", error))?;
        Ok(())
    }

    /// Writes many messages, numbered in the order in which they are given.
    ///
    /// # Errors
    /// As [`enqueue`](SqliteOutbox::enqueue); nothing is written when one of them cannot be stored.
    pub async fn enqueue_all(
        &self,
        tx: &mut impl SqliteTransaction,
        outgoing: impl IntoIterator<Item = Outgoing>,
    ) -> Result<(), AdapterError> {
        let rows: Vec<NewRow> = outgoing.into_iter().map(NewRow::new).collect::<Result<_, _>>()?;
        for row in rows {
            self.write(tx.connection(), row).await?;
        }
        Ok(())
    }

    async fn write(&self, connection: &mut SqliteConnection, row: NewRow) -> Result<(), AdapterError> {
        let insert = row.bound(&self.insert);
        insert.execute(connection).await.map_err(|error| adapter("cannot write to the outbox", error))?;
        Ok(())
    }
}

/// A row before it is written, checked.
struct NewRow {
    id: String,
    source: Option<String>,
    destination: String,
    routing_key: Option<String>,
    key: Option<String>,
    kind: Option<String>,
    subject: Option<String>,
    time: Option<String>,
    content_type: Option<String>,
    headers: Option<String>,
    payload: Option<Vec<u8>>,
}

impl NewRow {
    fn new(outgoing: Outgoing) -> Result<Self, AdapterError> {
        let Outgoing { destination, mut message } = outgoing;
        trace::inject_current(&mut message.headers);
        required("destination", &destination.name)?;
        required("id", &message.id)?;
        bounded("id", &message.id)?;
        bounded("source", &message.source)?;
        if message.time.is_some_and(|time| !(0..=9999).contains(&time.year())) {
            return Err(invalid("the time is outside the years 0 to 9999"));
        }
        let key = match message.key {
            Some(key) => Some(String::from_utf8(key.into()).map_err(|_| invalid("the key is not UTF-8"))?),
            None => None,
        };
        let headers = headers_to_json(&message.headers).map_err(invalid)?;
        let row = Self {
            id: message.id,
            source: Some(message.source).filter(|source| !source.is_empty()),
            destination: destination.name,
            routing_key: destination.routing_key,
            key,
            kind: Some(message.kind).filter(|kind| !kind.is_empty()),
            subject: message.subject,
            time: message.time.map(time::text),
            content_type: message.content_type,
            headers: headers.map(|headers| headers.to_string()),
            payload: message.body.map(Vec::from),
        };
        for (name, text) in [
            ("routing key", &row.routing_key),
            ("key", &row.key),
            ("kind", &row.kind),
            ("subject", &row.subject),
            ("content type", &row.content_type),
        ] {
            without_nul(name, text.as_deref().unwrap_or_default())?;
        }
        for (name, value) in message.headers.iter() {
            without_nul("name of a header", name)?;
            if value.is_some_and(|value| value.contains(&0)) {
                return Err(invalid(format!("header {name:?} holds a NUL")));
            }
        }
        Ok(row)
    }

    /// The statement with the values of the row.
    fn bound(self, sql: &Arc<str>) -> Query<'static, Sqlite, SqliteArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(self.id)
            .bind(self.source)
            .bind(self.destination)
            .bind(self.routing_key)
            .bind(self.key)
            .bind(self.kind)
            .bind(self.subject)
            .bind(self.time)
            .bind(self.content_type)
            .bind(self.headers)
            .bind(self.payload)
    }
}

fn required(name: &str, text: &str) -> Result<(), AdapterError> {
    if text.is_empty() {
        return Err(invalid(format!("the message has no {name}")));
    }
    without_nul(name, text)
}

fn bounded(name: &str, text: &str) -> Result<(), AdapterError> {
    if text.len() > MAX_ID_BYTES {
        return Err(invalid(format!("the {name} is longer than {MAX_ID_BYTES} bytes")));
    }
    without_nul(name, text)
}

fn without_nul(name: &str, text: &str) -> Result<(), AdapterError> {
    if text.contains('\0') {
        return Err(invalid(format!("the {name} holds a NUL")));
    }
    Ok(())
}

fn invalid(what: impl Into<String>) -> AdapterError {
    AdapterError::new(FaultKind::Invalid, what).with_hint("change the message before it is enqueued")
}
