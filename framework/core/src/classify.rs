//! What an error means, by its type.

use std::error::Error;
use std::fmt;
use std::io;

use crate::error::{Disposition, ErrorClass, HandlerError};

/// What is known of an error: what to do about it, and the facts that tell equal failures from different ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explained {
    /// What to do; `None` where the type alone does not say.
    pub disposition: Option<Disposition>,
    /// Names that the driver gives as fields, such as `table=stock constraint=stock_pkey`; they enter the
    /// fingerprint as they are.
    pub facts: Option<String>,
}

type Rule = Box<dyn Fn(&(dyn Error + 'static)) -> Option<Disposition> + Send + Sync>;

/// A registry of rules by error type, asked for errors whose handler did not say what they mean.
///
/// The whole chain of causes is searched, outermost first; within one error, the rule added last is asked first.
/// Database errors need no rule: the inbox's adapter knows its own.
///
/// ```
/// use backstop_core::{Classifier, Disposition, ErrorClass};
///
/// let classifier = Classifier::default()
///     .on(|error: &std::num::ParseIntError| Some(Disposition::Fail(ErrorClass::Permanent)));
/// let error = "seven".parse::<u32>().unwrap_err();
/// assert_eq!(classifier.classify(&error), Some(Disposition::Fail(ErrorClass::Permanent)));
/// ```
#[derive(Default)]
pub struct Classifier {
    rules: Vec<Rule>,
}

impl Classifier {
    /// A classifier that knows `std::io::Error`: refused, reset, timed out and the like are `Unavailable`.
    pub fn standard() -> Self {
        Self::default().on(|error: &io::Error| io_disposition(error.kind()))
    }

    /// Adds a rule for errors of type `E`; `None` means that the rule does not decide.
    #[must_use]
    pub fn on<E: Error + 'static>(
        mut self,
        rule: impl Fn(&E) -> Option<Disposition> + Send + Sync + 'static,
    ) -> Self {
        self.rules.push(Box::new(move |error| error.downcast_ref::<E>().and_then(&rule)));
        self
    }

    /// What the rules say of the error or of the first of its causes that one knows.
    pub fn classify(&self, error: &(dyn Error + 'static)) -> Option<Disposition> {
        causes(error).find_map(|cause| self.rules.iter().rev().find_map(|rule| rule(cause)))
    }

    /// What to do about a handler's failure: what the handler said, else what the rules say, else what the store
    /// knows, else transient.
    pub fn dispose(&self, failure: &HandlerError, store: Option<Disposition>) -> Disposition {
        failure
            .disposition()
            .or_else(|| self.classify(failure.error()))
            .or(store)
            .unwrap_or(Disposition::Fail(ErrorClass::Transient))
    }
}

/// The error and its causes, outermost first; at most 32, so that a cycle cannot hang the consumer.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error: &'a (dyn Error + 'static) = next?;
        next = error.source();
        Some(error)
    })
    .take(32)
}

fn io_disposition(kind: io::ErrorKind) -> Option<Disposition> {
    use io::ErrorKind as Kind;
    let class = match kind {
        Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::NotConnected
        | Kind::BrokenPipe
        | Kind::TimedOut
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::NetworkDown => ErrorClass::Unavailable,
        Kind::Interrupted | Kind::WouldBlock => ErrorClass::Transient,
        _ => return None,
    };
    Some(Disposition::Fail(class))
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("rules", &self.rules.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(io::Error);
    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn causes_are_searched() {
        let error = HandlerError::from(Wrapped(io::ErrorKind::ConnectionRefused.into()));
        let unavailable = Disposition::Fail(ErrorClass::Unavailable);
        assert_eq!(Classifier::standard().dispose(&error, None), unavailable);
    }

    #[test]
    fn the_handlers_word_counts_most_and_the_stores_least() {
        let permanent = Disposition::Fail(ErrorClass::Permanent);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let classifier = Classifier::standard();
        assert_eq!(classifier.dispose(&HandlerError::permanent(refused()), None), permanent);
        let unknown = HandlerError::from(fmt::Error);
        assert_eq!(classifier.dispose(&unknown, Some(Disposition::Conflict)), Disposition::Conflict);
        assert_eq!(classifier.dispose(&unknown, None), Disposition::Fail(ErrorClass::Transient));
    }
}
