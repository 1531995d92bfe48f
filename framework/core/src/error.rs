//! What a handler's failure means.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Any error that can cross threads.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The kind of a failure: a plain key for retry policies, metrics and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ErrorClass {
    /// May pass: retried as the policy says, then quarantined. Charged.
    Transient,
    /// A dependency asks for patience: waits as told. Charged on an account of its own.
    Throttled,
    /// A dependency is down: the key steps aside and nothing is charged.
    Unavailable,
    /// Will never pass: quarantined at once.
    Permanent,
    /// The body cannot be decoded: quarantined at once, the handler is never called.
    Undecodable,
}

impl ErrorClass {
    /// The class as headers, labels and columns spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
        }
    }

    /// The class of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Transient, Self::Throttled, Self::Unavailable, Self::Permanent, Self::Undecodable]
            .into_iter()
            .find(|class| class.as_str() == name)
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to do about a failure now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// What the policy of the class says.
    Fail(ErrorClass),
    /// As the class says, but not before the delay has passed.
    RetryAfter(ErrorClass, Duration),
    /// A lost race, such as a deadlock: again at once, a few times, uncharged; then as transient.
    Conflict,
    /// Not yet: again after the delay, uncharged and not an error.
    Snooze(Duration),
}

impl Disposition {
    /// The class under which it is charged and counted.
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Fail(class) | Self::RetryAfter(class, _) => class,
            Self::Conflict | Self::Snooze(_) => ErrorClass::Transient,
        }
    }
}

/// A handler's failure.
///
/// Any error becomes one through `?`; what it means is then asked of the consumer's
/// [`Classifier`](crate::Classifier), and where that does not know it, it is transient. A handler that knows better
/// says so with one of the constructors.
///
/// ```
/// use backstop_core::{Disposition, ErrorClass, HandlerError};
///
/// fn parse(text: &str) -> Result<u32, HandlerError> {
///     Ok(text.parse::<u32>()?)
/// }
/// assert_eq!(parse("seven").unwrap_err().disposition(), None, "the classifier decides");
///
/// let refused = HandlerError::permanent(std::io::Error::other("out of stock"));
/// assert_eq!(refused.disposition(), Some(Disposition::Fail(ErrorClass::Permanent)));
/// ```
pub struct HandlerError {
    disposition: Option<Disposition>,
    error: BoxError,
    type_name: &'static str,
}

impl HandlerError {
    /// Will never pass: quarantined at once.
    pub fn permanent<E: Into<BoxError>>(error: E) -> Self {
        Self::with(Disposition::Fail(ErrorClass::Permanent), error)
    }

    /// May pass: retried as the policy for transient errors says. One attempt is charged.
    pub fn transient<E: Into<BoxError>>(error: E) -> Self {
        Self::with(Disposition::Fail(ErrorClass::Transient), error)
    }

    /// A dependency is down: tried again later, nothing is charged.
    pub fn unavailable<E: Into<BoxError>>(error: E) -> Self {
        Self::with(Disposition::Fail(ErrorClass::Unavailable), error)
    }

    /// A dependency asks to come back after `after`. Charged on an account of its own.
    pub fn throttled<E: Into<BoxError>>(after: Duration, error: E) -> Self {
        Self::with(Disposition::RetryAfter(ErrorClass::Throttled, after), error)
    }

    /// The body is not what the handler can read: quarantined at once.
    pub fn undecodable<E: Into<BoxError>>(error: E) -> Self {
        Self::with(Disposition::Fail(ErrorClass::Undecodable), error)
    }

    /// Not yet: again after `after`. Not an error, and not charged.
    pub fn snooze(after: Duration) -> Self {
        Self::with(Disposition::Snooze(after), "snoozed")
    }

    fn with<E: Into<BoxError>>(disposition: Disposition, error: E) -> Self {
        Self { disposition: Some(disposition), error: error.into(), type_name: std::any::type_name::<E>() }
    }

    /// What the handler said; `None` leaves it to the classifier.
    pub fn disposition(&self) -> Option<Disposition> {
        self.disposition
    }

    /// The error itself.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.error
    }

    /// The Rust type of the error, as far as it was known where it became a handler error.
    pub fn type_name(&self) -> &'static str {
        self.type_name
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self { disposition: None, type_name: std::any::type_name::<E>(), error: Box::new(error) }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("disposition", &self.disposition)
            .field("type", &self.type_name)
            .field("error", &self.error)
            .finish()
    }
}
