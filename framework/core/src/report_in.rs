//! Reports: how a consumer stands, told every [`EVERY`] and whenever its state changes.
//!
//! A report travels as a message of kind [`ConsumerReport::KIND`] to the destination of the consumer's receipts. Its
//! body is JSON; what the consumer does not know is absent, never zero:
//!
//! ```json
//! {
//!   "consumer": "stock",
//!   "instance": "stock-7f9c-3b1d2a4e",
//!   "version": "2.4.1",
//!   "state": "running",
//!   "breaker": "closed",
//!   "breaker_closings": 1,
//!   "breaker_closed_at": "2026-03-01T11:52:00Z",
//!   "lag": 12,
//!   "held": 3,
//!   "oldest_held_seconds": 40,
//!   "inbox_retention_seconds": 604800,
//!   "at": "2026-03-01T12:00:00Z"
//! }
//! ```

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::receipt::{Unreadable, check, read, source};

/// How often a consumer reports. One that has been silent for three times as long is not there any more.
pub const EVERY: Duration = Duration::from_secs(30);

/// How long the last report of an instance is kept: each start of a consumer is an instance of its own, and those that
/// are gone would pile up.
pub const KEPT: TimeDelta = TimeDelta::days(7);

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A word of a later version.
            Unknown,
        }

        impl $name {
            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Unknown => "unknown",
                }
            }

            /// What a word means; a word of a later version is `Unknown`.
            pub fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)+
                    _ => Self::Unknown,
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                Self::parse(&word)
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a consumer is at.
    ConsumerState {
        /// Waits for its broker or its database.
        Starting = "starting",
        /// Handles messages.
        Running = "running",
        /// Somebody paused it.
        Paused = "paused",
        /// Takes nothing new and finishes what runs.
        Draining = "draining",
        /// The last report of an instance.
        Stopped = "stopped",
    }
}

words! {
    /// Where a consumer's breaker stands.
    BreakerState {
        /// Messages flow.
        Closed = "closed",
        /// What its handlers need is away: the source is paused.
        Open = "open",
        /// What was away answers again: messages pass by degrees.
        Probing = "probing",
    }
}

/// How one instance of a consumer stands. `None` is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerReport {
    /// The consumer.
    pub consumer: String,
    /// Which of its processes.
    pub instance: String,
    /// The application's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What it is at.
    pub state: ConsumerState,
    /// Where its breaker stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerState>,
    /// How often its breaker has closed since the process began, after something was away: 0 is never, and absent a
    /// version of Backstop that does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_closings: Option<u64>,
    /// When it closed last, by the consumer's clock. The same in each report until it closes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker_closed_at: Option<DateTime<Utc>>,
    /// Messages of its topics or queues that it has not settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Messages that the consumer holds, all instances together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
    /// Age of the oldest of them, in seconds; absent also when none is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_held_seconds: Option<u64>,
    /// How long its inbox remembers a message, in seconds; absent for a consumer without an inbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox_retention_seconds: Option<u64>,
    /// When, by the consumer's clock.
    pub at: DateTime<Utc>,
}

impl ConsumerReport {
    /// The event type of reports.
    pub const KIND: &'static str = "backstop.consumer-report.v1";

    /// A report of now, with nothing known but the state.
    pub fn new(consumer: impl Into<String>, instance: impl Into<String>, state: ConsumerState) -> Self {
        Self {
            consumer: consumer.into(),
            instance: instance.into(),
            version: None,
            state,
            breaker: None,
            breaker_closings: None,
            breaker_closed_at: None,
            lag: None,
            held: None,
            oldest_held_seconds: None,
            inbox_retention_seconds: None,
            at: Utc::now(),
        }
    }

    /// The message that carries it, keyed by instance, so that its reports stay in order.
    pub fn to_message(&self) -> Message {
        let mut message = Message::new(Self::KIND)
            .source(source(&self.consumer))
            .key(self.instance.clone())
            .json(self)
            .expect("a report is JSON");
        message.time = Some(self.at);
        message
    }

    /// The report that a message carries.
    ///
    /// # Errors
    /// When it is of another kind, or does not read as one.
    pub fn from_message(message: &Message) -> Result<Self, Unreadable> {
        let report: Self = read(message, Self::KIND)?;
        let named = [Some(&report.consumer), Some(&report.instance), report.version.as_ref()];
        check(named.into_iter().flatten().map(String::as_str), report.at)?;
        check(std::iter::empty(), report.breaker_closed_at.unwrap_or(report.at))?;
        let Self { lag, held, oldest_held_seconds, inbox_retention_seconds, breaker_closings, .. } = report;
        let numbers = [lag, held, oldest_held_seconds, inbox_retention_seconds, breaker_closings];
        if numbers.into_iter().flatten().any(|number| i64::try_from(number).is_err()) {
            return Err(Unreadable("a number in it is larger than databases store".into()));
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_its_message() {
        let mut sent = ConsumerReport::new("stock", "host-1", ConsumerState::Running);
        assert_eq!(ConsumerReport::from_message(&sent.to_message()), Ok(sent.clone()));
        sent.version = Some("2.4.1".into());
        sent.breaker = Some(BreakerState::Probing);
        (sent.breaker_closings, sent.breaker_closed_at) = (Some(2), Some(sent.at - TimeDelta::hours(1)));
        (sent.lag, sent.held) = (Some(0), Some(3));
        (sent.oldest_held_seconds, sent.inbox_retention_seconds) = (Some(40), Some(604_800));
        assert_eq!(ConsumerReport::from_message(&sent.to_message()), Ok(sent));
    }

    #[test]
    fn what_is_not_known_is_absent_and_never_zero() {
        let report = ConsumerReport::new("stock", "host-1", ConsumerState::Starting);
        let json = serde_json::to_value(&report).expect("a report is JSON");
        let mut fields: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["at", "consumer", "instance", "state"]);
    }

    /// A consumer of an earlier version of Backstop is read, and what it does not say is not known.
    #[test]
    fn an_older_report_is_read_and_says_nothing_of_closings() {
        let body = r#"{"consumer":"stock","instance":"host-1","version":"2.4.1","state":"running","breaker":"closed",
                       "at":"2026-03-01T12:00:00Z"}"#;
        let message = Message::new(ConsumerReport::KIND).body("application/json", body);
        let report = ConsumerReport::from_message(&message).expect("a report");
        assert_eq!(report.version.as_deref(), Some("2.4.1"));
        assert_eq!((report.breaker_closings, report.breaker_closed_at), (None, None));
    }

    #[test]
    fn words_of_later_versions_are_unknown() {
        let report = ConsumerReport::new("stock", "host-1", ConsumerState::Paused);
        let text = serde_json::to_string(&report).expect("a report is JSON");
        let message = report.to_message().body("application/json", text.replace("paused", "levitating"));
        assert_eq!(
            ConsumerReport::from_message(&message).map(|report| report.state),
            Ok(ConsumerState::Unknown)
        );
    }

    #[test]
    fn names_that_no_page_can_show_are_refused() {
        let report = ConsumerReport::new("stock\u{1b}[2J", "host-1", ConsumerState::Running);
        assert!(ConsumerReport::from_message(&report.to_message()).is_err());
        let mut report = ConsumerReport::new("stock", "host-1", ConsumerState::Running);
        report.lag = Some(u64::MAX);
        assert!(ConsumerReport::from_message(&report.to_message()).is_err());
        let receipt = Message::new("backstop.receipt.v1");
        assert!(ConsumerReport::from_message(&receipt).is_err());
    }
}
