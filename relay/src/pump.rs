//! The relay's engine: outbox → broker, in order of each key, at least once.
//!
//! One task owns the publisher and decides; reads, deletes and burials are tasks of their own, so that none of them
//! waits for another:
//!
//! ```text
//! read ahead ──▶ bounded buffer ──▶ submit (tickets) ──▶ confirmations ──▶ confirmed ──▶ delete in batches
//!     ▲                 │ met a pause: skipped                 │ failed
//!     └── read again ◀──┴────────── pauses ◀───────────────────┘
//! ```
//!
//! What fails is charged by the scope of its error. **Broker** or database: nothing more is submitted, what is under
//! way settles, and after a backoff reading begins again at the lowest row that is still there. **Destination**: it is
//! [paused](PausedDestination); others flow. **Message**: [`OnUnsendable`], and only when the row was refused alone,
//! because a broker may refuse a whole batch for the sake of one message.
//!
//! Rows are never kept for later: what cannot be sent now is read again when its time has come. Memory is bounded by
//! [`PumpSettings`], whatever fails and however long.

mod burials;
mod engine;
mod flight;
mod intake;
mod outage;
mod outcome;
mod pauses;
mod promotions;
mod rounds;
mod settings;
mod settling;
mod silence;
mod stall;
mod status;
mod submit;
mod traffic;
mod trouble;

use std::fmt;
use std::sync::Arc;

use backstop_core::outbox::OutboxStore;
use backstop_core::sink::Publisher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use settings::{OnUnsendable, PumpSettings};
pub use status::{
    BlockedKey, Fault, PausedDestination, PumpError, PumpReport, PumpState, PumpStatus, Trouble,
};
pub use traffic::{BOUNDS, Tally, Traffic};

use crate::owner::Owner;
use crate::standing;
use engine::Engine;
use status::Board;

/// Drains one outbox into one publisher.
pub struct Pump {
    store: Arc<dyn OutboxStore>,
    publisher: Box<dyn Publisher>,
    settings: PumpSettings,
    board: Board,
    status: watch::Receiver<PumpStatus>,
    traffic: Arc<Traffic>,
}

impl fmt::Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Pump {
    /// A pump that has not begun.
    pub fn new(store: Arc<dyn OutboxStore>, publisher: Box<dyn Publisher>, settings: PumpSettings) -> Self {
        let (board, status) = Board::new();
        Self { store, publisher, settings, board, status, traffic: Arc::default() }
    }

    /// How the pump stands: at once on changes of state, otherwise every 100 ms at most.
    pub fn status(&self) -> watch::Receiver<PumpStatus> {
        self.status.clone()
    }

    /// What became of the messages for each destination.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Runs until `shutdown`: waits for the lease, drains the outbox, and begins again after whatever fails. On
    /// shutdown nothing new is sent; confirmations and deletes are waited for up to
    /// [`drain_timeout`](PumpSettings::drain_timeout), then the lease is given back.
    ///
    /// Dropping the future ends everything at once; rows under way are published again by the next owner.
    ///
    /// # Errors
    /// [`PumpError`]; outages of broker and database are no errors.
    pub async fn run(self, shutdown: CancellationToken) -> Result<PumpReport, PumpError> {
        let owner = Owner::start(self.store.clone(), self.settings.owner.clone());
        let told = standing::tell(self.store.clone(), owner.tenures(), self.status);
        let mut engine = Engine::new(self.store, self.publisher, self.settings, self.board, &owner);
        engine.traffic = self.traffic;
        let result = tokio::select! {
            result = Box::pin(engine.run(&shutdown)) => result,
            () = told => Err(PumpError::OwnerLost),
        };
        owner.release().await;
        result
    }
}
