//! The statements of held messages. Why they are as they are, and which variants lose messages, is in the comments.

use std::sync::Arc;

use backstop_core::held::{AFTER_CRASH, Failure, HeldMessage};

use crate::hex::hex;
use crate::of_key::elder;
use crate::tables::PgTables;
use crate::time;

/// A first failure. Nothing of the key need be there, and nothing is locked: the row is its own head, or waits for
/// its elders because only the lowest number of a key runs.
const HOLD: &str = "
    WITH known AS MATERIALIZED (SELECT 1 FROM {inbox} WHERE consumer = $1 AND message_key = $4),
    ins AS (
        INSERT INTO {held} (consumer, place, ordering_key, message_key, msg_key, headers, body, origin, via,
                            state, attempts, throttled, condemned, class, error, due_at, crashes)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8::json, $9,
               'retry', $10, $11, $12, $13, $14, clock_timestamp() + make_interval(secs => $15), $16
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (consumer, message_key) DO NOTHING
        RETURNING n
    )
    SELECT EXISTS (SELECT FROM known), true, (SELECT count(*) FROM ins)";

/// A follower. The lock on an elder keeps it from being deleted before this row is there to be promoted; without the
/// lock the follower could wait for ever. FOR KEY SHARE lets the elder run (FOR NO KEY UPDATE) meanwhile.
const APPEND: &str = "
    WITH known AS MATERIALIZED (SELECT 1 FROM {inbox} WHERE consumer = $1 AND message_key = $4),
    tail AS MATERIALIZED (
        SELECT n FROM {held}
        WHERE consumer = $1 AND place = $2 AND sha256(ordering_key) BETWEEN sha256($3) AND sha256($3)
        ORDER BY sha256(ordering_key) DESC, n DESC LIMIT 1 FOR KEY SHARE
    ), ins AS (
        INSERT INTO {held} (consumer, place, ordering_key, message_key, msg_key, headers, body, origin, via, state)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8::json, $9, 'waiting' FROM tail
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (consumer, message_key) DO NOTHING
        RETURNING n
    )
    SELECT EXISTS (SELECT FROM known), EXISTS (SELECT FROM tail), (SELECT count(*) FROM ins)";

/// A redriven message: behind its elders where there are any (locked as above), else due at once.
const IMPORT: &str = "
    WITH known AS MATERIALIZED (SELECT 1 FROM {inbox} WHERE consumer = $1 AND message_key = $4),
    tail AS MATERIALIZED (
        SELECT n FROM {held}
        WHERE consumer = $1 AND place = $2 AND sha256(ordering_key) BETWEEN sha256($3) AND sha256($3)
        ORDER BY sha256(ordering_key) DESC, n DESC LIMIT 1 FOR KEY SHARE
    ), ins AS (
        INSERT INTO {held} (consumer, place, ordering_key, message_key, msg_key, headers, body, origin, via, state)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8::json, $9,
               CASE WHEN EXISTS (SELECT FROM tail) THEN 'waiting' ELSE 'retry' END
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT (consumer, message_key) DO NOTHING
        RETURNING n
    )
    SELECT EXISTS (SELECT FROM known), true, (SELECT count(*) FROM ins)";

/// The head that is due longest and that nobody else has. FOR NO KEY UPDATE rather than FOR UPDATE: followers are appended
/// while it runs.
const CLAIM: &str = concat!(
    "
    SELECT n, place, ordering_key, message_key, msg_key, headers, body, origin::text, via, attempts, class, error,
           {held_since}, extract(epoch FROM clock_timestamp() - {held_since})::float8, throttled, condemned,
           pg_current_xact_id()::text, crashes
    FROM {held} AS h
    WHERE consumer = $1 AND state = 'retry' AND due_at <= clock_timestamp() AND (crashes > 0) = $2
      AND n = ",
    elder!("h.consumer", "h.place", "h.ordering_key"),
    "
    ORDER BY due_at LIMIT 1
    FOR NO KEY UPDATE OF h SKIP LOCKED"
);

/// The head that was charged, in the transaction in which it is to be handled. Somebody else may have been quicker.
const CLAIM_CHARGED: &str = "
    SELECT pg_current_xact_id()::text FROM {held}
    WHERE n = $1 AND attempts = $2 AND crashes = $3 AND state = 'retry' AND condemned IS NULL
    FOR NO KEY UPDATE SKIP LOCKED";

const ADMIT_HEAD: &str = "
    WITH ins AS (
        INSERT INTO {inbox} (consumer, message_key) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT EXISTS (SELECT FROM ins), set_config('lock_timeout', current_setting('backstop.lock_timeout'), true)
    FROM (SELECT 1) AS one LEFT JOIN ins ON true";

const RESCHEDULE: &str = "
    UPDATE {held} SET state = 'retry', attempts = $3, throttled = $4, condemned = $5, class = $6, error = $7,
           due_at = clock_timestamp() + make_interval(secs => $8), crashes = $9,
           held_since = CASE WHEN class IS NULL THEN clock_timestamp() ELSE held_since END
    WHERE n = $1 AND attempts = $2";

const SUMMARY: &str = "
    SELECT count(*), count(*) FILTER (WHERE state = 'waiting' AND condemned IS NOT NULL),
           extract(epoch FROM clock_timestamp() - min({held_since}))::float8
    FROM {held} WHERE consumer = $1";

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct HeldSql {
    pub(crate) hold: Arc<str>,
    pub(crate) append: Arc<str>,
    pub(crate) import: Arc<str>,
    pub(crate) claim: Arc<str>,
    pub(crate) claim_charged: Arc<str>,
    pub(crate) admit_head: Arc<str>,
    pub(crate) reschedule: Arc<str>,
    pub(crate) summary: Arc<str>,
    table: String,
}

impl HeldSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        let held_since = time::clamped("held_since");
        let fill =
            |statement: &str| Arc::<str>::from(tables.fill(&statement.replace("{held_since}", &held_since)));
        Self {
            hold: fill(HOLD),
            append: fill(APPEND),
            import: fill(IMPORT),
            claim: fill(CLAIM),
            claim_charged: fill(CLAIM_CHARGED),
            admit_head: fill(ADMIT_HEAD),
            reschedule: fill(RESCHEDULE),
            summary: fill(SUMMARY),
            table: tables.quoted("held"),
        }
    }

    /// Deletes a head and promotes its follower. Two statements, because the second must see a follower that was
    /// appended while the first waited. They travel in the string that commits, after its proof: run by themselves
    /// after a handler's ROLLBACK, the DELETE would commit at once and lose the message.
    pub(crate) fn finish(&self, consumer: &str, head: &HeldMessage) -> String {
        self.delete_if("true", consumer, head)
    }

    /// The same for a head that is still condemned as `head` says, with these `headers`.
    pub(crate) fn give_up(&self, consumer: &str, head: &HeldMessage, headers: &[u8]) -> String {
        let (attempts, headers) = (integer(head.attempts), literal(headers));
        let condition = format!("attempts = {attempts} AND headers = {headers} AND condemned IS NOT NULL");
        self.delete_if(&condition, consumer, head)
    }

    fn delete_if(&self, condition: &str, consumer: &str, head: &HeldMessage) -> String {
        let (table, n, key) = (&self.table, head.n, literal(&head.ordering_key));
        let (consumer, place) = (text_literal(consumer), text_literal(&head.place));
        format!(
            "DELETE FROM {table} WHERE n = {n} AND {condition}; \
             UPDATE {table} SET state = 'retry', due_at = clock_timestamp() WHERE state = 'waiting' AND condemned IS NULL \
             AND n = (SELECT n FROM {table} WHERE consumer = {consumer} AND place = {place} \
             AND sha256(ordering_key) BETWEEN sha256({key}) AND sha256({key}) ORDER BY sha256(ordering_key), n LIMIT 1); "
        )
    }

    /// Changes a head inside the string that commits; `error` is storable text.
    pub(crate) fn update_head(&self, n: i64, failure: &Failure, error: &str) -> String {
        let (table, error, class) = (&self.table, text_literal(error), text_literal(failure.class.as_str()));
        let (attempts, throttled) = (integer(failure.attempts), integer(failure.throttled));
        let condemned = failure.condemned.map_or_else(|| "NULL".to_owned(), |why| text_literal(why.as_str()));
        let (seconds, crashes) = (failure.due_in.as_secs_f64(), integer(failure.crashes));
        format!(
            "UPDATE {table} SET state = 'retry', attempts = {attempts}, throttled = {throttled}, \
             condemned = {condemned}, class = {class}, error = {error}, crashes = {crashes}, \
             due_at = clock_timestamp() + make_interval(secs => {seconds:.6}), \
             held_since = CASE WHEN class IS NULL THEN clock_timestamp() ELSE held_since END WHERE n = {n}; "
        )
    }

    /// Puts a head off, unchanged otherwise.
    pub(crate) fn put_off(&self, n: i64, seconds: u32) -> String {
        self.put_off_with("crashes", n, seconds)
    }

    /// Puts a head off that was charged and not run.
    pub(crate) fn put_off_uncharged(&self, head: &HeldMessage, seconds: u32) -> String {
        self.put_off_with(&integer(head.crashes).to_string(), head.n, seconds)
    }

    fn put_off_with(&self, crashes: &str, n: i64, seconds: u32) -> String {
        let table = &self.table;
        format!(
            "UPDATE {table} SET due_at = clock_timestamp() + interval '{seconds} s', crashes = {crashes} \
             WHERE n = {n}; "
        )
    }

    /// Charges a head that is claimed. It is to outlive this process, not the server's.
    pub(crate) fn charge_head(&self, n: i64) -> String {
        let (table, pause) = (&self.table, AFTER_CRASH.as_secs_f64());
        format!(
            "SET LOCAL synchronous_commit = off; \
             UPDATE {table} SET crashes = crashes + 1, due_at = clock_timestamp() + make_interval(secs => {pause}) \
             WHERE n = {n}; "
        )
    }
}

/// A count as the columns take it.
pub(crate) fn integer(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(crate) fn literal(bytes: &[u8]) -> String {
    format!("decode('{}', 'hex')", hex(bytes))
}

pub(crate) fn text_literal(text: &str) -> String {
    format!("convert_from({}, 'UTF8')", literal(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use backstop_core::{Envelope, MessageKey, Origin, Via};

    use super::*;

    #[test]
    fn no_text_ends_a_literal() {
        let head = HeldMessage {
            n: 7,
            place: "p\\'".to_owned(),
            ordering_key: b"\0'".to_vec(),
            message_key: MessageKey::new("/tests", b"1"),
            envelope: Envelope::default(),
            origin: Origin::Kafka { topic: "p".into(), partition: 0, offset: 0, timestamp: None },
            via: Via::Live,
            attempts: 1,
            throttled: 0,
            condemned: None,
            crashes: 0,
            class: None,
            error: None,
            held_since: chrono::Utc::now(),
            age: std::time::Duration::ZERO,
        };
        let sql = HeldSql::new(&PgTables::default()).finish("c'; drop table x; --", &head);
        assert!(!sql.contains("drop"), "{sql}");
        assert_eq!(sql.matches('\'').count() % 2, 0);
    }
}
