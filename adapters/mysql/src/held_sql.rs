//! The statements of held messages. Why they are as they are is in the comments.
//!
//! A head stays locked while its handler runs, and InnoDB has no lock that would let followers be appended beside
//! that one and yet keep the head from being deleted. So whoever adds a message to a key, or takes its head away, locks
//! the key's gate: one of a fixed number of rows that hold nothing else, for the length of one short transaction or of
//! the string that commits. A follower is thus either there when its head goes, and is promoted, or finds the key free.
//!
//! Locks are taken in one order, head before gate, and nothing waits for a head behind a gate.

use std::sync::Arc;

use backstop_core::held::{AFTER_CRASH, Failure, HeldMessage};

use crate::literal::{bytes, text};
use crate::tables::MySqlTables;
use crate::time::micros;
use crate::{held_row, literal};

/// How many gates there are. Every instance must agree on it, of whatever version.
pub(crate) const GATES: u32 = 64;

/// Whether a message `h` is the head of its key. By its number: that nothing comes before it would be looked for among all that
/// comes behind it.
pub(crate) const IS_HEAD: &str = "h.n = (SELECT l.n FROM {held} AS l FORCE INDEX (`in_order`)
    WHERE l.consumer = h.consumer AND l.place = h.place AND l.digest = h.digest ORDER BY l.n LIMIT 1)";

const GATE: &str = "SELECT n FROM {gate} WHERE n = ? FOR UPDATE";

/// Whether the message is handled, whether it is held, and whether anything of its key is.
const LOOK: &str = "
    SELECT EXISTS (SELECT 1 FROM {inbox} WHERE consumer = ? AND message_key = ?),
           EXISTS (SELECT 1 FROM {held} WHERE consumer = ? AND message_key = ?),
           EXISTS (SELECT 1 FROM {held} WHERE consumer = ? AND place = ? AND digest = UNHEX(SHA2(?, 256)))";

const INSERT: &str = "
    INSERT INTO {held} (consumer, place, ordering_key, message_key, msg_key, headers, body, origin, via, state,
                        attempts, throttled, condemned, class, error, due_at, crashes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, ?)";

/// The head that is due longest and that nobody else has. The index gives them in the order in which they fall due, so
/// that no row is locked beside those that are looked at, and READ COMMITTED unlocks those that are no heads.
const CLAIM: &str = "
    SELECT h.n FROM {held} AS h FORCE INDEX (`due`)
    WHERE h.consumer = ? AND h.state = 'retry' AND h.due_at <= UTC_TIMESTAMP(6) AND (h.crashes > 0) = ?
      AND {is_head}
    ORDER BY h.due_at LIMIT 1
    FOR UPDATE SKIP LOCKED";

/// The head that was charged, in the transaction in which it is to be handled. Somebody else may have been quicker.
const CLAIM_CHARGED: &str = "
    SELECT n FROM {held} WHERE n = ? AND attempts = ? AND crashes = ? AND state = 'retry' AND condemned IS NULL
    FOR UPDATE SKIP LOCKED";

/// Assignments take effect from left to right: the class is asked for before it is written.
const RESCHEDULE: &str = "
    UPDATE {held} SET state = 'retry', throttled = ?, condemned = ?,
           held_since = IF(class IS NULL, UTC_TIMESTAMP(6), held_since), class = ?, error = ?,
           due_at = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, crashes = ?, attempts = ?
    WHERE n = ? AND attempts = ?";

const GIVEN_UP: &str =
    "SELECT n FROM {held} WHERE n = ? AND attempts = ? AND headers = ? AND condemned IS NOT NULL FOR UPDATE";

const SUMMARY: &str = "
    SELECT COUNT(*), COUNT(IF(state = 'waiting' AND condemned IS NOT NULL, 1, NULL)),
           TIMESTAMPDIFF(MICROSECOND, MIN(held_since), UTC_TIMESTAMP(6))
    FROM {held} WHERE consumer = ?";

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct HeldSql {
    pub(crate) gate: Arc<str>,
    pub(crate) look: Arc<str>,
    pub(crate) insert: Arc<str>,
    pub(crate) claim: Arc<str>,
    pub(crate) claim_charged: Arc<str>,
    pub(crate) head: Arc<str>,
    pub(crate) reschedule: Arc<str>,
    pub(crate) given_up: Arc<str>,
    pub(crate) summary: Arc<str>,
    table: String,
    gates: String,
}

impl HeldSql {
    pub(crate) fn new(tables: &MySqlTables) -> Self {
        let fill = |statement: &str| Arc::<str>::from(tables.fill(statement));
        // The claim may have compared what was committed at different moments; this one has the head for itself.
        let head = format!("SELECT {}, {IS_HEAD} FROM {{held}} AS h WHERE h.n = ?", held_row::COLUMNS);
        Self {
            gate: fill(GATE),
            look: fill(LOOK),
            insert: fill(INSERT),
            claim: fill(&CLAIM.replace("{is_head}", IS_HEAD)),
            claim_charged: fill(CLAIM_CHARGED),
            head: fill(&head),
            reschedule: fill(RESCHEDULE),
            given_up: fill(GIVEN_UP),
            summary: fill(SUMMARY),
            table: tables.quoted("held"),
            gates: tables.quoted("held_gate"),
        }
    }

    /// Deletes a head and makes its follower the head, behind the key's gate.
    pub(crate) fn delete(&self, consumer: &str, head: &HeldMessage) -> Vec<String> {
        let Self { table, gates, .. } = self;
        let gate = gate(consumer, &head.place, &head.ordering_key);
        let (consumer, place) = (bytes(consumer.as_bytes()), bytes(head.place.as_bytes()));
        let key = bytes(&head.ordering_key);
        vec![
            format!("SELECT n FROM {gates} WHERE n = {gate} FOR UPDATE"),
            format!("DELETE FROM {table} WHERE n = {}", head.n),
            // A plain read, which waits for nobody, and is right because the gate is locked. The lowest may have failed by
            // itself before, and then falls due when it was told to.
            format!(
                "SET @backstop_next = (SELECT n FROM {table} FORCE INDEX (`in_order`) WHERE consumer = {consumer} \
                 AND place = {place} AND digest = UNHEX(SHA2({key}, 256)) ORDER BY n LIMIT 1)"
            ),
            format!(
                "UPDATE {table} SET state = 'retry', due_at = UTC_TIMESTAMP(6) \
                 WHERE n = @backstop_next AND state = 'waiting' AND condemned IS NULL"
            ),
        ]
    }

    /// Changes a claimed head.
    pub(crate) fn update_head(&self, n: i64, failure: &Failure) -> String {
        let (table, due_in) = (&self.table, micros(failure.due_in));
        let (error, class) = (text(&failure.error), literal::text(failure.class.as_str()));
        let (attempts, throttled) = (integer(failure.attempts), integer(failure.throttled));
        let crashes = integer(failure.crashes);
        let condemned = failure.condemned.map_or_else(|| "NULL".to_owned(), |why| text(why.as_str()));
        format!(
            "UPDATE {table} SET state = 'retry', attempts = {attempts}, throttled = {throttled}, \
             condemned = {condemned}, crashes = {crashes}, held_since = IF(class IS NULL, UTC_TIMESTAMP(6), held_since), class = {class}, error = {error}, \
             due_at = UTC_TIMESTAMP(6) + INTERVAL {due_in} MICROSECOND WHERE n = {n}"
        )
    }

    /// Puts a head off, unchanged otherwise.
    pub(crate) fn put_off(&self, n: i64, seconds: u32) -> String {
        let table = &self.table;
        format!("UPDATE {table} SET due_at = UTC_TIMESTAMP(6) + INTERVAL {seconds} SECOND WHERE n = {n}")
    }

    /// Puts a head off that was charged and not run.
    pub(crate) fn put_off_uncharged(&self, head: &HeldMessage, seconds: u32) -> String {
        let (table, n, crashes) = (&self.table, head.n, integer(head.crashes));
        format!(
            "UPDATE {table} SET due_at = UTC_TIMESTAMP(6) + INTERVAL {seconds} SECOND, crashes = {crashes} \
             WHERE n = {n}"
        )
    }

    /// Charges a head that is claimed.
    pub(crate) fn charge_head(&self, n: i64) -> String {
        let (table, pause) = (&self.table, micros(AFTER_CRASH));
        format!(
            "UPDATE {table} SET due_at = UTC_TIMESTAMP(6) + INTERVAL {pause} MICROSECOND, crashes = crashes + 1 \
             WHERE n = {n}"
        )
    }
}

/// A count as the columns take it.
pub(crate) fn integer(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The number of the key's gate: FNV-1a, because every instance must come to the same one, of whatever version.
pub(crate) fn gate(consumer: &str, place: &str, ordering_key: &[u8]) -> u32 {
    let parts = [consumer.as_bytes(), b"\0", place.as_bytes(), b"\0", ordering_key];
    let hash = parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u32::try_from((hash ^ (hash >> 32)) % u64::from(GATES)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_never_change_and_are_all_used() {
        assert_eq!([gate("stock", "orders", b"7"), gate("stock", "orders", b"")], [49, 20]);
        let used: std::collections::BTreeSet<u32> =
            (0..2_000).map(|n: u32| gate("stock", "orders", &n.to_be_bytes())).collect();
        assert_eq!(used, (0..GATES).collect());
    }
}
