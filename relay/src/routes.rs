//! One outbox into several brokers: each destination goes to the broker that its route names.

mod share;

use std::{fmt, mem};

use backstop_core::cloudevents::Binding;
use backstop_core::schema::Finding;
use backstop_core::sink::{Confirmation, PublishError, Publisher, Refused, Scope, Traffic};
use backstop_core::{AdapterError, Destination, Envelope, FaultKind};
use futures_core::future::BoxFuture;
use futures_util::future::{join_all, select_all};
use tokio::time::Instant;

use crate::config::RouteConfig;
use share::Share;

/// A publisher in front of several. To the pump an outage of one of them looks like destinations that take nothing:
/// they are paused, and those of the other brokers go on. So does a broker that is slow, once its share of what may be
/// under way has been used up for a second.
pub struct RoutedPublisher {
    brokers: Vec<Broker>,
    /// Patterns with the place of their broker; the first that matches counts.
    routes: Vec<(String, usize)>,
    /// Where destinations go that no route names.
    otherwise: Option<usize>,
}

struct Broker {
    name: String,
    publisher: Box<dyn Publisher>,
    /// Confirmations that came while others were waited for.
    confirmed: Vec<Confirmation>,
    share: Share,
}

impl RoutedPublisher {
    /// Publishers by the names of their brokers, of which `otherwise` takes what no route names. A route whose broker
    /// is not among them leads nowhere. Each has its own window, and an equal share of `bytes`.
    pub fn new(
        brokers: Vec<(String, Box<dyn Publisher>)>,
        routes: &[RouteConfig],
        otherwise: Option<&str>,
        bytes: usize,
    ) -> Self {
        let place = |wanted: &str| brokers.iter().position(|(name, _)| name == wanted);
        let resolved =
            routes.iter().filter_map(|route| Some((route.destination.clone(), place(&route.broker)?)));
        let (routes, otherwise) = (resolved.collect(), otherwise.and_then(place));
        let bytes = bytes / brokers.len().max(1);
        let broker =
            |(name, publisher)| Broker { name, publisher, confirmed: Vec::new(), share: Share::new(bytes) };
        Self { brokers: brokers.into_iter().map(broker).collect(), routes, otherwise }
    }

    fn place(&self, destination: &Destination) -> Option<usize> {
        let named = self.routes.iter().find(|(pattern, _)| matches(pattern, &destination.name));
        named.map(|(_, broker)| *broker).or(self.otherwise)
    }

    fn collect(&mut self, into: &mut Vec<Confirmation>) -> bool {
        let before = into.len();
        for Broker { name, confirmed, share, .. } in &mut self.brokers {
            into.extend(confirmed.drain(..).map(|Confirmation { ticket, result }| {
                share.settled(ticket);
                Confirmation { ticket, result: result.map_err(|error| narrowed(error, name)) }
            }));
        }
        into.len() > before
    }
}

impl fmt::Debug for RoutedPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.brokers.iter().map(|broker| broker.name.as_str()).collect();
        f.debug_struct("RoutedPublisher").field("brokers", &names).finish_non_exhaustive()
    }
}

/// Whether the name is the pattern, in which each `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(end)
}

fn section(broker: &str) -> String {
    if broker.is_empty() { "[broker]".to_owned() } else { format!("[brokers.{broker}]") }
}

fn slow(broker: &str) -> PublishError {
    let what = format!("{}: messages come faster than the broker takes them", section(broker));
    let hint = "give the broker a larger window, or these messages an outbox of their own";
    PublishError::new(Scope::Destination, AdapterError::new(FaultKind::Other, what).with_hint(hint))
}

/// The error with a scope that leaves other brokers alone.
fn narrowed(error: PublishError, broker: &str) -> PublishError {
    if error.scope() != Scope::Broker {
        return error;
    }
    let narrow = AdapterError::new(error.error().kind(), format!("{}: {error}", section(broker)));
    let narrow = match error.error().hint() {
        Some(hint) => narrow.with_hint(hint.to_owned()),
        None => narrow,
    };
    PublishError::new(Scope::Destination, narrow)
}

fn no_route(destination: &Destination) -> PublishError {
    let error = AdapterError::new(FaultKind::Missing, format!("no route leads {destination} to a broker"))
        .with_hint("add a [[routes]] entry for it, or a [broker] that takes what no route names");
    PublishError::new(Scope::Destination, error)
}

impl Publisher for RoutedPublisher {
    fn binding(&self, destination: &Destination) -> Binding {
        match self.place(destination) {
            Some(place) => self.brokers[place].publisher.binding(destination),
            None => Binding::Kafka,
        }
    }

    fn submit(&mut self, ticket: u64, destination: &Destination, envelope: Envelope) -> Result<(), Refused> {
        let Some(place) = self.place(destination) else {
            return Err(Refused::Failed(no_route(destination)));
        };
        let alone = self.brokers.len() == 1;
        let Broker { name, publisher, share, .. } = &mut self.brokers[place];
        let bytes = envelope.size();
        let submitted = match share.has_room(bytes) {
            true => publisher.submit(ticket, destination, envelope),
            false => Err(Refused::Full(envelope)),
        };
        match submitted {
            Ok(()) => {
                share.departed(ticket, bytes);
                Ok(())
            }
            Err(Refused::Full(_)) if !alone && share.turns_away(destination, Instant::now()) => {
                Err(Refused::Failed(slow(name)))
            }
            Err(Refused::Failed(error)) => Err(Refused::Failed(narrowed(error, name))),
            Err(full) => Err(full),
        }
    }

    fn confirmations<'a>(&'a mut self, into: &'a mut Vec<Confirmation>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // What came before a wait that was given up is still in the brokers' own lists.
            while !self.collect(into) {
                let waits = self
                    .brokers
                    .iter_mut()
                    .map(|broker| broker.publisher.confirmations(&mut broker.confirmed));
                drop(select_all(waits).await);
            }
        })
    }

    fn abandon<'a>(&'a mut self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            join_all(self.brokers.iter_mut().map(|broker| broker.publisher.abandon())).await;
        })
    }

    fn window(&self) -> usize {
        self.brokers.iter().map(|broker| broker.publisher.window()).sum()
    }

    fn probe<'a>(&'a self, destinations: &'a [Destination]) -> BoxFuture<'a, Vec<PublishError>> {
        Box::pin(async move {
            let mut by_broker = vec![Vec::new(); self.brokers.len()];
            let mut faults = Vec::new();
            for destination in destinations {
                match self.place(destination) {
                    Some(place) => by_broker[place].push(destination.clone()),
                    None => faults.push(no_route(destination)),
                }
            }
            let probes = self.brokers.iter().zip(&mut by_broker).map(|(broker, destinations)| async move {
                let faults = broker.publisher.probe(&mem::take(destinations)).await;
                faults.into_iter().map(|fault| narrowed(fault, &broker.name)).collect::<Vec<_>>()
            });
            faults.extend(join_all(probes).await.into_iter().flatten());
            faults
        })
    }

    fn inspect<'a>(&'a self, traffic: &'a Traffic) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(async move {
            let mut by_broker = vec![Traffic::default(); self.brokers.len()];
            for (destination, bytes) in &traffic.largest {
                if let Some(place) = self.place(destination) {
                    by_broker[place].largest.push((destination.clone(), *bytes));
                }
            }
            // Dead letters are on the broker of no route.
            if let Some(place) = self.otherwise {
                by_broker[place].letters.clone_from(&traffic.letters);
            }
            let inspections = self
                .brokers
                .iter()
                .zip(&by_broker)
                .map(|(broker, traffic)| broker.publisher.inspect(traffic));
            join_all(inspections).await.into_iter().flatten().collect()
        })
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
