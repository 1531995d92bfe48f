//! `run`

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::Lease;
use backstop_core::outbox::OutboxStore;
use backstop_core::sink::Publisher;
use backstop_core::{AdapterError, FaultKind};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker;
use crate::collector::Collector;
use crate::commands::{Context, database};
use crate::config::{Config, OnUnsendable, OutboxConfig};
use crate::desk::Desk;
use crate::exit::{Exit, Failure};
use crate::http::Server;
use crate::jobs::Jobs;
use crate::notify::Notifier;
use crate::owner::OwnerSettings;
use crate::pump::{self, Pump, PumpSettings};
use crate::receipts::Receipts;
use crate::redact::Redaction;
use crate::redrive::Engine;
use crate::retention::{self, Retention};
use crate::rules::Keeper;
use crate::supervise::{Supervisor, until_signalled};

/// First wait for a server that cannot be reached at the start; it doubles, with jitter.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest wait for a server that cannot be reached at the start.
const RETRY_MAX: Duration = Duration::from_secs(10);

pub(super) async fn run(context: &Arc<Context>) -> Result<Exit, Failure> {
    let config = &context.config;
    if config.dead_letters.enabled || config.brokers.is_empty() {
        context.broker()?;
    }
    if !config.outbox.iter().any(|outbox| outbox.enabled) && !config.dead_letters.enabled {
        return Err(Failure::new(
            Exit::Configuration,
            format!("{}: there is nothing to run", context.global.config.display()),
            "set enabled = true in [outbox] or in [dead_letters]",
        ));
    }
    for finding in config.loosened() {
        warn!(remedy = finding.remedy, "{}: {}", finding.subject, finding.detail);
    }
    let stop = CancellationToken::new();
    until_signalled(stop.clone(), Box::pin(work(context, stop))).await?;
    Ok(Exit::Ok)
}

/// Waits for the servers, drains and collects until `stop`; neither job waits for the other's servers. The demo runs
/// this, too.
pub(crate) async fn work(context: &Arc<Context>, stop: CancellationToken) -> Result<(), Failure> {
    let mut supervisor = Supervisor::default();
    let enabled = || context.config.outbox.iter().filter(|outbox| outbox.enabled);
    let jobs = Jobs::new(enabled().map(|outbox| outbox.name.clone()));
    if let Some(http) = &context.config.http {
        let server = Server::bind(http, jobs.clone(), Desk::of(&context.config, jobs.clone())).await?;
        let stop = stop.clone();
        supervisor.spawn("the HTTP server", async move {
            server.run(stop).await;
            Ok(())
        });
    }
    for outbox in enabled().cloned() {
        let (context, stop, jobs) = (context.clone(), stop.clone(), jobs.clone());
        supervisor.spawn(format!("the pump of {:?}", outbox.name), async move {
            match patiently(&stop, &outbox.name, || pump(&context, &outbox, &jobs)).await? {
                Some(pump) => pump.run(stop).await.map(drop).map_err(|error| pump_failure(&error)),
                None => Ok(()),
            }
        });
    }
    if context.config.dead_letters.enabled {
        attend_letters(context, &stop, &mut supervisor);
        attend_receipts(context, &stop, &jobs, &mut supervisor);
        attend_retention(context, &stop, &mut supervisor);
        attend_rules(context, &stop, &mut supervisor);
    }
    if !context.config.notify.is_empty() {
        notify(context, &stop, &mut supervisor);
    }
    supervisor.wait(stop).await
}

/// Tells what happens to dead letters.
fn notify(context: &Arc<Context>, stop: &CancellationToken, supervisor: &mut Supervisor) {
    let (context, stop) = (context.clone(), stop.clone());
    supervisor.spawn("the notifier", async move {
        let letters = &context.config.dead_letters;
        let owner = OwnerSettings {
            lease: format!("{}.notify", letters.name),
            ttl: letters.lease_ttl,
            ..OwnerSettings::default()
        };
        let open = || async {
            Notifier::new(context.ledger().await?, &context.config.notify, owner.clone()).map_err(database)
        };
        if let Some(notifier) = patiently(&stop, "ledger", open).await? {
            notifier.run(stop).await;
        }
        Ok(())
    });
}

/// Collects dead letters, and carries redrives out.
fn attend_letters(context: &Arc<Context>, stop: &CancellationToken, supervisor: &mut Supervisor) {
    let (collecting, until) = (context.clone(), stop.clone());
    supervisor.spawn("the collector of dead letters", async move {
        if let Some(collector) = patiently(&until, "ledger", || collector(&collecting)).await? {
            collector.run(until).await;
        }
        Ok(())
    });
    let (redriving, until) = (context.clone(), stop.clone());
    supervisor.spawn("the engine of redrives", async move {
        if let Some(engine) = patiently(&until, "ledger", || engine(&redriving)).await? {
            engine.run(until).await;
        }
        Ok(())
    });
}

/// Archives and deletes letters whose time is over, where the configuration says when that is.
fn attend_retention(context: &Arc<Context>, stop: &CancellationToken, supervisor: &mut Supervisor) {
    let letters = &context.config.dead_letters;
    let Some(config) = letters.retention.clone() else { return };
    let (context, stop, name) = (context.clone(), stop.clone(), letters.name.clone());
    let owner =
        OwnerSettings { lease: retention::lease(&name), ttl: letters.lease_ttl, ..OwnerSettings::default() };
    supervisor.spawn("the retention of dead letters", async move {
        if let Some(ledger) = patiently(&stop, "ledger", || context.ledger()).await? {
            Retention::new(ledger, name, config)?.run(owner, stop).await;
        }
        Ok(())
    });
}

/// Makes redrives by rules, where somebody wrote some.
fn attend_rules(context: &Arc<Context>, stop: &CancellationToken, supervisor: &mut Supervisor) {
    if context.config.dead_letters.rules.is_empty() {
        return;
    }
    let (context, stop) = (context.clone(), stop.clone());
    supervisor.spawn("the keeper of rules", async move {
        if let Some(ledger) = patiently(&stop, "ledger", || context.ledger()).await? {
            Keeper::new(ledger, context.config.dead_letters.clone()).run(stop).await;
        }
        Ok(())
    });
}

/// Reads receipts where the configuration says where they are.
fn attend_receipts(
    context: &Arc<Context>,
    stop: &CancellationToken,
    jobs: &Jobs,
    supervisor: &mut Supervisor,
) {
    if context.config.dead_letters.receipts.is_empty() {
        return;
    }
    let (context, stop, counts) = (context.clone(), stop.clone(), jobs.receipts().clone());
    supervisor.spawn("the reader of receipts", async move {
        let open = || async {
            let ledger = context.ledger().await?;
            let sources = broker::receipts(context.broker()?, &context.config.dead_letters)
                .map_err(|error| Failure::broker(&error))?;
            Ok(Receipts::new(ledger, sources, counts.clone()))
        };
        if let Some(receipts) = patiently(&stop, "ledger", open).await? {
            receipts.run(stop).await;
        }
        Ok(())
    });
}

/// Tries until it works. What waiting cannot mend ends it; `None` when `stop` came first.
async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    stop: &CancellationToken,
    what: &str,
    open: impl Fn() -> F,
) -> Result<Option<T>, Failure> {
    let mut pause = RETRY_MIN;
    loop {
        let opened = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            opened = open() => opened,
        };
        match opened {
            Ok(opened) => return Ok(Some(opened)),
            Err(failure) if failure.is_unreachable() => {
                let hint = failure.complaints().first().and_then(|complaint| complaint.hint.as_deref());
                warn!(what, cause = %failure, hint, "not reachable yet; trying again");
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn pump(context: &Context, outbox: &OutboxConfig, jobs: &Jobs) -> Result<Pump, Failure> {
    let store = context.outbox(outbox).await?.outbox;
    store.status().await.map_err(database)?;
    may_move(&*store, &outbox.name).await?;
    let config = &context.config;
    let brokers = config.brokers.len() + usize::from(config.broker.is_some());
    let publisher = answering(context.pipeline()?, brokers).await?;
    let pump = Pump::new(store.clone(), publisher, pump_settings(outbox));
    jobs.started(&outbox.name, store, pump.status(), pump.traffic());
    Ok(pump)
}

/// Asks for a burial of nothing, and for a promotion, under a lease that nobody has. Without the permissions, rows that
/// can never be sent and rows that are due would stay, which is better known now than when there are some.
async fn may_move(store: &dyn OutboxStore, lease: &str) -> Result<(), Failure> {
    let lease = Lease { name: lease.to_owned(), owner: String::new(), token: -1 };
    for error in [store.bury(&lease, &[]).await.err(), store.promote(&lease, 1, 0).await.err()] {
        if let Some(error) = error.filter(|error| error.kind() != FaultKind::Conflict) {
            return Err(database(error));
        }
    }
    Ok(())
}

async fn engine(context: &Context) -> Result<Engine<broker::AnySink>, Failure> {
    let ledger = context.ledger().await?;
    ledger.running_redrives().await.map_err(database)?;
    let sink = broker::sink(context.broker()?).map_err(|error| Failure::broker(&error))?;
    Ok(Engine::new(ledger, sink, super::redrive::owner(context)).opening(context.keys()))
}

async fn collector(context: &Context) -> Result<Collector<broker::AnySource>, Failure> {
    let ledger = context.ledger().await?;
    ledger.count(&backstop_core::ledger::LetterFilter::default()).await.map_err(database)?;
    let refused = |error: AdapterError| Failure::broker(&error);
    answering(broker::publisher(context.broker()?).map_err(refused)?, 1).await?;
    let Config { dead_letters, .. } = &context.config;
    let sources = broker::sources(context.broker()?, dead_letters).map_err(refused)?;
    let discovery = broker::discovery(context.broker()?, dead_letters).map_err(refused)?;
    let owner = OwnerSettings {
        lease: dead_letters.name.clone(),
        ttl: dead_letters.lease_ttl,
        ..OwnerSettings::default()
    };
    let redaction = Redaction::new(&dead_letters.redact).map_err(refused)?;
    let collector = Collector::new(ledger, sources, owner).discovering(discovery);
    Ok(collector.redacting(redaction).sealing(context.keys()))
}

/// The publisher, if at least one of its brokers answers: destinations of the others wait in the pump.
async fn answering(publisher: Box<dyn Publisher>, brokers: usize) -> Result<Box<dyn Publisher>, Failure> {
    let faults = publisher.probe(&[]).await;
    let serious = faults.iter().find(|fault| fault.error().kind() != FaultKind::Unreachable);
    match serious.or_else(|| faults.first().filter(|_| faults.len() >= brokers)) {
        Some(fault) => Err(Failure::publish(fault)),
        None => Ok(publisher),
    }
}

fn pump_settings(config: &OutboxConfig) -> PumpSettings {
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    PumpSettings {
        owner: OwnerSettings {
            lease: config.name.clone(),
            ttl: config.lease_ttl,
            ..OwnerSettings::default()
        },
        on_unsendable: match config.on_unsendable {
            OnUnsendable::Dead => pump::OnUnsendable::Dead,
            OnUnsendable::BlockKey => pump::OnUnsendable::BlockKey,
            OnUnsendable::Stop => pump::OnUnsendable::Stop,
        },
        read_rows: size(config.batch_rows),
        read_bytes: size(config.batch_bytes),
        unsettled_rows: size(config.unsettled_rows),
        idle_poll: config.idle_poll,
        ..PumpSettings::default()
    }
}

fn pump_failure(error: &pump::PumpError) -> Failure {
    Failure::new(
        Exit::Failed,
        crate::exit::with_cause(error),
        "mend the cause and start the relay again; see `backstop-relay check`",
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn failure(exit: Exit) -> Failure {
        Failure::new(exit, "no", "look")
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_waited_for_and_a_refusal_is_not() {
        let stop = CancellationToken::new();
        let tries = Cell::new(0);
        let open = |last: Result<u32, Failure>| {
            tries.set(0);
            let tries = &tries;
            move || {
                tries.set(tries.get() + 1);
                let answer =
                    if tries.get() < 20 { Err(failure(Exit::DatabaseUnreachable)) } else { last.clone() };
                async move { answer }
            }
        };
        assert_eq!(patiently(&stop, "outbox", open(Ok(7))).await, Ok(Some(7)));
        let refused = Err(failure(Exit::DatabaseRefused));
        assert_eq!(patiently(&stop, "outbox", open(refused.clone())).await, refused.map(|_: u32| None));
        assert_eq!(tries.get(), 20, "asked once more after a refusal");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_even_while_a_server_does_not_answer() {
        for answers in [false, true] {
            let stop = CancellationToken::new();
            let stopper = stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(60)).await;
                stopper.cancel();
            });
            let open = || async move {
                if !answers {
                    std::future::pending::<()>().await;
                }
                Err::<u32, _>(failure(Exit::BrokerUnreachable))
            };
            assert_eq!(patiently(&stop, "outbox", open).await, Ok(None));
        }
    }
}
