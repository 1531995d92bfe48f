//! What can be set about a pump.

use std::time::Duration;

use crate::owner::OwnerSettings;

/// What becomes of a row that can never be sent: too large, or invalid in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnsendable {
    /// It moves to the dead rows with its error, and later rows of its key go on.
    #[default]
    Dead,
    /// It stays, and so do later rows of its key; it is tried again after [`PumpSettings::blocked_retry`].
    BlockKey,
    /// The pump ends with [`PumpError::Unsendable`](super::PumpError::Unsendable).
    Stop,
}

/// Settings of a [`Pump`](super::Pump). The defaults suit one outbox of up to some 100,000 rows a second.
#[derive(Debug, Clone)]
pub struct PumpSettings {
    /// The lease that makes this relay the outbox's only owner.
    pub owner: OwnerSettings,
    /// What becomes of a row that can never be sent. Defaults to [`OnUnsendable::Dead`].
    pub on_unsendable: OnUnsendable,
    /// Rows asked for at once. Defaults to 2,500.
    pub read_rows: usize,
    /// Bytes asked for at once. Defaults to 8 MiB.
    pub read_bytes: usize,
    /// Rows read ahead; reading waits above it. Defaults to 10,000.
    pub buffer_rows: usize,
    /// Bytes read ahead; reading waits above it. Defaults to 32 MiB.
    pub buffer_bytes: usize,
    /// Bytes submitted and not confirmed; submitting waits above it. One message may exceed it alone. The number of
    /// messages is bounded by the publisher's window. Defaults to 64 MiB.
    pub in_flight_bytes: usize,
    /// Rows submitted and not yet deleted; submitting waits above it. Bounds what is published again after a crash.
    /// Defaults to 4,000: more gains a few per cent of the rate.
    pub unsettled_rows: usize,
    /// Confirmed rows are deleted when so many wait. Defaults to 1,000.
    pub delete_rows: usize,
    /// Confirmed rows are deleted when one has waited so long. Defaults to 20 ms.
    pub delete_linger: Duration,
    /// Deletes under way at once. Defaults to 2.
    pub deletes: usize,
    /// How soon to read again after a read that brought rows. Defaults to 1 ms.
    pub busy_poll: Duration,
    /// How soon to read again when nothing has come for a while; the way there doubles from `busy_poll`. Costs
    /// latency of the first message after a silence. Defaults to 44 ms.
    pub idle_poll: Duration,
    /// How often to look for scheduled rows whose time has come. Costs a query each time. Defaults to 1 s.
    pub promote_poll: Duration,
    /// First wait after the broker or the database failed; it doubles. At least half of each wait is waited, and never
    /// more than it, so that relays do not come back together. Defaults to 200 ms.
    pub retry_min: Duration,
    /// Longest wait after the broker or the database failed. Defaults to 10 s.
    pub retry_max: Duration,
    /// First wait of a paused destination; it doubles, and at least half of it is waited. Defaults to 1 s.
    pub pause_min: Duration,
    /// Longest wait of a paused destination. Defaults to 30 s.
    pub pause_max: Duration,
    /// How long a blocked key waits at most before its row is tried again; at least half of it. Defaults to 60 s.
    pub blocked_retry: Duration,
    /// How many destinations may be paused, and how many keys blocked, before the whole pump waits (for keys: their
    /// destination). Bounds memory. Defaults to 10,000.
    pub pauses: usize,
    /// How long a call to the database may take before it counts as lost. Defaults to 30 s.
    pub database_timeout: Duration,
    /// How long confirmations may stay out. A destination that confirms nothing for so long is paused; when the pump
    /// waits for nothing but confirmations, or silent destinations take up much of what may be under way, everything
    /// under way is [given up](backstop_core::sink::Publisher::abandon) and published again, with the same ids. When that does not help
    /// within the same time, the pump ends and with it the lease. Defaults to 30 s.
    pub stall_after: Duration,
    /// How long a shutdown waits for confirmations and deletes. Defaults to 10 s.
    pub drain_timeout: Duration,
}

impl Default for PumpSettings {
    fn default() -> Self {
        Self {
            owner: OwnerSettings::default(),
            on_unsendable: OnUnsendable::default(),
            read_rows: 2_500,
            read_bytes: 8 << 20,
            buffer_rows: 10_000,
            buffer_bytes: 32 << 20,
            in_flight_bytes: 64 << 20,
            unsettled_rows: 4_000,
            delete_rows: 1_000,
            delete_linger: Duration::from_millis(20),
            deletes: 2,
            busy_poll: Duration::from_millis(1),
            idle_poll: Duration::from_millis(44),
            promote_poll: Duration::from_secs(1),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            pause_min: Duration::from_secs(1),
            pause_max: Duration::from_secs(30),
            blocked_retry: Duration::from_secs(60),
            pauses: 10_000,
            database_timeout: Duration::from_secs(30),
            stall_after: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
