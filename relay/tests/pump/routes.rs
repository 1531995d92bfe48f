//! Routes to two brokers, one of which is slow or dead.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, Running, Store, check, check_log, settings};
use backstop_core::sink::Publisher;
use backstop_relay::config::RouteConfig;
use backstop_relay::pump::PumpSettings;
use backstop_relay::routes::RoutedPublisher;
use tokio::time::Instant;

const NONE: BTreeSet<i64> = BTreeSet::new();

/// `audit…` goes to the second broker.
fn routed(main: &Broker, audit: &Broker, bytes: usize) -> Box<dyn Publisher> {
    let brokers: Vec<(String, Box<dyn Publisher>)> =
        vec![(String::new(), Box::new(main.publisher())), ("audit".to_owned(), Box::new(audit.publisher()))];
    let routes = [RouteConfig { destination: "audit*".to_owned(), broker: "audit".to_owned() }];
    Box::new(RoutedPublisher::new(brokers, &routes, Some(""), bytes))
}

/// Rows for both brokers by turns.
fn fill(store: &Store, rows: usize) {
    for n in 0..rows {
        store.insert(["orders", "audit"][n % 2], Some(&format!("k{}", n % 7)));
    }
}

async fn flows_beside(slow: impl Fn(&Broker), bytes: usize) {
    let (store, main, audit) = (Store::default(), Broker::new(1), Broker::new(2));
    for broker in [&main, &audit] {
        broker.change(|rules| rules.queue = 50);
    }
    slow(&audit);
    fill(&store, 8_000);
    let settings = PumpSettings { in_flight_bytes: bytes, ..settings("a") };
    let begun = Instant::now();
    let mut pump = Running::publishing(&store, routed(&main, &audit, bytes), settings);
    pump.until("the other broker's rows", |_| main.log().len() == 4_000).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    assert!(audit.log().len() < 1_000, "{} of the slow one", audit.log().len());
    audit.change(|rules| (rules.frozen, rules.slowest) = (false, 5));
    pump.until("all", |status| status.deleted == 8_000 && status.paused_count == 0).await;
    pump.stop().await;
    check_log(&store, &[main.log(), audit.log()].concat(), &NONE);
}

/// F11: a broker that confirms nothing keeps its share, and no more.
#[tokio::test(start_paused = true)]
async fn a_dead_broker_does_not_hold_up_the_rows_of_another() {
    flows_beside(|audit| audit.change(|rules| rules.frozen = true), 64 << 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_broker_does_not_hold_up_the_rows_of_another() {
    flows_beside(|audit| audit.change(|rules| rules.slowest = 8_000), 64 << 20).await;
}

/// Bytes run out before messages do.
#[tokio::test(start_paused = true)]
async fn large_messages_of_a_dead_broker_do_not_hold_up_the_rows_of_another() {
    flows_beside(|audit| audit.change(|rules| (rules.frozen, rules.queue) = (true, 1_000)), 10_000).await;
}

/// A broker that is busy but not slow is waited for: pauses would cost it more.
#[tokio::test(start_paused = true)]
async fn two_brokers_at_full_speed_are_never_paused() {
    let (store, main, audit) = (Store::default(), Broker::new(3), Broker::new(4));
    audit.change(|rules| (rules.queue, rules.slowest) = (10, 100));
    fill(&store, 2_000);
    let mut pump = Running::publishing(&store, routed(&main, &audit, 64 << 20), settings("a"));
    let mut paused = 0;
    pump.until("all", |status| {
        paused = paused.max(status.paused_count);
        status.deleted == 2_000
    })
    .await;
    assert_eq!((paused, main.log().len() + audit.log().len()), (0, 2_000));
    pump.stop().await;
}

/// Nothing else is submitted during a probe, so that many of them must not follow one another.
#[tokio::test(start_paused = true)]
async fn probes_that_are_not_answered_take_a_small_part_of_the_time() {
    let (store, broker) = (Store::default(), Broker::new(5));
    let missing = (0..30).map(|n| format!("gone{n}"));
    broker.change(|rules| {
        rules.missing.extend(missing.clone());
        rules.hanging.extend(missing.clone());
    });
    for destination in missing {
        store.insert(&destination, None);
    }
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("pauses", |status| status.paused_count == 30).await;
    for _ in 0..5_000 {
        store.insert("orders", None);
    }
    let begun = Instant::now();
    pump.until("the others", |status| status.deleted == 5_000).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "took {:?}", begun.elapsed());
    broker.change(|rules| {
        rules.missing.clear();
        rules.hanging.clear();
    });
    pump.until("all", |status| status.deleted == 5_030).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}
