//! Real writers through both brokers, with relays that compete for each outbox.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::killed;
use crate::program::{Broker, Relay};
use crate::scene::{LongWriter, Scene};
use crate::servers;
use crate::workload::Pgbench;

/// Relays on each outbox.
const RELAYS: usize = 3;
/// Transactions in a second, for each broker.
const RATE: u32 = 100;
/// How long rows may stand still after a fault is over.
pub const PROMISED: Duration = Duration::from_secs(10);
/// How long a relay's lease lasts, and so how long its death may go unnoticed.
const LEASE: Duration = Duration::from_secs(10);

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for the relay that works; another one takes its place at once.
    KillRelay,
    /// SIGSTOP for the relay that works, SIGCONT after 15 s.
    StopRelay,
    /// SIGKILL for Kafka, and a start.
    KillKafka,
    /// SIGKILL for RabbitMQ, and a start.
    KillRabbitMq,
    /// An orderly restart of PostgreSQL.
    RestartPostgres,
    /// Relays reach neither database nor broker for 5 s.
    CutNetwork,
    /// A transaction that has written its row stays open for fifteen times the time between faults, or until the end.
    LongWriter,
}

/// In the order in which they come, again and again.
const FAULTS: [Fault; 7] = [
    Fault::KillRelay,
    Fault::CutNetwork,
    Fault::RestartPostgres,
    Fault::LongWriter,
    Fault::KillRabbitMq,
    Fault::StopRelay,
    Fault::KillKafka,
];

impl Fault {
    /// How long rows may stand still from the moment that [`Soak::inflict`] returns.
    fn limit(self) -> Duration {
        match self {
            Self::KillRelay => LEASE + PROMISED,
            _ => PROMISED,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillRelay => "SIGKILL for the owner",
            Self::StopRelay => "SIGSTOP for the owner, 15 s",
            Self::KillKafka => "SIGKILL for Kafka",
            Self::KillRabbitMq => "SIGKILL for RabbitMQ",
            Self::RestartPostgres => "restart of PostgreSQL",
            Self::CutNetwork => "network cut, 5 s",
            Self::LongWriter => "a writer stays open",
        })
    }
}

/// How long rows stood still after a fault.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// What was broken.
    pub fault: Fault,
    /// Through which broker.
    pub broker: Broker,
    /// From the fault's end until the lowest waiting row was gone.
    pub still: Duration,
}

impl Observed {
    /// Whether rows flowed again in time. A killed owner is noticed when its lease ends.
    pub fn in_time(&self) -> bool {
        self.still <= self.fault.limit()
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let broker = if self.broker == Broker::RabbitMq { "RabbitMQ" } else { "Kafka" };
        let late = if self.in_time() { "" } else { "  LATE" };
        write!(f, "{:<28} {broker:<9} {:>5.1} s{late}", self.fault.to_string(), self.still.as_secs_f64())
    }
}

/// What a soak came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Each fault, through each broker.
    pub observed: Vec<Observed>,
    /// Relays that ended by themselves and were started again.
    pub relays_ended: usize,
    /// Consumers that ended by themselves and were started again.
    pub consumers_ended: u32,
    /// Transactions that were committed.
    pub committed: i64,
}

/// One outbox with its relays and its writers.
struct Line {
    scene: Scene,
    relays: Vec<Relay>,
    writers: Writers,
    long: Option<LongWriter>,
}

/// Soaks for `time`, with a fault every `every`, and prints each one.
///
/// # Panics
/// With what is wrong, when the books do not balance in the end.
pub async fn run(time: Duration, every: Duration) -> Outcome {
    let _turn = servers::alone().await;
    let mut soak = Soak { lines: vec![Line::new(Broker::Kafka).await, Line::new(Broker::RabbitMq).await] };
    let mut outcome = Outcome::default();
    let end = Instant::now() + time;
    for fault in FAULTS.iter().cycle() {
        if !soak.is_due(*fault) {
            continue;
        }
        sleep(every).await;
        if Instant::now() >= end {
            break;
        }
        soak.inflict(*fault, every).await;
        for observed in soak.observe(*fault).await {
            println!("{observed}");
            outcome.observed.push(observed);
        }
        outcome.relays_ended += soak.tend();
    }
    for line in soak.lines {
        line.end(&mut outcome).await;
    }
    outcome
}

struct Soak {
    lines: Vec<Line>,
}

impl Soak {
    /// A restart of PostgreSQL would end a writer that stays open, so that the two take turns.
    fn is_due(&self, fault: Fault) -> bool {
        match fault {
            Fault::RestartPostgres => self.lines.iter().all(|line| !line.has_open_writer()),
            Fault::LongWriter => self.lines.iter().all(|line| line.long.is_none()),
            _ => true,
        }
    }

    /// Breaks something, and returns when it is over.
    async fn inflict(&mut self, fault: Fault, every: Duration) {
        match fault {
            Fault::KillRelay => {
                for line in &mut self.lines {
                    let owner = line.owner().await;
                    let next = line.scene.relay();
                    drop(std::mem::replace(&mut line.relays[owner], next));
                }
            }
            Fault::StopRelay => self.stop_owners(Duration::from_secs(15)).await,
            Fault::KillKafka => killed(&["kill", "kafka"], &["start", "kafka"]).await,
            Fault::KillRabbitMq => killed(&["kill", "rabbitmq"], &["start", "rabbitmq"]).await,
            Fault::RestartPostgres => {
                servers::controlled(&["restart", "postgres"]).await;
                self.lines.iter_mut().for_each(|line| line.long = None);
            }
            Fault::CutNetwork => {
                let networks = || self.lines.iter().map(|line| &line.scene.network);
                networks().for_each(|network| {
                    network.database.cut();
                    network.broker.cut();
                });
                sleep(Duration::from_secs(5)).await;
                networks().for_each(|network| {
                    network.database.resume();
                    network.broker.resume();
                });
            }
            Fault::LongWriter => {
                for line in &mut self.lines {
                    line.long = Some(line.scene.stay_open(15 * every).await);
                }
            }
        }
    }

    async fn stop_owners(&self, time: Duration) {
        let mut stopped = Vec::new();
        for line in &self.lines {
            let relay = &line.relays[line.owner().await];
            relay.program.signal("STOP");
            stopped.push(relay);
        }
        sleep(time).await;
        stopped.iter().for_each(|relay| relay.program.signal("CONT"));
    }

    async fn observe(&self, fault: Fault) -> Vec<Observed> {
        let watching = self.lines.iter().map(|line| async move {
            let still = line.scene.flows_again().await;
            Observed { fault, broker: line.scene.broker, still }
        });
        futures_util::future::join_all(watching).await
    }

    /// Starts relays again that have ended by themselves; returns how many.
    fn tend(&mut self) -> usize {
        let mut ended = 0;
        for Line { scene, relays, .. } in &mut self.lines {
            for relay in relays.iter_mut().filter_map(|relay| (!relay.program.is_running()).then_some(relay))
            {
                let log = relay.log();
                eprintln!("a relay ended: {}", log.lines().last().unwrap_or_default());
                *relay = scene.relay();
                ended += 1;
            }
        }
        ended
    }
}

impl Line {
    async fn new(broker: Broker) -> Self {
        let scene = Scene::new(broker, "soak").await;
        let relays = vec![scene.ready_relay().await, scene.relay(), scene.relay()];
        assert_eq!(relays.len(), RELAYS);
        let pgbench = Pgbench::prepare(&scene.database, &scene.place).await;
        Self { scene, relays, writers: Writers::start(pgbench), long: None }
    }

    fn has_open_writer(&self) -> bool {
        self.long.as_ref().is_some_and(|writer| !writer.has_ended())
    }

    /// Which relay owns the outbox; the first one while nobody does.
    async fn owner(&self) -> usize {
        for (index, relay) in self.relays.iter().enumerate() {
            if relay.metric("backstop_relay_leader").await == Some(1.0) {
                return index;
            }
        }
        0
    }

    async fn end(self, outcome: &mut Outcome) {
        self.writers.stop().await;
        if let Some(long) = self.long {
            long.end().await;
        }
        outcome.committed += self.scene.database.committed().await;
        outcome.consumers_ended += self.scene.restarts();
        self.scene.settle().await;
        drop(self.relays);
    }
}

/// pgbench, started again whenever the server throws it out.
struct Writers {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writers {
    fn start(pgbench: Pgbench) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            while !stopped.load(Ordering::SeqCst) {
                // It ends badly when the server goes away, which is what it is here for.
                pgbench.run_for(Duration::from_secs(5), RATE);
            }
        });
        Self { stop, task }
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        (&mut self.task).await.expect("writing does not panic");
    }
}

impl Drop for Writers {
    /// A soak that has failed ends: its runtime waits for this thread.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
