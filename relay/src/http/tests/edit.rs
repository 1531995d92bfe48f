//! A body is edited, over the API and in the console.

use backstop_core::names;
use serde_json::{Value, json};

use super::console::{page, post};
use super::*;

const LETTER: &str = "letter-f1-004";
const ON: &str = "[dead_letters]\nedit = true\n";

async fn filled(more: &str) -> Running {
    let server = serve(more).await;
    scene::fill(&server).await;
    server
}

async fn edit(server: &Running, id: &str, order: Value) -> (String, Value) {
    let head = format!(
        "POST /api/v1/letters/{id}/edit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    );
    let answer = send_body(server, &head, &order.to_string()).await;
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

async fn stored(server: &Running, id: &str) -> backstop_core::ledger::Letter {
    let filter = backstop_core::ledger::LetterFilter::of_ids(&[id.to_owned()]);
    server.ledger.list(&filter, None, 1).await.expect("read").remove(0)
}

#[tokio::test]
async fn a_program_puts_a_copy_in_a_letters_place_once() {
    let server = filled(ON).await;
    let order = json!({ "text": "{\"n\":7}", "because": "INC-7" });
    let (status, answer) = edit(&server, LETTER, order.clone()).await;
    assert_eq!((status.as_str(), &answer["edit_of"]), ("200", &json!(LETTER)), "{answer}");
    let (was, copy) = (stored(&server, LETTER).await, answer["id"].as_str().expect("an id"));
    let copy = stored(&server, copy).await;
    assert_eq!((was.status.as_str(), copy.status.as_str()), ("superseded", "open"));
    assert_eq!((&copy.message_key, copy.sound_door()), (&was.message_key, was.sound_door()));
    assert_eq!(copy.envelope.headers.get_str(names::EDIT_OF), Some(LETTER));
    assert!(copy.envelope.body.is_some_and(|body| body.ends_with(b"{\"n\":7}")));
    let (again, problem) = edit(&server, LETTER, order).await;
    assert_eq!(again, "409", "{problem}");
    let audit = page(&server, "/audit").await;
    assert!(audit.contains("letters.edit") && audit.contains("INC-7") && !audit.contains("{\"n\":7}"));
}

#[tokio::test]
async fn what_makes_no_sense_changes_nothing() {
    let server = filled(ON).await;
    for (order, expected) in [
        (json!({ "text": "a", "because": " " }), "400"),
        (json!({ "text": "a", "base64": "YQ==", "because": "x" }), "400"),
        (json!({ "because": "x" }), "400"),
        (json!({ "base64": "!", "because": "x" }), "400"),
        (json!({ "text": "a" }), "422"),
    ] {
        let (status, problem) = edit(&server, LETTER, order.clone()).await;
        assert_eq!(status, expected, "{order}: {problem}");
    }
    let (status, problem) = edit(&server, "letter-f3-000", json!({ "text": "a", "because": "x" })).await;
    assert_eq!(status, "409", "it is on hold: {problem}");
    assert_eq!(stored(&server, LETTER).await.status.as_str(), "open");
}

#[tokio::test]
async fn the_form_is_below_a_revealed_body_where_that_is_allowed() {
    let reveal = format!("/dead-letters/{LETTER}/reveal");
    let strict = filled("").await;
    assert!(!post(&strict, &reveal, "because=x").await.contains("name=\"body\""));
    let (status, problem) = edit(&strict, LETTER, json!({ "text": "a", "because": "x" })).await;
    assert_eq!(status, "409");
    assert!(problem["hint"].as_str().expect("a hint").contains("edit = true"), "{problem}");

    let server = filled(ON).await;
    assert!(!page(&server, &format!("/dead-letters/{LETTER}")).await.contains("name=\"body\""));
    assert!(post(&server, &reveal, "because=x").await.contains("name=\"body\""));
    let form = "body=one%0D%0Atwo&because=INC-7";
    let answer = post(&server, &format!("/dead-letters/{LETTER}/edit"), form).await;
    let place = answer.split("location: ").nth(1).expect("a place").lines().next().expect("one");
    let copy = stored(&server, place.rsplit('/').next().expect("an id")).await;
    assert!(
        copy.envelope.body.is_some_and(|body| body.ends_with(b"one\ntwo")),
        "line ends are one character"
    );
    assert!(page(&server, place).await.contains("edit-of"));
}
