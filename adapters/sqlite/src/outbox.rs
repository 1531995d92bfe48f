//! The outbox as an application writes to it.

use backstop_core::identity::MAX_ID_BYTES;
use backstop_core::outbox::headers_to_json;
use backstop_core::{AdapterError, FaultKind, Outgoing, context, trace};
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
    tables: SqliteTables,
    insert: std::sync::Arc<str>,
}

impl Default for SqliteOutbox {
    /// Writes to `backstop_outbox`.
    fn default() -> Self {
        Self::new(SqliteTables::default())
    }
}

impl SqliteOutbox {
    /// Writes to the outbox of these tables.
    pub fn new(tables: SqliteTables) -> Self {
        let insert = format!(
            "INSERT INTO {} (id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
             headers, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            tables.outbox()
        );
        Self { tables, insert: insert.into() }
    }

    /// The names of the tables.
    pub fn tables(&self) -> &SqliteTables {
        &self.tables
    }

    /// Enqueues a message: it is published if and only if the transaction commits.
    ///
    /// The context of the current span, and inside a handler the cause, are written into its headers unless it
    /// carries them.
    ///
    /// # Errors
    /// [`FaultKind::Invalid`] when the message cannot be stored: no destination or id, an id or source over 255
    /// bytes, a NUL in a text, a key or a header that is not UTF-8. Otherwise when the database refuses; the
    /// transaction can go on.
    pub async fn enqueue(
        &self,
        tx: &mut impl SqliteTransaction,
        outgoing: Outgoing,
    ) -> Result<(), AdapterError> {
        let Outgoing { destination, mut message } = outgoing;
        trace::inject_current(&mut message.headers);
        context::inherit(&mut message.headers);
        required("destination", &destination.name)?;
        required("id", &message.id)?;
        bounded("id", &message.id)?;
        bounded("source", &message.source)?;
        let key = match &message.key {
            Some(key) => Some(std::str::from_utf8(key).map_err(|_| invalid("the key is not UTF-8"))?),
            None => None,
        };
        let routing_key = destination.routing_key.as_deref();
        let (subject, content_type) = (message.subject.as_deref(), message.content_type.as_deref());
        let texts = [("routing key", routing_key), ("key", key), ("kind", Some(&*message.kind))];
        for (name, text) in texts.into_iter().chain([("subject", subject), ("content type", content_type)]) {
            without_nul(name, text.unwrap_or_default())?;
        }
        let headers = headers_to_json(&message.headers).map_err(invalid)?;
        sqlx::query(AssertSqlSafe(self.insert.clone()))
            .bind(&*message.id)
            .bind(Some(&*message.source).filter(|source| !source.is_empty()))
            .bind(&*destination.name)
            .bind(routing_key)
            .bind(key)
            .bind(Some(&*message.kind).filter(|kind| !kind.is_empty()))
            .bind(subject)
            .bind(message.time.map(time::text))
            .bind(content_type)
            .bind(headers.map(|headers| headers.to_string()))
            .bind(message.body.as_deref())
            .execute(tx.connection())
            .await
            .map_err(|error| adapter("cannot write to the outbox", error))?;
        Ok(())
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
