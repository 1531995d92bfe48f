//! Asks a consumer to end the wait of a message that it holds: a command through its door, which its receipt answers.
//!
//! The history of the letter keeps both: `release-asked`, `skip-asked` or `resolve-asked`, and what the receipt says. A
//! consumer that changes nothing, because the message is tried still or was redriven meanwhile, sends no receipt.

use backstop_core::command::Command;
use backstop_core::held_keys::Ending;
use backstop_core::ledger::{Ledger, Letter, LetterEvent, LetterStatus};
use backstop_core::sink::{PublishError, Sink};
use backstop_core::{AdapterError, Destination, Envelope, MessageKey, names};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;

use crate::exit::with_cause;

/// What a receipt writes into the history of a letter.
const ANSWERS: [&str; 4] = ["key-released", "skipped", "resolved", "failed-again"];

/// The way to doors. Object-safe, for those who know their broker at run time only.
pub(crate) trait Doors: Send + Sync {
    /// Publishes through a door, and waits for the broker.
    fn send(&self, door: Destination, envelope: Envelope) -> BoxFuture<'_, Result<(), PublishError>>;
}

impl<S: Sink> Doors for S {
    fn send(&self, door: Destination, envelope: Envelope) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move { self.publish(&door, envelope).await })
    }
}

/// Why nobody was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAsked {
    /// The letter is not one to ask about.
    #[error("{0}")]
    Unfit(&'static str),
    /// The ledger failed.
    #[error("the ledger cannot be asked")]
    Ledger(#[from] AdapterError),
    /// The broker did not take the command.
    #[error("the command was not sent")]
    Broker(#[source] PublishError),
}

/// Somebody was asked, and has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) ending: Ending,
    pub(crate) since: DateTime<Utc>,
}

impl Pending {
    /// What was asked last, unless it was answered or never sent.
    pub(crate) fn of(history: &[LetterEvent]) -> Option<Self> {
        let asked = |event: &LetterEvent| Ending::parse(event.what.strip_suffix("-asked")?);
        let (at, event, ending) = history
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, event)| asked(event).map(|ending| (at, event, ending)))?;
        let answered = |event: &LetterEvent| {
            ANSWERS.contains(&event.what.as_str()) || event.what == format!("{ending}-not-sent")
        };
        // A release is answered once: later ones find the key free.
        let released = ending == Ending::Release && history.iter().any(|event| event.what == ANSWERS[0]);
        let pending = !released && !history[at + 1..].iter().any(answered);
        pending.then_some(Self { ending, since: event.at })
    }
}

/// Why its consumer cannot be asked about this letter; `None` where it can.
pub(crate) fn unfit(letter: &Letter, ending: Ending) -> Option<&'static str> {
    if !matches!(letter.status, LetterStatus::Open | LetterStatus::Redriving) {
        Some("the letter is neither open nor being redriven")
    } else if letter.sound_door().is_none() {
        Some("the letter has no door, so that its consumer cannot be asked")
    } else if letter.message_key.as_deref().and_then(MessageKey::parse).is_none() {
        Some("the letter does not say which message it is of")
    } else if ending == Ending::Skip && letter.hold.is_some() {
        Some("the letter is under legal hold, and skipped it would be discarded")
    } else {
        None
    }
}

/// Sends the command. `because` goes into the letter's history before.
///
/// # Errors
/// When nothing was sent, or nobody knows whether it was.
pub(crate) async fn ask(
    ledger: &dyn Ledger,
    doors: &dyn Doors,
    letter: &Letter,
    ending: Ending,
    because: &str,
) -> Result<(), NotAsked> {
    if let Some(why) = unfit(letter, ending) {
        return Err(NotAsked::Unfit(why));
    }
    let (door, envelope) = command(letter, ending).ok_or(NotAsked::Unfit("the letter has no door"))?;
    let ids = std::slice::from_ref(&letter.id);
    let (status, asked) = (letter.status, format!("{ending}-asked"));
    if ledger.mark(ids, status, status, &asked, Some(because)).await?.is_empty() {
        return Err(NotAsked::Unfit("the letter has changed meanwhile"));
    }
    if let Err(error) = doors.send(door, envelope).await {
        let why = with_cause(&error);
        // Without this line the question would wait for an answer for ever, which says as much.
        drop(ledger.mark(ids, status, status, &format!("{ending}-not-sent"), Some(&why)).await);
        return Err(NotAsked::Broker(error));
    }
    Ok(())
}

/// The command and the door for it. It names the letter, so that the receipt does.
fn command(letter: &Letter, ending: Ending) -> Option<(Destination, Envelope)> {
    let message = MessageKey::parse(letter.message_key.as_deref()?)?;
    let generation = Some(u32::try_from(letter.generation).unwrap_or(0));
    let mut envelope = Command { ending, generation }.envelope(&message, letter.envelope.key.clone());
    envelope.headers.set(names::DEAD_LETTER_ID, letter.id.clone());
    Some((Destination::new(letter.sound_door()?), envelope))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(whats: &[&str]) -> Vec<LetterEvent> {
        let event = |what: &&str| LetterEvent { at: Utc::now(), what: (*what).to_owned(), detail: None };
        whats.iter().map(event).collect()
    }

    #[test]
    fn a_question_is_pending_until_its_answer_comes() {
        let pending = |whats: &[&str]| Pending::of(&history(whats)).map(|pending| pending.ending);
        assert_eq!(pending(&["collected"]), None);
        assert_eq!(pending(&["collected", "release-asked"]), Some(Ending::Release));
        assert_eq!(pending(&["release-asked", "key-released"]), None);
        assert_eq!(pending(&["key-released", "release-asked"]), None, "it is told once");
        assert_eq!(pending(&["key-released", "skip-asked"]), Some(Ending::Skip));
        assert_eq!(pending(&["skip-asked", "skip-not-sent"]), None);
        assert_eq!(pending(&["skip-asked", "held", "resolve-asked"]), Some(Ending::Resolve));
        assert_eq!(pending(&["resolve-asked", "resolved"]), None);
    }
}
