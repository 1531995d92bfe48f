//! Owed receipts: there exactly when the message is handled, and until they are paid.

use std::time::Duration;

use backstop_core::held::HeldMessages;
use backstop_core::inbox::Inbox;
use backstop_core::owed::{Owed, OwedReceipts};
use backstop_core::{Headers, Receipt, ReceiptOutcome, names};

use super::StoreHarness;
use super::sample::*;

const INSTANCE: &str = "host-1";

fn receipt_of(message: &Sample, outcome: ReceiptOutcome) -> Receipt {
    let headers: Headers =
        [(names::REDRIVE_ID, Some("job-1")), (names::DEAD_LETTER_ID, Some("letter-1"))].into_iter().collect();
    Receipt::new(message.message_key.clone(), &headers, &message.consumer, INSTANCE, outcome)
}

fn receipt(message: &Sample) -> Receipt {
    receipt_of(message, ReceiptOutcome::Handled)
}

async fn owed<S: OwedReceipts>(store: &S) -> Vec<Owed> {
    store.owed(CONSUMER, INSTANCE, LATER, 100).await.expect("the database answers")
}

async fn owed_receipts<S: OwedReceipts>(store: &S) -> Vec<Receipt> {
    owed(store).await.into_iter().map(|owed| owed.receipt).collect()
}

/// What is owed commits with the message that it is owed for.
pub async fn a_receipt_is_owed_from_the_commit_on<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    store.can_owe().await.expect("the table is there");
    let (mut tx, receipt) = (begin(&store, &message).await, receipt(&message));
    store.owe(&mut tx, &receipt).await.expect("written");
    if H::CAPABILITIES.concurrent_writers {
        assert_eq!(owed_receipts(&store).await, [], "before the commit");
    }
    store.commit(tx).await.expect("the commit is proved");
    assert_eq!(owed_receipts(&store).await, [receipt]);
}

/// A transaction that is rolled back or dropped owes nothing.
pub async fn a_rollback_owes_nothing<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    for id in ["1", "2"] {
        let message = sample("tea", id);
        let mut tx = begin(&store, &message).await;
        store.owe(&mut tx, &receipt(&message)).await.expect("written");
        if id == "1" {
            store.rollback(tx).await;
        }
    }
    assert_eq!(owed_receipts(&store).await, []);
}

/// A held message and its receipt end together, and what is undone is not owed.
pub async fn a_held_message_owes_with_its_end<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    hold(&store, &message).await;
    let mut claimed = claim(&store).await;
    store.owe(&mut claimed.tx, &receipt(&message)).await.expect("written");
    store.undo(&mut claimed.tx).await.expect("undone");
    let again = failure(2, NOW);
    store.reschedule(CONSUMER, Some(claimed.tx), &claimed.head, &again).await.expect("rescheduled");
    assert_eq!(owed_receipts(&store).await.len(), 0, "undone with the attempt");
    let mut claimed = claim(&store).await;
    store.owe(&mut claimed.tx, &receipt(&message)).await.expect("written");
    store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    assert_eq!(owed_receipts(&store).await.len(), 1);
    assert_eq!(held_count(&store, CONSUMER).await, 0);
}

/// Nobody can owe a receipt of handling for a message that the inbox does not know; other receipts need no inbox.
pub async fn nothing_untrue_is_owed<H: StoreHarness>(harness: &H) {
    let (store, message) = (harness.store(), sample("tea", "1"));
    for outcome in [ReceiptOutcome::Handled, ReceiptOutcome::AlreadyHandled] {
        store.owe_now(&receipt_of(&message, outcome)).await.expect("the database answers");
    }
    assert_eq!(owed_receipts(&store).await.len(), 0);
    store.owe_now(&receipt_of(&message, ReceiptOutcome::Skipped)).await.expect("the database answers");
    assert_eq!(owed_receipts(&store).await.len(), 1);
    handle(&store, &message).await;
    store.owe_now(&receipt_of(&message, ReceiptOutcome::AlreadyHandled)).await.expect("the database answers");
    let outcomes: Vec<_> = owed_receipts(&store).await.iter().map(|receipt| receipt.outcome).collect();
    assert_eq!(outcomes, [ReceiptOutcome::Skipped, ReceiptOutcome::AlreadyHandled], "oldest first");
}

/// What is paid is forgotten, and nothing else.
pub async fn paid_receipts_are_forgotten<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    for id in ["1", "2", "3"] {
        let message = sample("tea", id);
        handle(&store, &message).await;
        store.owe_now(&receipt(&message)).await.expect("written");
    }
    store.paid(&[]).await.expect("nothing to do");
    let all = owed(&store).await;
    assert_eq!(all.len(), 3);
    store.paid(&[all[0].n, all[2].n]).await.expect("deleted");
    assert_eq!(owed(&store).await, [all[1].clone()]);
    store.paid(&[all[0].n, all[1].n]).await.expect("deleted");
    assert_eq!(owed(&store).await, []);
}

/// Each instance pays for itself, and after a while for others; consumers never for each other.
pub async fn instances_pay_for_those_that_are_gone<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let other = sample("tea", "2").of_consumer("billing");
    for message in [&sample("tea", "1"), &other] {
        handle(&store, message).await;
        store.owe_now(&receipt(message)).await.expect("written");
    }
    let of = async |instance: &str, others_after: Duration| {
        store.owed(CONSUMER, instance, others_after, 100).await.expect("the database answers").len()
    };
    assert_eq!(of(INSTANCE, LATER).await, 1);
    assert_eq!(of("host-2", LATER).await, 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(of("host-2", Duration::from_millis(1)).await, 1);
    assert_eq!(store.owed(CONSUMER, INSTANCE, LATER, 0).await.expect("the database answers"), []);
}

/// Identities and names of any bytes that messages may have survive.
pub async fn odd_receipts_survive<H: StoreHarness>(harness: &H) {
    let store = harness.store();
    let mut message = sample("tea", "ü'\"\\ %|\u{1}\u{2028}");
    message.message_key = backstop_core::MessageKey::new("a%b|c'", "ü'\"\\ %|\u{1}\u{2028}".as_bytes());
    handle(&store, &message).await;
    store.owe_now(&receipt(&message)).await.expect("written");
    assert_eq!(owed_receipts(&store).await[0].message_key, message.message_key);
}
