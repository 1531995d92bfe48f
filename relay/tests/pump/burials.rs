//! Rows that can never be sent and cannot be moved to the dead either: they stop nobody but themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, FAULTS, Running, Store, check, settings};
use backstop_core::FaultKind;
use backstop_relay::pump::{PumpSettings, PumpState};
use tokio::time::{Instant, sleep};

fn fill(store: &Store, destination: &str, rows: usize) -> Vec<i64> {
    (0..rows).map(|n| store.insert(destination, Some(&format!("k{}", n % 7)))).collect()
}

/// Rows of `orders`, some of which are refused when submitted, some by the broker with their whole batch, and one that
/// is no message.
fn poisoned(store: &Store, broker: &Broker) -> BTreeSet<i64> {
    let seqs = fill(store, "orders", 300);
    broker.change(|rules| {
        rules.invalid.extend([seqs[3], seqs[120], seqs[299]]);
        rules.too_large.extend([seqs[40], seqs[200]]);
    });
    [seqs[3], seqs[40], seqs[120], seqs[200], seqs[299], store.insert_unreadable()].into()
}

#[tokio::test(start_paused = true)]
async fn all_other_rows_flow_while_burials_fail_and_then_each_row_dies_once() {
    for kind in FAULTS {
        let (store, broker) = (Store::default(), Broker::new(1));
        store.fail_burials(Some(kind));
        let dead = poisoned(&store, &broker);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("the rest", |status| status.deleted == 295 && status.unburied == 6).await;
        for round in 1..=60 {
            fill(&store, "orders", 10);
            sleep(Duration::from_secs(10)).await;
            let status = pump.status.borrow().clone();
            assert_eq!((status.deleted, status.state), (295 + round * 10, PumpState::Running), "{kind:?}");
        }
        let status = pump.status.borrow().clone();
        assert_eq!((status.dead, status.unburied, status.paused_count), (0, 6, 0));
        assert_eq!(status.last_error.map(|fault| fault.kind), Some(kind));
        assert_eq!(broker.log().len(), 895, "nothing was sent twice");
        store.fail_burials(None);
        let status = pump.until("burials", |status| status.dead == 6).await;
        assert_eq!(status.unburied, 0);
        pump.stop().await;
        check(&store, &broker, &dead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_with_a_row_that_cannot_be_buried_pauses_and_resumes() {
    let (store, broker) = (Store::default(), Broker::new(2));
    store.fail_burials(Some(FaultKind::Denied));
    let dead = poisoned(&store, &broker);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("the rest", |status| status.deleted == 295 && status.unburied == 6).await;
    for probes in [true, false] {
        let deleted = pump.status.borrow().deleted;
        broker.change(|rules| {
            rules.probes = probes;
            rules.missing.insert("orders".into());
        });
        fill(&store, "orders", 20);
        pump.until("a pause", |status| status.paused_count == 1).await;
        broker.change(|rules| rules.missing.clear());
        let begun = Instant::now();
        pump.until("its end", |status| status.paused_count == 0 && status.deleted == deleted + 20).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    }
    store.fail_burials(None);
    pump.until("burials", |status| status.dead == 6).await;
    pump.stop().await;
    check(&store, &broker, &dead);
}

#[tokio::test(start_paused = true)]
async fn an_outage_meanwhile_ends_and_the_rows_are_judged_anew() {
    for slow in [false, true] {
        let (store, broker) = (Store::default(), Broker::new(3));
        match slow {
            true => store.slow_burials(Duration::from_secs(25)),
            false => store.fail_burials(Some(FaultKind::Denied)),
        }
        let dead = poisoned(&store, &broker);
        let mut pump = Running::start(&store, &broker, settings("a"));
        pump.until("the rest", |status| status.deleted == 295).await;
        for by_broker in [false, true] {
            let deleted = pump.status.borrow().deleted;
            match by_broker {
                true => broker.change(|rules| rules.down = true),
                false => store.fail_reads(&[FaultKind::Other]),
            }
            fill(&store, "orders", 10);
            pump.until("an outage", |status| status.state == PumpState::Waiting).await;
            broker.change(|rules| rules.down = false);
            let begun = Instant::now();
            fill(&store, "orders", 10);
            pump.until("its end", |status| status.deleted == deleted + 20).await;
            assert!(begun.elapsed() < Duration::from_secs(2), "slow: {slow}, took {:?}", begun.elapsed());
        }
        store.fail_burials(None);
        pump.until("burials", |status| status.unburied == 0 && status.dead == 6).await;
        pump.stop().await;
        check(&store, &broker, &dead);
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_that_can_be_sent_after_an_outage_is_sent_and_not_buried() {
    let (store, broker) = (Store::default(), Broker::new(7));
    store.fail_burials(Some(FaultKind::Denied));
    let poison = store.insert("orders", Some("k"));
    broker.change(|rules| {
        rules.invalid.insert(poison);
    });
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a burial", |status| status.unburied == 1).await;
    broker.change(|rules| rules.invalid.clear());
    store.fail_reads(&[FaultKind::Other]);
    pump.until("an outage", |status| status.state == PumpState::Waiting).await;
    pump.until("its end", |status| status.deleted == 1 && status.unburied == 0).await;
    store.fail_burials(None);
    pump.stop().await;
    check(&store, &broker, &BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn a_row_whose_burial_may_be_on_its_way_is_not_sent() {
    let (store, broker) = (Store::default(), Broker::new(9));
    store.slow_burials(Duration::from_secs(20));
    let seqs = fill(&store, "orders", 10);
    broker.change(|rules| {
        rules.missing.insert("orders".into());
        rules.invalid.extend(&seqs[3..6]);
    });
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a pause", |status| status.paused_count == 1 && status.unburied == 3 && status.under_way == 0)
        .await;
    broker.change(|rules| {
        rules.missing.clear();
        rules.invalid.clear();
    });
    pump.until("its end", |status| status.deleted == 7 && status.dead == 0).await;
    pump.until("burials", |status| status.dead == 3).await;
    pump.stop().await;
    check(&store, &broker, &seqs[3..6].iter().copied().collect());
}

#[tokio::test(start_paused = true)]
async fn a_paused_destination_is_read_on_behind_rows_that_wait_for_their_burial() {
    let (store, broker) = (Store::default(), Broker::new(8));
    store.fail_burials(Some(FaultKind::Denied));
    broker.change(|rules| {
        rules.missing.insert("orders".into());
    });
    fill(&store, "orders", 1);
    let dead: BTreeSet<i64> = (0..8).map(|_| store.insert_unreadable()).collect();
    fill(&store, "orders", 10);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a pause", |status| status.paused_count == 1 && status.unburied == 8 && status.under_way == 0)
        .await;
    broker.change(|rules| rules.missing.clear());
    pump.until("its end", |status| status.paused_count == 0 && status.deleted == 11).await;
    store.fail_burials(None);
    pump.until("burials", |status| status.dead == 8).await;
    pump.stop().await;
    check(&store, &broker, &dead);
}

#[tokio::test(start_paused = true)]
async fn a_burial_of_an_earlier_term_changes_nothing_in_the_next() {
    let (store, broker) = (Store::default(), Broker::new(4));
    store.slow_burials(Duration::from_secs(25));
    let poison = store.insert("orders", Some("k"));
    broker.change(|rules| {
        rules.invalid.insert(poison);
    });
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("a burial", |status| status.unburied == 1).await;
    store.steal_lease(Duration::from_secs(5));
    pump.until("the end of the term", |status| status.state == PumpState::Standby).await;
    fill(&store, "orders", 10);
    pump.until("the next term", |status| status.token == Some(3) && status.deleted == 10).await;
    let (begun, mut tokens) = (Instant::now(), BTreeSet::new());
    while store.dead().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(100), "never buried");
        tokens.insert(pump.status.borrow().token);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((store.refused_burials(), tokens), (1, [Some(3)].into()), "the new term goes on");
    pump.stop().await;
    check(&store, &broker, &[poison].into());
}

#[tokio::test(start_paused = true)]
async fn one_row_that_cannot_be_buried_keeps_no_other_from_it() {
    let (store, broker) = (Store::default(), Broker::new(5));
    let seqs = fill(&store, "orders", 100);
    broker.change(|rules| rules.invalid.extend(&seqs[..50]));
    store.refuse_to_bury(seqs[20]);
    let mut pump = Running::start(&store, &broker, settings("a"));
    let status = pump.until("the others", |status| status.dead == 49 && status.deleted == 50).await;
    assert_eq!(status.unburied, 1);
    let begun = Instant::now();
    pump.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "a shutdown waited {:?} for it", begun.elapsed());
    assert!(store.is_pending(seqs[20]) && store.pending() == 1);
}

#[tokio::test(start_paused = true)]
async fn more_rows_than_may_wait_are_forgotten_and_read_again() {
    let (store, broker) = (Store::default(), Broker::new(6));
    store.fail_burials(Some(FaultKind::Denied));
    let seqs = fill(&store, "orders", 10_500);
    broker.change(|rules| rules.invalid.extend(&seqs));
    fill(&store, "orders", 100);
    let settings = PumpSettings { read_rows: 1_000, buffer_rows: 2_000, ..settings("a") };
    let mut pump = Running::start(&store, &broker, settings);
    let status = pump.until("the rest", |status| status.deleted == 100).await;
    assert_eq!((status.unburied, status.dead), (10_000, 0));
    store.fail_burials(None);
    pump.until("burials", |status| status.dead == 10_500).await;
    pump.stop().await;
    check(&store, &broker, &seqs.into_iter().collect());
}

/// A burial keeps the lease from its renewal, so it must not take long.
#[tokio::test(start_paused = true)]
async fn slow_burials_become_small_and_quick_ones_large() {
    for (each, largest) in [(Duration::from_millis(10), 1..=100), (Duration::from_micros(10), 1_000..=10_000)]
    {
        let (store, broker) = (Store::default(), Broker::new(10));
        store.slow_burials_each(each);
        let seqs = fill(&store, "orders", 6_000);
        broker.change(|rules| rules.invalid.extend(&seqs));
        let settings = PumpSettings { read_rows: 1_000, buffer_rows: 2_000, ..settings("a") };
        let mut pump = Running::start(&store, &broker, settings);
        pump.until("burials", |status| status.dead == 6_000).await;
        assert!(largest.contains(&store.largest_burial()), "{} rows, {each:?} each", store.largest_burial());
        pump.stop().await;
        check(&store, &broker, &seqs.into_iter().collect());
    }
}
