//! Where a message goes, checked before anything is sent.

use backstop_core::FaultKind;
use backstop_core::message::Destination;
use backstop_core::sink::Scope;
use lapin::types::ShortString;

use crate::error::Failure;

/// AMQP's limit for names and routing keys, in bytes.
const MAX_NAME: usize = 255;

/// The exchanges with a reserved name that anybody may publish to.
const STANDARD: [&str; 5] = ["amq.direct", "amq.topic", "amq.fanout", "amq.headers", "amq.match"];

/// Exchange and routing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
}

impl Address {
    /// A queue through the default exchange, or an exchange with its routing key.
    pub(crate) fn of(destination: &Destination) -> Result<Self, Failure> {
        let name = &destination.name;
        let invalid = |what: &str| Failure::new(Scope::Destination, FaultKind::Invalid, what.to_owned());
        if name.len() > MAX_NAME {
            return Err(invalid("the name of the exchange or queue is longer than 255 bytes"));
        }
        let reserved = name.starts_with("amq.");
        match &destination.routing_key {
            Some(key) if key.len() > MAX_NAME => {
                let what = "the routing key is longer than 255 bytes";
                Err(Failure::new(Scope::Message, FaultKind::Invalid, what))
            }
            Some(_) if reserved && !STANDARD.contains(&name.as_str()) => Err(invalid(&format!(
                "exchange {name} belongs to the broker"
            ))
            .hint(
                "publish to an exchange of your own, or to amq.direct, amq.topic, amq.fanout or amq.headers",
            )),
            // The default exchange finds a queue by its name.
            Some(key) if name.is_empty() && key.starts_with("amq.") => {
                Err(invalid(&format!("queue {key} belongs to the broker")))
            }
            Some(key) => Ok(Self { exchange: short(name), routing_key: short(key) }),
            None if name.is_empty() => Err(invalid("the destination has neither a queue nor an exchange")),
            None if reserved => Err(invalid(&format!("queue {name} belongs to the broker"))),
            None => Ok(Self { exchange: ShortString::default(), routing_key: short(name) }),
        }
    }

    /// The exchange or queue, for texts.
    pub(crate) fn describe(&self) -> String {
        match self.exchange.as_str() {
            "" => format!("queue {}", self.routing_key),
            exchange => format!("exchange {exchange} with routing key {:?}", self.routing_key.as_str()),
        }
    }
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).expect("the length has been checked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_routing_key_is_a_queue() {
        let address = Address::of(&Destination::new("orders")).expect("valid");
        assert_eq!((address.exchange.as_str(), address.routing_key.as_str()), ("", "orders"));
        let address = Address::of(&Destination::exchange("orders", "")).expect("valid");
        assert_eq!((address.exchange.as_str(), address.routing_key.as_str()), ("orders", ""));
    }

    #[test]
    fn s17_names_of_the_broker_and_long_names_are_refused() {
        let refused = |destination| Address::of(&destination).unwrap_err().scope;
        assert_eq!(refused(Destination::exchange("amq.rabbitmq.log", "x")), Scope::Destination);
        assert_eq!(refused(Destination::new("amq.gen-1")), Scope::Destination);
        assert_eq!(refused(Destination::exchange("", "amq.gen-1")), Scope::Destination);
        assert_eq!(refused(Destination::new("")), Scope::Destination);
        assert_eq!(refused(Destination::new("x".repeat(256))), Scope::Destination);
        assert_eq!(refused(Destination::exchange("x", "y".repeat(256))), Scope::Message);
        assert!(Address::of(&Destination::exchange("amq.topic", "x")).is_ok());
    }
}
