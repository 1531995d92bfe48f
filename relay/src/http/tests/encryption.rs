//! Bodies that are encrypted in the ledger, over the API and in the console.

use serde_json::{Value, json};

use super::scene::{self, BODY};
use super::*;
use crate::encryption::{Key, Keyring};
use crate::redrive::Plan;

const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const LOST: &str = "0202020202020202020202020202020202020202020202020202020202020202";

fn ring(key: &str) -> Keyring {
    let config =
        crate::config::EncryptionConfig { key: Key::parse(key).expect("a key"), previous_keys: Vec::new() };
    Keyring::of(Some(&config))
}

/// A server with the first key, over a letter of each sort: in clear, with that key, and with one that is lost.
async fn mixed() -> Running {
    let server = serve(&format!("[dead_letters.encryption]\nkey = \"{KEY}\"\n")).await;
    let (clear, mut known, mut lost) = (letter(0), letter(1), letter(2));
    ring(KEY).seal(&mut known);
    ring(LOST).seal(&mut lost);
    server.ledger.record(&[clear, known, lost]).await.expect("recorded");
    server
}

fn letter(n: u32) -> backstop_core::ledger::Letter {
    scene::letter(n, "f1", "sold out", 5)
}

async fn api(server: &Running, method: &str, path: &str, body: Option<Value>) -> (String, Value) {
    let head =
        format!("{method} /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
    let answer = send_body(server, &head, &body.map(|body| body.to_string()).unwrap_or_default()).await;
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_api_opens_what_its_keys_open_and_says_which_key_is_missing() {
    let server = mixed().await;
    let size = letter(0).envelope.body.expect("a body").len();
    for n in [0, 1] {
        let (status, shown) = api(&server, "GET", &format!("/letters/letter-f1-00{n}"), None).await;
        assert_eq!((status.as_str(), &shown["body_bytes"]), ("200", &json!(size)), "{shown}");
        assert_eq!(shown["unreadable"], Value::Null);
        let (_, body) =
            api(&server, "POST", &format!("/letters/letter-f1-00{n}/reveal"), Some(json!({}))).await;
        assert!(body["text"].as_str().is_some_and(|text| text.contains(BODY)), "{body}");
    }
    let lost = ring(LOST).newest().expect("a key").to_string();
    let (_, listed) = api(&server, "GET", "/letters", None).await;
    let named: Vec<&Value> =
        listed["items"].as_array().expect("a list").iter().map(|letter| &letter["encrypted_with"]).collect();
    let newest = ring(KEY).newest().expect("a key").to_string();
    assert_eq!(named, [&Value::Null, &json!(newest), &json!(lost)]);

    let (status, shown) = api(&server, "GET", "/letters/letter-f1-002", None).await;
    let unreadable = shown["unreadable"].as_str().unwrap_or_default();
    assert_eq!((status.as_str(), &shown["body_bytes"]), ("200", &json!(size)), "{shown}");
    assert!(unreadable.contains(&format!("key {lost}, which is not configured")), "{shown}");
    let (status, problem) = api(&server, "POST", "/letters/letter-f1-002/reveal", Some(json!({}))).await;
    assert_eq!((status.as_str(), &problem["type"]), ("409", &json!("urn:backstop:problem:conflict")));
    assert!(
        problem.to_string().contains(&lost) && problem.to_string().contains("previous_key_files"),
        "{problem}"
    );
    let (_, audit) = api(&server, "GET", "/audit?action=letters.reveal", None).await;
    assert_eq!((&audit["items"][0]["step"], &audit["items"][1]["step"]), (&json!("refused"), &json!("done")));
}

#[tokio::test]
async fn the_console_shows_no_body_that_it_cannot_open() {
    let server = mixed().await;
    let page = async |n: u32| {
        get_with(&server, &format!("/dead-letters/letter-f1-00{n}"), "\r\nHost: localhost").await
    };
    assert!(page(1).await.contains("Reveal the body"), "it has the key");
    let lost = page(2).await;
    assert!(!lost.contains("Reveal the body") && lost.contains("which is not configured"), "{lost}");
    let head = "POST /dead-letters/letter-f1-001/reveal HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\
                Content-Type: application/x-www-form-urlencoded";
    assert!(send_body(&server, head, "because=INC-7").await.contains(BODY));
}

/// What is missing is told before a redrive is made, in the words of the command line.
#[tokio::test]
async fn a_plan_says_how_many_letters_cannot_be_opened_and_which_key_is_missing() {
    let server = mixed().await;
    let lost = ring(LOST).newest().expect("a key").to_string();
    let (_, plan) = api(&server, "GET", "/plan?fingerprint=f1", None).await;
    assert_eq!((&plan["would_send"], &plan["refused"]["letters"]), (&json!(3), &json!(1)), "{plan}");
    assert_eq!(
        (&plan["refused"]["of_first"], &plan["refused"]["first"]),
        (&json!(50), &json!("letter-f1-002"))
    );
    let why = format!("its body is encrypted with key {lost}, which is not configured");
    assert_eq!(plan["refused"]["why"], json!(why));
    assert!(
        plan["refused"]["hint"].as_str().is_some_and(|hint| hint.contains("previous_key_files")),
        "{plan}"
    );
    let (_, sound) = api(&server, "GET", "/plan?ids=letter-f1-000,letter-f1-001", None).await;
    assert_eq!((&sound["would_send"], &sound["refused"]), (&json!(2), &Value::Null), "{sound}");

    let filter = backstop_core::ledger::LetterFilter::of_status(backstop_core::ledger::LetterStatus::Open);
    let command =
        Plan::make(&*server.ledger, &filter, &Default::default(), &ring(KEY)).await.expect("a plan");
    let page = async |path: &str| get_with(&server, path, "\r\nHost: localhost").await;
    for path in ["/plan?fingerprint=f1", "/groups/f1"] {
        let page = page(path).await;
        let told = command.warnings.iter().find(|warning| page.contains(*warning)).map(String::as_str);
        assert!(told.is_some_and(|told| told.starts_with("1 of the first 50 letters")), "{path}: {page}");
        assert!(
            page.contains("<a href=\"/dead-letters/letter-f1-002\">Look at the first</a>"),
            "{path}: {page}"
        );
    }
    assert!(!page("/plan?ids=letter-f1-000,letter-f1-001").await.contains("would be refused"));
}
