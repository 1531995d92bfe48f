//! Settled means gone, anything else means again.

use std::collections::BTreeSet;
use std::time::Duration;

use backstop_core::source::{Settlement, Source};
use tokio::time::timeout;

use super::BrokerHarness;
use super::sample::*;
use crate::conformance::needs;

/// What is settled does not come again after the source was closed and opened anew.
pub async fn settled_does_not_come_again<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 5)).await;
    let mut source = harness.source(WINDOW).await;
    assert_eq!(settle_until(&mut source, "5").await, ["1", "2", "3", "4", "5"]);
    close(source).await;
    publish(harness, [message("tea", "last")]).await;
    assert_eq!(settle_until(&mut harness.source(WINDOW).await, "last").await, ["last"]);
}

/// What was never begun comes again.
pub async fn untouched_comes_again<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 3)).await;
    let mut source = harness.source(WINDOW).await;
    let received = receive(&mut source, 3).await;
    close(source).await;
    drop(received);
    assert_eq!(settle_until(&mut harness.source(WINDOW).await, "3").await, ["1", "2", "3"]);
}

/// What was begun and dropped, as by a panic, comes again.
pub async fn dropped_comes_again<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 3)).await;
    let mut source = harness.source(WINDOW).await;
    for mut received in receive(&mut source, 3).await {
        assert!(received.settlement.begin());
    }
    close(source).await;
    let again: BTreeSet<String> =
        settle_until(&mut harness.source(WINDOW).await, "3").await.into_iter().collect();
    assert_eq!(again, ["1", "2", "3"].map(str::to_owned).into());
}

/// A source that is dropped without closing, as by a crash, loses nothing.
pub async fn a_crash_loses_nothing<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 3)).await;
    let mut source = harness.source(WINDOW).await;
    let mut received = receive(&mut source, 3).await;
    assert!(received[0].settlement.begin());
    drop(source);
    drop(received);
    assert_eq!(settle_until(&mut harness.source(WINDOW).await, "3").await, ["1", "2", "3"]);
}

/// F48, F70: every broker.
/// Settling out of order never skips what is not settled.
pub async fn a_gap_is_not_skipped<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 6)).await;
    let mut source = harness.source(WINDOW).await;
    for mut received in receive(&mut source, 6).await.into_iter().rev() {
        assert!(received.settlement.begin());
        if received.message.id != "3" {
            received.settlement.settle();
        }
    }
    close(source).await;
    publish(harness, [message("tea", "last")]).await;
    let again = settle_until(&mut harness.source(WINDOW).await, "last").await;
    assert!(again.iter().any(|id| id == "3"), "3 was skipped: {again:?}");
    assert!(!again.iter().any(|id| id == "1" || id == "2"), "settled before the gap: {again:?}");
    if !H::CAPABILITIES.settles_in_order {
        assert_eq!(again, ["3", "last"]);
    }
}

/// Settling what waits at the front lets everything behind it go at once.
pub async fn a_closed_gap_is_forgotten<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 6)).await;
    let mut source = harness.source(WINDOW).await;
    let mut received = receive(&mut source, 6).await;
    let first = received.remove(0);
    received.into_iter().for_each(settle);
    settle(first);
    close(source).await;
    publish(harness, [message("tea", "last")]).await;
    assert_eq!(settle_until(&mut harness.source(WINDOW).await, "last").await, ["last"]);
}

/// A source hands over no more than its bound, and goes on when messages come back.
pub async fn the_bound_holds<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 20)).await;
    let mut source = harness.source(4).await;
    let mut at_work = receive(&mut source, 4).await;
    assert_eq!(ids(&at_work), ["1", "2", "3", "4"]);
    assert!(timeout(SILENCE, batch(&mut source)).await.is_err(), "more than the bound");
    let mut seen = 0;
    while seen < 20 {
        seen += at_work.len();
        at_work.into_iter().for_each(settle);
        at_work = if seen < 20 { batch(&mut source).await } else { Vec::new() };
        assert!(at_work.len() <= 4, "more than the bound");
    }
    close(source).await;
}

/// After the source was closed nothing can be begun any more.
pub async fn nothing_begins_after_closing<H: BrokerHarness>(harness: &H) {
    publish(harness, numbered("tea", 2)).await;
    let mut source = harness.source(WINDOW).await;
    let received = receive(&mut source, 2).await;
    close(source).await;
    for mut received in received {
        assert!(!received.settlement.begin(), "{} was begun", received.message.id);
    }
}

/// Two members share the work: together they get everything, and what they settle does not come again.
pub async fn two_members_share<H: BrokerHarness>(harness: &H) {
    let (mut one, mut two) = (harness.source(5).await, harness.source(5).await);
    let (seen, done) = (std::sync::Mutex::new(BTreeSet::new()), tokio::sync::Notify::new());
    publish(harness, (0..60).map(|n| message(&format!("key {}", n % 20), &n.to_string()))).await;
    let work = async |source: &mut H::Source| {
        loop {
            let Ok(Some(batch)) = source.next().await else { panic!("the source has ended") };
            for mut received in batch {
                if received.settlement.begin() {
                    received.settlement.settle();
                    let mut seen = seen.lock().expect("no panic");
                    seen.insert(received.message.id);
                    if seen.len() == 60 {
                        done.notify_one();
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work(&mut one) => {}
        () = work(&mut two) => {}
        () = done.notified() => {}
    }
    futures_util::future::join(close(one), close(two)).await;
    publish(harness, (0..20).map(|key| message(&format!("key {key}"), &format!("last {key}")))).await;
    let mut source = harness.source(WINDOW).await;
    let mut last: Vec<String> =
        receive(&mut source, 20).await.into_iter().map(|received| received.message.id).collect();
    last.sort();
    assert!(last.iter().all(|id| id.starts_with("last")), "settled messages came again: {last:?}");
}

/// What a member that leaves has not settled goes to one that stays.
pub async fn a_leaving_member_hands_over<H: BrokerHarness>(harness: &H) {
    publish(harness, (0..20).map(|n| message(&format!("key {n}"), &n.to_string()))).await;
    let mut leaving = harness.source(WINDOW).await;
    let received = receive(&mut leaving, 20).await;
    let mut staying = harness.source(WINDOW).await;
    let mut seen = BTreeSet::new();
    let reading = async {
        while seen.len() < 20 {
            for mut received in batch(&mut staying).await {
                if received.settlement.begin() {
                    received.settlement.settle();
                    seen.insert(received.message.id);
                }
            }
        }
    };
    let closing = async {
        close(leaving).await;
        drop(received);
    };
    futures_util::future::join(reading, closing).await;
    assert_eq!(seen.len(), 20);
    close(staying).await;
}

/// While members come and go, the messages of a key come in order, apart from repetitions.
pub async fn order_survives_a_change_of_members<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, key_order_over_members);
    publish(harness, numbered("tea", 40)).await;
    let mut settled: Vec<usize> = Vec::new();
    while settled.last() != Some(&40) {
        // Each member settles a few and leaves the rest to the next.
        let mut source = harness.source(8).await;
        for received in batch(&mut source).await.into_iter().take(5) {
            settled.push(received.message.id.parse().expect("a number"));
            settle(received);
        }
        timeout(Duration::from_secs(20), close(source)).await.expect("closed in time");
    }
    let expected: Vec<usize> = (1..=40).collect();
    assert_eq!(settled, expected);
}
