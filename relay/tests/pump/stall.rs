//! Confirmations that never come: who waits for them, and for how long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, Running, Store, check, settings};
use backstop_core::FaultKind;
use backstop_relay::pump::{PumpError, PumpSettings, PumpState};
use tokio::time::{Instant, sleep};

const NONE: BTreeSet<i64> = BTreeSet::new();

fn fill(store: &Store, destination: &str, rows: usize) {
    for n in 0..rows {
        store.insert(destination, Some(&format!("k{}", n % 7)));
    }
}

fn silence(broker: &Broker, destination: &str) {
    broker.change(|rules| {
        rules.silent.insert(destination.into());
    });
}

fn speak(broker: &Broker) {
    broker.change(|rules| rules.silent.clear());
}

/// Less than twice the limit, and some for backoff.
const SOON: Duration = Duration::from_secs(75);

/// F41: a partition without a leader stops only what goes there.
#[tokio::test(start_paused = true)]
async fn a_silent_destination_that_fills_the_window_stops_nobody_for_long() {
    let (store, broker) = (Store::default(), Broker::new(1));
    silence(&broker, "mute");
    fill(&store, "mute", 300);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a full window", |status| status.under_way == 50).await;
    let begun = Instant::now();
    fill(&store, "orders", 200);
    let status = pump.until("orders through", |status| status.deleted == 200).await;
    assert!(begun.elapsed() < SOON, "took {:?}", begun.elapsed());
    assert_eq!((status.paused_count, status.dead), (1, 0));
    assert_eq!(status.paused[0].destination.name, "mute", "it is named");
    let submitted = broker.submitted();
    for _ in 0..60 {
        fill(&store, "orders", 10);
        sleep(Duration::from_secs(10)).await;
    }
    let status = pump.until("orders through", |status| status.deleted == 800).await;
    assert_eq!(
        (status.state, broker.abandons()),
        (PumpState::Running, 1),
        "given up once, not again and again"
    );
    assert!(broker.submitted() - submitted < 620, "the silent one is tried with a row at a time");
    speak(&broker);
    pump.until("all through", |status| status.deleted == 1_100).await;
    let report = pump.stop().await;
    assert_eq!(report.status.paused_count, 0);
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn a_few_silent_rows_do_not_keep_an_outage_going() {
    for database in [true, false] {
        let (store, broker) = (Store::default(), Broker::new(2));
        silence(&broker, "mute");
        fill(&store, "mute", 5);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("silence", |status| status.under_way == 5).await;
        if database {
            store.fail_reads(&[FaultKind::Other]);
        } else {
            broker.change(|rules| rules.down = true);
            fill(&store, "orders", 1);
        }
        pump.until("an outage", |status| status.state == PumpState::Waiting).await;
        broker.change(|rules| rules.down = false);
        let begun = Instant::now();
        fill(&store, "orders", 100);
        let status = pump.until("orders through", |status| status.deleted >= 100).await;
        assert!(begun.elapsed() < SOON, "took {:?}", begun.elapsed());
        let error = status.last_error.expect("told").what;
        assert!(error.contains("mute"), "{error}");
        speak(&broker);
        pump.until("all through", |status| status.deleted >= 105).await;
        pump.stop().await;
        check(&store, &broker, &NONE);
    }
}

#[tokio::test(start_paused = true)]
async fn a_known_silent_destination_prolongs_no_outage() {
    let (store, broker) = (Store::default(), Broker::new(3));
    silence(&broker, "mute");
    fill(&store, "mute", 5);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a pause", |status| status.paused_count == 1).await;
    store.fail_reads(&[FaultKind::Other]);
    pump.until("an outage", |status| status.state == PumpState::Waiting).await;
    let begun = Instant::now();
    fill(&store, "orders", 100);
    pump.until("orders through", |status| status.deleted == 100).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    pump.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_regained_is_used_although_something_stays_unconfirmed() {
    let (store, broker) = (Store::default(), Broker::new(4));
    silence(&broker, "mute");
    fill(&store, "mute", 5);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("silence", |status| status.under_way == 5).await;
    store.steal_lease(Duration::from_secs(5));
    pump.until("standby", |status| status.state == PumpState::Standby).await;
    let begun = Instant::now();
    fill(&store, "orders", 100);
    pump.until("orders through", |status| status.deleted == 100).await;
    assert!(begun.elapsed() < SOON, "took {:?}", begun.elapsed());
    speak(&broker);
    pump.until("all through", |status| status.deleted == 105).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F10: a relay that cannot go on ends, and does not stand still in silence.
#[tokio::test(start_paused = true)]
async fn when_giving_up_does_not_help_another_takes_over() {
    for lose_lease in [false, true] {
        let (store, broker) = (Store::default(), Broker::new(5));
        silence(&broker, "mute");
        broker.change(|rules| rules.deaf = true);
        fill(&store, "mute", 5);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("silence", |status| status.under_way == 5).await;
        if lose_lease {
            store.steal_lease(Duration::from_secs(1));
        } else {
            store.fail_reads(&[FaultKind::Other]);
        }
        let begun = Instant::now();
        match pump.task.await.expect("no panic") {
            Err(PumpError::Unconfirmed { under_way: 5, destinations }) => assert_eq!(destinations, "mute"),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < SOON + Duration::from_secs(15), "took {:?}", begun.elapsed());
        assert_eq!(store.holder(), None, "the lease is given back");
    }
}

/// F45: a broker that takes everything and confirms nothing.
#[tokio::test(start_paused = true)]
async fn a_broker_that_confirms_nothing_is_given_up_and_tried_with_little() {
    for deaf in [false, true] {
        let (store, broker) = (Store::default(), Broker::new(8));
        broker.change(|rules| (rules.frozen, rules.deaf) = (true, deaf));
        fill(&store, "orders", 100);
        fill(&store, "payments", 100);
        let mut pump = Running::start(&store, &broker, settings("a"));
        let begun = Instant::now();
        if deaf {
            let ended = pump.task.await.expect("no panic");
            assert!(matches!(ended, Err(PumpError::Unconfirmed { under_way: 50, .. })), "{ended:?}");
            assert!(begun.elapsed() < 2 * SOON, "took {:?}", begun.elapsed());
            assert_eq!(store.holder(), None, "the lease is given back");
            continue;
        }
        pump.until("both paused", |status| status.paused_count == 2).await;
        assert!(begun.elapsed() < 3 * SOON, "took {:?}", begun.elapsed());
        let submitted = broker.submitted();
        sleep(Duration::from_secs(600)).await;
        assert!(broker.submitted() - submitted < 100, "a row at a time");
        broker.change(|rules| rules.frozen = false);
        pump.until("all through", |status| status.deleted == 200 && status.paused_count == 0).await;
        pump.stop().await;
        check(&store, &broker, &NONE);
    }
}

/// F6: slow is not dead.
#[tokio::test(start_paused = true)]
async fn a_slow_broker_is_given_time() {
    let (store, broker) = (Store::default(), Broker::new(6));
    broker.change(|rules| (rules.slowest, rules.window) = (25_000, 1_000));
    fill(&store, "orders", 2_000);
    let limit = Duration::from_secs(26);
    let mut pump = Running::start(&store, &broker, PumpSettings { stall_after: limit, ..settings("a") });
    pump.until("work", |status| status.deleted > 100).await;
    store.fail_reads(&[FaultKind::Other]);
    pump.until("all through", |status| status.deleted == 2_000).await;
    assert_eq!((broker.abandons(), broker.log().len()), (0, 2_000));
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F17: after a fail-over the number may be another row's.
#[tokio::test(start_paused = true)]
async fn what_is_confirmed_after_the_lease_ran_out_is_not_deleted_by_its_number() {
    for database_lost_first in [true, false] {
        let (store, broker) = (Store::default(), Broker::new(7));
        broker.change(|rules| rules.frozen = true);
        fill(&store, "orders", 20);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("work", |status| status.under_way == 20).await;
        store.lease_down(true);
        if database_lost_first {
            store.fail_reads(&[FaultKind::Unreachable]);
            pump.until("an outage", |status| status.state == PumpState::Waiting).await;
        }
        pump.until("standby", |status| status.state == PumpState::Standby).await;
        broker.change(|rules| rules.frozen = false);
        let status = pump.until("confirmations", |status| status.under_way == 0).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!((status.published, pump.status.borrow().deleted, store.pending()), (20, 0, 20));
        store.lease_down(false);
        pump.until("all deleted", |status| status.deleted == 20).await;
        assert_eq!(broker.log().len(), 40, "published again, since nobody knows");
        pump.stop().await;
        check(&store, &broker, &NONE);
    }
}
