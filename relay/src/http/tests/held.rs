//! Held keys: shown, and their consumers asked about them.

use backstop_core::held::{Failure, HeldMessages, NewHeld};
use backstop_core::held_keys::Ending;
use backstop_core::inbox::Unit;
use backstop_core::ledger::{Change, LetterFilter, LetterStatus};
use backstop_core::sink::Scope;
use backstop_core::{
    DeadReason, Envelope, ErrorClass, MessageKey, Origin, Receipt, ReceiptOutcome, Via, names,
};
use backstop_sqlite::SqliteInbox;

use super::scene;
use super::*;

const DOOR: &str = "orders.stock.redrive";
const LETTER: &str = "letter-f1-004";
const FORM: &str =
    "Host: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/x-www-form-urlencoded";

/// The consumer holds the message of that letter as one that was given up, with another one behind it.
async fn hold(server: &Running) {
    let pool = backstop_sqlite::open(&server.file.to_string_lossy()).await.expect("opened");
    let inbox = SqliteInbox::new(pool);
    for id in ["f1-4", "f1-99"] {
        let message_key = MessageKey::new("/orders", id.as_bytes());
        let unit = Unit {
            consumer: "stock",
            place: "orders.placed",
            ordering_key: b"order-4",
            message_key: &message_key,
        };
        let envelope = Envelope { key: Some("order-4".into()), ..Envelope::default() };
        let origin =
            Origin::Kafka { topic: "orders.placed".into(), partition: 0, offset: 1, timestamp: None };
        let new = NewHeld { unit, envelope: &envelope, origin: &origin, via: Via::Live };
        if id == "f1-99" {
            inbox.append(new).await.expect("appended");
            continue;
        }
        let failure = Failure {
            attempts: 1,
            throttled: 0,
            class: ErrorClass::Permanent,
            error: "no <b>warehouse".to_owned(),
            due_in: Duration::from_secs(3_600),
            condemned: Some(DeadReason::Permanent),
            crashes: 0,
        };
        inbox.hold(new, &failure).await.expect("held");
        inbox.park("stock", &message_key, 1, &envelope.headers).await.expect("quarantined");
    }
}

async fn page(server: &Running, path: &str) -> String {
    let answer = get_with(server, path, "\r\nHost: localhost").await;
    assert_eq!(status(&answer), "200", "{path}: {answer}");
    answer
}

async fn end(server: &Running, letter: &str, form: &str) -> String {
    send_body(server, &format!("POST /dead-letters/{letter}/end HTTP/1.1\r\n{FORM}"), form).await
}

#[tokio::test]
async fn a_key_waits_until_its_consumer_answers_what_it_was_asked() {
    let server = serve("").await;
    scene::fill(&server).await;
    hold(&server).await;
    server.broker.create(DOOR, 1);
    let held = page(&server, "/held").await;
    assert!(
        held.contains("/orders|f1-4") && !held.contains("f1-99") && !held.contains("<b>warehouse"),
        "{held}"
    );
    assert!(held.contains(&format!("/dead-letters/{LETTER}#key")) && held.contains("somebody"), "{held}");

    let answer = end(&server, LETTER, "ending=release&because=INC-7").await;
    assert_eq!(status(&answer), "303", "{answer}");
    let sent = server.broker.published(DOOR);
    let text = |name: &str| sent[0].headers.get_str(name).map(str::to_owned);
    assert_eq!((sent.len(), text(names::COMMAND).as_deref()), (1, Some(Ending::Release.as_str())));
    assert_eq!(text(names::MESSAGE_KEY).as_deref(), Some("/orders|f1-4"));
    assert_eq!(
        (text(names::DEAD_LETTER_ID).as_deref(), text(names::REDRIVE_GENERATION).as_deref()),
        (Some(LETTER), Some("0"))
    );
    for path in ["/held", &format!("/dead-letters/{LETTER}")] {
        let page = page(&server, path).await;
        assert!(page.contains("release asked, no answer yet"), "{path}: {page}");
    }
    assert!(page(&server, &format!("/dead-letters/{LETTER}")).await.contains("INC-7 (by local)"));

    let receipt = Receipt {
        message_key: MessageKey::new("/orders", b"f1-4"),
        letter: Some(LETTER.into()),
        consumer: "stock".into(),
        instance: "stock-1".into(),
        generation: 1,
        redrive: None,
        outcome: ReceiptOutcome::Released,
        at: chrono::Utc::now(),
    };
    server.ledger.record_outcomes(&[receipt]).await.expect("recorded");
    let letter = page(&server, &format!("/dead-letters/{LETTER}")).await;
    assert!(letter.contains("key-released") && !letter.contains("no answer yet"), "{letter}");
    assert!(page(&server, "/audit?action=held").await.contains("held.release"));
}

/// A broker that does not answer may have the command.
#[tokio::test]
async fn a_command_that_may_have_been_sent_is_pending() {
    let server = serve("").await;
    scene::fill(&server).await;
    hold(&server).await;
    server.broker.create(DOOR, 1);
    server.broker.fail_publishes(DOOR, Scope::Broker, 1);
    let answer = end(&server, LETTER, "ending=skip&because=INC-7").await;
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(
        answer.contains("Nobody knows how much was done: look at the history of the letter."),
        "{answer}"
    );
    assert!(page(&server, "/held").await.contains("skip asked, no answer yet"));

    server.broker.fail_publishes(DOOR, Scope::Destination, 1);
    let answer = end(&server, LETTER, "ending=release&because=INC-7").await;
    assert!(status(&answer) == "503" && answer.contains("Nothing was done."), "{answer}");
    let letter = page(&server, &format!("/dead-letters/{LETTER}")).await;
    assert!(letter.contains("release-not-sent") && letter.contains("skip asked, no answer yet"), "{letter}");
}

#[tokio::test]
async fn nobody_is_asked_what_makes_no_sense() {
    let server = serve("").await;
    scene::fill(&server).await;
    server.broker.create(DOOR, 1);
    let (open, resolved) = (LetterStatus::Open, LetterStatus::Resolved);
    let done = ["letter-f1-005".to_owned()];
    server.ledger.mark(&done, open, resolved, "resolved", None).await.expect("marked");
    for (letter, form, expected) in [
        (LETTER, "ending=explode&because=x", "400"),
        (LETTER, "ending=release&because=", "400"),
        ("letter-f1-005", "ending=release&because=x", "409"),
        ("letter-f3-001", "ending=release&because=x", "409"),
        ("letter-none", "ending=release&because=x", "404"),
    ] {
        assert_eq!(status(&end(&server, letter, form).await), expected, "{letter} {form}");
    }
    assert_eq!(server.broker.published(DOOR).len(), 0);
    let letter = page(&server, "/dead-letters/letter-f1-005").await;
    assert!(!letter.contains("End the wait"), "it is resolved: {letter}");
}

/// Its consumer does not learn of a discard: the key waits on, and somebody can let it go.
#[tokio::test]
async fn the_consumer_of_a_discarded_letter_can_be_asked() {
    let server = serve("").await;
    scene::fill(&server).await;
    hold(&server).await;
    server.broker.create(DOOR, 1);
    let discard = Change::Discard { because: "not needed".into() };
    let one = LetterFilter::of_ids(&[LETTER.to_owned()]);
    server.ledger.change(&one, &discard, 1).await.expect("changed");
    let letter = page(&server, &format!("/dead-letters/{LETTER}")).await;
    assert!(letter.contains("discarded") && letter.contains("End the wait"), "{letter}");
    for (n, ending) in ["release", "skip", "resolve"].into_iter().enumerate() {
        let answer = end(&server, LETTER, &format!("ending={ending}&because=INC-7")).await;
        assert_eq!(status(&answer), "303", "{answer}");
        assert_eq!(server.broker.published(DOOR).len(), n + 1);
        assert!(page(&server, "/held").await.contains(&format!("{ending} asked, no answer yet")), "{ending}");
    }
}
