//! Scheduled rows: moved when due, beside all else.

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_core::FaultKind;
use backstop_relay::pump::PumpState;
use tokio::time::{Instant, sleep};

use crate::support::{Broker, FAULTS, Running, Store, check, settings};

const NONE: BTreeSet<i64> = BTreeSet::new();
const NOW: Duration = Duration::ZERO;

#[tokio::test(start_paused = true)]
async fn rows_are_published_within_a_second_after_their_time() {
    let (store, broker) = (Store::default(), Broker::new(1));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    let (begun, after) = (Instant::now(), Duration::from_millis(4_300));
    for _ in 0..50 {
        store.schedule("orders", Some("k"), after);
    }
    pump.until("all", |status| status.deleted == 50).await;
    let took = begun.elapsed();
    assert!(took >= after && took < after + Duration::from_millis(1_300), "took {took:?}");
    let report = pump.stop().await;
    assert_eq!(report.status.promoted, 50);
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn looking_costs_a_query_a_second() {
    let (store, broker) = (Store::default(), Broker::new(2));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    store.schedule("orders", None, Duration::from_secs(3_600));
    sleep(Duration::from_secs(60)).await;
    assert!((55..=62).contains(&store.promotions()), "{}", store.promotions());
    pump.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_that_fall_due_at_once_keep_others_back_by_one_batch() {
    const DUE: usize = 30_000;
    let (store, broker) = (Store::default(), Broker::new(3));
    for n in 0..DUE {
        store.schedule("later", Some(&format!("k{}", n % 50)), NOW);
    }
    let mut pump = Running::start(&store, &broker, settings("a"));
    let mut live = Vec::new();
    while store.scheduled() > 0 {
        sleep(Duration::from_millis(50)).await;
        live.push((store.insert("live", None), broker.log().len()));
    }
    pump.until("all", |status| status.deleted == (DUE + live.len()) as u64).await;
    let log = broker.log();
    assert!(live.len() > 20, "{} rows were written meanwhile", live.len());
    for (seq, before) in &live {
        let place = log.iter().position(|record| record.seq == *seq).expect("published");
        assert!(place < before + 1_500, "{} messages went before row {seq}", place - before);
    }
    pump.stop().await;
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn scheduled_rows_come_although_the_outbox_never_empties() {
    let (store, broker) = (Store::default(), Broker::new(4));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    for _ in 0..60_000 {
        store.insert("orders", None);
    }
    store.schedule("orders", Some("k"), NOW);
    let begun = Instant::now();
    pump.until("it is moved", |status| status.promoted == 1).await;
    assert!(begun.elapsed() < Duration::from_millis(1_200), "took {:?}", begun.elapsed());
    assert!(store.pending() > 1_000, "the case needs a backlog");
    pump.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_lost_the_lease_moves_nothing() {
    let (store, broker) = (Store::default(), Broker::new(5));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("ownership", |status| status.token.is_some()).await;
    store.steal_lease(Duration::from_secs(30));
    store.schedule("orders", Some("k"), NOW);
    pump.until("the loss", |status| status.state == PumpState::Standby).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!((store.scheduled(), store.pending()), (1, 0));
    pump.until("the return", |status| status.deleted == 1).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_fails_disturbs_nobody() {
    for fault in FAULTS.into_iter().chain([FaultKind::Missing]) {
        let (store, broker) = (Store::default(), Broker::new(6));
        store.fail_promotions(Some(fault));
        store.schedule("orders", Some("k"), NOW);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("the fault is told", |status| status.last_error.is_some()).await;
        for _ in 0..100 {
            store.insert("orders", Some("k"));
        }
        let status = pump.until("the others", |status| status.deleted == 100).await;
        assert_eq!((status.state, store.scheduled()), (PumpState::Running, 1));
        sleep(Duration::from_secs(600)).await;
        assert!(store.promotions() < 200, "it waits longer and longer: {}", store.promotions());
        store.fail_promotions(None);
        pump.until("the scheduled one", |status| status.deleted == 101).await;
        pump.stop().await;
        check(&store, &broker, &NONE);
    }
}
