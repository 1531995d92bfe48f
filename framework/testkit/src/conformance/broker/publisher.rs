//! The relay's pipeline: every ticket confirmed once, each key in order.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::cloudevents::{Binding, encode};
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope};
use backstop_core::{Destination, Envelope, Message};

use super::BrokerHarness;
use super::sample::*;
use crate::conformance::needs;

/// Waits for `count` confirmations.
async fn confirmations(publisher: &mut impl Publisher, count: usize) -> Vec<Confirmation> {
    let mut confirmed = Vec::new();
    while confirmed.len() < count {
        publisher.confirmations(&mut confirmed).await;
    }
    confirmed
}

fn binding(publisher: &impl Publisher, place: &str) -> Binding {
    publisher.binding(&Destination::new(place))
}

fn submit(publisher: &mut impl Publisher, ticket: u64, place: &str, message: Message) {
    let place = Destination::new(place);
    let envelope = encode(message, publisher.binding(&place));
    publisher.submit(ticket, &place, envelope).expect("there is room");
}

/// How one message ends, whether it is refused or fails later.
async fn outcome(
    publisher: &mut impl Publisher,
    place: &str,
    envelope: Envelope,
) -> Result<(), PublishError> {
    match publisher.submit(1, &Destination::new(place), envelope) {
        Ok(()) => confirmations(publisher, 1).await.remove(0).result,
        Err(Refused::Failed(error)) => Err(error),
        Err(Refused::Full(_)) => panic!("an empty pipeline is full"),
    }
}

/// Every ticket is confirmed exactly once, and every message is there.
///
/// F34: each message has exactly its own outcome.
pub async fn every_ticket_is_confirmed_once<H: BrokerHarness>(harness: &H) {
    let (mut publisher, place) = (harness.publisher().await, harness.place());
    for ticket in 0..50 {
        submit(&mut publisher, ticket, &place, message(&format!("key {}", ticket % 7), &ticket.to_string()));
    }
    let confirmed = confirmations(&mut publisher, 50).await;
    let mut tickets: Vec<u64> = confirmed.iter().map(|confirmation| confirmation.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (0..50).collect::<Vec<u64>>());
    assert!(confirmed.iter().all(|confirmation| confirmation.result.is_ok()), "{confirmed:?}");
    let mut more = Vec::new();
    let silence = tokio::time::timeout(SILENCE, publisher.confirmations(&mut more)).await;
    assert!(silence.is_err() && more.is_empty(), "confirmed twice: {more:?}");
    let mut source = harness.source(WINDOW).await;
    assert_eq!(receive(&mut source, 50).await.len(), 50);
}

/// Messages of a key are stored in the order of submission, with many under way.
pub async fn each_key_keeps_its_order<H: BrokerHarness>(harness: &H) {
    let (mut publisher, place) = (harness.publisher().await, harness.place());
    for n in 0..50_u64 {
        submit(&mut publisher, n, &place, message(&format!("key {}", n % 5), &n.to_string()));
    }
    confirmations(&mut publisher, 50).await;
    let mut by_key = BTreeMap::<_, Vec<u64>>::new();
    for received in receive(&mut harness.source(WINDOW).await, 50).await {
        let id = received.message.id.parse().expect("a number");
        by_key.entry(received.message.key).or_default().push(id);
    }
    assert_eq!(by_key.len(), 5);
    assert!(by_key.values().all(|ids| ids.is_sorted()), "{by_key:?}");
}

/// A full pipeline gives the message back, and takes it after confirmations.
pub async fn a_full_pipeline_refuses<H: BrokerHarness>(harness: &H) {
    let (mut publisher, place) = (harness.publisher().await, Destination::new(harness.place()));
    assert!(publisher.window() > 0);
    let mut taken = 0;
    let refused = loop {
        assert!(taken <= 1_000_000, "the pipeline takes everything");
        let envelope = encode(message("tea", &taken.to_string()), publisher.binding(&place));
        match publisher.submit(taken, &place, envelope.clone()) {
            Ok(()) => taken += 1,
            Err(Refused::Full(back)) => {
                assert_eq!(back, envelope, "it came back changed");
                break back;
            }
            Err(Refused::Failed(error)) => panic!("{error}"),
        }
    };
    let mut confirmed = Vec::new();
    publisher.confirmations(&mut confirmed).await;
    publisher.submit(taken, &place, refused).expect("there is room again");
    let left = taken as usize + 1 - confirmed.len();
    confirmed.extend(confirmations(&mut publisher, left).await);
    assert!(confirmed.iter().all(|confirmation| confirmation.result.is_ok()));
}

/// What is given up is confirmed once, stored or of unknown fate, and the next message goes through.
///
/// F35: nothing hangs.
pub async fn what_is_abandoned_is_confirmed_and_the_publisher_works_on<H: BrokerHarness>(harness: &H) {
    let (mut publisher, place) = (harness.publisher().await, harness.place());
    publisher.abandon().await;
    for ticket in 0..50 {
        submit(&mut publisher, ticket, &place, message(&format!("key {}", ticket % 7), &ticket.to_string()));
    }
    publisher.abandon().await;
    let confirmed = confirmations(&mut publisher, 50).await;
    let mut tickets: Vec<u64> = confirmed.iter().map(|confirmation| confirmation.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (0..50).collect::<Vec<u64>>());
    let known = |confirmation: &Confirmation| match &confirmation.result {
        Ok(()) => true,
        Err(error) => error.scope() == Scope::Broker,
    };
    assert!(confirmed.iter().all(known), "{confirmed:?}");
    let mut outcome = Err(Scope::Broker);
    for ticket in 50..70 {
        submit(&mut publisher, ticket, &place, message("tea", &ticket.to_string()));
        let confirmation = confirmations(&mut publisher, 1).await.remove(0);
        assert_eq!(confirmation.ticket, ticket);
        outcome = confirmation.result.map_err(|error| error.scope());
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(SILENCE).await;
    }
    assert_eq!(outcome, Ok(()), "it does not work again");
}

/// Waiting for confirmations can be given up and taken up again without losing one.
pub async fn waiting_is_cancel_safe<H: BrokerHarness>(harness: &H) {
    let (mut publisher, place) = (harness.publisher().await, harness.place());
    let mut confirmed = Vec::new();
    for ticket in 0..20 {
        submit(&mut publisher, ticket, &place, message("tea", &ticket.to_string()));
        let moment = Duration::from_micros(200);
        drop(tokio::time::timeout(moment, publisher.confirmations(&mut confirmed)).await);
    }
    let left = 20 - confirmed.len();
    confirmed.extend(confirmations(&mut publisher, left).await);
    let mut tickets: Vec<u64> = confirmed.iter().map(|confirmation| confirmation.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (0..20).collect::<Vec<u64>>());
}

/// A message that is too large fails alone; others go on.
///
/// F12, F44: every broker.
pub async fn a_large_message_fails_alone<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, size_limit);
    let (mut publisher, place) = (harness.publisher().await, harness.place());
    let mut large = message("tea", "large");
    large.body = Some(vec![b'x'; harness.max_bytes() + 1].into());
    let envelope = encode(large, binding(&publisher, &place));
    let error = outcome(&mut publisher, &place, envelope).await.expect_err("it is too large");
    assert_eq!(error.scope(), Scope::Message, "{error}");
    let envelope = encode(message("tea", "small"), binding(&publisher, &place));
    outcome(&mut publisher, &place, envelope).await.expect("it is small");
}

/// A missing destination fails its messages; other destinations go on.
///
/// F37: every broker.
pub async fn a_missing_destination_fails_alone<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, missing_destination);
    let mut publisher = harness.publisher().await;
    let envelope = encode(message("tea", "1"), binding(&publisher, &harness.place()));
    let failed = outcome(&mut publisher, &harness.missing(), envelope.clone()).await;
    let error = failed.expect_err("there is no such place");
    assert_eq!(error.scope(), Scope::Destination, "{error}");
    outcome(&mut publisher, &harness.place(), envelope).await.expect("this one is there");
}

/// A probe finds what is missing, and nothing else.
pub async fn a_probe_finds_what_is_missing<H: BrokerHarness>(harness: &H) {
    needs!(H::CAPABILITIES, asks_for_destinations);
    let publisher = harness.publisher().await;
    let (there, missing) = (Destination::new(harness.place()), Destination::new(harness.missing()));
    let none = publisher.probe(std::slice::from_ref(&there)).await;
    assert!(none.is_empty(), "{none:?}");
    let errors = publisher.probe(&[there, missing]).await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].scope(), Scope::Destination);
}
