//! Ownership: who may pump, and when it must stop.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, Running, Store, check, settings};
use backstop_relay::pump::PumpState;
use tokio::time::{Instant, sleep};

const NONE: BTreeSet<i64> = BTreeSet::new();

/// F7: of two relays one works.
#[tokio::test(start_paused = true)]
async fn one_pumps_and_the_other_takes_over_at_once_after_release() {
    let (store, broker) = (Store::default(), Broker::new(1));
    let mut first = Running::start(&store, &broker, settings("a"));
    first.until("ownership", |status| status.token == Some(1)).await;
    let mut second = Running::start(&store, &broker, settings("b"));
    for _ in 0..200 {
        store.insert("orders", Some("k"));
    }
    first.until("all", |status| status.deleted == 200).await;
    assert_eq!(second.status.borrow().state, PumpState::Standby);
    first.stop().await;
    let released = Instant::now();
    store.insert("orders", Some("k"));
    let status = second.until("takeover", |status| status.deleted == 1).await;
    assert!(released.elapsed() < Duration::from_millis(2_500), "took {:?}", released.elapsed());
    assert_eq!(status.token, Some(2), "tokens grow");
    second.stop().await;
    check(&store, &broker, &NONE);
}

/// F1: what a dead owner had read is sent by the next.
#[tokio::test(start_paused = true)]
async fn after_a_crash_the_other_takes_over_when_the_lease_ends() {
    let (store, broker) = (Store::default(), Broker::new(2));
    let mut first = Running::start(&store, &broker, settings("a"));
    first.until("ownership", |status| status.token == Some(1)).await;
    // A process that dies gives nothing back.
    store.lease_down(true);
    first.task.abort();
    sleep(Duration::from_secs(1)).await;
    store.lease_down(false);
    store.steal_lease(Duration::from_secs(10));
    let stolen = Instant::now();
    store.insert("orders", Some("k"));
    let mut second = Running::start(&store, &broker, settings("b"));
    second.until("takeover", |status| status.deleted == 1).await;
    let took = stolen.elapsed();
    assert!(took > Duration::from_secs(10) && took < Duration::from_millis(12_500), "took {took:?}");
    second.stop().await;
}

/// F5, F9: reckoned on a clock that nobody sets, from before the database was asked.
#[tokio::test(start_paused = true)]
async fn without_renewal_nothing_is_sent_after_the_lease_could_have_ended() {
    let (store, broker) = (Store::default(), Broker::new(3));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    store.lease_down(true);
    let down = Instant::now();
    let mut last = (0, down);
    while down.elapsed() < Duration::from_secs(30) {
        store.insert("orders", Some("k"));
        sleep(Duration::from_millis(10)).await;
        let submitted = broker.submitted();
        if submitted != last.0 {
            last = (submitted, Instant::now());
        }
    }
    let stopped = last.1 - down;
    assert!(stopped > Duration::from_secs(5), "the lease is used while it lasts: {stopped:?}");
    assert!(
        stopped <= Duration::from_secs(9) + Duration::from_millis(20),
        "sent {stopped:?} after the last renewal"
    );
    assert_eq!(pump.status.borrow().state, PumpState::Standby);
    store.lease_down(false);
    while store.pending() > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F5: the write-back of an owner that is not one any more is refused.
#[tokio::test(start_paused = true)]
async fn a_stolen_lease_fences_burials_and_ends_the_term() {
    let (store, broker) = (Store::default(), Broker::new(4));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token == Some(1)).await;
    store.steal_lease(Duration::from_secs(20));
    let poison = store.insert("orders", Some("k"));
    broker.change(|rules| {
        rules.invalid.insert(poison);
    });
    pump.until("the end of the term", |status| status.state == PumpState::Standby).await;
    assert_eq!((store.refused_burials(), store.dead().len()), (1, 0));
    for _ in 0..50 {
        store.insert("orders", Some("k"));
    }
    sleep(Duration::from_secs(15)).await;
    assert_eq!(broker.submitted(), 0, "nothing is sent in another's term");
    let status = pump.until("its next term", |status| status.deleted == 50 && status.dead == 1).await;
    assert_eq!(status.token, Some(3));
    pump.stop().await;
    check(&store, &broker, &[poison].into());
}

/// F8: the next term begins when the sends of the last one have ended.
#[tokio::test(start_paused = true)]
async fn a_lease_lost_with_messages_under_way_loses_nothing() {
    let (store, broker) = (Store::default(), Broker::new(5));
    broker.change(|rules| rules.slowest = 3_000);
    let mut first = Running::start(&store, &broker, settings("a"));
    let mut second = Running::start(&store, &broker, settings("b"));
    for n in 0..600 {
        store.insert("orders", Some(&format!("k{}", n % 3)));
    }
    for _ in 0..5 {
        sleep(Duration::from_secs(4)).await;
        store.steal_lease(Duration::from_secs(3));
    }
    while store.pending() > 0 {
        sleep(Duration::from_millis(50)).await;
    }
    first.until("rest", |status| status.under_way == 0 && status.undeleted == 0).await;
    second.until("rest", |status| status.under_way == 0 && status.undeleted == 0).await;
    first.stop().await;
    second.stop().await;
    check(&store, &broker, &NONE);
}

/// F17: a database that has lost the lease gives the refused token again.
#[tokio::test(start_paused = true)]
async fn a_token_that_was_refused_and_is_granted_again_counts() {
    let (store, broker) = (Store::default(), Broker::new(6));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token == Some(1)).await;
    store.forget_leases();
    store.schedule("orders", Some("k"), Duration::ZERO);
    pump.until("the end of the term", |status| status.state == PumpState::Standby).await;
    let begun = Instant::now();
    let status = pump.until("its next term", |status| status.deleted == 1).await;
    assert_eq!(status.token, Some(1), "the same number, as nobody knows better");
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    pump.stop().await;
    check(&store, &broker, &NONE);
}
