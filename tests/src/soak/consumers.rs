//! Producers and two groups of consumers on one topic, with a handler that fails now and then.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::killed;
use super::producers::{Producer, Producers};
use crate::database::Database;
use crate::fleet::Fleet;
use crate::program::{Broker, ConsumerConfig, RelayConfig};
use crate::workload::{self, Placed};
use crate::{letters, servers, wait};

/// Instances of each group.
const INSTANCES: usize = 2;
/// Partitions of the topic.
const PARTITIONS: i32 = 8;
/// Keys by which it is seen that every partition flows again.
const PROBES: usize = 32;
/// Members that join and leave in a storm, one after the other.
const STORM: u32 = 5;
/// The longest wait for anything. Far above what is promised: it only ends soaks that hang.
const PATIENCE: Duration = Duration::from_secs(300);

/// What becomes of a key whose message is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// It goes on without it.
    GoOn,
    /// It waits until the message was redriven.
    Wait,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL for an instance of each group; another one takes its place at once.
    Kill,
    /// SIGSTOP for an instance of each group; SIGCONT after twice the time between faults.
    Stop,
    /// An orderly restart of PostgreSQL.
    RestartPostgres,
    /// SIGKILL for Kafka, and a start.
    KillKafka,
    /// Members join and leave each group, one after the other.
    Storm,
}

/// In the order in which they come, again and again.
const FAULTS: [Fault; 5] = [Fault::Kill, Fault::RestartPostgres, Fault::Stop, Fault::Storm, Fault::KillKafka];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "SIGKILL for an instance",
            Self::Stop => "SIGSTOP for an instance",
            Self::RestartPostgres => "restart of PostgreSQL",
            Self::KillKafka => "SIGKILL for Kafka",
            Self::Storm => "members join and leave",
        })
    }
}

/// How soon a group was at work again after a fault.
#[derive(Debug)]
pub struct Observed {
    /// What was broken.
    pub fault: Fault,
    /// The group.
    pub group: String,
    /// From the fault's end until an event of each probe's key, published then, is applied, and with it all that was before
    /// it in its partition.
    pub caught_up: Duration,
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, caught_up) = (&self.group, self.caught_up.as_secs_f64());
        write!(f, "{:<25} {group:<22} {caught_up:>5.1} s", self.fault.to_string())
    }
}

/// What a soak came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Each fault, for each group.
    pub observed: Vec<Observed>,
    /// Instances that ended by themselves and were started again.
    pub ended: u32,
    /// Events that were published.
    pub published: usize,
    /// Of those, how many fail until the handler is mended.
    pub dead: usize,
}

/// Soaks for `time`, with a fault every `every`, and prints each one.
///
/// # Panics
/// With what is wrong, when the books do not balance in the end.
pub async fn run(keys: Keys, time: Duration, every: Duration) -> Outcome {
    let _turn = servers::alone().await;
    let mut soak = Soak::start(keys).await;
    let mut outcome = Outcome::default();
    let end = Instant::now() + time;
    for fault in FAULTS.iter().cycle() {
        sleep(every).await;
        if Instant::now() >= end {
            break;
        }
        soak.inflict(*fault, every).await;
        for observed in soak.observe(*fault).await {
            println!("{observed}");
            outcome.observed.push(observed);
        }
    }
    soak.end(outcome).await
}

struct Soak {
    keys: Keys,
    database: Database,
    groups: [Fleet; 2],
    producers: Producers,
    prober: Producer,
    probes: Vec<Placed>,
}

impl Soak {
    async fn start(keys: Keys) -> Self {
        let database = Database::fresh("soak").await;
        sqlx::query("CREATE INDEX ON applied (id)").execute(&database.pool).await.expect("our table");
        let place = servers::unique("soak");
        workload::create_place(Broker::Kafka, &place, PARTITIONS).await;
        let group = |broker, stem, shared| {
            let mut config = ConsumerConfig::new(broker, &place, &servers::unique(stem), &database.schema);
            (config.shared, config.ordered) = (shared, keys == Keys::Wait);
            // What a fault costs a message, such as a time out while its process stood still, is not to end it.
            config.max_attempts = 6;
            Fleet::start(config, INSTANCES)
        };
        let groups = [group(Broker::Kafka, "single", 1), group(Broker::KafkaNext, "shared", 64)];
        let producers = Producers::start(&database, &place);
        let prober = Producer::new(&database, &place);
        let mut soak = Self { keys, database, groups, producers, prober, probes: Vec::new() };
        soak.observe(Fault::Storm).await;
        soak
    }

    /// Breaks something, and returns when it is over.
    async fn inflict(&mut self, fault: Fault, every: Duration) {
        match fault {
            Fault::Kill => self.groups.iter_mut().for_each(Fleet::replace_one),
            Fault::Stop => {
                let stopped: Vec<_> = self.groups.iter_mut().map(Fleet::next_instance).collect();
                stopped.iter().for_each(|instance| instance.signal("STOP"));
                sleep(2 * every).await;
                stopped.iter().for_each(|instance| instance.signal("CONT"));
            }
            Fault::RestartPostgres => servers::controlled(&["restart", "postgres"]).await,
            Fault::KillKafka => killed(&["kill", "kafka"], &["start", "kafka"]).await,
            Fault::Storm => {
                for _ in 0..STORM {
                    let guests = self.groups.each_ref().map(|group| group.config.spawn(None));
                    sleep(every / STORM).await;
                    for guest in guests {
                        guest.signal("TERM");
                        guest.ended(PATIENCE).await;
                    }
                }
            }
        }
    }

    /// Publishes an event of each probe's key, and waits until both groups have applied them.
    async fn observe(&mut self, fault: Fault) -> Vec<Observed> {
        let began = Instant::now();
        let mut ids = Vec::new();
        for probe in 0..PROBES {
            let placed = self.prober.publish(format!("probe-{probe}"), None).await;
            ids.push(placed.id.clone());
            self.probes.push(placed);
        }
        let (database, ids) = (&self.database, &ids);
        let watching = self.groups.each_mut().map(|group| async move {
            let name = group.config.group.clone();
            wait::until("the probes are applied", PATIENCE, || {
                group.tend();
                has_applied(database, &name, ids)
            })
            .await;
            Observed { fault, group: name, caught_up: began.elapsed() }
        });
        futures_util::future::join_all(watching).await
    }

    async fn end(mut self, outcome: Outcome) -> Outcome {
        let mut events = self.producers.stop().await;
        events.append(&mut self.probes);
        let dead = events.iter().filter(|placed| placed.ends_dead()).count();
        let scene = Ending { database: &self.database, events: &events, dead };
        match self.keys {
            Keys::GoOn => scene.without_the_dead(&mut self.groups).await,
            Keys::Wait => scene.with_the_redriven(&mut self.groups).await,
        }
        let ended = self.groups.iter().map(|group| group.ended).sum();
        drop(self.groups);
        self.database.drop().await;
        Outcome { ended, published: events.len(), dead, ..outcome }
    }
}

async fn has_applied(database: &Database, group: &str, ids: &[String]) -> bool {
    let applied = "SELECT count(*) FROM applied WHERE consumer = $1 AND id = ANY ($2)";
    let asked = sqlx::query_scalar(applied).bind(group).bind(ids).fetch_one(&database.pool);
    asked.await.is_ok_and(|applied: i64| applied == ids.len() as i64)
}

/// After the last fault.
struct Ending<'a> {
    database: &'a Database,
    events: &'a [Placed],
    dead: usize,
}

impl Ending<'_> {
    /// All but the dead is applied, and each of the dead is a letter.
    async fn without_the_dead(&self, groups: &mut [Fleet]) {
        self.applied(groups, self.events.len() - self.dead).await;
        for group in groups.iter() {
            let letters = letters::read_distinct(&group.config, self.dead).await;
            self.database.assert_balanced_but_for(&group.config.group, self.events, &letters).await;
        }
    }

    /// Keys wait for their dead; once the handler is mended and all letters were redriven, everything is applied.
    async fn with_the_redriven(&self, groups: &mut [Fleet]) {
        let places: Vec<String> = groups.iter().map(|group| letters::place(&group.config)).collect();
        let relay = RelayConfig::new(Broker::Kafka, &self.database.schema, &places);
        let _relay = relay.spawn(None);
        self.stands(groups).await;
        self.database.mend().await;
        for Fleet { config, .. } in groups.iter() {
            let redrive = ["dead-letters", "redrive", "--consumer", &config.group, "--yes"];
            let (code, output) = tokio::task::block_in_place(|| relay.command(&redrive));
            assert_eq!(code, 0, "{output}");
        }
        self.applied(groups, self.events.len()).await;
        for group in groups.iter() {
            self.database.assert_balanced(&group.config.group).await;
        }
    }

    /// Waits until no key goes on by itself any more, and the ledger has all letters for which keys wait.
    async fn stands(&self, groups: &mut [Fleet]) {
        let moving = "SELECT count(*) FROM backstop_held AS h WHERE NOT EXISTS (SELECT FROM backstop_held AS c WHERE \
                      c.consumer = h.consumer AND c.ordering_key = h.ordering_key AND c.state = 'waiting' AND \
                      c.condemned IS NOT NULL)";
        let ended = "SELECT (SELECT count(*) FROM applied) + (SELECT count(*) FROM backstop_held)";
        let unread = "SELECT (SELECT count(*) FROM backstop_held WHERE state = 'waiting' AND condemned IS NOT NULL) - \
                      (SELECT count(*) FROM backstop_letter WHERE status = 'open')";
        let published = (groups.len() * self.events.len()) as i64;
        wait::until("only keys with a letter wait", PATIENCE, || {
            groups.iter_mut().for_each(Fleet::tend);
            async {
                self.database.number(ended).await == published
                    && self.database.number(moving).await == 0
                    && self.database.number(unread).await == 0
            }
        })
        .await;
    }

    async fn applied(&self, groups: &mut [Fleet], events: usize) {
        let wanted = (groups.len() * events) as i64;
        wait::until("all is applied", PATIENCE, || {
            groups.iter_mut().for_each(Fleet::tend);
            async {
                self.database.held().await == 0
                    && self.database.number("SELECT count(*) FROM applied").await >= wanted
            }
        })
        .await;
    }
}
