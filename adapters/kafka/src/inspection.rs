//! What the settings of topics mean for what is sent to them.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::schema::Finding;
use backstop_core::sink::Traffic;

use crate::dead_letters::LETTER_HEADERS;
use crate::topics::{Limits, Presence, Steward};

/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks at the topics of `traffic`, to which messages of up to `max_message_bytes` are sent. Topics that are not there
/// are left to the probe.
pub(crate) fn inspect(steward: &Steward, traffic: &Traffic, max_message_bytes: u64) -> Vec<Finding> {
    let mut largest = BTreeMap::<&str, u64>::new();
    for (destination, bytes) in &traffic.largest {
        let most = largest.entry(&destination.name).or_default();
        *most = (*most).max(*bytes as u64);
    }
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    for (topic, waits) in largest {
        match look(steward, topic) {
            Look::Found(limits) => findings.push(size(topic, waits, limits.message_bytes, max_message_bytes)),
            Look::Refused => unknown.push(topic),
            Look::Missing => {}
        }
    }
    for letters in &traffic.letters {
        match look(steward, &letters.name) {
            Look::Found(limits) => findings.extend(letters_of(steward, &letters.name, limits)),
            Look::Refused => unknown.push(&letters.name),
            Look::Missing => {}
        }
    }
    if !unknown.is_empty() {
        let (detail, remedy) = (
            "limits of size and retention cannot be read",
            "grant this client DESCRIBE_CONFIGS on the topics",
        );
        findings.push(Finding::warning(format!("topics {}", unknown.join(", ")), detail, remedy));
    }
    findings
}

enum Look {
    Found(Limits),
    Missing,
    Refused,
}

fn look(steward: &Steward, topic: &str) -> Look {
    match steward.presence(topic, ANSWER) {
        Ok(Presence::Here(_)) => steward.limits(topic).map_or(Look::Refused, Look::Found),
        _ => Look::Missing,
    }
}

/// Brokers look at messages after compression, so that one over their limit may pass all the same.
fn size(topic: &str, waits: u64, theirs: u64, ours: u64) -> Finding {
    let subject = format!("topic {topic}");
    if waits > ours {
        let detail =
            format!("a row of {waits} bytes waits, and max_message_bytes is {ours}: it can never be sent");
        let remedy =
            format!("set max_message_bytes in [broker] and max.message.bytes of the topic above {waits}");
        Finding::error(subject, detail, remedy)
    } else if waits > theirs {
        let detail = format!("a row of {waits} bytes waits, and the topic takes {theirs}");
        Finding::warning(subject, detail, format!("set max.message.bytes of the topic to {ours}"))
    } else if ours > theirs {
        let detail = format!("takes messages up to {theirs} bytes, and max_message_bytes is {ours}");
        let remedy = format!(
            "set max.message.bytes of the topic to {ours}, or max_message_bytes in [broker] to {theirs}"
        );
        Finding::warning(subject, detail, remedy)
    } else {
        Finding::fine(subject, format!("takes messages up to {theirs} bytes"))
    }
}

/// A topic of dead letters beside the topic that its name begins with; no finding where there is none.
fn letters_of(steward: &Steward, letters: &str, theirs: Limits) -> Option<Finding> {
    let (source, limits) = prefixes(letters).find_map(|prefix| match look(steward, prefix) {
        Look::Found(limits) => Some((prefix, limits)),
        Look::Missing | Look::Refused => None,
    })?;
    let subject = format!("dead letters {letters}");
    let wanted = limits.message_bytes + LETTER_HEADERS;
    Some(if !theirs.keeps_as_long_as(limits) {
        let detail = format!("kept for {}, those of {source} for {}", days(theirs), days(limits));
        Finding::warning(subject, detail, format!("set retention.ms of {letters} to {}", limits.retention_ms))
    } else if theirs.message_bytes < wanted {
        let detail =
            format!("takes {} bytes, and a letter of {source} has up to {wanted}", theirs.message_bytes);
        Finding::warning(subject, detail, format!("set max.message.bytes of {letters} to {wanted}"))
    } else {
        Finding::fine(subject, format!("kept for {}, as long as those of {source}", days(theirs)))
    })
}

/// What may be the topic in `<topic>.<group>.dlq`, where either may contain dots: the longest first.
fn prefixes(letters: &str) -> impl Iterator<Item = &str> {
    let name = letters.strip_suffix(".dlq").unwrap_or_default();
    name.rmatch_indices('.').map(|(dot, _)| &name[..dot])
}

fn days(limits: Limits) -> String {
    match u64::try_from(limits.retention_ms) {
        Err(_) => "ever".to_owned(),
        Ok(retention) if retention < 86_400_000 => format!("{} s", retention / 1_000),
        Ok(retention) => format!("{} days", retention / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_of_letters_is_looked_for_with_the_longest_name_first() {
        assert_eq!(
            prefixes("orders.v1.pay.eu.dlq").collect::<Vec<_>>(),
            ["orders.v1.pay", "orders.v1", "orders"]
        );
        assert_eq!(prefixes("orders.dlq").count(), 0);
        assert_eq!(prefixes("orders.pay").count(), 0);
    }
}
