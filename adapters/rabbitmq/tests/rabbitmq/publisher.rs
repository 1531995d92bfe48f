use backstop_core::message::Destination;
use backstop_core::sink::{Publisher, Refused, Scope};
use backstop_rabbitmq::{
    Ordering, RabbitPublisher, RabbitSettings, declare_exchange, declare_queue, delete_queue,
};
use lapin::types::AMQPValue;

use crate::support::{Client, confirmed, envelope, settings, submit, unique, url, within};

/// How often what hangs on the moment is tried.
const ROUNDS: usize = 10;

fn publisher() -> RabbitPublisher {
    RabbitPublisher::builder(settings()).start().unwrap()
}

#[tokio::test]
async fn every_ticket_is_confirmed_and_every_message_stored() {
    let queue = unique("publisher");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut publisher = publisher();
    let to = Destination::new(&queue);
    for ticket in 0..1_000 {
        submit(&mut publisher, ticket, &to, Some(&format!("k{}", ticket % 50)));
    }
    let confirmed = confirmed(&mut publisher, 1_000).await;
    assert!(confirmed.values().all(Option::is_none));
    let bodies = Client::connect().await.drain(&queue, 1_000).await;
    let of_key =
        |key: usize| bodies.iter().map(|body| body.parse::<usize>().unwrap()).filter(move |n| n % 50 == key);
    assert!((0..50).all(|key| of_key(key).is_sorted() && of_key(key).count() == 20), "in order by key");
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F32, F33: an ack for a returned message is a failure.
#[tokio::test]
async fn returned_messages_are_told_from_stored_ones() {
    let (queue, exchange) = (unique("publisher"), unique("exchange"));
    declare_queue(&settings(), &queue).await.unwrap();
    declare_exchange(&settings(), &exchange, "direct", &queue, "bound").await.unwrap();
    let mut publisher =
        RabbitPublisher::builder(settings()).channels(1).window_per_channel(3_000).start().unwrap();
    let routed = [Destination::new(&queue), Destination::exchange(&exchange, "bound")];
    let unroutable = [Destination::exchange(&exchange, "unbound"), Destination::new(unique("missing"))];
    for ticket in 0..3_000 {
        let turn = usize::try_from(ticket).unwrap();
        let to = if ticket % 3 == 0 { &unroutable[turn % 2] } else { &routed[turn % 2] };
        submit(&mut publisher, ticket, to, None);
    }
    let confirmed = confirmed(&mut publisher, 3_000).await;
    let wrong: Vec<_> = confirmed
        .into_iter()
        .filter(|(ticket, scope)| *scope != (ticket % 3 == 0).then_some(Scope::Destination))
        .collect();
    assert!(wrong.is_empty(), "{} of 3000 are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    assert_eq!(Client::connect().await.drain(&queue, 2_000).await.len(), 2_000);
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F32, F73: over many rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_returned_message_passes_for_stored() {
    let mut publisher = RabbitPublisher::builder(settings()).channels(3).start().unwrap();
    let missing = Destination::new(unique("missing"));
    for round in 0..ROUNDS {
        for ticket in 0..3_000 {
            submit(&mut publisher, ticket, &missing, None);
        }
        let stored = confirmed(&mut publisher, 3_000).await.values().filter(|scope| scope.is_none()).count();
        assert_eq!(stored, 0, "of 3000 returned messages pass for stored, in round {round}");
    }
}

/// Refills the window all the time, so that returns and confirms never stand still.
///
/// F32, F34: confirms of several messages at once, out of order, with returns between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_and_stored_are_told_apart_while_the_window_is_refilled() {
    const TICKETS: u64 = 20_000;
    let queue = unique("publisher");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut publisher =
        RabbitPublisher::builder(settings()).channels(2).window_per_channel(300).start().unwrap();
    let (routed, missing) = (Destination::new(&queue), Destination::new(unique("missing")));
    // runs of either kind, of all lengths, so that one `multiple` ack covers both
    let is_missing = |ticket: u64| (ticket / 7).is_multiple_of(3) || ticket % 1_000 < 400;
    let (mut next, mut confirmations) = (0, Vec::new());
    while confirmations.len() < usize::try_from(TICKETS).unwrap() {
        while next < TICKETS && next < (confirmations.len() + publisher.window()) as u64 {
            submit(&mut publisher, next, if is_missing(next) { &missing } else { &routed }, None);
            next += 1;
        }
        within("confirmations", publisher.confirmations(&mut confirmations)).await;
    }
    let wrong: Vec<_> = confirmations
        .iter()
        .filter(|confirmation| confirmation.result.is_err() != is_missing(confirmation.ticket))
        .map(|confirmation| confirmation.ticket)
        .collect();
    assert!(wrong.is_empty(), "{} are wrong: {:?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F37: the 404 closes a channel, and others go on.
#[tokio::test]
async fn a_missing_exchange_fails_only_what_goes_there() {
    let queue = unique("publisher");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut publisher = RabbitPublisher::builder(settings()).channels(1).start().unwrap();
    let missing = [unique("missing"), unique("missing")].map(|name| Destination::exchange(name, "x"));
    let good = Destination::new(&queue);
    for ticket in 0..300 {
        let to = match ticket % 10 {
            3 => &missing[0],
            7 => &missing[1],
            _ => &good,
        };
        submit(&mut publisher, ticket, to, Some(&format!("k{}", ticket % 20)));
    }
    let confirmed = confirmed(&mut publisher, 300).await;
    for (ticket, scope) in confirmed {
        let expected = matches!(ticket % 10, 3 | 7).then_some(Scope::Destination);
        assert_eq!(scope, expected, "ticket {ticket}");
    }
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn the_window_is_bounded_and_opens_again() {
    let queue = unique("publisher");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut publisher =
        RabbitPublisher::builder(settings()).channels(2).window_per_channel(5).start().unwrap();
    assert_eq!(publisher.window(), 10);
    let to = Destination::new(&queue);
    for ticket in 0..10 {
        submit(&mut publisher, ticket, &to, None);
    }
    let eleventh = envelope("10", None, "10");
    let Err(Refused::Full(back)) = publisher.submit(10, &to, eleventh.clone()) else { panic!("not full") };
    assert_eq!(back, eleventh);
    confirmed(&mut publisher, 10).await;
    submit(&mut publisher, 10, &to, None);
    confirmed(&mut publisher, 1).await;
    delete_queue(&settings(), &queue).await.unwrap();
}

/// A queue that takes one message and refuses the next ones.
async fn small_queue(client: &Client) -> String {
    let queue = unique("small");
    let limit = ("x-max-length", AMQPValue::LongInt(1));
    let refuse = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
    client.declare(&queue, &[limit, refuse]).await;
    queue
}

/// F34, F38: a nack is that message's own, and its key keeps its order.
#[tokio::test]
async fn what_follows_a_failed_message_of_its_key_is_not_stored() {
    let client = Client::connect().await;
    let small = small_queue(&client).await;
    let mut publisher = publisher();
    let to = Destination::new(&small);
    for ticket in 0..100 {
        submit(&mut publisher, ticket, &to, Some("k"));
    }
    let scopes = confirmed(&mut publisher, 100).await;
    let first_failed =
        *scopes.iter().find(|(_, scope)| scope.is_some()).expect("the queue takes one message").0;
    let stored = client.drain(&small, usize::try_from(first_failed).unwrap()).await;
    assert!(stored.iter().map(|body| body.parse::<u64>().unwrap()).eq(0..first_failed));
    assert!(scopes.range(first_failed..).all(|(_, scope)| *scope == Some(Scope::Destination)));
    assert!(client.try_take(&small).await.is_none(), "nothing overtook the failed message");
    // and from there it goes on
    submit(&mut publisher, first_failed, &to, Some("k"));
    assert_eq!(confirmed(&mut publisher, 1).await[&first_failed], None);
    delete_queue(&settings(), &small).await.unwrap();
}

#[tokio::test]
async fn what_is_submitted_before_a_failure_is_known_shares_it() {
    let client = Client::connect().await;
    let small = small_queue(&client).await;
    let mut publisher = publisher();
    let to = Destination::new(&small);
    // fill the queue until it refuses
    let mut ticket = 0;
    loop {
        submit(&mut publisher, ticket, &to, Some("other"));
        if confirmed(&mut publisher, 1).await[&ticket].is_some() {
            break;
        }
        ticket += 1;
    }
    submit(&mut publisher, 1_000, &to, Some("k"));
    // The failure has happened, and is waiting to be told, when a message on another channel's queue is through;
    // emptying the queue makes sure that the broker itself would take what comes now.
    wait_for_a_confirmation(&client).await;
    client.drain(&small, usize::try_from(ticket).unwrap()).await;
    submit(&mut publisher, 1_001, &to, Some("k"));
    let scopes = confirmed(&mut publisher, 2).await;
    assert_eq!(scopes[&1_000], Some(Scope::Destination));
    assert_eq!(scopes[&1_001], Some(Scope::Destination), "it must not overtake 1000");
    assert!(client.try_take(&small).await.is_none());
    delete_queue(&settings(), &small).await.unwrap();
}

/// Takes as long as a round trip of another publisher through the broker and its queues does.
async fn wait_for_a_confirmation(client: &Client) {
    let queue = unique("publisher");
    client.declare(&queue, &[]).await;
    let mut other = publisher();
    for ticket in 0..20 {
        submit(&mut other, ticket, &Destination::new(&queue), None);
        confirmed(&mut other, 1).await;
    }
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn without_ordering_a_key_has_many_under_way() {
    let client = Client::connect().await;
    let small = small_queue(&client).await;
    let mut publisher = RabbitPublisher::builder(settings()).ordering(Ordering::None).start().unwrap();
    let to = Destination::new(&small);
    for ticket in 0..50 {
        submit(&mut publisher, ticket, &to, Some("k"));
    }
    let scopes = confirmed(&mut publisher, 50).await;
    assert!(scopes.values().any(Option::is_none) && scopes.values().any(Option::is_some));
    delete_queue(&settings(), &small).await.unwrap();
}

#[tokio::test]
async fn what_can_never_pass_is_refused_at_once() {
    let mut publisher = RabbitPublisher::builder(settings()).max_message_bytes(10).start().unwrap();
    let scope = |refused: Result<(), Refused>| match refused {
        Err(Refused::Failed(error)) => error.scope(),
        other => panic!("{other:?}"),
    };
    let long = envelope("1", None, "eleven bytes");
    assert_eq!(scope(publisher.submit(1, &Destination::new("q"), long)), Scope::Message);
    let reserved = Destination::exchange("amq.rabbitmq.trace", "x");
    assert_eq!(scope(publisher.submit(2, &reserved, envelope("2", None, "x"))), Scope::Destination);
}

#[tokio::test]
async fn a_probe_names_what_is_missing() {
    let (queue, exchange) = (unique("publisher"), unique("exchange"));
    declare_queue(&settings(), &queue).await.unwrap();
    declare_exchange(&settings(), &exchange, "fanout", &queue, "").await.unwrap();
    let publisher = publisher();
    let there = [
        Destination::new(&queue),
        Destination::exchange(&exchange, "any"),
        Destination::exchange("amq.topic", "x"),
    ];
    assert!(publisher.probe(&there).await.is_empty());
    let missing = unique("missing");
    let faults = publisher
        .probe(&[Destination::new(&missing), there[0].clone(), Destination::exchange(&missing, "")])
        .await;
    assert_eq!(faults.len(), 2);
    assert!(
        faults
            .iter()
            .all(|fault| fault.scope() == Scope::Destination && fault.to_string().contains(&missing))
    );
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn without_a_broker_messages_fail_with_its_scope() {
    let settings = RabbitSettings::parse("amqp://guest:guest@127.0.0.1:1/%2f").unwrap();
    let mut publisher = RabbitPublisher::builder(settings).start().unwrap();
    submit(&mut publisher, 1, &Destination::new("q"), Some("k"));
    assert_eq!(confirmed(&mut publisher, 1).await[&1], Some(Scope::Broker));
    assert_eq!(publisher.probe(&[]).await.len(), 1);
}

#[tokio::test]
async fn confirmations_can_be_cancelled() {
    let queue = unique("publisher");
    declare_queue(&settings(), &queue).await.unwrap();
    let mut publisher = RabbitPublisher::builder(RabbitSettings::parse(&url()).unwrap()).start().unwrap();
    let to = Destination::new(&queue);
    let mut confirmations = Vec::new();
    for ticket in 0..200 {
        submit(&mut publisher, ticket, &to, None);
    }
    within("all confirmations", async {
        while confirmations.len() < 200 {
            let waiting = publisher.confirmations(&mut confirmations);
            let _ = tokio::time::timeout(std::time::Duration::from_micros(50), waiting).await;
        }
    })
    .await;
    assert!(confirmations.iter().all(|confirmation| confirmation.result.is_ok()));
    delete_queue(&settings(), &queue).await.unwrap();
}
