//! A broker in memory: keeps key order, confirms when it likes, and fails what it is told to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backstop_core::cloudevents::Binding;
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope};
use backstop_core::{AdapterError, Destination, Envelope, FaultKind};
use futures_core::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) destination: String,
    pub(crate) seq: i64,
}

/// What fails and how slow it is.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// Everything fails.
    pub(crate) down: bool,
    /// Nothing is ever confirmed.
    pub(crate) frozen: bool,
    /// These destinations never confirm.
    pub(crate) silent: HashSet<String>,
    /// Giving up what is under way does not help.
    pub(crate) deaf: bool,
    /// Destinations that are not there.
    pub(crate) missing: HashSet<String>,
    /// Rows that are refused when submitted.
    pub(crate) invalid: HashSet<i64>,
    /// Rows that are refused by the broker, and with them all that is under way to their destination.
    pub(crate) too_large: HashSet<i64>,
    /// Confirmations take up to so many milliseconds.
    pub(crate) slowest: u64,
    /// One of so many fails with a broker error; 0 for none.
    pub(crate) flaky: u64,
    /// Messages under way at most.
    pub(crate) window: usize,
    /// Above so many the publisher says that it is full.
    pub(crate) queue: usize,
    /// Whether probes tell the truth; otherwise they find nothing wrong.
    pub(crate) probes: bool,
    /// Probes of these destinations are not answered.
    pub(crate) hanging: HashSet<String>,
}

struct InFlight {
    ticket: u64,
    record: Record,
    key: Option<Vec<u8>>,
    at: Instant,
}

struct Data {
    rules: Rules,
    log: Vec<Record>,
    submitted: u64,
    abandons: u64,
    under_way: usize,
    most_under_way: usize,
    random: fastrand::Rng,
}

/// The broker; clones share it.
#[derive(Clone)]
pub(crate) struct Broker {
    data: Arc<Mutex<Data>>,
}

impl Broker {
    pub(crate) fn new(seed: u64) -> Self {
        let rules = Rules {
            down: false,
            frozen: false,
            silent: HashSet::new(),
            deaf: false,
            missing: HashSet::new(),
            invalid: HashSet::new(),
            too_large: HashSet::new(),
            slowest: 5,
            flaky: 0,
            window: 50,
            queue: 1_000,
            probes: true,
            hanging: HashSet::new(),
        };
        let random = fastrand::Rng::with_seed(seed);
        let data = Data {
            rules,
            log: Vec::new(),
            submitted: 0,
            abandons: 0,
            under_way: 0,
            most_under_way: 0,
            random,
        };
        Self { data: Arc::new(Mutex::new(data)) }
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().expect("no panic while locked")
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.data().rules);
    }

    pub(crate) fn log(&self) -> Vec<Record> {
        self.data().log.clone()
    }

    /// The numbers stored at a destination, in order.
    pub(crate) fn stored(&self, destination: &str) -> Vec<i64> {
        let log = self.log();
        log.into_iter().filter(|record| record.destination == destination).map(|record| record.seq).collect()
    }

    /// How often something was submitted.
    pub(crate) fn submitted(&self) -> u64 {
        self.data().submitted
    }

    pub(crate) fn most_under_way(&self) -> usize {
        self.data().most_under_way
    }

    /// How often everything under way was given up.
    pub(crate) fn abandons(&self) -> u64 {
        self.data().abandons
    }

    pub(crate) fn publisher(&self) -> FakePublisher {
        FakePublisher {
            broker: self.clone(),
            in_flight: BTreeMap::new(),
            number: 0,
            last: HashMap::new(),
            abandoned: Vec::new(),
        }
    }
}

fn error(scope: Scope) -> PublishError {
    let kind = match scope {
        Scope::Broker => FaultKind::Unreachable,
        Scope::Destination => FaultKind::Missing,
        Scope::Message => FaultKind::Invalid,
    };
    PublishError::new(scope, AdapterError::new(kind, format!("{scope} fails")).with_hint("mend it"))
}

pub(crate) struct FakePublisher {
    broker: Broker,
    in_flight: BTreeMap<u64, InFlight>,
    number: u64,
    last: HashMap<(String, Vec<u8>), Instant>,
    /// Tickets that were given up and are not yet told of.
    abandoned: Vec<u64>,
}

impl FakePublisher {
    fn due(&self) -> Option<u64> {
        let now = Instant::now();
        let data = self.broker.data();
        let due = self.in_flight.iter().filter(|(_, message)| {
            message.at <= now && !data.rules.silent.contains(&message.record.destination)
        });
        due.min_by_key(|(number, message)| (message.at, **number)).map(|(number, _)| *number)
    }

    /// Settles one message, and with a failed one whatever must not overtake it.
    fn settle(&mut self, number: u64, into: &mut Vec<Confirmation>) {
        let message = self.in_flight.remove(&number).expect("due");
        let broker = self.broker.clone();
        let mut data = broker.data();
        let flaky = data.rules.flaky;
        let scope = if data.rules.down || (flaky > 0 && data.random.u64(0..flaky) == 0) {
            Some(Scope::Broker)
        } else if data.rules.missing.contains(&message.record.destination) {
            Some(Scope::Destination)
        } else if data.rules.too_large.contains(&message.record.seq) {
            Some(Scope::Message)
        } else {
            None
        };
        let Some(scope) = scope else {
            data.log.push(message.record);
            into.push(Confirmation { ticket: message.ticket, result: Ok(()) });
            data.under_way = self.in_flight.len();
            return;
        };
        let falls = |other: &InFlight| {
            let same = other.record.destination == message.record.destination;
            same && (scope == Scope::Message || (message.key.is_some() && other.key == message.key))
        };
        let fallen: Vec<u64> =
            self.in_flight.iter().filter(|(_, other)| falls(other)).map(|(number, _)| *number).collect();
        into.push(Confirmation { ticket: message.ticket, result: Err(error(scope)) });
        for number in fallen {
            let other = self.in_flight.remove(&number).expect("listed");
            into.push(Confirmation { ticket: other.ticket, result: Err(error(scope)) });
        }
        data.under_way = self.in_flight.len();
    }
}

impl Publisher for FakePublisher {
    fn binding(&self, _destination: &Destination) -> Binding {
        Binding::Kafka
    }

    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        let seq: i64 = envelope.headers.get_str("ce_id").expect("an id").parse().expect("a number");
        let broker = self.broker.clone();
        let mut data = broker.data();
        if self.in_flight.len() >= data.rules.queue {
            return Err(Refused::Full(envelope));
        }
        if data.rules.invalid.contains(&seq) {
            return Err(Refused::Failed(error(Scope::Message)));
        }
        data.submitted += 1;
        let slowest = data.rules.slowest * 1_000;
        let delay = data.random.u64(0..=slowest);
        let mut at = Instant::now() + Duration::from_micros(delay);
        let key = envelope.key.map(|key| key.to_vec());
        if let Some(key) = &key {
            let last = self.last.entry((destination.name.clone(), key.clone())).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        let record = Record { destination: destination.name.clone(), seq };
        self.in_flight.insert(self.number, InFlight { ticket, record, key, at });
        self.number += 1;
        data.under_way = self.in_flight.len();
        data.most_under_way = data.most_under_way.max(data.under_way);
        Ok(())
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            loop {
                if !self.abandoned.is_empty() {
                    let given_up = |ticket| Confirmation { ticket, result: Err(error(Scope::Broker)) };
                    into.extend(self.abandoned.drain(..).map(given_up));
                    return;
                }
                let frozen = self.broker.data().rules.frozen;
                if !frozen {
                    while let Some(number) = self.due() {
                        self.settle(number, into);
                    }
                    if !into.is_empty() {
                        return;
                    }
                }
                match self.in_flight.values().map(|message| message.at).min() {
                    Some(at) => sleep_until(at.max(Instant::now() + Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            }
        })
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        let mut data = self.broker.data();
        data.abandons += 1;
        if !data.rules.deaf {
            self.abandoned.extend(self.in_flight.values().map(|message| message.ticket));
            self.in_flight.clear();
            data.under_way = 0;
        }
        Box::pin(std::future::ready(()))
    }

    fn window(&self) -> usize {
        self.broker.data().rules.window
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        let data = self.broker.data();
        if destinations.iter().any(|destination| data.rules.hanging.contains(&destination.name)) {
            return Box::pin(std::future::pending());
        }
        let missing = |destination: &&Destination| data.rules.missing.contains(&destination.name);
        let failing = destinations.iter().filter(missing).filter(|_| data.rules.probes);
        let errors = failing.map(|_| error(Scope::Destination)).collect();
        Box::pin(async move { errors })
    }
}
