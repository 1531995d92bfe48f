//! How much is measured.

use std::time::Duration;

/// The numbers of a run.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// Every throughput is the median of so many.
    pub(crate) rounds: usize,
    /// Rows of the backlog that is drained, from each database.
    pub(crate) backlog: usize,
    /// Messages that the consumer handles.
    pub(crate) messages: usize,
    /// Messages that it handles in groups.
    pub(crate) grouped: usize,
    /// Messages that are read and handled without any work.
    pub(crate) polled: usize,
    /// Messages whose handlers wait 1 ms, 256 of them at once; of slower ones as many as take as long.
    pub(crate) waited: usize,
    /// Messages whose handlers share rows.
    pub(crate) shared: usize,
    /// Messages of which those of one key are slow.
    pub(crate) behind: usize,
    /// Dead letters that are collected.
    pub(crate) letters: usize,
    /// Dead letters that are redriven.
    pub(crate) redriven: usize,
    /// Dead letters in the ledger while its pages are asked for.
    pub(crate) shown: usize,
    /// How often each page is asked for.
    pub(crate) asked: usize,
    /// Commits a second of the steady load.
    pub(crate) rate: usize,
    /// How long the steady load lasts.
    pub(crate) steady: Duration,
    /// Single messages on an idle system.
    pub(crate) singles: usize,
    /// Rows that come and go while something is held open.
    pub(crate) churn: usize,
    /// The largest backlog whose cost per row is measured.
    pub(crate) pending: usize,
    /// Transactions of one row each whose cost is measured.
    pub(crate) transactions: usize,
    /// Rows that the program drains while its memory is watched.
    pub(crate) watched: usize,
    /// How long the program is watched while it is idle.
    pub(crate) idle: Duration,
    /// Rows of the backlog during which the program is killed.
    pub(crate) killed: usize,
    /// Rows that wait for a broker that is away, and rows for ten destinations of which one is denied.
    pub(crate) waiting: usize,
    /// How long a broker is away.
    pub(crate) away: Duration,
    /// How long a destination is denied.
    pub(crate) denied: Duration,
}

/// What is measured.
pub(crate) const FULL: Sizes = Sizes {
    rounds: 3,
    backlog: 1_000_000,
    messages: 50_000,
    grouped: 200_000,
    polled: 500_000,
    waited: 750_000,
    shared: 200_000,
    behind: 1_000_000,
    letters: 100_000,
    redriven: 50_000,
    shown: 1_000_000,
    asked: 20,
    rate: 1_000,
    steady: Duration::from_secs(20),
    singles: 20,
    churn: 2_000_000,
    pending: 5_000_000,
    transactions: 20_000,
    watched: 5_000_000,
    idle: Duration::from_secs(30),
    killed: 1_000_000,
    waiting: 1_000_000,
    away: Duration::from_secs(600),
    denied: Duration::from_secs(300),
};

/// What shows in two minutes that everything works.
pub(crate) const SHORT: Sizes = Sizes {
    rounds: 1,
    backlog: 10_000,
    messages: 2_000,
    grouped: 5_000,
    polled: 10_000,
    waited: 5_000,
    shared: 500,
    behind: 10_000,
    letters: 3_000,
    redriven: 300,
    shown: 3_000,
    asked: 1,
    rate: 200,
    steady: Duration::from_secs(2),
    singles: 2,
    churn: 20_000,
    pending: 10_000,
    transactions: 500,
    watched: 5_000,
    idle: Duration::from_secs(2),
    killed: 20_000,
    waiting: 5_000,
    away: Duration::from_secs(1),
    denied: Duration::from_secs(2),
};

impl Sizes {
    /// Gives every backlog so many rows.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        self.backlog = rows;
        self.messages = rows;
        self.grouped = rows;
        self.polled = rows;
        self.waited = rows;
        self.shared = rows;
        self.behind = rows;
        self.letters = rows;
        self.redriven = rows;
        self.shown = rows;
        self.churn = rows;
        self.pending = rows;
        self.watched = rows;
        self.killed = rows;
        self.waiting = rows;
    }

    /// Lets every outage last so long.
    pub(crate) fn set_outage(&mut self, time: Duration) {
        self.away = time;
        self.denied = time;
    }
}
