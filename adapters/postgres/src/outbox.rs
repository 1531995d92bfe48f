//! Writing to the outbox, inside the caller's transaction and nowhere else.

use std::sync::Arc;

use backstop_core::identity::MAX_ID_BYTES;
use backstop_core::outbox::headers_to_json;
use backstop_core::{AdapterError, Outgoing, trace};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use crate::failure::{failed, invalid};
use crate::tables::PgTables;
use crate::time;
use crate::transaction::PgTransaction;

const COLUMNS: &str =
    "id, source, destination, routing_key, key, kind, subject, event_time, content_type, headers, payload";

/// Writes messages into the outbox, from where the relay publishes them.
///
/// ```no_run
/// use backstop_core::{Message, Outgoing};
/// use backstop_postgres::PgOutbox;
///
/// # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = PgOutbox::default();
/// let mut tx = pool.begin().await?;
/// sqlx::query("UPDATE orders SET state = 'placed' WHERE id = 7").execute(&mut *tx).await?;
/// outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("order.placed").key("7").json(&7)?)).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PgOutbox {
    one: Arc<str>,
    many: Arc<str>,
    later: Arc<str>,
}

impl Default for PgOutbox {
    /// The table `backstop_outbox`, found through the `search_path`.
    fn default() -> Self {
        Self::with_tables(&PgTables::default())
    }
}

impl PgOutbox {
    /// The table `backstop_outbox` in that schema.
    ///
    /// # Errors
    /// As [`PgTables::in_schema`].
    pub fn in_schema(schema: &str) -> Result<Self, AdapterError> {
        Ok(Self::with_tables(&PgTables::in_schema(schema)?))
    }

    /// The outbox among those tables.
    pub fn with_tables(tables: &PgTables) -> Self {
        let insert = format!("INSERT INTO {} ({COLUMNS})", tables.outbox());
        let one = format!("{insert} VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11)");
        // Numbers are given in the order of the arrays: the subquery sorts before the identity column is evaluated.
        let many = format!(
            "{insert} SELECT id, source, destination, routing_key, key, kind, subject, event_time, content_type, \
             headers::jsonb, payload FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], \
             $6::text[], $7::text[], $8::timestamptz[], $9::text[], $10::text[], $11::bytea[]) WITH ORDINALITY \
             AS row (id, source, destination, routing_key, key, kind, subject, event_time, content_type, headers, \
             payload, place) ORDER BY place"
        );
        let later = format!(
            "INSERT INTO {} (publish_after, {COLUMNS}) VALUES ($12, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11)",
            tables.outbox_scheduled()
        );
        Self { one: one.into(), many: many.into(), later: later.into() }
    }

    /// Writes one message with one INSERT. It is published if and only if the transaction commits.
    ///
    /// The current span's trace context, and inside a handler the message that is its cause, are written into its
    /// headers.
    ///
    /// # Errors
    /// When the message cannot be stored (its id is empty or longer than 255 bytes, its key or a header is not
    /// UTF-8, a text holds a NUL, its destination is empty, its time is outside the years 0 to 9999), before anything
    /// is sent; or when the database refuses the row, and then the transaction is lost, as after any failed statement.
    pub async fn enqueue(&self, tx: &mut impl PgTransaction, outgoing: Outgoing) -> Result<(), AdapterError> {
        let insert = NewRow::new(outgoing)?.bound(&self.one);
        insert.execute(tx.connection()).await.map_err(failed("write to the outbox"))?;
        Ok(())
    }

    /// Writes one message that is to be published later: the relay moves it into the outbox within a second after
    /// `at` has passed by the database's clock. A time that has passed already is fine. Until then the row can be taken
    /// back, by `DELETE FROM backstop_outbox_scheduled WHERE id = …`.
    ///
    /// Its place among messages of the same key is that of the moment when it is moved.
    ///
    /// # Errors
    /// As [`enqueue`](PgOutbox::enqueue); and when `at` is outside the years 0 to 9999.
    pub async fn enqueue_at(
        &self,
        tx: &mut impl PgTransaction,
        outgoing: Outgoing,
        at: DateTime<Utc>,
    ) -> Result<(), AdapterError> {
        if !time::can_be_told(at) {
            let what = "the time of publication is outside the years 0 to 9999";
            return Err(invalid(what, "give the message a time that RFC 3339 can tell"));
        }
        let insert = NewRow::new(outgoing)?.bound(&self.later).bind(at);
        insert.execute(tx.connection()).await.map_err(failed("write to the outbox"))?;
        Ok(())
    }

    /// Writes many messages with one INSERT, numbered in the order in which they are given.
    ///
    /// # Errors
    /// As [`enqueue`](PgOutbox::enqueue); nothing is written then.
    pub async fn enqueue_all(
        &self,
        tx: &mut impl PgTransaction,
        outgoing: impl IntoIterator<Item = Outgoing>,
    ) -> Result<(), AdapterError> {
        let rows: Vec<NewRow> = outgoing.into_iter().map(NewRow::new).collect::<Result<_, _>>()?;
        if rows.is_empty() {
            return Ok(());
        }
        fn column<'a, T: 'a>(rows: &'a [NewRow], field: impl Fn(&'a NewRow) -> T) -> Vec<T> {
            rows.iter().map(field).collect()
        }
        sqlx::query(AssertSqlSafe(Arc::clone(&self.many)))
            .bind(column(&rows, |row| row.id.as_str()))
            .bind(column(&rows, |row| row.source.as_deref()))
            .bind(column(&rows, |row| row.destination.as_str()))
            .bind(column(&rows, |row| row.routing_key.as_deref()))
            .bind(column(&rows, |row| row.key.as_deref()))
            .bind(column(&rows, |row| row.kind.as_deref()))
            .bind(column(&rows, |row| row.subject.as_deref()))
            .bind(column(&rows, |row| row.time))
            .bind(column(&rows, |row| row.content_type.as_deref()))
            .bind(column(&rows, |row| row.headers.as_deref()))
            .bind(column(&rows, |row| row.payload.as_deref()))
            .execute(tx.connection())
            .await
            .map_err(failed("write to the outbox"))?;
        Ok(())
    }
}

/// A row before it is written; checked, so that the database does not refuse it and abort the transaction.
struct NewRow {
    id: String,
    source: Option<String>,
    destination: String,
    routing_key: Option<String>,
    key: Option<String>,
    kind: Option<String>,
    subject: Option<String>,
    time: Option<DateTime<Utc>>,
    content_type: Option<String>,
    headers: Option<String>,
    payload: Option<Vec<u8>>,
}

impl NewRow {
    fn new(outgoing: Outgoing) -> Result<Self, AdapterError> {
        let Outgoing { destination, mut message } = outgoing;
        trace::inject_current(&mut message.headers);
        if message.id.is_empty() || message.id.len() > MAX_ID_BYTES {
            return Err(invalid(
                "a message id must have 1 to 255 bytes",
                "shorten the id, or leave the default",
            ));
        }
        if destination.name.is_empty() {
            return Err(invalid("the destination is empty", "name a topic, an exchange or a queue"));
        }
        if message.time.is_some_and(|time| !time::can_be_told(time)) {
            let what = "the message's time is outside the years 0 to 9999";
            return Err(invalid(what, "give the message a time that RFC 3339 can tell"));
        }
        let key = message.key.map(|key| String::from_utf8(key.into())).transpose().map_err(|_| {
            invalid("the message key is not UTF-8", "use a key that is text: the outbox keeps it as such")
        })?;
        let headers = headers_to_json(&message.headers)
            .map_err(|what| invalid(what, "encode the value as text, such as base64"))?
            .map(|json| json.to_string());
        let row = Self {
            id: message.id,
            source: some(message.source),
            destination: destination.name,
            routing_key: destination.routing_key,
            key,
            kind: some(message.kind),
            subject: message.subject,
            time: message.time,
            content_type: message.content_type,
            headers,
            payload: message.body.map(Into::into),
        };
        row.refuse_nul(
            message
                .headers
                .iter()
                .any(|(name, value)| name.contains('\0') || value.is_some_and(|value| value.contains(&0))),
        )?;
        Ok(row)
    }

    /// The statement with the values of the row.
    fn bound(self, sql: &Arc<str>) -> Query<'static, Postgres, PgArguments> {
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

    /// PostgreSQL stores no NUL in a text.
    fn refuse_nul(&self, in_headers: bool) -> Result<(), AdapterError> {
        let texts = [
            ("id", Some(&self.id)),
            ("source", self.source.as_ref()),
            ("destination", Some(&self.destination)),
            ("routing key", self.routing_key.as_ref()),
            ("key", self.key.as_ref()),
            ("kind", self.kind.as_ref()),
            ("subject", self.subject.as_ref()),
            ("content type", self.content_type.as_ref()),
        ];
        let with_nul = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0')));
        match with_nul.map(|(name, _)| name).or(in_headers.then_some("headers")) {
            Some(name) => Err(invalid(format!("the message's {name} holds a NUL"), "remove the NUL")),
            None => Ok(()),
        }
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
