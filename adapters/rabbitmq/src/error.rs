//! What lapin reports, in Backstop's terms.

use backstop_core::report::{cut, escaped};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, FaultKind};
use lapin::ErrorKind;
use lapin::protocol::AMQPError;

use crate::tls::distrust;

/// Reply codes of AMQP 0-9-1.
pub(crate) mod code {
    pub(crate) const CONNECTION_FORCED: u16 = 320;
    pub(crate) const INVALID_PATH: u16 = 402;
    pub(crate) const ACCESS_REFUSED: u16 = 403;
    pub(crate) const NOT_FOUND: u16 = 404;
    pub(crate) const RESOURCE_LOCKED: u16 = 405;
    pub(crate) const PRECONDITION_FAILED: u16 = 406;
    pub(crate) const NOT_ALLOWED: u16 = 530;
    pub(crate) const INTERNAL_ERROR: u16 = 541;
}

/// What is the matter with a connection that ends without a reason.
const UNREACHABLE: (FaultKind, Option<&str>) =
    (FaultKind::Unreachable, Some("check that the broker runs and that host and port are right"));

/// The error of an operation that `what` names: one line, lowercase, with the broker's own words behind it.
pub(crate) fn adapter_error(what: &str, error: lapin::Error) -> AdapterError {
    let (kind, hint) = match error.kind() {
        ErrorKind::ProtocolError(reply) => explain(reply),
        ErrorKind::IOError(error) => distrust(error).unwrap_or(UNREACHABLE),
        ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidConnectionState(_) => UNREACHABLE,
        ErrorKind::AuthProviderError(_) => (FaultKind::Denied, None),
        ErrorKind::ChannelsLimitReached => {
            (FaultKind::Invalid, Some("raise channel_max of the broker, or use fewer channels"))
        }
        ErrorKind::SerialisationError(_) => (FaultKind::Invalid, None),
        _ => (FaultKind::Other, None),
    };
    let words = match error.kind() {
        ErrorKind::ProtocolError(reply) => reply.get_message().as_str().to_owned(),
        _ => error.to_string(),
    };
    let fault = AdapterError::new(kind, format!("{what}: {}", cut(&escaped(&words), 512))).with_source(error);
    match hint {
        Some(hint) => fault.with_hint(hint),
        None => fault,
    }
}

fn explain(reply: &AMQPError) -> (FaultKind, Option<&'static str>) {
    let text = reply.get_message().as_str();
    match reply.get_id() {
        code::ACCESS_REFUSED if text.contains("EXTERNAL") => (
            FaultKind::Denied,
            Some(
                "check that certfile and keyfile of the AMQP URL name a certificate whose common name is a user",
            ),
        ),
        code::ACCESS_REFUSED if text.to_lowercase().contains("login") => {
            (FaultKind::Denied, Some("check user and password of the AMQP URL"))
        }
        code::ACCESS_REFUSED => (
            FaultKind::Denied,
            Some("grant the user configure, write or read permission: rabbitmqctl set_permissions"),
        ),
        code::NOT_FOUND => (FaultKind::Missing, Some("declare it, or correct the name")),
        code::INVALID_PATH => (FaultKind::Missing, Some("check the vhost of the AMQP URL")),
        code::NOT_ALLOWED if text.contains("vhost") && text.contains("not found") => (
            FaultKind::Missing,
            Some("create the vhost, or correct the AMQP URL; the default vhost is written %2f"),
        ),
        code::NOT_ALLOWED => {
            (FaultKind::Denied, Some("grant the user access to the vhost: rabbitmqctl set_permissions"))
        }
        code::PRECONDITION_FAILED => (FaultKind::Invalid, None),
        code::RESOURCE_LOCKED => (FaultKind::Conflict, Some("another connection uses it exclusively")),
        code::CONNECTION_FORCED | code::INTERNAL_ERROR => (FaultKind::Unreachable, None),
        _ => (FaultKind::Other, None),
    }
}

/// The broker's reply code, if it sent one.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(reply) => Some(reply.get_id()),
        _ => None,
    }
}

/// An operation that took longer than it may.
pub(crate) fn timed_out(what: &str) -> AdapterError {
    AdapterError::new(FaultKind::Unreachable, format!("{what}: no answer from the broker in time"))
        .with_hint("check that the broker runs, is not overloaded and has no memory or disk alarm")
}

/// A publishing failure that can be told to many messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) scope: Scope,
    pub(crate) kind: FaultKind,
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(scope: Scope, kind: FaultKind, what: impl Into<String>) -> Self {
        Self { scope, kind, what: what.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Nobody knows, or nothing was sent: the connection is the matter.
    pub(crate) fn broker(error: &AdapterError) -> Self {
        Self {
            scope: Scope::Broker,
            kind: error.kind(),
            what: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }

    /// The exchange routed the message to no queue.
    pub(crate) fn unroutable(destination: &str) -> Self {
        Self::new(
            Scope::Destination,
            FaultKind::Missing,
            format!("no queue takes messages for {destination}"),
        )
        .hint("declare the queue, or bind one to the exchange with this routing key")
    }

    /// A queue said no.
    pub(crate) fn refused(destination: &str) -> Self {
        Self::new(
            Scope::Destination,
            FaultKind::Other,
            format!("a queue behind {destination} is full or refused the message"),
        )
        .hint("drain the queue, or raise its length limit")
    }

    /// What closed a channel on which this was the only message under way.
    pub(crate) fn of_channel(destination: &str, error: lapin::Error) -> Self {
        let scope = match reply_code(&error) {
            Some(code::NOT_FOUND | code::ACCESS_REFUSED | code::RESOURCE_LOCKED) => Scope::Destination,
            Some(code::PRECONDITION_FAILED) => Scope::Message,
            _ => Scope::Broker,
        };
        let error = adapter_error(&format!("cannot publish to {destination}"), error);
        Self { scope, ..Self::broker(&error) }
    }

    pub(crate) fn to_error(&self) -> PublishError {
        let error = AdapterError::new(self.kind, self.what.clone());
        let error = match &self.hint {
            Some(hint) => error.with_hint(hint.clone()),
            None => error,
        };
        PublishError::new(self.scope, error)
    }
}

#[cfg(test)]
mod taxonomy;
