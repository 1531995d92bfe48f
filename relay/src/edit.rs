//! Edits: a copy of a letter with another body, which takes its place.
//!
//! Only the body can be edited. Headers stay as they are, so that the copy is still the same message to its consumer, in the
//! same trace and behind the same door; the original stays in the ledger as superseded. Off unless the configuration
//! allows it.

use backstop_core::ledger::{Edit, Letter, LetterEvent, LetterStatus};
use backstop_core::names;
use bytes::Bytes;
use uuid::Uuid;

use crate::ask::Pending;
use crate::config::DeadLettersConfig;
use crate::encryption::{Keyring, Locked};
use crate::redact::{Redaction, is_redacted};

/// What is told where the letter was changed between the look at it and the edit.
pub(crate) const TOO_LATE: &str = "somebody was quicker: the letter is not open any more, or on hold";

/// Why a letter cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unedited {
    /// Nobody allowed it.
    #[error("letters cannot be edited here")]
    Off,
    /// It is not open.
    #[error("the letter is {0}: only open ones can be edited")]
    Status(LetterStatus),
    /// It must stay as it is.
    #[error("the letter is under legal hold")]
    Held,
    /// What it said is not known.
    #[error("the letter was redacted: its message is no longer what it was")]
    Redacted,
    /// Somebody asked its consumer to end its wait.
    #[error("its consumer was asked to {0} the message, and has not answered yet")]
    Asked(&'static str),
    /// What it says cannot be read.
    #[error("{0}")]
    Locked(#[from] Locked),
    /// There is nothing to do.
    #[error("that is the letter's body already")]
    Same,
    /// The ledger must not keep the new body.
    #[error("rules of [[dead_letters.redact]] would change the new body, so that it could not be sent")]
    Forbidden,
}

impl Unedited {
    /// What to do about it.
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::Off => "set edit = true in [dead_letters], if your rules allow it",
            Self::Status(_) => "look at its history: another letter may stand for it",
            Self::Held => "end the hold first",
            Self::Asked(_) => "wait for the answer, which is about the message as it was",
            Self::Redacted => "have its producer send the message again",
            Self::Locked(locked) => locked.hint(),
            Self::Same => "redrive it as it is",
            Self::Forbidden => "leave out what must not be kept",
        }
    }
}

/// What edits are bound to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Editing {
    /// Whether letters can be edited.
    pub(crate) allowed: bool,
    /// What of letters is not kept.
    pub(crate) redaction: Redaction,
}

impl Editing {
    /// What that configuration allows: nothing, where its rules of what must not be kept cannot be read.
    pub(crate) fn of(config: &DeadLettersConfig) -> Self {
        let redaction = Redaction::new(&config.redact);
        redaction.map(|redaction| Self { allowed: config.edit, redaction }).unwrap_or_default()
    }

    /// The edit that gives `letter`, as it is stored, this body.
    ///
    /// # Errors
    /// Why that cannot be; nothing is done then.
    pub(crate) fn edit(
        &self,
        keys: &Keyring,
        (letter, history): (&Letter, &[LetterEvent]),
        body: Bytes,
        because: String,
    ) -> Result<Edit, Unedited> {
        self.permits(letter, history)?;
        let mut copy = letter.clone();
        keys.open(&mut copy)?;
        if copy.envelope.body.as_ref() == Some(&body) {
            return Err(Unedited::Same);
        }
        copy.id = Uuid::now_v7().to_string();
        (copy.outcome, copy.redrive) = (None, None);
        // It died when the letter did.
        copy.dead_at = Some(letter.seen_at());
        copy.envelope.body = Some(body);
        let headers = &mut copy.envelope.headers;
        headers.set(names::EDIT_OF, letter.id.clone());
        // Its consumer says by this name what became of it.
        if headers.get(names::DEAD_LETTER_ID).is_some() {
            headers.set(names::DEAD_LETTER_ID, copy.id.clone());
        }
        self.redaction.apply(&mut copy);
        if is_redacted(&copy.envelope) {
            return Err(Unedited::Forbidden);
        }
        keys.seal(&mut copy);
        Ok(Edit { id: letter.id.clone(), copy, because })
    }

    /// Whether the letter can be edited at all.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn permits(&self, letter: &Letter, history: &[LetterEvent]) -> Result<(), Unedited> {
        if !self.allowed {
            Err(Unedited::Off)
        } else if letter.status != LetterStatus::Open {
            Err(Unedited::Status(letter.status))
        } else if letter.hold.is_some() {
            Err(Unedited::Held)
        } else if is_redacted(&letter.envelope) {
            Err(Unedited::Redacted)
        } else if let Some(pending) = Pending::of(history) {
            Err(Unedited::Asked(pending.ending.as_str()))
        } else {
            Ok(())
        }
    }
}

/// What whoever edits this letter had better know before.
pub(crate) fn notes(letter: &Letter) -> Vec<&'static str> {
    let sent = letter.redrive.is_some().then_some(
        "it was in a redrive before, and may have arrived: should it fail once more, a letter with the old body stands for it",
    );
    let keyed = letter.envelope.key.is_some().then_some(
        "the copy goes to the end of its key: later letters of the key are sent before it, and redrives that run do not take it",
    );
    sent.into_iter().chain(keyed).collect()
}

#[cfg(test)]
mod tests {
    use backstop_core::{Envelope, Headers};

    use super::*;
    use crate::config::RedactConfig;

    fn letter() -> Letter {
        let mut headers = Headers::default();
        headers.set(names::DEAD_LETTER_ID, "a");
        headers.set(names::TRACEPARENT, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let body = Some(Bytes::from_static(b"price 0"));
        let mut letter = Letter::new("a", "orders.stock.dlq", Envelope { key: None, headers, body });
        Keyring::default().seal(&mut letter);
        letter
    }

    fn edit(editing: &Editing, letter: &Letter, body: &'static str) -> Result<Edit, Unedited> {
        editing.edit(
            &Keyring::default(),
            (letter, &[]),
            Bytes::from_static(body.as_bytes()),
            "a test".to_owned(),
        )
    }

    fn on() -> Editing {
        Editing { allowed: true, redaction: Redaction::default() }
    }

    #[test]
    fn the_copy_is_the_same_message_under_an_id_of_its_own() {
        let was = letter();
        let Edit { id, mut copy, .. } = edit(&on(), &was, "price 7").expect("it can be edited");
        assert_eq!((id.as_str(), copy.status), ("a", LetterStatus::Open));
        Keyring::default().open(&mut copy).expect("in clear");
        assert_eq!(copy.envelope.body.as_deref(), Some(b"price 7".as_slice()));
        let header = |name: &str| copy.envelope.headers.get_str(name);
        assert_eq!(header(names::DEAD_LETTER_ID), Some(copy.id.as_str()), "receipts name the copy");
        assert_eq!(header(names::EDIT_OF), Some("a"));
        assert_eq!(header(names::TRACEPARENT), was.envelope.headers.get_str(names::TRACEPARENT));
    }

    #[test]
    fn what_a_consumer_was_asked_about_stays_until_it_answers() {
        let event = |what: &str| LetterEvent { at: chrono::Utc::now(), what: what.to_owned(), detail: None };
        let permits = |whats: &[&str]| {
            on().permits(&letter(), &whats.iter().map(|what| event(what)).collect::<Vec<_>>())
        };
        assert_eq!(permits(&["collected", "skip-asked"]), Err(Unedited::Asked("skip")));
        assert_eq!(permits(&["collected", "skip-asked", "skip-not-sent"]), Ok(()));
    }

    #[test]
    fn what_must_stay_as_it_is_does() {
        let change = |change: fn(&mut Letter)| {
            let mut letter = letter();
            change(&mut letter);
            edit(&on(), &letter, "price 7").expect_err("it must stay")
        };
        assert_eq!(edit(&Editing::default(), &letter(), "price 7"), Err(Unedited::Off));
        assert_eq!(edit(&on(), &letter(), "price 0"), Err(Unedited::Same));
        assert_eq!(change(|letter| letter.hold = Some("case 7".to_owned())), Unedited::Held);
        let status = LetterStatus::Redriving;
        assert_eq!(change(|letter| letter.status = LetterStatus::Redriving), Unedited::Status(status));
        assert_eq!(change(|letter| letter.envelope.headers.set(names::REDACTED, "body")), Unedited::Redacted);
        let rule = RedactConfig {
            pointer: None,
            header: None,
            pattern: Some("card [0-9]+".to_owned()),
            replace: "card".to_owned(),
        };
        let redaction = Redaction::new(&[rule]).expect("a pattern");
        let strict = Editing { allowed: true, redaction };
        assert_eq!(edit(&strict, &letter(), "card 4111"), Err(Unedited::Forbidden));
    }
}
