//! Tasks of a running relay: none ends unnoticed, and a signal ends them all in order.

use std::collections::HashMap;
use std::future::Future;

use backstop_core::report::escaped;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::exit::{Exit, Failure};

/// Tasks that live and die together: the first that ends, in whatever way, ends the rest.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<Result<(), Failure>>,
    names: HashMap<Id, String>,
}

impl Supervisor {
    /// Starts a task. It is to run until the token given to [`wait`](Supervisor::wait) is cancelled.
    pub fn spawn(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until all tasks have ended. When one ends before `stop` is cancelled, `stop` is cancelled for the
    /// others, and the relay fails.
    ///
    /// # Errors
    /// What the first task that ended said; a panic and an end without reason are failures, too.
    pub async fn wait(mut self, stop: CancellationToken) -> Result<(), Failure> {
        let mut first = None;
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let asked = stop.is_cancelled();
            stop.cancel();
            if let Err(failure) = self.outcome(ended, asked) {
                first.get_or_insert(failure);
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn outcome(
        &self,
        ended: Result<(Id, Result<(), Failure>), JoinError>,
        asked: bool,
    ) -> Result<(), Failure> {
        const HINT: &str = "this is a defect of the relay; restart it and report the log";
        let name = |id: &Id| self.names.get(id).map_or("a task", String::as_str);
        match ended {
            Ok((id, Ok(()))) if asked => {
                info!(task = name(&id), "stopped");
                Ok(())
            }
            Ok((id, Ok(()))) => {
                error!(task = name(&id), "ended although nobody asked it to");
                Err(Failure::new(
                    Exit::Failed,
                    format!("{} ended although nobody asked it to", name(&id)),
                    HINT,
                ))
            }
            Ok((id, Err(failure))) => {
                error!(task = name(&id), cause = %failure, "failed");
                Err(failure)
            }
            Err(join) => {
                let id = join.id();
                let cause = panic_text(join);
                error!(task = name(&id), cause = %cause, "panicked");
                Err(Failure::new(Exit::Failed, format!("{} panicked: {cause}", name(&id)), HINT))
            }
        }
    }
}

fn panic_text(join: JoinError) -> String {
    let Ok(payload) = join.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.map_or_else(|| "for no stated reason".to_owned(), |text| escaped(&text))
}

/// Runs `work` until it ends. The first SIGTERM or SIGINT cancels `stop`, after which `work` is to end in order; the
/// second ends it at once.
///
/// # Errors
/// What `work` says; [`Exit::Interrupted`] after a second signal.
pub async fn until_signalled(
    stop: CancellationToken,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    tokio::pin!(work);
    tokio::select! {
        result = &mut work => return result,
        name = signals.next() => info!(signal = name, "stopping; a second signal stops at once"),
    }
    stop.cancel();
    tokio::select! {
        result = work => result,
        name = signals.next() => {
            error!(signal = name, "stopped at once; unsettled messages come again");
            Err(Failure::of(Exit::Interrupted, Vec::new()))
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|error| {
                let what = format!("cannot listen for signals: {error}");
                Failure::new(Exit::Failed, what, "check the limits of this process")
            })
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F10: no task ends in silence.
    #[tokio::test]
    async fn an_end_nobody_asked_for_stops_the_others_and_fails() {
        let stop = CancellationToken::new();
        let mut supervisor = Supervisor::default();
        supervisor.spawn("idle", async { Ok(()) });
        let seen = stop.clone();
        supervisor.spawn("other", async move {
            seen.cancelled().await;
            Ok(())
        });
        let failure = supervisor.wait(stop).await.expect_err("a failure");
        assert_eq!(failure.to_string(), "idle ended although nobody asked it to");
    }

    #[tokio::test]
    async fn the_first_failure_counts_and_the_others_drain() {
        for panics in [false, true] {
            let stop = CancellationToken::new();
            let mut supervisor = Supervisor::default();
            supervisor.spawn("pump", async move {
                assert!(!panics, "lost");
                Err(Failure::new(Exit::DatabaseRefused, "refused", "grant it"))
            });
            let drained = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let (seen, done) = (stop.clone(), drained.clone());
            supervisor.spawn("collector", async move {
                seen.cancelled().await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                done.store(true, std::sync::atomic::Ordering::SeqCst);
                Err(Failure::new(Exit::BrokerUnreachable, "gone meanwhile", "look"))
            });
            let failure = supervisor.wait(stop).await.expect_err("a failure");
            let expected = if panics { Exit::Failed } else { Exit::DatabaseRefused };
            assert_eq!(failure.exit(), expected, "{failure}");
            assert!(drained.load(std::sync::atomic::Ordering::SeqCst), "the other was cut short");
        }
    }

    /// F10: the process ends with an exit code, and releases the lease.
    #[tokio::test]
    async fn a_panic_is_a_failure_with_its_cause() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn("pump", async { panic!("lost {}", 1) });
        let failure = supervisor.wait(CancellationToken::new()).await.expect_err("a failure");
        assert_eq!((failure.exit(), failure.to_string()), (Exit::Failed, "pump panicked: lost 1".to_owned()));
    }

    #[tokio::test]
    async fn an_end_after_a_stop_is_fine() {
        let stop = CancellationToken::new();
        let mut supervisor = Supervisor::default();
        let seen = stop.clone();
        supervisor.spawn("pump", async move {
            seen.cancelled().await;
            Ok(())
        });
        stop.cancel();
        assert_eq!(supervisor.wait(stop).await, Ok(()));
    }
}
