//! Charges: what was being handled when a process died.
//!
//! A message under suspicion is charged, durably, before its handler is called, and acquitted when the handler has come
//! to an end, whichever. A charge that stands afterwards means that the process did not live to see that end. Messages
//! that are not under suspicion are never charged, so that the ordinary path writes nothing. Held messages are charged
//! in their own row, by [`claim`](crate::held::HeldMessages::claim).

use std::future::Future;

use crate::adapter_error::AdapterError;
use crate::identity::MessageKey;
use crate::inbox::Inbox;

/// The charges of messages that are not held, beside an inbox.
pub trait Charges: Inbox {
    /// How many charges of a message stand.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn charges(
        &self,
        consumer: &str,
        message_key: &MessageKey,
    ) -> impl Future<Output = Result<u32, AdapterError>> + Send;

    /// Charges a message once more, and says how many charges stood before: so many processes in a row have died of
    /// it. The charge is committed when this returns.
    ///
    /// # Errors
    /// When the database cannot be asked; the message must not be handled then.
    fn charge(
        &self,
        consumer: &str,
        message_key: &MessageKey,
    ) -> impl Future<Output = Result<u32, AdapterError>> + Send;

    /// Takes back all charges of a message, unless more than `up_to` stand: those beyond are of somebody else, who may
    /// have died of it or given it up. There need not be any.
    ///
    /// # Errors
    /// When the database cannot be asked; asking again is safe.
    fn acquit(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        up_to: u32,
    ) -> impl Future<Output = Result<(), AdapterError>> + Send;
}
