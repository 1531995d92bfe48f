//! The audit log: what it tells of a redrive, and that nothing is done which it cannot tell.

use backstop_core::ledger::{LetterFilter, LetterStatus, Redrive, Run};
use backstop_core::{MessageKey, Receipt, ReceiptOutcome};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::scene;
use super::*;
use crate::owner::OwnerSettings;
use crate::redrive::Engine;

const VIEWER: &str = "V1ew3r-V1ew3r-V1ew3r";
const DOOR: &str = "orders.stock.redrive";
const ID: &str = "0197f000-0000-7000-8000-0000000000aa";

/// What a form of the console sends, and who signed in.
async fn form(server: &Running, who: &str, token: &str, path: &str, form: &str) -> String {
    let basic = STANDARD.encode(format!("{who}:{token}"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: relay\r\nOrigin: https://relay\r\nAuthorization: Basic {basic}\r\n\
         Content-Type: application/x-www-form-urlencoded"
    );
    send_body(server, &head, form).await
}

/// What a program sends.
async fn program(server: &Running, path: &str, body: Value) -> String {
    let head = format!(
        "POST /api/v1{path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json"
    );
    send_body(server, &head, &body.to_string()).await
}

/// Entries about the redrive, oldest first, read page by page.
async fn audit(server: &Running) -> Vec<Value> {
    let (mut entries, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/audit?redrive={ID}&limit=3&after={after}");
        let answer =
            get_with(server, &path, &format!("\r\nHost: relay\r\nAuthorization: Bearer {VIEWER}")).await;
        let page = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let page: Value = serde_json::from_str(page).unwrap_or_else(|error| panic!("{error}: {answer}"));
        entries.extend(page["items"].as_array().expect("a list").iter().cloned());
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    entries.reverse();
    entries
}

async fn redrive(server: &Running) -> Redrive {
    server.ledger.redrive(ID).await.expect("read").expect("there")
}

/// The consumer handles what has been sent, until `done`.
async fn handle(server: &Running, done: impl Fn(&Redrive) -> bool) {
    let sent = LetterFilter::of_status(LetterStatus::Redriving);
    let handling = async {
        while !done(&redrive(server).await) {
            let letters = server.ledger.list(&sent, None, 100).await.expect("listed");
            let handled = letters.iter().map(|letter| Receipt {
                message_key: letter.message_key.as_deref().and_then(MessageKey::parse).expect("a key"),
                letter: Some(letter.id.clone()),
                consumer: "stock".into(),
                instance: "stock-1".into(),
                generation: 1,
                redrive: Some(ID.into()),
                outcome: ReceiptOutcome::Handled,
                at: chrono::Utc::now(),
            });
            server.ledger.record_outcomes(&handled.collect::<Vec<_>>()).await.expect("recorded");
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), handling).await.expect("in time");
}

/// Promise 10: the audit log of a whole redrive, which another relay over the same ledger tells as well.
#[tokio::test]
async fn p10_the_audit_log_of_a_whole_redrive() {
    let settings = format!("token = \"{TOKEN}\"\nviewer_token = \"{VIEWER}\"\n");
    let server = serve(&settings).await;
    scene::fill(&server).await;
    let plan = format!("fingerprint=f1&id={ID}&expected=12&canary=2&rate=1000&because=INC-7");
    assert_eq!(status(&form(&server, "bob", VIEWER, "/redrives", &plan).await), "403");
    assert_eq!(status(&form(&server, "ann", TOKEN, "/redrives", &plan).await), "303");

    let (broker, stop) = (&server.broker, CancellationToken::new());
    broker.create(DOOR, 1);
    let engine = Engine::new(server.ledger.clone(), broker.sink(), OwnerSettings::default());
    let engine = tokio::spawn(engine.run(stop.clone()));
    let canary = async {
        while broker.published(DOOR).len() < 2 || redrive(&server).await.letters().waiting < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), canary).await.expect("the canary is sent");
    for (action, body) in [("pause", json!({})), ("rate", json!({ "rate": 500.0 })), ("resume", json!({}))] {
        let answer = program(&server, &format!("/redrives/{ID}/{action}"), body).await;
        assert_eq!(status(&answer), "200", "{action}: {answer}");
    }
    handle(&server, |redrive| redrive.standing.run == Run::Done).await;
    let of = |header: &str| json!({ "filter": { "header": header }, "because": "case 7" });
    let secret = format!("x-api-token={}", scene::SECRET);
    assert_eq!(status(&program(&server, "/letters/hold", of(&secret)).await), "400", "it could be guessed");
    assert_eq!(status(&program(&server, "/letters/hold", of("x-api-token")).await), "200");
    stop.cancel();
    engine.await.expect("ended");

    let after = serve_from(server.file.clone(), &settings).await;
    let entries = audit(&after).await;
    let told: Vec<[&str; 4]> = entries
        .iter()
        .map(|entry| ["who", "role", "action", "step"].map(|name| entry[name].as_str().expect("a text")))
        .collect();
    assert_eq!(
        told,
        [
            ["bob", "viewer", "redrive.start", "refused"],
            ["ann", "operator", "redrive.start", "done"],
            ["operator", "operator", "redrive.pause", "done"],
            ["operator", "operator", "redrive.rate", "done"],
            ["operator", "operator", "redrive.resume", "done"],
            ["relay", "relay", "redrive.sending", "done"],
            ["relay", "relay", "redrive.settling", "done"],
            ["relay", "relay", "redrive.done", "done"],
        ]
    );
    assert_eq!((&entries[1]["letters"], &entries[1]["because"]), (&json!(12), &json!("INC-7")));
    assert_eq!(
        (&entries[1]["origin"], &entries[2]["origin"]),
        (&json!("console, 127.0.0.1"), &json!("API, 127.0.0.1"))
    );
    assert_eq!((&entries[3]["object"], &entries[7]["letters"]), (&json!("rate=500"), &json!(12)));
    let all = server.ledger.read_audit(&Default::default(), 1_000).await.expect("read");
    let all = format!("{all:?}");
    assert!(all.contains("x-api-token") && all.contains("letters.hold"), "{all}");
    for secret in [TOKEN, VIEWER, scene::SECRET, scene::BODY] {
        assert!(!all.contains(secret), "{all}");
    }
}

/// Whoever changes something leaves a trace: without one nothing is changed.
#[tokio::test]
async fn what_the_audit_log_cannot_keep_is_not_done() {
    let server = serve(&format!("token = \"{TOKEN}\"\n")).await;
    scene::fill(&server).await;
    let pool = backstop_sqlite::open(&server.file.to_string_lossy()).await.expect("opened");
    sqlx::raw_sql("DROP TABLE backstop_audit").execute(&pool).await.expect("dropped");
    let f1 = json!({ "filter": { "fingerprint": "f1" }, "because": "x" });
    for (path, body) in [
        ("/letters/discard", f1.clone()),
        ("/letters/hold", f1),
        ("/letters/letter-f1-004/reveal", json!({})),
    ] {
        let answer = program(&server, path, body).await;
        assert!(status(&answer).starts_with('5'), "{path}: {answer}");
        assert!(!answer.contains(scene::BODY), "{answer}");
    }
    let open = LetterFilter { on_hold: Some(false), ..LetterFilter::of_status(LetterStatus::Open) };
    assert_eq!(server.ledger.count(&open).await.expect("counted"), 19);
}
