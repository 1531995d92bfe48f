//! The faults of a relay, and all parts of the page, by the numbers that tests name them by.

use crate::consumers;

/// A fault.
pub(crate) struct Fault {
    pub(crate) number: u8,
    pub(crate) what: &'static str,
    pub(crate) must_hold: &'static str,
    /// What no test here shows, and why.
    pub(crate) not_shown: Option<&'static str>,
}

pub(crate) const fn shown(number: u8, what: &'static str, must_hold: &'static str) -> Fault {
    Fault { number, what, must_hold, not_shown: None }
}

pub(crate) const fn but(
    number: u8,
    what: &'static str,
    must_hold: &'static str,
    not_shown: &'static str,
) -> Fault {
    Fault { number, what, must_hold, not_shown: Some(not_shown) }
}

/// Parts of the page.
pub(crate) const PARTS: [(&str, &[Fault]); 6] = [
    ("Relay: crash and progress", PROGRESS),
    ("Relay: the database", DATABASE),
    ("Relay: the broker", BROKER),
    ("Consumer: Kafka", consumers::KAFKA),
    ("Consumer: RabbitMQ", consumers::RABBITMQ),
    ("Consumer: inbox and handler", consumers::HANDLERS),
];

const PROGRESS: &[Fault] = &[
    shown(
        1,
        "SIGKILL after rows were read, before they are published",
        "another relay reads them again; nobody is charged",
    ),
    shown(
        2,
        "SIGKILL after the broker confirmed, before the row is deleted",
        "published again under the same id",
    ),
    shown(3, "SIGKILL while rows are deleted", "a batch is deleted whole or not at all"),
    shown(
        4,
        "SIGTERM under load",
        "what is under way is confirmed and deleted, the lease is given back, exit code 0",
    ),
    shown(
        5,
        "SIGSTOP for longer than the lease, then SIGCONT",
        "a sleeper changes nothing that is not its own any more",
    ),
    shown(6, "a broker so slow that a batch outlasts the lease", "the lease is renewed meanwhile"),
    shown(7, "two relays with one configuration", "one works, the other stands by"),
    shown(
        8,
        "the outbox changes hands with sends under way",
        "the next owner begins after them, or they are repeated in order",
    ),
    but(
        9,
        "the clock of one machine is wrong, or jumps",
        "leases end by the database's clock and are relied upon by a clock that nobody can set",
        "A machine's clock cannot be set for one process alone; no wall clock takes part in a decision.",
    ),
    shown(10, "a panic in one task", "the task is replaced, or the process ends with an exit code"),
    shown(
        11,
        "the broker is away for long",
        "nothing is charged or dies, memory is bounded, order is kept, rows flow by themselves afterwards",
    ),
    shown(12, "one row among many that can never be sent", "only that row, or its key, stops"),
];

const DATABASE: &[Fault] = &[
    shown(13, "a lower number commits after a higher one", "both are sent"),
    shown(14, "numbers that a rollback left out", "nobody waits for them for ever"),
    shown(
        15,
        "a transaction that stays open elsewhere",
        "reads cost no more, and its rows come when it commits",
    ),
    shown(16, "PostgreSQL restarts, or ends every connection", "the relay connects again and goes on"),
    but(
        17,
        "a fail-over to a standby that lacks the last commits",
        "numbers that come again are other rows, ids do not come again",
        "Two servers would be needed; shown with a sequence that is set back, which is what a relay sees of it.",
    ),
    but(18, "a replication slot is lost", "an error, never a silent new one", NO_REPLICATION),
    but(
        19,
        "a crash between reading the log and the broker's confirmation",
        "the log is confirmed behind it only",
        NO_REPLICATION,
    ),
    but(20, "a crash within one large transaction of the log", "no event of it is skipped", NO_REPLICATION),
    but(
        21,
        "the disk is full, or the database read-only",
        "no row counts as sent that is not; the relay waits and goes on",
        "A full disk itself would stop the test's own server for others; a relay sees the same failed writes.",
    ),
    shown(
        22,
        "deadlocks, lock timeouts and lost answers when rows are deleted",
        "deleted again; what was confirmed is not forgotten",
    ),
    shown(23, "MySQL's gap locks", "neither writers nor relays wait for each other"),
    shown(
        24,
        "a notification is lost",
        "rows come within the polling interval, because nothing rests on notifications",
    ),
    but(
        25,
        "PgBouncer in transaction mode",
        "leases and reads work without a session",
        "that rows flow behind a PgBouncer that keeps prepared statements (1.21 or later with \
         `max_prepared_statements`), because the tests run an older one. No lock or setting of a session is used; \
         `check` tells a pooler that loses prepared statements.",
    ),
    shown(26, "a dump is restored, or the sequence starts over", "the reader starts over, too"),
    but(
        27,
        "SIGKILL for a process on SQLite, and loss of power",
        "what was committed is there",
        "Power cannot be cut here; `synchronous = FULL`, which the adapter sets and checks, is SQLite's promise for it.",
    ),
    shown(28, "many writers of one SQLite file", "waits are bounded, and no row is missed"),
    shown(
        29,
        "a column or table is gone, or a permission revoked, while the relay runs",
        "readiness is gone, the log names it, rows flow when it is mended",
    ),
    but(
        30,
        "retention removes rows that are not sent",
        "never",
        "There is no retention of the outbox: rows are deleted one by one after their confirmation.",
    ),
    but(
        31,
        "relays of two versions side by side",
        "they agree about the lease, and lose nothing",
        "There is no released version to compare with; shown with processes of one version.",
    ),
];

const NO_REPLICATION: &str = "The relay does not read the log of the database.";

const BROKER: &[Fault] = &[
    shown(32, "RabbitMQ returns a message and then acks it", "a failure of exactly that message"),
    shown(33, "RabbitMQ drops what no queue takes", "impossible: everything is published as mandatory"),
    shown(
        34,
        "confirms of several messages at once, out of order, or negative",
        "each message has its own outcome",
    ),
    shown(
        35,
        "connection or channel close with messages unconfirmed",
        "each is of unknown outcome, and is sent again",
    ),
    shown(36, "RabbitMQ blocks publishers by an alarm", "rows wait, and nobody is charged"),
    shown(
        37,
        "an exchange, queue or topic is deleted while the relay runs",
        "only what goes there waits, and resumes",
    ),
    shown(38, "a queue is full", "its rows wait in order"),
    shown(
        39,
        "Kafka's report of a delivery is late, or never comes",
        "sent again; order within the key is kept",
    ),
    shown(40, "a topic is missing from Kafka's metadata for a moment", "nothing is dropped in silence"),
    shown(41, "no leader, or too few replicas", "never taken for stored; tried again in order"),
    but(
        42,
        "the broker loses what it had confirmed",
        "beyond what a relay can mend",
        "Rows are deleted once they are confirmed, so there is nothing to send again.",
    ),
    but(
        43,
        "a zombie transactional producer",
        "cannot be: the publisher is idempotent and uses no transactions",
        "There is no transactional producer.",
    ),
    shown(44, "a message larger than the broker takes", "dead with its reason, at once"),
    shown(
        45,
        "half-open connections, slow links, connections that end inside a frame",
        "noticed in bounded time, and nothing is lost",
    ),
    but(
        46,
        "every broker has a new address",
        "names are resolved again when a connection is made",
        "Names cannot be moved for one process alone.",
    ),
    shown(47, "a password stops being valid", "a clear error without the password, waits, not ready"),
];
