//! Topics that may have gone while the source runs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::fault::coded;
use crate::topics::Presence;

/// How long a topic must stay missing before that is believed: it may be on its way, or brokers that have just
/// started may not know it yet.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// The time from one round of questions to the next; longer than a question, so that polling has its share.
const PAUSE: Duration = Duration::from_secs(1);

/// A suspicion that topics are missing, held until all of them are seen again.
///
/// It only asks. Polling stays with the poller, because what a poll brings is a message as often as an error, and a
/// message that is polled and not handed over is lost: the watermark takes it for a gap of the broker's.
#[derive(Debug, Default)]
pub(crate) struct Absence {
    next: Option<Instant>,
    missing: HashMap<String, Instant>,
}

impl Absence {
    /// Notes that a topic may be missing.
    pub(crate) fn suspect(&mut self) {
        self.next.get_or_insert_with(Instant::now);
    }

    /// Asks once for every topic, if there is a suspicion and it is time at `now`. What was not answered is asked
    /// again next time.
    ///
    /// # Errors
    /// When a topic may not be read, or has been missing for [`PATIENCE`].
    pub(crate) fn look<'t>(
        &mut self,
        now: Instant,
        topics: impl Iterator<Item = &'t str>,
        mut ask: impl FnMut(&str) -> Result<Presence, KafkaError>,
    ) -> Result<(), AdapterError> {
        if self.next.is_none_or(|next| now < next) {
            return Ok(());
        }
        let mut answered = true;
        for topic in topics {
            match ask(topic) {
                Ok(Presence::Here(_)) => {
                    self.missing.remove(topic);
                }
                Ok(Presence::Denied) => return Err(unreadable(topic)),
                Ok(Presence::Missing) => {
                    let since = *self.missing.entry(topic.to_owned()).or_insert(now);
                    if now.duration_since(since) >= PATIENCE {
                        return Err(missing(topic));
                    }
                }
                Err(error) => {
                    tracing::debug!(topic, %error, "kafka: no answer about a topic that may be missing");
                    answered = false;
                    break;
                }
            }
        }
        let over = answered && self.missing.is_empty();
        self.next = (!over).then(|| now + PAUSE);
        Ok(())
    }
}

/// The error of a topic that is not there.
pub(crate) fn missing(topic: &str) -> AdapterError {
    coded(format!("topic {topic} does not exist"), Code::UnknownTopicOrPartition)
}

/// The error of a topic that this client may not see.
pub(crate) fn unreadable(topic: &str) -> AdapterError {
    coded(format!("topic {topic} may not be read"), Code::TopicAuthorizationFailed)
}

#[cfg(test)]
mod tests {
    use backstop_core::FaultKind;

    use super::*;

    const SILENCE: KafkaError = KafkaError::MetadataFetch(Code::OperationTimedOut);

    /// Looks at `a` and `b` when `after` has passed; how often it asked.
    fn look(
        absence: &mut Absence,
        begin: Instant,
        after: Duration,
        answer: impl Fn(&str) -> Result<Presence, KafkaError>,
    ) -> (usize, Result<(), AdapterError>) {
        let mut asked = 0;
        let outcome = absence.look(begin + after, ["a", "b"].into_iter(), |topic| {
            asked += 1;
            answer(topic)
        });
        (asked, outcome)
    }

    #[test]
    fn nobody_asks_without_a_suspicion_and_one_that_was_wrong_is_forgotten() {
        let (mut absence, begin) = (Absence::default(), Instant::now());
        let here = |_: &str| Ok(Presence::Here(1));
        assert_eq!(look(&mut absence, begin, Duration::ZERO, here).0, 0);
        absence.suspect();
        assert_eq!(look(&mut absence, begin, PAUSE, here).0, 2);
        assert_eq!(look(&mut absence, begin, PAUSE * 10, here).0, 0);
    }

    #[test]
    fn a_topic_is_missing_when_it_stays_so_and_silence_neither_proves_nor_clears_it() {
        let (mut absence, begin) = (Absence::default(), Instant::now());
        let gone = |topic: &str| Ok(if topic == "b" { Presence::Missing } else { Presence::Here(1) });
        absence.suspect();
        assert!(look(&mut absence, begin, PAUSE, gone).1.is_ok());
        assert_eq!(look(&mut absence, begin, PAUSE, gone).0, 0, "not before the pause is over");
        let (asked, outcome) = look(&mut absence, begin, PAUSE * 60, |_| Err(SILENCE));
        assert!(asked == 1 && outcome.is_ok(), "the first silence ends the round");
        let (_, outcome) = look(&mut absence, begin, PAUSE * 61, gone);
        let error = outcome.expect_err("it has been missing for a minute");
        assert_eq!(error.kind(), FaultKind::Missing);
        assert!(error.to_string().contains('b'), "{error}");
    }

    #[test]
    fn a_topic_that_comes_back_has_its_patience_anew() {
        let (mut absence, begin) = (Absence::default(), Instant::now());
        absence.suspect();
        assert!(look(&mut absence, begin, PAUSE, |_| Ok(Presence::Missing)).1.is_ok());
        assert!(look(&mut absence, begin, PATIENCE, |_| Ok(Presence::Here(1))).1.is_ok());
        absence.suspect();
        assert!(look(&mut absence, begin, PATIENCE * 9, |_| Ok(Presence::Missing)).1.is_ok());
        let denied = look(&mut absence, begin, PATIENCE * 9 + PAUSE, |_| Ok(Presence::Denied)).1;
        assert_eq!(denied.expect_err("it may not be read").kind(), FaultKind::Denied);
    }
}
