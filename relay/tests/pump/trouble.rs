//! What a pump says that keeps it from its work.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, Running, Store, check, settings};
use backstop_core::FaultKind;
use backstop_relay::pump::{PumpState, Trouble};
use tokio::time::{Instant, sleep};

const NONE: BTreeSet<i64> = BTreeSet::new();

/// What a pump needs at most to notice: twice the limit, and some for a round.
const NOTICED: Duration = Duration::from_secs(70);

async fn watch(pump: &mut Running, what: Option<Trouble>, within: Duration) {
    let begun = Instant::now();
    pump.until("a change", |status| status.trouble == what && status.state == PumpState::Running).await;
    assert!(begun.elapsed() <= within, "took {:?}", begun.elapsed());
}

/// F11: Kafka's client waits in silence for brokers that are away.
#[tokio::test(start_paused = true)]
async fn a_broker_that_confirms_nothing_is_trouble_until_it_does() {
    let (store, broker) = (Store::default(), Broker::new(1));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(pump.status.borrow().trouble, None, "nothing to do is no trouble");
    broker.change(|rules| rules.frozen = true);
    for _ in 0..10 {
        store.insert("orders", Some("k"));
    }
    watch(&mut pump, Some(Trouble::Broker), NOTICED).await;
    broker.change(|rules| rules.frozen = false);
    watch(&mut pump, None, NOTICED).await;
    pump.until("all", |status| status.deleted == 10).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn one_destination_is_no_trouble_while_others_flow_nor_is_one_that_is_not_there() {
    let (store, broker) = (Store::default(), Broker::new(2));
    broker.change(|rules| {
        rules.silent.insert("mute".into());
        rules.missing.insert("gone".into());
    });
    store.insert("mute", None);
    let mut pump = Running::start(&store, &broker, settings("a"));
    for _ in 0..300 {
        store.insert("orders", None);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(pump.status.borrow().trouble, None);
    }
    assert_eq!(pump.status.borrow().paused_count, 1);
    broker.change(|rules| rules.silent.clear());
    pump.until("all", |status| status.deleted == 301 && status.paused_count == 0).await;
    store.insert("gone", None);
    sleep(Duration::from_secs(300)).await;
    let status = pump.status.borrow().clone();
    assert_eq!((status.trouble, status.paused_count), (None, 1), "a topic that is missing is not an outage");
    pump.stop().await;
}

/// F29: what is published and not deleted is published again by the next owner.
#[tokio::test(start_paused = true)]
async fn deletes_that_fail_for_long_are_trouble() {
    let (store, broker) = (Store::default(), Broker::new(3));
    store.fail_writes(&[FaultKind::Denied; 12]);
    store.insert("orders", None);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("publication", |status| status.published == 1).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(pump.status.borrow().trouble, None, "it may pass");
    watch(&mut pump, Some(Trouble::Deletes), Duration::from_secs(20)).await;
    watch(&mut pump, None, Duration::from_secs(120)).await;
    assert_eq!(pump.status.borrow().deleted, 1);
    pump.stop().await;
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_cannot_ask_for_the_lease_is_in_trouble() {
    let (store, broker) = (Store::default(), Broker::new(4));
    store.steal_lease(Duration::from_secs(3_600));
    let mut pump = Running::start(&store, &broker, settings("a"));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(pump.status.borrow().trouble, None);
    for down in [true, false] {
        store.lease_down(down);
        let begun = Instant::now();
        pump.until("a change", |status| status.trouble == down.then_some(Trouble::Lease)).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    }
    assert_eq!(pump.status.borrow().state, PumpState::Standby);
    pump.stop().await;
}
