//! Any mixture of writers, faults and changes of owner: whatever happens, the promises hold.

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_core::FaultKind;
use backstop_relay::pump::OnUnsendable;
use proptest::prelude::*;
use tokio::time::sleep;

use crate::support::{Broker, Running, Store, check, settings};

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    /// So many rows for a destination, over a few keys.
    Rows(u8, u8),
    /// A row that is committed only after others.
    Late(u8),
    /// A row that the broker refuses with its whole batch.
    TooLarge(u8),
    /// A row that is refused when submitted.
    Invalid(u8),
    Unreadable,
    /// The broker goes or comes.
    Broker(bool),
    /// A destination goes or comes.
    Destination(u8, bool),
    Read(FaultKind),
    Write(FaultKind),
    Steal,
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = || {
        prop_oneof![
            Just(FaultKind::Unreachable),
            Just(FaultKind::Conflict),
            Just(FaultKind::Denied),
            Just(FaultKind::Other)
        ]
    };
    prop_oneof![
        6 => (0..3_u8, 1..40_u8).prop_map(|(to, rows)| Step::Rows(to, rows)),
        2 => (0..3_u8).prop_map(Step::Late),
        1 => (0..3_u8).prop_map(Step::TooLarge),
        1 => (0..3_u8).prop_map(Step::Invalid),
        1 => Just(Step::Unreadable),
        1 => any::<bool>().prop_map(Step::Broker),
        2 => (0..3_u8, any::<bool>()).prop_map(|(to, there)| Step::Destination(to, there)),
        1 => fault().prop_map(Step::Read),
        1 => fault().prop_map(Step::Write),
        1 => Just(Step::Steal),
        6 => (0..3_000_u16).prop_map(Step::Wait),
    ]
}

fn name(destination: u8) -> String {
    format!("d{destination}")
}

struct Play {
    store: Store,
    broker: Broker,
    late: Vec<(i64, String)>,
    bad: BTreeSet<i64>,
    rows: u32,
}

impl Play {
    fn row(&mut self, destination: u8) -> i64 {
        self.rows += 1;
        let key = (!self.rows.is_multiple_of(5)).then(|| format!("k{}", self.rows % 4));
        self.store.insert(&name(destination), key.as_deref())
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Rows(to, rows) => {
                for _ in 0..rows {
                    self.row(to);
                }
            }
            Step::Late(to) => {
                let seq = self.store.take_number();
                self.late.push((seq, name(to)));
            }
            Step::TooLarge(to) => {
                let seq = self.store.take_number();
                self.broker.change(|rules| rules.too_large.extend([seq]));
                self.store.commit(seq, &name(to), Some("k1"));
                self.bad.insert(seq);
            }
            Step::Invalid(to) => {
                let seq = self.store.take_number();
                self.broker.change(|rules| rules.invalid.extend([seq]));
                self.store.commit(seq, &name(to), Some("k1"));
                self.bad.insert(seq);
            }
            Step::Unreadable => self.bad.extend([self.store.insert_unreadable()]),
            Step::Broker(down) => self.broker.change(|rules| rules.down = down),
            Step::Destination(to, there) => self.broker.change(|rules| {
                if there {
                    rules.missing.remove(&name(to));
                } else {
                    rules.missing.insert(name(to));
                }
            }),
            Step::Read(kind) => self.store.fail_reads(&[kind]),
            Step::Write(kind) => self.store.fail_writes(&[kind]),
            Step::Steal => self.store.steal_lease(Duration::from_secs(2)),
            Step::Wait(time) => {
                sleep(Duration::from_millis(time.into())).await;
                if time % 2 == 0 {
                    // Keyless, as writers of one key serialise.
                    self.late.drain(..).for_each(|(seq, to)| self.store.commit(seq, &to, None));
                }
            }
        }
    }

    /// All faults end; the rest must follow.
    async fn recover(&mut self) {
        self.late.drain(..).for_each(|(seq, to)| self.store.commit(seq, &to, None));
        self.broker.change(|rules| {
            rules.down = false;
            rules.flaky = 0;
            rules.missing.clear();
        });
        for _ in 0..36_000 {
            if self.store.pending() == 0 {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{} rows are left after an hour", self.store.pending());
    }
}

async fn play(seed: u64, block: bool, flaky: u64, slowest: u64, steps: Vec<Step>) {
    let (store, broker) = (Store::default(), Broker::new(seed));
    broker.change(|rules| {
        (rules.flaky, rules.slowest) = (flaky, slowest);
        rules.probes = seed.is_multiple_of(2);
    });
    let on_unsendable = if block { OnUnsendable::BlockKey } else { OnUnsendable::Dead };
    let with = |owner| backstop_relay::pump::PumpSettings { on_unsendable, ..settings(owner) };
    let first = Running::start(&store, &broker, with("a"));
    let second = Running::start(&store, &broker, with("b"));
    let mut play =
        Play { store: store.clone(), broker: broker.clone(), late: vec![], bad: BTreeSet::new(), rows: 0 };
    for step in steps {
        play.act(step).await;
    }
    if block {
        // Blocked rows become sendable, so that only the unreadable ones die.
        sleep(Duration::from_secs(30)).await;
        broker.change(|rules| {
            play.bad.retain(|seq| !rules.too_large.contains(seq) && !rules.invalid.contains(seq));
            rules.too_large.clear();
            rules.invalid.clear();
        });
    }
    play.recover().await;
    sleep(Duration::from_secs(1)).await;
    first.stop().await;
    second.stop().await;
    check(&store, &broker, &play.bad);
}

/// 64 cases unless `PROPTEST_CASES` says otherwise.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(64), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_promises_hold(
        seed in any::<u64>(),
        block in any::<bool>(),
        flaky in prop_oneof![2 => Just(0_u64), 1 => 20..400_u64],
        slowest in 0..400_u64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(play(seed, block, flaky, slowest, steps));
    }
}
