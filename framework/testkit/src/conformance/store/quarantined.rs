//! Heads that are given up and stay at their place, and how the wait for a message ends.

use backstop_core::held::{Failure, HeldMessages, Holding};
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldState};
use backstop_core::inbox::Inbox;
use backstop_core::{DeadReason, Via, names};

use super::StoreHarness;
use super::sample::*;
use crate::conformance::{eventually, needs};

/// The same message, redriven for the `generation`th time.
fn redriven(message: &Sample, generation: u32) -> Sample {
    let mut redriven = Sample { via: Via::Door, ..message.clone() };
    redriven.envelope.headers.set(names::REDRIVE_GENERATION, generation.to_string());
    redriven
}

async fn import<S: HeldMessages>(store: &S, message: &Sample) -> Holding {
    store.import(message.new_held()).await.expect("the database answers")
}

/// A message that is given up after one attempt; its letter is not confirmed yet.
async fn condemn<S: HeldMessages>(store: &S, message: &Sample) {
    let condemned = Failure { condemned: Some(DeadReason::Permanent), ..failure(1, LATER) };
    let holding = store.hold(message.new_held(), &condemned).await.expect("it is held");
    assert_eq!(holding, Holding::Stored);
}

async fn park<S: HeldMessages>(store: &S, message: &Sample) {
    let headers = &message.envelope.headers;
    store.park(CONSUMER, &message.message_key, 1, headers).await.expect("the database answers");
}

/// A message that is given up, with its letter confirmed.
async fn quarantine<S: HeldMessages>(store: &S, message: &Sample) {
    condemn(store, message).await;
    park(store, message).await;
    assert_eq!(state(store, message).await, Some(HeldState::Quarantined));
}

/// What the head of a key waits for.
async fn state<S: HeldMessages>(store: &S, message: &Sample) -> Option<HeldState> {
    let keys = store.keys(&HeldFilter::default(), 100).await.expect("the database answers");
    keys.into_iter().find(|key| key.head.message_key == message.message_key).map(|key| key.state)
}

async fn end<S: HeldMessages>(store: &S, message: &Sample, ending: Ending) -> Ended {
    store.end(CONSUMER, &message.message_key, ending, None).await.expect("the database answers")
}

/// A quarantined head is not run, and what comes after it waits, live or appended.
pub async fn a_quarantined_head_keeps_its_place<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    quarantine(&store, &message).await;
    assert_eq!(answer(&store, &sample("tea", "2")).await, "held");
    append(&store, &sample("tea", "2")).await;
    hold(&store, &sample("milk", "3")).await;
    run_head(&store, &sample("milk", "3")).await;
    assert!(try_claim(&store, CONSUMER).await.is_none(), "something of the key is run");
    let summary = store.summary(CONSUMER).await.expect("the database answers");
    assert_eq!((summary.messages, summary.quarantined), (2, 1));
    assert!(!is_handled(&store, &message).await);
}

/// Only a message that is still condemned, as often tried and with the same headers, is quarantined.
pub async fn what_has_changed_is_not_quarantined<H: StoreHarness>(harness: &H) {
    let (store, retried, condemned) = (harness.store(), sample("tea", "1"), sample("milk", "2"));
    hold(&store, &retried).await;
    park(&store, &retried).await;
    assert_eq!(state(&store, &retried).await, Some(HeldState::Retry), "it is not condemned");
    condemn(&store, &condemned).await;
    let headers = &condemned.envelope.headers;
    store.park(CONSUMER, &condemned.message_key, 2, headers).await.expect("the database answers");
    assert_eq!(state(&store, &condemned).await, Some(HeldState::Retry), "it has another number of attempts");
    park(&store, &redriven(&condemned, 1)).await;
    assert_eq!(state(&store, &condemned).await, Some(HeldState::Retry), "it has other headers");
    park(&store, &sample("tea", "nobody")).await;
}

/// A redriven message takes the place of what it was, with nothing charged, before all that waits behind it.
pub async fn a_redrive_takes_its_place<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    quarantine(&store, &message).await;
    append(&store, &sample("tea", "2")).await;
    let mut again = redriven(&message, 1);
    again.envelope.body = Some("edited".into());
    assert_eq!(import(&store, &again).await, Holding::Stored);
    let claimed = claim(&store).await;
    let head = &claimed.head;
    assert_eq!((&head.message_key, head.via, head.attempts), (&message.message_key, Via::Door, 0));
    assert_eq!((head.class, &head.error, head.condemned), (None, &None, None));
    assert_eq!((&head.envelope, head.generation()), (&again.envelope, 1));
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert!(is_handled(&store, &message).await);
    run_head(&store, &sample("tea", "2")).await;
}

/// A redrive that comes again after a later one changes nothing.
pub async fn an_older_redrive_changes_nothing<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    quarantine(&store, &redriven(&message, 3)).await;
    assert_eq!(import(&store, &redriven(&message, 2)).await, Holding::Stored);
    assert_eq!(state(&store, &message).await, Some(HeldState::Quarantined));
    assert_eq!(import(&store, &redriven(&message, 3)).await, Holding::Stored);
    assert_eq!(state(&store, &message).await, Some(HeldState::Retry), "sent again by hand");
}

/// On a live message the header of the generation is anybody's.
pub async fn a_forged_generation_stops_no_redrive<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    let forged = Sample { via: Via::Live, ..redriven(&message, 900_000) };
    quarantine(&store, &forged).await;
    assert_eq!(import(&store, &redriven(&message, 1)).await, Holding::Stored);
    assert_eq!(claim(&store).await.head.generation(), 1);
}

/// A redrive may come before those who publish the letter hear of it: they leave the redriven message alone.
pub async fn a_redrive_may_come_before_its_letter_is_confirmed<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    condemn(&store, &message).await;
    let keys = store.keys(&HeldFilter::default(), 1).await.expect("the database answers");
    let before = keys[0].head.clone();
    assert_eq!(import(&store, &redriven(&message, 1)).await, Holding::Stored);
    let claimed = claim(&store).await;
    let condemned = Failure { condemned: Some(DeadReason::Permanent), ..failure(1, LATER) };
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &condemned).await.expect("it is written");
    park(&store, &message).await;
    store.give_up(CONSUMER, &before).await.expect("the database answers");
    assert_eq!(state(&store, &message).await, Some(HeldState::Retry), "its second letter is not published");
    park(&store, &redriven(&message, 1)).await;
    assert_eq!(state(&store, &message).await, Some(HeldState::Quarantined));
}

/// What is released is not handled: its key goes on, and a redrive runs it behind the others.
pub async fn released_keys_go_on<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    quarantine(&store, &message).await;
    append(&store, &sample("tea", "2")).await;
    assert_eq!(end(&store, &message, Ending::Release).await, Ended::Done);
    assert!(!is_handled(&store, &message).await);
    assert_eq!(import(&store, &redriven(&message, 1)).await, Holding::Stored);
    run_head(&store, &sample("tea", "2")).await;
    run_head(&store, &message).await;
    assert_eq!(end(&store, &message, Ending::Release).await, Ended::AlreadyHandled);
}

/// What is skipped or resolved counts as handled, and its key goes on.
pub async fn skipped_and_resolved_messages_are_never_run<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    for (key, ending) in [("tea", Ending::Skip), ("milk", Ending::Resolve)] {
        let message = sample(key, key);
        quarantine(&store, &message).await;
        append(&store, &sample(key, &format!("{key}-next"))).await;
        assert_eq!(end(&store, &message, ending).await, Ended::Done);
        assert!(is_handled(&store, &message).await);
        assert_eq!(import(&store, &redriven(&message, 1)).await, Holding::AlreadyHandled);
        assert_eq!(end(&store, &message, ending).await, Ended::AlreadyHandled, "said twice");
        let next = claim(&store).await;
        assert_eq!(next.head.ordering_key, key.as_bytes());
        store.finish(CONSUMER, next.tx, &next.head).await.expect("the commit is proved");
    }
}

/// What has no letter cannot be released: it would be lost. It can be skipped, as head and as follower.
pub async fn what_is_still_tried_is_not_released<H: StoreHarness>(harness: &H) {
    let (store, head, follower) = (harness.store(), sample("tea", "1"), sample("tea", "2"));
    hold(&store, &head).await;
    append(&store, &follower).await;
    append(&store, &sample("tea", "3")).await;
    for message in [&head, &follower] {
        assert_eq!(end(&store, message, Ending::Release).await, Ended::NotQuarantined);
        assert_eq!(end(&store, message, Ending::Skip).await, Ended::Done);
    }
    let unconfirmed = sample("milk", "4");
    condemn(&store, &unconfirmed).await;
    assert_eq!(end(&store, &unconfirmed, Ending::Release).await, Ended::NotQuarantined);
    run_head(&store, &sample("tea", "3")).await;
}

/// There is nothing to release of what is not held; skipping it keeps a redrive from running it.
pub async fn what_is_not_held_can_be_skipped<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    assert_eq!(end(&store, &message, Ending::Release).await, Ended::NotHeld);
    assert_eq!(end(&store, &message, Ending::Skip).await, Ended::Done);
    assert_eq!(import(&store, &redriven(&message, 1)).await, Holding::AlreadyHandled);
    let other = store.end("billing", &message.message_key, Ending::Release, None).await;
    assert_eq!(other.expect("the database answers"), Ended::NotHeld, "consumers have their own");
}

/// Who speaks of an earlier failure does not reach a later one.
pub async fn an_ending_is_for_its_generation<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), redriven(&sample("tea", "1"), 2));
    quarantine(&store, &message).await;
    for generation in [0, 1, 3] {
        let ended = store.end(CONSUMER, &message.message_key, Ending::Release, Some(generation)).await;
        assert_eq!(ended.expect("the database answers"), Ended::Redriven);
    }
    let ended = store.end(CONSUMER, &message.message_key, Ending::Release, Some(2)).await;
    assert_eq!(ended.expect("the database answers"), Ended::Done);
}

/// A message that is at work is not taken away under its handler.
pub async fn what_is_at_work_is_busy<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, concurrent_writers);
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let claimed = claim(&store).await;
    assert_eq!(end(&harness.store(), &message, Ending::Skip).await, Ended::Busy);
    store.rollback(claimed.tx).await;
    let ended = eventually(|| async {
        let ended = end(&store, &message, Ending::Skip).await;
        (ended != Ended::Busy).then_some(ended)
    });
    assert_eq!(ended.await, Ended::Done);
}

/// Heads are listed with what they wait for and how much waits behind them; every field of the filter narrows.
pub async fn held_keys_are_listed<H: StoreHarness>(harness: &H) {
    let (store, quarantined, retried) = (harness.store(), sample("tea", "1"), sample("milk", "2"));
    quarantine(&store, &quarantined).await;
    append(&store, &sample("tea", "3")).await;
    append(&store, &sample("tea", "4")).await;
    let due_later = failure(1, LATER);
    store.hold(retried.new_held(), &due_later).await.expect("it is held");
    hold(&store, &sample("tea", "5").in_place("payments")).await;
    hold(&store, &sample("tea", "6").of_consumer("billing")).await;
    let list = |filter: HeldFilter, limit| {
        let store = &store;
        async move { store.keys(&filter, limit).await.expect("the database answers") }
    };
    let all = list(HeldFilter::default(), 100).await;
    let shown: Vec<_> =
        all.iter().map(|key| (&*key.consumer, &*key.head.place, key.state, key.behind)).collect();
    let expected = [
        (CONSUMER, PLACE, HeldState::Quarantined, 2),
        (CONSUMER, PLACE, HeldState::Retry, 0),
        (CONSUMER, "payments", HeldState::Retry, 0),
        ("billing", PLACE, HeldState::Retry, 0),
    ];
    assert_eq!(shown, expected);
    assert_eq!((all[0].due_in, &all[0].head.message_key), (None, &quarantined.message_key));
    assert_eq!(
        (all[0].head.envelope.headers.clone(), &all[0].head.envelope.body),
        (quarantined.envelope.headers, &None)
    );
    assert!(all[1].due_in.is_some_and(|due| due > LATER / 2 && due <= LATER));
    let numbers = |keys: Vec<backstop_core::held_keys::HeldKey>| -> Vec<i64> {
        keys.iter().map(|key| key.head.n).collect()
    };
    let n = numbers(all);
    let of = |consumer: &str| HeldFilter { consumer: Some(consumer.to_owned()), ..HeldFilter::default() };
    assert_eq!(numbers(list(of(CONSUMER), 100).await), n[..3]);
    assert_eq!(
        numbers(list(HeldFilter { place: Some("payments".to_owned()), ..of(CONSUMER) }, 9).await),
        n[2..3]
    );
    assert_eq!(numbers(list(HeldFilter { quarantined: true, ..HeldFilter::default() }, 9).await), n[..1]);
    let some = HeldFilter { numbers: vec![n[3], n[1], n[1] + 1_000], ..HeldFilter::default() };
    assert_eq!(numbers(list(some, 9).await), [n[1], n[3]]);
    assert_eq!(numbers(list(HeldFilter::default(), 2).await), n[..2]);
    assert_eq!(numbers(list(HeldFilter { after: Some(n[1]), ..HeldFilter::default() }, 9).await), n[2..]);
}

/// However long a message waited for others, it begins to fail with its own first failure.
pub async fn followers_begin_to_fail_by_themselves<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    append(&store, &sample("tea", "2")).await;
    run_head(&store, &sample("tea", "1")).await;
    let waited = eventually(|| async {
        let claimed = claim(&store).await;
        if claimed.head.age.as_millis() >= 20 {
            return Some(claimed);
        }
        store.rollback(claimed.tx).await;
        None
    })
    .await;
    assert!(waited.head.failing_for().is_zero());
    let tx = Some(waited.tx);
    store.reschedule(CONSUMER, tx, &waited.head, &failure(1, NOW)).await.expect("it is written");
    let failed = claim(&store).await;
    assert!(failed.head.held_since > waited.head.held_since, "{:?}", failed.head);
    let tx = Some(failed.tx);
    store.reschedule(CONSUMER, tx, &failed.head, &failure(2, NOW)).await.expect("it is written");
    assert_eq!(claim(&store).await.head.held_since, failed.head.held_since, "only its first failure counts");
}

/// Followers that are appended while their head is released are run, or find the key free.
pub async fn a_release_forgets_no_follower<H: StoreHarness>(harness: &H) {
    for round in 0..5 {
        let (store, head) = (harness.store(), sample("tea", &format!("{round}")));
        quarantine(&store, &head).await;
        let followers: Vec<Sample> = (0..8).map(|n| sample("tea", &format!("{round}-{n}"))).collect();
        let appends = followers.iter().map(|follower| {
            let store = harness.store();
            async move { store.append(follower.new_held()).await.expect("the database answers") }
        });
        let releasing = end(&store, &head, Ending::Release);
        let (appended, released) = futures_util::join!(futures_util::future::join_all(appends), releasing);
        assert_eq!(released, Ended::Done);
        for _ in appended.iter().filter(|holding| **holding == Holding::Stored) {
            let claimed = claim(&store).await;
            store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
        }
        assert_eq!(held_count(&store, CONSUMER).await, 0);
    }
}
