//! Writing to the outbox, inside the caller's transaction and nowhere else.

use std::sync::Arc;

use backstop_core::identity::MAX_ID_BYTES;
use backstop_core::outbox::headers_to_json;
use backstop_core::{AdapterError, Outgoing, trace};
use sqlx::AssertSqlSafe;

use crate::failure::{failed, invalid};
use crate::tables::MySqlTables;
use crate::time;
use crate::transaction::MySqlTransaction;

const COLUMNS: &str = "(id, source, destination, routing_key, `key`, kind, subject, event_time, content_type, headers, \
     payload)";
const PLACES: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// Rows of one INSERT: a statement takes 65,535 parameters.
const ROWS_AT_ONCE: usize = 1_000;
/// Bytes of one INSERT, unless one row alone has more: the server's `max_allowed_packet` may be as small as 16 MiB.
const BYTES_AT_ONCE: usize = 4 << 20;

/// Longest destination and routing key, in characters.
const MAX_NAME: usize = 255;
/// Longest source, kind, subject and content type, in bytes.
const MAX_TEXT: usize = 65_535;
/// Longest key, in bytes.
const MAX_KEY: usize = 16_777_215;

/// Writes messages into the outbox, from where the relay publishes them.
///
/// ```no_run
/// use backstop_core::{Message, Outgoing};
/// use backstop_mysql::MySqlOutbox;
///
/// # async fn place(pool: sqlx::MySqlPool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = MySqlOutbox::default();
/// let mut tx = pool.begin().await?;
/// sqlx::query("UPDATE orders SET state = 'placed' WHERE id = 7").execute(&mut *tx).await?;
/// outbox.enqueue(&mut tx, Outgoing::to("orders", Message::new("order.placed").key("7").json(&7)?)).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MySqlOutbox {
    insert: Arc<str>,
    one: Arc<str>,
}

impl Default for MySqlOutbox {
    /// The table `backstop_outbox` in the connection's database.
    fn default() -> Self {
        Self::with_tables(&MySqlTables::default())
    }
}

impl MySqlOutbox {
    /// The table `backstop_outbox` in that database.
    ///
    /// # Errors
    /// As [`MySqlTables::in_schema`].
    pub fn in_schema(schema: &str) -> Result<Self, AdapterError> {
        Ok(Self::with_tables(&MySqlTables::in_schema(schema)?))
    }

    /// The outbox among those tables.
    pub fn with_tables(tables: &MySqlTables) -> Self {
        let insert = format!("INSERT INTO {} {COLUMNS} VALUES ", tables.outbox());
        let one = format!("{insert}{PLACES}");
        Self { insert: insert.into(), one: one.into() }
    }

    /// Writes one message with one INSERT. It is published if and only if the transaction commits.
    ///
    /// The current span's trace context, and inside a handler the message that is its cause, are written into its
    /// headers.
    ///
    /// # Errors
    /// When the message cannot be stored (its id is empty or longer than 255 bytes, its destination is empty, it or the
    /// routing key is longer than 255 characters, its key or a header is not UTF-8, the id or destination holds a NUL,
    /// its time is outside the years 0 to 9999), before anything is sent; or when the database refuses the row. After a
    /// deadlock the transaction is lost.
    pub async fn enqueue(
        &self,
        tx: &mut impl MySqlTransaction,
        outgoing: Outgoing,
    ) -> Result<(), AdapterError> {
        let row = NewRow::new(outgoing)?;
        write(Arc::clone(&self.one), std::slice::from_ref(&row), tx).await
    }

    /// Writes many messages with few INSERTs, numbered in the order in which they are given.
    ///
    /// # Errors
    /// As [`enqueue`](MySqlOutbox::enqueue). Where a message cannot be stored, nothing is written; where the database
    /// refuses a row, some may be, and the transaction must not commit.
    pub async fn enqueue_all(
        &self,
        tx: &mut impl MySqlTransaction,
        outgoing: impl IntoIterator<Item = Outgoing>,
    ) -> Result<(), AdapterError> {
        let rows: Vec<NewRow> = outgoing.into_iter().map(NewRow::new).collect::<Result<_, _>>()?;
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            let places = vec![PLACES; now.len()].join(", ");
            write(format!("{}{places}", self.insert).into(), now, tx).await?;
            rest = later;
        }
        Ok(())
    }
}

/// How many rows go into the next INSERT: at least one.
fn fitting(rows: &[NewRow]) -> usize {
    let mut bytes = 0;
    let fitting = rows.iter().take(ROWS_AT_ONCE).take_while(|row| {
        bytes += row.size();
        bytes <= BYTES_AT_ONCE
    });
    fitting.count().max(1)
}

async fn write(sql: Arc<str>, rows: &[NewRow], tx: &mut impl MySqlTransaction) -> Result<(), AdapterError> {
    // Statements for many rows are as many as there are numbers of rows: they are not kept.
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() == 1);
    for row in rows {
        query = query
            .bind(&row.id)
            .bind(&row.source)
            .bind(&row.destination)
            .bind(&row.routing_key)
            .bind(&row.key)
            .bind(&row.kind)
            .bind(&row.subject)
            .bind(&row.time)
            .bind(&row.content_type)
            .bind(&row.headers)
            .bind(&row.payload);
    }
    query.execute(tx.connection()).await.map_err(failed("write to the outbox"))?;
    Ok(())
}

/// A row before it is written; checked, because a session without a strict mode would cut off what is too long.
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
            time: message.time.map(time::column),
            content_type: message.content_type,
            headers,
            payload: message.body.map(Into::into),
        };
        row.check_lengths()?;
        row.refuse_nul()?;
        Ok(row)
    }

    fn check_lengths(&self) -> Result<(), AdapterError> {
        let names = [("destination", Some(&self.destination)), ("routing key", self.routing_key.as_ref())];
        let texts = [
            ("source", &self.source, MAX_TEXT),
            ("kind", &self.kind, MAX_TEXT),
            ("subject", &self.subject, MAX_TEXT),
            ("content type", &self.content_type, MAX_TEXT),
            ("key", &self.key, MAX_KEY),
        ];
        let long_name = names
            .into_iter()
            .find(|(_, text)| text.is_some_and(|text| text.chars().count() > MAX_NAME))
            .map(|(name, _)| (name, MAX_NAME));
        let long_text = texts
            .into_iter()
            .find(|(_, text, limit)| text.as_ref().is_some_and(|text| text.len() > *limit))
            .map(|(name, _, limit)| (name, limit));
        match long_name.or(long_text) {
            Some((name, limit)) => {
                Err(invalid(format!("the message's {name} is longer than {limit}"), "shorten it"))
            }
            None => Ok(()),
        }
    }

    /// Names and identities with a NUL are refused by other parts, and by the other databases.
    fn refuse_nul(&self) -> Result<(), AdapterError> {
        for (name, text) in [("id", &self.id), ("destination", &self.destination)] {
            if text.contains('\0') {
                return Err(invalid(format!("the message's {name} holds a NUL"), "remove the NUL"));
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.payload.as_ref().map_or(0, Vec::len) + length(&self.key) + length(&self.headers) + 512
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
