//! Two brokers that do as they are told.

use std::future::pending;
use std::sync::{Arc, Mutex};

use backstop_core::Headers;
use futures_util::FutureExt;

use super::*;

/// Confirms everything at once, or with an error of that scope, or not at all.
struct Scripted {
    binding: Binding,
    taken: Arc<Mutex<Vec<u64>>>,
    under_way: Vec<u64>,
    ends: Result<bool, Scope>,
    room: usize,
}

fn error(scope: Scope) -> PublishError {
    PublishError::new(scope, AdapterError::new(FaultKind::Unreachable, "gone").with_hint("start it"))
}

impl Publisher for Scripted {
    fn binding(&self, _destination: &Destination) -> Binding {
        self.binding
    }

    fn submit(&mut self, ticket: u64, _destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        if self.under_way.len() >= self.room {
            return Err(Refused::Full(envelope));
        }
        self.taken.lock().expect("no panic").push(ticket);
        self.under_way.push(ticket);
        Ok(())
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if self.under_way.is_empty() || self.ends == Ok(false) {
                return pending().await;
            }
            let result = |_| self.ends.map(|_| ()).map_err(error);
            let confirmations =
                self.under_way.drain(..).map(|ticket| Confirmation { ticket, result: result(ticket) });
            into.extend(confirmations);
        })
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        self.ends = Err(Scope::Broker);
        Box::pin(std::future::ready(()))
    }

    fn window(&self) -> usize {
        self.room
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        let fault = self.ends.err().map(error);
        assert!(
            destinations.iter().all(|destination| destination.name.starts_with("audit")) || self.room == 3
        );
        Box::pin(std::future::ready(fault.into_iter().collect()))
    }
}

type Taken = Arc<Mutex<Vec<u64>>>;

/// `audit.*` goes to the second broker, everything else to the first.
fn routed(first: Result<bool, Scope>, second: Result<bool, Scope>) -> (RoutedPublisher, [Taken; 2]) {
    let taken: [Taken; 2] = Default::default();
    let broker = |binding, place: usize, ends, room| -> Box<dyn Publisher> {
        Box::new(Scripted { binding, taken: taken[place].clone(), under_way: Vec::new(), ends, room })
    };
    let brokers = vec![
        (String::new(), broker(Binding::Kafka, 0, first, 3)),
        ("audit".to_owned(), broker(Binding::Amqp, 1, second, 2)),
    ];
    let routes = [RouteConfig { destination: "audit.*".to_owned(), broker: "audit".to_owned() }];
    (RoutedPublisher::new(brokers, &routes, Some(""), 1 << 20), taken)
}

fn submit(publisher: &mut RoutedPublisher, ticket: u64, name: &str) -> Result<(), Refused> {
    let envelope = Envelope { key: None, headers: Headers::default(), body: None };
    publisher.submit(ticket, &Destination::new(name), envelope)
}

#[test]
fn each_star_stands_for_any_text() {
    for (pattern, name, expected) in [
        ("orders", "orders", true),
        ("orders", "orders.eu", false),
        ("*", "", true),
        ("audit.*", "audit.", true),
        ("audit.*", "audi", false),
        ("*.eu", "orders.eu", true),
        ("*.eu", "orders.eu.old", false),
        ("a*b*c", "a--b--b--c", true),
        ("a*b*c", "a--c", false),
        ("aa*aa", "aaa", false),
        ("**", "x", true),
    ] {
        assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
    }
}

#[tokio::test]
async fn messages_go_where_their_route_leads() {
    let (mut publisher, taken) = routed(Ok(true), Ok(true));
    assert_eq!(publisher.binding(&Destination::new("audit.x")), Binding::Amqp);
    assert_eq!(publisher.binding(&Destination::new("orders")), Binding::Kafka);
    assert_eq!(publisher.window(), 5);
    for (ticket, name) in [(1, "orders"), (2, "audit.x"), (3, "stock")] {
        submit(&mut publisher, ticket, name).expect("there is room");
    }
    let mut confirmed = Vec::new();
    while confirmed.len() < 3 {
        publisher.confirmations(&mut confirmed).await;
    }
    assert!(confirmed.iter().all(|confirmation| confirmation.result.is_ok()));
    let taken = taken.map(|taken| taken.lock().expect("no panic").clone());
    assert_eq!(taken, [vec![1, 3], vec![2]]);
}

/// F11: with two brokers, the rows of the other one flow.
#[tokio::test]
async fn an_outage_of_one_broker_reaches_its_destinations_only() {
    let (mut publisher, _) = routed(Ok(true), Err(Scope::Broker));
    submit(&mut publisher, 1, "audit.x").expect("there is room");
    submit(&mut publisher, 2, "orders").expect("there is room");
    let mut confirmed = Vec::new();
    while confirmed.len() < 2 {
        publisher.confirmations(&mut confirmed).await;
    }
    confirmed.sort_by_key(|confirmation| confirmation.ticket);
    let failed = confirmed[0].result.as_ref().expect_err("its broker is gone");
    assert_eq!((failed.scope(), failed.to_string().as_str()), (Scope::Destination, "[brokers.audit]: gone"));
    assert_eq!(failed.error().hint(), Some("start it"));
    assert!(confirmed[1].result.is_ok());
    let faults = publisher.probe(&[Destination::new("orders"), Destination::new("audit.x")]).await;
    assert_eq!(faults.len(), 1);
}

#[tokio::test]
async fn a_silent_broker_holds_back_no_confirmation_of_another() {
    let (mut publisher, _) = routed(Ok(true), Ok(false));
    submit(&mut publisher, 1, "audit.x").expect("there is room");
    submit(&mut publisher, 2, "orders").expect("there is room");
    let mut confirmed = Vec::new();
    publisher.confirmations(&mut confirmed).await;
    assert_eq!(confirmed.iter().map(|confirmation| confirmation.ticket).collect::<Vec<_>>(), [2]);
    assert!(publisher.confirmations(&mut confirmed).now_or_never().is_none(), "the other is still silent");
    publisher.abandon().await;
    publisher.confirmations(&mut confirmed).await;
    assert_eq!(confirmed[1].ticket, 1);
}

#[test]
fn what_no_route_names_is_refused_where_there_is_no_other_broker() {
    let brokers = || -> Vec<(String, Box<dyn Publisher>)> { Vec::new() };
    let mut publisher = RoutedPublisher::new(brokers(), &[], None, 0);
    let Err(Refused::Failed(error)) = submit(&mut publisher, 1, "orders") else { panic!("refused") };
    assert_eq!((error.scope(), error.error().kind()), (Scope::Destination, FaultKind::Missing));
    assert_eq!(error.to_string(), "no route leads orders to a broker");
}
