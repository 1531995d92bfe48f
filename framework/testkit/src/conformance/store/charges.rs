//! Charges: what stands when a process dies, and what is taken back when it does not.

use std::time::Instant;

use backstop_core::charges::Charges;
use backstop_core::held::{AFTER_CRASH, ClaimedHead, Failure, Heads, HeldMessages};
use backstop_core::inbox::Inbox;
use backstop_core::{DeadReason, Via};

use super::StoreHarness;
use super::sample::*;
use crate::conformance::eventually;

async fn charge<S: Charges>(store: &S, message: &Sample) -> u32 {
    store.charge(&message.consumer, &message.message_key).await.expect("the database answers")
}

async fn charges_of<S: Charges>(store: &S, message: &Sample) -> u32 {
    store.charges(&message.consumer, &message.message_key).await.expect("the database answers")
}

async fn claim_one_of<S: HeldMessages>(store: &S, heads: Heads) -> Option<ClaimedHead<S::Tx>> {
    store.claim(CONSUMER, limits(), heads).await.expect("the database answers")
}

/// Claims a head of that kind and loses the claim, as a process does that dies; how often it had crashed before.
async fn crash<S: HeldMessages>(store: &S, heads: Heads) -> u32 {
    let claimed = eventually(|| claim_one_of(store, heads)).await;
    store.rollback(claimed.tx).await;
    claimed.head.crashes
}

/// Each charge is seen by the next one, of whatever instance, until they are taken back.
pub async fn charges_are_counted_and_taken_back<H: StoreHarness>(harness: &H) {
    let (one, other, message) = (harness.store(), harness.store(), sample("tea", "1"));
    for charges in 0..3 {
        assert_eq!(charges_of(&other, &message).await, charges);
        assert_eq!(charge(if charges == 1 { &other } else { &one }, &message).await, charges);
    }
    assert_eq!(charges_of(&one, &sample("tea", "2")).await, 0);
    for _ in 0..2 {
        other.acquit(CONSUMER, &message.message_key, 3).await.expect("nothing to take back is no error");
        assert_eq!(charge(&one, &message).await, 0);
    }
    assert_eq!(answer(&one, &message).await, "fresh", "a charge is no inbox row");
}

/// Whoever was slow to take its charge back leaves those that others have made since.
pub async fn charges_beyond_the_own_one_stay<H: StoreHarness>(harness: &H) {
    let (slow, other, message) = (harness.store(), harness.store(), sample("tea", "1"));
    let own = charge(&slow, &message).await + 1;
    charge(&other, &message).await;
    slow.acquit(CONSUMER, &message.message_key, own).await.expect("the database answers");
    assert_eq!(charges_of(&slow, &message).await, 2);
    other.acquit(CONSUMER, &message.message_key, 2).await.expect("the database answers");
    assert_eq!(charges_of(&slow, &message).await, 0);
}

/// Nobody is charged for another.
pub async fn charges_are_of_one_consumer_and_message<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    for message in [sample("tea", "1"), sample("tea", "2"), sample("tea", "1").of_consumer("billing")] {
        assert_eq!(charge(&store, &message).await, 0);
    }
    store.acquit("billing", &sample("tea", "1").message_key, 1).await.expect("taken back");
    assert_eq!(charge(&store, &sample("tea", "1")).await, 1);
}

/// Whoever dies with a head leaves it doubtful: it is not claimed among sound ones any more.
pub async fn a_claim_that_is_lost_leaves_its_charge<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    assert!(claim_one_of(&store, Heads::Doubtful).await.is_none(), "it never ran");
    assert_eq!(crash(&store, Heads::Sound).await, 0);
    assert!(claim_one_of(&store, Heads::Sound).await.is_none(), "its run did not end");
    assert_eq!(crash(&harness.store(), Heads::Doubtful).await, 1);
    assert_eq!(crash(&store, Heads::Doubtful).await, 2);
}

/// A failure that is written down ends the run, and so does one that is written without the claim.
pub async fn a_run_that_ends_leaves_no_charge<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    crash(&store, Heads::Sound).await;
    let mut claimed = eventually(|| claim_one_of(&store, Heads::Doubtful)).await;
    store.undo(&mut claimed.tx).await.expect("the claim is kept");
    let tx = Some(claimed.tx);
    store.reschedule(CONSUMER, tx, &claimed.head, &failure(2, NOW)).await.expect("it is written");
    let claimed = eventually(|| claim_one_of(&store, Heads::Sound)).await;
    assert_eq!((claimed.head.attempts, claimed.head.crashes), (2, 0));
    store.rollback(claimed.tx).await;
    store.reschedule(CONSUMER, None, &claimed.head, &failure(3, NOW)).await.expect("it is written");
    let claimed = eventually(|| claim_one_of(&store, Heads::Sound)).await;
    assert_eq!((claimed.head.attempts, claimed.head.crashes), (3, 0));
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert_eq!(held_count(&store, CONSUMER).await, 0);
}

/// Nobody charges it for the same run, and instances do not go down one right after another.
pub async fn a_charged_head_is_left_alone_for_a_while<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let began = Instant::now();
    crash(&store, Heads::Sound).await;
    assert!(claim_one_of(&store, Heads::Doubtful).await.is_none());
    assert_eq!(crash(&store, Heads::Doubtful).await, 1);
    assert!(began.elapsed() >= AFTER_CRASH, "{:?}", began.elapsed());
}

/// A process that lives on takes the charge back; the head is due at once.
pub async fn an_acquitted_head_is_sound<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    crash(&store, Heads::Sound).await;
    let claimed = eventually(|| claim_one_of(&store, Heads::Doubtful)).await;
    store.rollback(claimed.tx).await;
    let charge = claimed.head.spent_charge();
    store.acquit_heads(CONSUMER, &[charge]).await.expect("the database answers");
    assert!(claim_one_of(&store, Heads::Doubtful).await.is_none());
    let claimed = claim_one_of(&store, Heads::Sound).await.expect("it is due");
    assert_eq!(claimed.head.crashes, 0);
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    store.acquit_heads(CONSUMER, &[charge]).await.expect("one that is gone is no error");
}

/// A run that never began takes back its own charge, and none of those that processes have died of.
pub async fn a_charge_is_taken_back_alone<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    crash(&store, Heads::Sound).await;
    for _ in 0..2 {
        let claimed = eventually(|| claim_one_of(&store, Heads::Doubtful)).await;
        assert_eq!(claimed.head.crashes, 1);
        store.rollback(claimed.tx).await;
        let charge = claimed.head.unused_charge();
        for _ in 0..2 {
            store.acquit_heads(CONSUMER, &[charge]).await.expect("the database answers");
        }
    }
}

/// Whoever was slow to take the charge of a head back leaves those of runs that began since.
pub async fn a_later_charge_of_a_head_stays<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    hold(&store, &sample("tea", "1")).await;
    let slow = eventually(|| claim_one_of(&store, Heads::Sound)).await;
    store.rollback(slow.tx).await;
    assert_eq!(crash(&store, Heads::Doubtful).await, 1);
    for late in [slow.head.unused_charge(), slow.head.spent_charge()] {
        store.acquit_heads(CONSUMER, &[late]).await.expect("the database answers");
    }
    assert_eq!(crash(&store, Heads::Doubtful).await, 2);
}

/// What is given up is not run, so that nobody can die of it.
pub async fn a_condemned_head_is_not_charged<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let condemned = Failure { condemned: Some(DeadReason::CrashedProcess), crashes: 3, ..failure(3, NOW) };
    store.hold(sample("tea", "1").new_held(), &condemned).await.expect("it is held");
    for _ in 0..2 {
        assert_eq!(crash(&store, Heads::Doubtful).await, 3);
    }
}

/// A redrive is a new trial.
pub async fn a_redriven_message_begins_without_charges<H: StoreHarness>(harness: &H) {
    let (store, mut message) = (harness.store(), sample("tea", "1"));
    let condemned = Failure { condemned: Some(DeadReason::CrashedProcess), crashes: 3, ..failure(3, NOW) };
    store.hold(message.new_held(), &condemned).await.expect("it is held");
    message.via = Via::Door;
    message.envelope.headers.set(backstop_core::names::REDRIVE_GENERATION, "1");
    store.import(message.new_held()).await.expect("it is taken in");
    let claimed = eventually(|| claim_one_of(&store, Heads::Sound)).await;
    assert_eq!((claimed.head.condemned, claimed.head.crashes), (None, 0));
    store.rollback(claimed.tx).await;
}
