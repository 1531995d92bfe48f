//! How others write dead letters: each reader knows the headers of one product, and nothing else.
//!
//! Readers are pure: headers in, what they tell out. What no reader knows is kept raw by its collector, never refused.
//! Headers are a stranger's word: a reader takes texts as they are, and whoever keeps them escapes and cuts.

mod backstop;
mod connect;
mod kip1191;
mod masstransit;
mod nservicebus;
mod rabbitmq;
mod smallrye;
mod spring;
mod streams;

use backstop_core::Headers;
use chrono::{DateTime, Utc};

/// What a dead letter says of itself. What it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Who wrote it, such as `Spring Kafka`.
    pub dialect: &'static str,
    /// Identity of the original message, as Backstop resolves it.
    pub message_key: Option<String>,
    /// The consumer that gave it up.
    pub consumer: Option<String>,
    /// Topic or queue that it was read from before it failed.
    pub place: Option<String>,
    /// Why it was given up.
    pub reason: Option<String>,
    /// Class of the last error.
    pub class: Option<String>,
    /// Type of the last error.
    pub error_type: Option<String>,
    /// Text of the last error.
    pub error: Option<String>,
    /// Groups equal failures.
    pub fingerprint: Option<String>,
    /// Charged attempts.
    pub attempts: Option<i64>,
    /// How often it had been redriven when it failed; 0 where it does not say.
    pub generation: i64,
    /// First failure.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// When it was given up.
    pub dead_at: Option<DateTime<Utc>>,
}

type Reader = fn(&Headers) -> Option<Told>;

/// Every dialect; the first that knows the letter counts. Backstop writes KIP-1191's headers, too, and brokers add
/// their own to what others wrote: those that say most come first.
const READERS: [Reader; 9] = [
    backstop::read,
    spring::read,
    streams::read,
    connect::read,
    masstransit::read,
    nservicebus::read,
    smallrye::read,
    kip1191::read,
    rabbitmq::read,
];

/// What the headers of a dead letter tell; `None` where no dialect knows them.
pub fn read(headers: &Headers) -> Option<Told> {
    READERS.iter().find_map(|reader| reader(headers))
}

/// A header's text, unless it is empty.
fn text(headers: &Headers, name: &str) -> Option<String> {
    headers.get_str(name).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The first of these headers that has a text.
fn first(headers: &Headers, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| text(headers, name))
}

/// A header's whole number, written as text.
fn number(headers: &Headers, name: &str) -> Option<i64> {
    headers.get_str(name)?.trim().parse().ok()
}

/// A header's time, as RFC 3339 has it.
fn time(headers: &Headers, name: &str) -> Option<DateTime<Utc>> {
    bounded(DateTime::parse_from_rfc3339(headers.get_str(name)?.trim()).ok()?.to_utc())
}

/// Every database has times from 1970 to 9999.
fn bounded(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    (0..=253_402_300_799).contains(&time.timestamp()).then_some(time)
}

#[cfg(test)]
mod tests;
