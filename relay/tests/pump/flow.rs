//! What flows, what waits and what dies.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{Broker, FAULTS, Running, Store, check, settings};
use backstop_core::FaultKind;
use backstop_relay::pump::{OnUnsendable, PumpError, PumpSettings, PumpState};
use tokio::time::{Instant, sleep};

const NONE: BTreeSet<i64> = BTreeSet::new();

fn fill(store: &Store, destination: &str, rows: usize) -> Vec<i64> {
    let key = |n: usize| format!("k{}", n % 7);
    (0..rows).map(|n| store.insert(destination, Some(&key(n)))).collect()
}

#[tokio::test(start_paused = true)]
async fn every_row_is_published_once_and_deleted() {
    let (store, broker) = (Store::default(), Broker::new(1));
    fill(&store, "orders", 500);
    store.insert("orders", None);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("all deleted", |status| status.deleted == 501).await;
    let report = pump.stop().await;
    assert_eq!((report.status.published, report.unconfirmed, report.undeleted), (501, 0, 0));
    assert_eq!(broker.log().len(), 501, "no duplicates without faults");
    check(&store, &broker, &NONE);
}

/// F24: nothing rests on a notification; an idle relay looks often enough.
#[tokio::test(start_paused = true)]
async fn a_single_message_on_an_idle_system_is_quick() {
    let (store, broker) = (Store::default(), Broker::new(2));
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("running", |status| status.state == PumpState::Running).await;
    sleep(Duration::from_secs(60)).await;
    for n in 1..20 {
        let committed = Instant::now();
        store.insert("orders", None);
        while broker.log().len() < n {
            sleep(Duration::from_millis(1)).await;
        }
        let took = committed.elapsed();
        assert!(took <= Duration::from_millis(60), "commit to broker took {took:?}");
        sleep(Duration::from_millis(7_777)).await;
    }
    pump.stop().await;
}

/// F11: nothing is charged, nothing dies, and the buffer keeps its bound.
#[tokio::test(start_paused = true)]
async fn an_outage_of_the_broker_kills_nothing_and_memory_stays_bounded() {
    let (store, broker) = (Store::default(), Broker::new(3));
    broker.change(|rules| rules.down = true);
    let mut pump = Running::start(&store, &broker, settings("a"));
    fill(&store, "orders", 5_000);
    pump.until("an outage", |status| status.state == PumpState::Waiting).await;
    sleep(Duration::from_secs(600)).await;
    let tried = broker.submitted();
    assert!(tried < 10_000, "{tried} submissions in ten minutes: the backoff holds");
    assert!(broker.most_under_way() <= 50 && pump.status.borrow().buffered <= 80);
    broker.change(|rules| rules.down = false);
    let status = pump.until("all deleted", |status| status.deleted == 5_000).await;
    assert_eq!((status.dead, status.paused_count), (0, 0));
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F37: a destination that is gone pauses, with an alarm, and resumes by itself.
#[tokio::test(start_paused = true)]
async fn a_missing_destination_pauses_and_others_flow() {
    let (store, broker) = (Store::default(), Broker::new(4));
    broker.change(|rules| {
        rules.missing.insert("lost".into());
    });
    for _ in 0..30 {
        fill(&store, "lost", 10);
        fill(&store, "orders", 10);
    }
    let mut pump = Running::start(&store, &broker, settings("a"));
    let status = pump.until("orders through", |status| status.deleted == 300).await;
    assert_eq!((status.state, status.paused_count, status.dead), (PumpState::Running, 1, 0));
    assert_eq!(status.paused[0].destination.name, "lost");
    assert_eq!(status.paused[0].fault.hint.as_deref(), Some("mend it"));
    assert_eq!(broker.stored("lost").len(), 0);
    let before = broker.submitted();
    sleep(Duration::from_secs(300)).await;
    assert!(broker.submitted() == before, "a probe that fails risks no row");
    fill(&store, "lost", 100);
    broker.change(|rules| rules.missing.clear());
    pump.until("lost through", |status| status.deleted == 700).await;
    let report = pump.stop().await;
    assert_eq!(report.status.paused_count, 0);
    check(&store, &broker, &NONE);
}

#[tokio::test(start_paused = true)]
async fn a_destination_resumes_while_rows_keep_coming_and_without_probes() {
    let (store, broker) = (Store::default(), Broker::new(5));
    broker.change(|rules| {
        rules.probes = false;
        rules.missing.insert("lost".into());
    });
    let mut pump = Running::start(&store, &broker, settings("a"));
    for n in 0..2_000 {
        fill(&store, "lost", 2);
        if n == 1_000 {
            broker.change(|rules| rules.missing.clear());
        }
        sleep(Duration::from_millis(50)).await;
    }
    let status = pump.until("resumed", |status| status.paused_count == 0).await;
    assert!(status.deleted > 3_000, "it resumed under load, not after it: {}", status.deleted);
    pump.until("all deleted", |status| status.deleted == 4_000).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F12, F44: one row that cannot be sent dies with its reason; the others of its batch are sent.
#[tokio::test(start_paused = true)]
async fn poison_dies_and_its_neighbours_in_the_batch_live() {
    let (store, broker) = (Store::default(), Broker::new(6));
    let seqs = fill(&store, "orders", 400);
    let poison: BTreeSet<i64> = [seqs[3], seqs[90], seqs[91], seqs[300]].into();
    let invalid: BTreeSet<i64> = [seqs[50], seqs[399]].into();
    broker.change(|rules| {
        rules.too_large.extend(&poison);
        rules.invalid.extend(&invalid);
    });
    let unreadable = store.insert_unreadable();
    fill(&store, "other", 100);
    let mut pump = Running::start(&store, &broker, settings("a"));
    let dead: BTreeSet<i64> = poison.iter().chain(&invalid).copied().chain([unreadable]).collect();
    pump.until("all gone", |status| status.deleted + status.dead == 501).await;
    pump.stop().await;
    check(&store, &broker, &dead);
    let reasons = store.dead().into_iter().map(|row| row.reason).collect::<BTreeSet<_>>();
    assert_eq!(reasons, ["invalid-row".to_owned(), "unsendable".to_owned()].into());
}

/// F12: where a poison row blocks, it blocks its key only.
#[tokio::test(start_paused = true)]
async fn a_blocked_key_waits_in_order_and_others_flow() {
    for by_broker in [false, true] {
        let (store, broker) = (Store::default(), Broker::new(7));
        let seqs = fill(&store, "orders", 210);
        let alone = store.insert("orders", None);
        let bad = [seqs[14], alone];
        broker.change(|rules| match by_broker {
            true => rules.too_large.extend(bad),
            false => rules.invalid.extend(bad),
        });
        let settings = PumpSettings { on_unsendable: OnUnsendable::BlockKey, ..settings("a") };
        let mut pump = Running::start(&store, &broker, settings);
        let status = pump.until("others through", |status| status.deleted == 182).await;
        assert_eq!((status.blocked_count, status.dead, status.paused_count), (2, 0, 0));
        assert!(seqs.iter().skip(14).step_by(7).all(|seq| store.is_pending(*seq)), "the key waits");
        sleep(Duration::from_secs(200)).await;
        assert_eq!(store.pending(), 29);
        broker.change(|rules| {
            rules.too_large.clear();
            rules.invalid.clear();
        });
        pump.until("all through", |status| status.deleted == 211 && status.blocked_count == 0).await;
        pump.stop().await;
        check(&store, &broker, &NONE);
    }
}

#[tokio::test(start_paused = true)]
async fn stop_ends_the_run_with_the_row() {
    for by_broker in [false, true] {
        let (store, broker) = (Store::default(), Broker::new(8));
        let seqs = fill(&store, "orders", 100);
        broker.change(|rules| match by_broker {
            true => rules.too_large.extend([seqs[40]]),
            false => rules.invalid.extend([seqs[40]]),
        });
        let settings = PumpSettings { on_unsendable: OnUnsendable::Stop, ..settings("a") };
        let pump = Running::start(&store, &broker, settings);
        match pump.task.await.expect("no panic") {
            Err(PumpError::Unsendable { seq, .. }) => assert_eq!(seq, seqs[40]),
            other => panic!("{other:?}"),
        }
        assert!(store.is_pending(seqs[40]) && store.dead().is_empty());
        assert_eq!(store.holder(), None, "the lease is given back");
        assert_eq!(store.deleted_unpublished(&broker.log()), Vec::<i64>::new());
    }
}

/// F13: a lower number that commits later is sent.
#[tokio::test(start_paused = true)]
async fn late_commits_below_what_was_read_are_published() {
    let (store, broker) = (Store::default(), Broker::new(9));
    let late: Vec<i64> = (0..50)
        .map(|_| {
            fill(&store, "orders", 5);
            store.take_number()
        })
        .collect();
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("the rest", |status| status.deleted == 250).await;
    broker.change(|rules| {
        rules.missing.insert("orders".into());
    });
    for seq in late.iter().rev() {
        store.commit(*seq, "orders", None);
        sleep(Duration::from_millis(20)).await;
    }
    pump.until("a pause", |status| status.paused_count == 1).await;
    broker.change(|rules| rules.missing.clear());
    pump.until("all", |status| status.deleted == 300).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F16, F22: reads and write-backs that fail are done again.
#[tokio::test(start_paused = true)]
async fn faults_of_the_database_lose_nothing() {
    for kind in FAULTS {
        let (store, broker) = (Store::default(), Broker::new(10));
        fill(&store, "orders", 300);
        store.fail_reads(&[kind, kind]);
        store.fail_writes(&[kind, kind, kind]);
        let mut pump = Running::start(&store, &broker, settings("a"));
        while store.pending() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        store.fail_reads(&[kind]);
        fill(&store, "orders", 100);
        pump.until("a fault", |status| status.last_error.is_some()).await;
        while store.pending() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
        pump.stop().await;
        check(&store, &broker, &NONE);
        if kind != FaultKind::Unreachable {
            assert_eq!(broker.log().len(), 400, "a refused write keeps the confirmation");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slow_deletes_do_not_stall_publishing_and_are_bounded() {
    let (store, broker) = (Store::default(), Broker::new(11));
    store.slow_deletes(Duration::from_secs(5));
    fill(&store, "orders", 3_000);
    let mut pump = Running::start(&store, &broker, PumpSettings { unsettled_rows: 2_000, ..settings("a") });
    let begun = Instant::now();
    while broker.log().len() < 1_900 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "published before the first delete ended");
    sleep(Duration::from_millis(500)).await;
    assert!(broker.log().len() <= 2_000, "no more than may be published again");
    pump.until("all deleted", |status| status.deleted == 3_000).await;
    pump.stop().await;
    check(&store, &broker, &NONE);
}

/// F4: what is under way is confirmed and deleted first.
#[tokio::test(start_paused = true)]
async fn shutdown_drains_and_gives_the_lease_back() {
    let (store, broker) = (Store::default(), Broker::new(12));
    broker.change(|rules| rules.slowest = 2_000);
    fill(&store, "orders", 1_000);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("work", |status| status.published > 100).await;
    let report = pump.stop().await;
    assert_eq!((report.unconfirmed, report.undeleted), (0, 0));
    assert_eq!(report.status.published, report.status.deleted);
    assert_eq!(store.pending() as u64 + report.status.deleted, 1_000);
    assert_eq!(broker.submitted(), report.status.published, "nothing under way was left");
    assert_eq!(store.holder(), None);
}

/// F4: a broker that does not answer delays the end by the stated time only.
#[tokio::test(start_paused = true)]
async fn shutdown_waits_no_longer_than_told() {
    let (store, broker) = (Store::default(), Broker::new(13));
    broker.change(|rules| rules.frozen = true);
    fill(&store, "orders", 100);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("work", |status| status.under_way == 50).await;
    let begun = Instant::now();
    let report = pump.stop().await;
    assert_eq!((report.unconfirmed, store.pending()), (50, 100));
    assert!(begun.elapsed() < Duration::from_secs(11));
    assert_eq!(store.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_full_publisher_is_asked_again() {
    let (store, broker) = (Store::default(), Broker::new(14));
    broker.change(|rules| rules.queue = 3);
    fill(&store, "orders", 200);
    let mut pump = Running::start(&store, &broker, settings("a"));
    pump.until("all", |status| status.deleted == 200).await;
    assert!(broker.most_under_way() <= 3);
    pump.stop().await;
    assert_eq!(broker.log().len(), 200);
    check(&store, &broker, &NONE);
}
