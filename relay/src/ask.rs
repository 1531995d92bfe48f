//! Asks a consumer to end the wait of a message that it holds: a command through its door, which its receipt answers.
//!
//! The history of the letter keeps both: `release-asked`, `skip-asked` or `resolve-asked`, and what the receipt says. A
//! consumer that changes nothing, because the message is tried still or was redriven meanwhile, sends no receipt. What the
//! broker refused is `release-not-sent`, and the question is over; where the broker did not answer it is `release-unknown`,
//! and the question is pending, for its consumer may have it.

use backstop_core::command::Command;
use backstop_core::held_keys::Ending;
use backstop_core::ledger::{DIED_AGAIN, Ledger, Letter, LetterEvent, LetterFilter, LetterStatus};
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::{AdapterError, Destination, Envelope, FaultKind, MessageKey, names};
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

/// Why nobody was asked, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAsked {
    /// The letter is not one to ask about.
    #[error("{0}")]
    Unfit(&'static str),
    /// The ledger failed.
    #[error("the ledger cannot be asked")]
    Ledger(#[from] AdapterError),
    /// The broker refused the command.
    #[error("the command was not sent")]
    Refused(#[source] PublishError),
    /// The broker did not say that it has the command, and may have it.
    #[error("nobody knows whether the command was sent")]
    Unknown(#[source] PublishError),
}

/// Somebody was asked, and has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) ending: Ending,
    pub(crate) since: DateTime<Utc>,
}

impl Pending {
    /// What was asked last, unless it was answered or surely never sent.
    pub(crate) fn of(history: &[LetterEvent]) -> Option<Self> {
        let (mut asked, mut released, mut skipped) = (Vec::<Self>::new(), false, false);
        for event in history {
            let ending = |suffix: &str| Ending::parse(event.what.strip_suffix(suffix)?);
            if let Some(ending) = ending("-asked") {
                asked.push(Self { ending, since: event.at });
            } else if let Some(ending) = ending("-not-sent") {
                // An earlier question of the same may have been sent.
                if let Some(last) = asked.iter().rposition(|pending| pending.ending == ending) {
                    asked.remove(last);
                }
            } else if ANSWERS.contains(&event.what.as_str()) {
                released |= event.what == ANSWERS[0];
                skipped |= event.what == ANSWERS[1];
                asked.clear();
            } else if event.what == DIED_AGAIN {
                // What was asked and answered was about the failure before.
                (released, skipped) = (false, false);
                asked.clear();
            }
        }
        // A release is answered once: later ones find the key free. After a skip nothing is held.
        asked.into_iter().rfind(|pending| !(skipped || released && pending.ending == Ending::Release))
    }
}

/// Why its consumer cannot be asked about this letter; `None` where it can.
pub(crate) fn unfit(letter: &Letter, ending: Ending) -> Option<&'static str> {
    // A letter that was discarded does not tell its consumer, whose key may wait still.
    if !matches!(letter.status, LetterStatus::Open | LetterStatus::Redriving | LetterStatus::Discarded) {
        Some("the letter is resolved, or another one stands for it")
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
    let one = LetterFilter::of_ids(std::slice::from_ref(&letter.id));
    // Skipped it is discarded, which a hold forbids, one that came after the letter was read as well.
    let free = (ending == Ending::Skip).then_some(false);
    let still = LetterFilter { status: Some(letter.status), on_hold: free, ..one.clone() };
    if ledger.tell(&still, &format!("{ending}-asked"), Some(because)).await? == 0 {
        return Err(NotAsked::Unfit("the letter has changed meanwhile"));
    }
    let Err(error) = doors.send(door, envelope).await else { return Ok(()) };
    let refused = is_refusal(&error);
    let what = format!("{ending}-{}", if refused { "not-sent" } else { "unknown" });
    // Where the ledger does not take this line the question is pending, which says that nobody knows.
    drop(ledger.tell(&one, &what, Some(&with_cause(&error))).await);
    Err(if refused { NotAsked::Refused(error) } else { NotAsked::Unknown(error) })
}

/// Whether the broker surely does not have what was published: it, or its client, said why it never will. Whatever else is
/// said, such as a connection that was lost, may have come after the broker had stored it.
fn is_refusal(error: &PublishError) -> bool {
    error.scope() != Scope::Broker
        && matches!(error.error().kind(), FaultKind::Denied | FaultKind::Missing | FaultKind::Invalid)
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
    use backstop_core::ledger::Change;
    use backstop_testkit::memory::{Broker, Store};

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
        assert_eq!(pending(&["skip-asked", "skipped", "skip-asked"]), None, "nothing is held any more");
        let later = ["release-asked", "key-released", "skip-asked", "discarded", DIED_AGAIN];
        assert_eq!(pending(&later), None, "that was about the failure before");
        assert_eq!(pending(&["key-released", "skipped", DIED_AGAIN, "release-asked"]), Some(Ending::Release));
    }

    #[test]
    fn a_question_that_may_have_been_sent_is_pending() {
        let pending = |whats: &[&str]| Pending::of(&history(whats)).map(|pending| pending.ending);
        assert_eq!(pending(&["skip-asked", "skip-unknown"]), Some(Ending::Skip));
        assert_eq!(pending(&["skip-asked", "skip-unknown", "skipped"]), None);
        let again = ["skip-asked", "skip-unknown", "skip-asked", "skip-not-sent"];
        assert_eq!(pending(&again), Some(Ending::Skip), "the first one may be there");
        let other = ["skip-asked", "release-asked", "release-not-sent"];
        assert_eq!(pending(&other), Some(Ending::Skip));
    }

    const DOOR: &str = "orders.stock.redrive";

    /// A ledger with one letter, whose consumer can be asked.
    async fn one_letter() -> (Store, Letter) {
        let mut letter = Letter::new("a", "orders.stock.dlq", Envelope::default());
        letter.door = Some(DOOR.to_owned());
        letter.message_key = Some(MessageKey::new("/orders", b"a").to_string());
        let ledger = Store::new();
        ledger.record(std::slice::from_ref(&letter)).await.expect("recorded");
        (ledger, letter)
    }

    async fn whats(ledger: &Store) -> Vec<String> {
        let history = ledger.history("a").await.expect("read");
        history.into_iter().map(|event| event.what).collect()
    }

    #[tokio::test]
    async fn what_the_broker_may_have_is_not_written_down_as_never_sent() {
        let (ledger, letter) = one_letter().await;
        let broker = Broker::new();
        broker.create(DOOR, 1);
        broker.fail_publishes(DOOR, Scope::Broker, 1);
        let asked = ask(&ledger, &broker.sink(), &letter, Ending::Skip, "x").await;
        assert!(matches!(asked, Err(NotAsked::Unknown(_))), "{asked:?}");
        assert_eq!(whats(&ledger).await, ["collected", "skip-asked", "skip-unknown"]);
        let history = ledger.history("a").await.expect("read");
        assert_eq!(Pending::of(&history).map(|pending| pending.ending), Some(Ending::Skip));
    }

    #[tokio::test]
    async fn what_has_no_door_to_go_through_was_never_sent() {
        let (ledger, letter) = one_letter().await;
        let asked = ask(&ledger, &Broker::new().sink(), &letter, Ending::Skip, "x").await;
        assert!(matches!(asked, Err(NotAsked::Refused(_))), "{asked:?}");
        assert_eq!(whats(&ledger).await, ["collected", "skip-asked", "skip-not-sent"]);
    }

    /// The key of a letter that was discarded may wait still: its consumer can be asked all three, and its answer is in the
    /// history.
    #[tokio::test]
    async fn the_key_of_a_discarded_letter_can_be_let_go() {
        use backstop_core::{Receipt, ReceiptOutcome};
        for (ending, outcome, status, answer) in [
            (Ending::Release, ReceiptOutcome::Released, LetterStatus::Discarded, "key-released"),
            (Ending::Skip, ReceiptOutcome::Skipped, LetterStatus::Discarded, "skipped"),
            (Ending::Resolve, ReceiptOutcome::Handled, LetterStatus::Resolved, "resolved"),
        ] {
            let (ledger, letter) = one_letter().await;
            let broker = Broker::new();
            broker.create(DOOR, 1);
            let discard = Change::Discard { because: "not needed".to_owned() };
            ledger.change(&LetterFilter::default(), &discard, 1).await.expect("changed");
            let letter =
                ledger.list(&LetterFilter::of_ids(&[letter.id]), None, 1).await.expect("read").remove(0);
            assert_eq!(letter.status, LetterStatus::Discarded);
            ask(&ledger, &broker.sink(), &letter, ending, "x").await.expect("asked");
            assert_eq!(broker.published(DOOR).len(), 1);
            let history = ledger.history("a").await.expect("read");
            assert_eq!(Pending::of(&history).map(|pending| pending.ending), Some(ending));

            let (key, headers) = (MessageKey::new("/orders", b"a"), &broker.published(DOOR)[0].headers);
            let receipt = Receipt::new(key, headers, "stock", "stock-1", outcome);
            ledger.record_outcomes(&[receipt]).await.expect("recorded");
            let history = ledger.history("a").await.expect("read");
            assert_eq!(history.last().map(|event| event.what.as_str()), Some(answer));
            assert_eq!(Pending::of(&history), None);
            let letters = ledger.list(&LetterFilter::default(), None, 1).await.expect("read");
            assert_eq!(letters[0].status, status, "{ending}");
        }
    }

    #[tokio::test]
    async fn a_letter_that_is_resolved_asks_for_nothing() {
        let (ledger, letter) = one_letter().await;
        let mut resolved = letter;
        resolved.status = LetterStatus::Resolved;
        let asked = ask(&ledger, &Broker::new().sink(), &resolved, Ending::Release, "x").await;
        assert!(matches!(asked, Err(NotAsked::Unfit(_))), "{asked:?}");
    }

    #[tokio::test]
    async fn a_hold_that_came_after_somebody_looked_forbids_to_ask_for_a_skip() {
        let (ledger, letter) = one_letter().await;
        let broker = Broker::new();
        broker.create(DOOR, 1);
        let hold = Change::Hold { because: "case 7".to_owned() };
        ledger.change(&LetterFilter::default(), &hold, 1).await.expect("changed");
        let asked = ask(&ledger, &broker.sink(), &letter, Ending::Skip, "x").await;
        assert!(matches!(asked, Err(NotAsked::Unfit(_))), "{asked:?}");
        assert_eq!(whats(&ledger).await, ["collected", "held"]);
        assert_eq!(broker.published(DOOR).len(), 0);
        ask(&ledger, &broker.sink(), &letter, Ending::Release, "x")
            .await
            .expect("a release discards nothing");
    }
}
