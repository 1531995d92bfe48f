//! How an [`Envelope`](backstop_core::Envelope) holds what AMQP keeps outside of the body.
//!
//! Basic properties are pseudo headers `amqp:…`, first in the list; the header table follows.
//!
//! | on the wire | in the envelope | published back as |
//! |---|---|---|
//! | `content_type`, `content_encoding`, `correlation_id`, `reply_to`, `message_id`, `timestamp`, `type`, `app_id`, `priority`, `cluster_id` | `amqp:content-type` and so on | the property |
//! | `delivery_mode` | `amqp:delivery-mode` | always 2, persistent |
//! | `expiration` | `amqp:expiration` | header `amqp:original-expiration`, so that no dead letter expires |
//! | `user_id` | `amqp:user-id` | header `amqp:original-user-id`, because the broker checks the property against the login |
//! | string header | its bytes | string header |
//! | header of any other type | readable text, and its exact value in [`TYPED`] | the same type and value, unless the text was changed |
//! | void header | header without a value | void header |
//! | array of two or more strings | the header, once for each | array of strings |
//! | `CC`, `BCC`, `x-death` | the same | header `amqp:CC`, `amqp:BCC`, `amqp:x-death`: the broker would act on the original |
//! | header whose name begins with `amqp:` | `amqp:header:` before its name | under its own name |
//!
//! AMQP cannot tell an absent body from an empty one; an absent one travels with the header [`NO_BODY`].

pub use backstop_core::cloudevents::amqp::{CONTENT_TYPE, MESSAGE_ID, PREFIX, TIMESTAMP, TYPE};

/// `content_encoding`
pub const CONTENT_ENCODING: &str = "amqp:content-encoding";
/// `correlation_id`
pub const CORRELATION_ID: &str = "amqp:correlation-id";
/// `reply_to`
pub const REPLY_TO: &str = "amqp:reply-to";
/// `expiration`, milliseconds
pub const EXPIRATION: &str = "amqp:expiration";
/// `priority`, 0 to 255
pub const PRIORITY: &str = "amqp:priority";
/// `delivery_mode`, 1 transient or 2 persistent
pub const DELIVERY_MODE: &str = "amqp:delivery-mode";
/// `app_id`
pub const APP_ID: &str = "amqp:app-id";
/// `user_id`, which the broker has checked against the publisher's login
pub const USER_ID: &str = "amqp:user-id";
/// `cluster_id`, deprecated
pub const CLUSTER_ID: &str = "amqp:cluster-id";

/// Exact values of headers that are neither strings nor void: compact JSON by header name.
pub const TYPED: &str = "amqp:typed";
/// The user that the broker had checked when the message was first published. A claim, no longer checked.
pub const ORIGINAL_USER_ID: &str = "amqp:original-user-id";
/// On the wire only: the expiration that the message was first published with.
pub const ORIGINAL_EXPIRATION: &str = "amqp:original-expiration";
/// On the wire only: the message has no body, as opposed to an empty one.
pub const NO_BODY: &str = "amqp:no-body";
/// Before the name of a header that looks like one of ours.
pub const ESCAPE: &str = "amqp:header:";

/// Headers that the broker acts on, and the names under which they travel so that it does not.
pub(crate) const PARKED: [(&str, &str); 3] =
    [("CC", "amqp:CC"), ("BCC", "amqp:BCC"), ("x-death", "amqp:x-death")];
