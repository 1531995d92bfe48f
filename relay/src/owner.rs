//! Holding a lease: which of several relays does the work, and until when it may be sure of that.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::{Lease, Leases};
use backstop_core::{AdapterError, FaultKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::exit::with_cause;

/// What is leased, by whom and for how long.
#[derive(Debug, Clone)]
pub struct OwnerSettings {
    /// The lease's name: one owner for each. Defaults to `outbox`.
    pub lease: String,
    /// Who we are; no two processes may share it. Defaults to the host's name and a fresh suffix.
    pub owner: String,
    /// How long a lease lasts without renewal, and so how long nobody works after a crash. Renewed after a third of
    /// it. Defaults to 10 s.
    pub ttl: Duration,
}

impl Default for OwnerSettings {
    fn default() -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "relay".to_owned());
        let suffix = uuid::Uuid::new_v4().simple().to_string();
        Self { lease: "outbox".to_owned(), owner: format!("{host}-{suffix}"), ttl: Duration::from_secs(10) }
    }
}

/// A lease that is ours, and how long we may rely on it without asking again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenure {
    /// The lease, with the token that fences what we write.
    pub lease: Lease,
    /// Reckoned on our own monotonic clock from before the database was asked, less a tenth for clocks that run at
    /// different speeds: always earlier than the end by the database's clock.
    pub until: Instant,
}

impl Tenure {
    /// Whether the lease is surely still ours.
    pub fn is_live(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Takes a lease, renews it, and waits for it while another has it.
///
/// The work is done by a task of its own, so that slow work elsewhere delays no renewal. Dropping the owner gives the
/// lease back in the background.
pub struct Owner {
    tenures: watch::Receiver<Option<Tenure>>,
    errors: watch::Receiver<Option<Arc<AdapterError>>>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("tenure", &*self.tenures.borrow()).finish_non_exhaustive()
    }
}

impl Owner {
    /// Begins to ask for the lease.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(leases: Arc<dyn Leases>, settings: OwnerSettings) -> Self {
        let (tenure, tenures) = watch::channel(None);
        let (error, errors) = watch::channel(None);
        let stop = CancellationToken::new();
        let keeper = Keeper { leases, settings, tenure, error, stop: stop.clone() };
        Self { tenures, errors, stop, task: Some(tokio::spawn(keeper.run())) }
    }

    /// The tenure now and every change of it; `None` while another owner has the lease. The channel closes when the
    /// owner's task has ended, which it never does by itself.
    pub fn tenures(&self) -> watch::Receiver<Option<Tenure>> {
        self.tenures.clone()
    }

    /// Waits until the lease is ours; `None` when `stop` comes first.
    pub(crate) async fn granted(&self, stop: &CancellationToken) -> Option<Lease> {
        let mut tenures = self.tenures();
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            tenure = tenures.wait_for(Option::is_some) => {
                tenure.ok().and_then(|tenure| tenure.as_ref().map(|tenure| tenure.lease.clone()))
            }
        }
    }

    /// Waits for the loss of the lease, and cancels `term` then. It never comes back: what goes on under the lease ends
    /// by itself.
    ///
    /// A lease that ran out unnoticed, such as while the machine slept, is granted anew with another token: what is fenced
    /// by the old one would be refused for ever.
    pub(crate) async fn cancel_when_lost(&self, lease: &Lease, term: &CancellationToken) -> Infallible {
        let is_another = |tenure: &Option<Tenure>| tenure.as_ref().is_none_or(|now| now.lease != *lease);
        // A closed channel is a lost lease, too.
        let _ = self.tenures().wait_for(is_another).await;
        term.cancel();
        std::future::pending().await
    }

    /// Why the database could not be asked for the lease last time, and every change of it; `None` while it can.
    pub fn errors(&self) -> watch::Receiver<Option<Arc<AdapterError>>> {
        self.errors.clone()
    }

    /// Why the database could not be asked for the lease last time; `None` when it could.
    pub fn last_error(&self) -> Option<Arc<AdapterError>> {
        self.errors.borrow().clone()
    }

    /// Gives the lease back, so that another takes over at once. Waits at most a third of the lease's time for the
    /// database; the lease ends by itself if that fails.
    pub async fn release(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // A task that panicked holds nothing: its lease runs out.
            drop(task.await);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Keeper {
    leases: Arc<dyn Leases>,
    settings: OwnerSettings,
    tenure: watch::Sender<Option<Tenure>>,
    error: watch::Sender<Option<Arc<AdapterError>>>,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = self.keep_asking() => {}
            () = self.watch_the_end() => {}
        }
        let held = self.tenure.send_replace(None);
        if let Some(tenure) = held {
            self.give_back(&tenure.lease).await;
        }
    }

    async fn keep_asking(&self) {
        loop {
            sleep(self.ask().await).await;
        }
    }

    /// Ends the tenure when its time is up, whatever an answer that is still awaited may say later.
    async fn watch_the_end(&self) {
        let mut tenures = self.tenure.subscribe();
        loop {
            let until = tenures.borrow_and_update().as_ref().map(|tenure| tenure.until);
            let end = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tenures.changed() => {}
                () = end => self.lost("it could not be renewed in time"),
            }
        }
    }

    /// Takes or renews the lease once; returns how long to wait before the next time.
    async fn ask(&self) -> Duration {
        let asked = Instant::now();
        let ttl = self.settings.ttl;
        let answer = match timeout(
            ttl / 3,
            self.leases.acquire(&self.settings.lease, &self.settings.owner, ttl),
        )
        .await
        {
            Ok(answer) => answer,
            Err(_) => Err(AdapterError::new(FaultKind::Unreachable, "the database did not answer in time")),
        };
        match answer {
            Ok(Some(lease)) => {
                self.recovered();
                self.granted(Tenure { lease, until: asked + ttl - ttl / 10 });
                ttl / 3
            }
            Ok(None) => {
                self.recovered();
                self.lost("another owner has the lease");
                jittered(ttl / 5)
            }
            Err(error) => {
                self.failed(error);
                jittered(ttl / 10)
            }
        }
    }

    fn granted(&self, tenure: Tenure) {
        let (name, token) = (tenure.lease.name.clone(), tenure.lease.token);
        let before = self.tenure.send_replace(Some(tenure));
        if before.is_none_or(|before| before.lease.token != token) {
            info!(lease = name, token, "lease taken");
        }
    }

    fn lost(&self, why: &str) {
        let before = self.tenure.borrow().as_ref().map(|tenure| tenure.lease.token);
        if let Some(token) = before {
            self.tenure.send_replace(None);
            warn!(lease = self.settings.lease, token, why, "lease lost");
        }
    }

    fn failed(&self, error: AdapterError) {
        let before = self.error.send_replace(Some(Arc::new(error)));
        let now = self.error.borrow();
        if let Some(error) = now.as_ref()
            && before.is_none_or(|before| before.to_string() != error.to_string())
        {
            warn!(
                lease = self.settings.lease,
                error = with_cause(&**error),
                hint = error.hint(),
                "lease cannot be asked for"
            );
        }
    }

    fn recovered(&self) {
        if self.error.borrow().is_some() {
            self.error.send_replace(None);
        }
    }

    async fn give_back(&self, lease: &Lease) {
        match timeout(self.settings.ttl / 3, self.leases.release(lease)).await {
            Ok(Ok(())) => info!(lease = lease.name, token = lease.token, "lease released"),
            Ok(Err(error)) => warn!(
                lease = lease.name,
                error = with_cause(&error),
                "lease not released, it runs out by itself"
            ),
            Err(_) => debug!(lease = lease.name, "lease not released in time, it runs out by itself"),
        }
    }
}

/// Between half and the whole of `most`, so that two standbys do not ask in step.
fn jittered(most: Duration) -> Duration {
    most.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use backstop_core::lease::Holder;
    use futures_core::future::BoxFuture;

    use super::*;

    /// Grants whatever is asked for, with the token that is set.
    #[derive(Default)]
    struct Granting(AtomicI64);

    impl Leases for Granting {
        fn acquire<'a>(
            &'a self,
            name: &'a str,
            owner: &'a str,
            _ttl: Duration,
        ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
            let token = self.0.load(Ordering::SeqCst);
            let lease = Lease { name: name.to_owned(), owner: owner.to_owned(), token };
            Box::pin(std::future::ready(Ok(Some(lease))))
        }

        fn release<'a>(&'a self, _lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn holder<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_granted_anew_under_another_token_ends_the_term() {
        let leases = Arc::new(Granting::default());
        let owner = Owner::start(leases.clone(), OwnerSettings::default());
        let (stop, term) = (CancellationToken::new(), CancellationToken::new());
        let lease = owner.granted(&stop).await.expect("granted");
        let lost = async {
            tokio::select! {
                () = term.cancelled() => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        };
        tokio::pin!(lost);
        let renewed = tokio::time::timeout(Duration::from_secs(60), lost.as_mut()).await;
        assert!(renewed.is_err(), "a renewal is no loss");
        leases.0.store(1, Ordering::SeqCst);
        tokio::time::timeout(Duration::from_secs(60), lost).await.expect("the term ends");
        assert_eq!(owner.granted(&stop).await.expect("granted").token, 1);
    }
}
