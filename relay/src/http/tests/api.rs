//! The API.

use serde_json::{Value, json};

use super::scene;
use super::*;

const VIEWER: &str = "V1ew3r-V1ew3r-V1ew3r";

/// Asks the API with a token; the status and the document.
async fn ask(
    server: &Running,
    token: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> (String, Value) {
    let head = format!(
        "{method} /api/v1{path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token}\r\nIdempotency-Key: {path}{}",
        body.as_ref().map(|body| body["key"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
    );
    let answer = match body {
        Some(mut body) => {
            body.as_object_mut().expect("an object").remove("key");
            send_body(server, &format!("{head}\r\nContent-Type: application/json"), &body.to_string()).await
        }
        None => send(server, &head).await,
    };
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

async fn guarded() -> Running {
    let server = serve(&format!("token = \"{TOKEN}\"\nviewer_token = \"{VIEWER}\"\n")).await;
    scene::fill(&server).await;
    server
}

#[tokio::test]
async fn groups_letters_and_counts_agree() {
    let server = guarded().await;
    let (_, groups) = ask(&server, VIEWER, "GET", "/groups", None).await;
    let groups = groups["items"].as_array().expect("a list").clone();
    assert_eq!(groups.len(), 3, "{groups:?}");
    for group in &groups {
        let parts: u64 =
            group["by_status"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
        assert_eq!(group["letters"], parts);
        let name = group["fingerprint"].as_str().expect("a name");
        let (_, count) =
            ask(&server, VIEWER, "GET", &format!("/letters/count?fingerprint={name}"), None).await;
        assert_eq!(count["letters"], parts);
        let (_, minutes) =
            ask(&server, VIEWER, "GET", &format!("/letters/minutes?fingerprint={name}"), None).await;
        let new =
            minutes["items"].as_array().expect("a list").iter().map(|minute| minute["letters"].as_u64());
        assert_eq!(new.sum::<Option<u64>>(), group["last_hour"].as_u64(), "they died just now");
    }
    let (status, problem) = ask(&server, VIEWER, "GET", "/letters/minutes?consumer=stock", None).await;
    assert!(status.starts_with("400"), "it would not narrow: {problem}");
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = ask(&server, VIEWER, "GET", &format!("/letters?limit=4&after={after}"), None).await;
        found.extend(page["items"].as_array().expect("a list").iter().map(|letter| letter["id"].to_string()));
        let Some(next) = page["next"].as_str() else { break };
        after = next.to_owned();
    }
    assert_eq!(found.len(), 22);
    assert_eq!(found.iter().collect::<std::collections::BTreeSet<_>>().len(), 22, "each once");
}

/// S27: what a viewer may see, and what they may not do.
#[tokio::test]
async fn s27_a_viewer_sees_and_plans_and_changes_nothing() {
    let server = guarded().await;
    for path in [
        "/letters",
        "/letters/letter-f1-004",
        "/plan?fingerprint=f1",
        "/redrives",
        "/outboxes",
        "/consumers",
        "/held",
        "/rules",
        "/audit",
    ] {
        let (status, document) = ask(&server, VIEWER, "GET", path, None).await;
        assert_eq!(status, "200", "{path}: {document}");
        assert!(!document.to_string().contains(scene::BODY), "{path}");
        assert!(!document.to_string().contains(scene::SECRET), "{path}");
    }
    let filter = json!({ "fingerprint": "f1" });
    for (path, body) in [
        ("/letters/letter-f1-004/reveal", json!({})),
        ("/letters/letter-f1-004/edit", json!({ "text": "{}", "because": "x" })),
        ("/letters/letter-f1-004/end", json!({ "ending": "release", "because": "x" })),
        ("/letters/discard", json!({ "filter": filter, "because": "x" })),
        ("/letters/hold", json!({ "filter": filter, "because": "x" })),
        ("/letters/release", json!({ "filter": filter, "because": "x" })),
        ("/redrives", json!({ "filter": filter })),
        ("/redrives/0197f000-0000-7000-8000-000000000000/pause", json!({})),
        ("/redrives/0197f000-0000-7000-8000-000000000000/cancel", json!({ "because": "x" })),
        ("/redrives/0197f000-0000-7000-8000-000000000000/rate", json!({ "rate": 1.0 })),
        ("/rules/stock-fixed/resume", json!({ "because": "x" })),
    ] {
        let (status, problem) = ask(&server, VIEWER, "POST", path, Some(body)).await;
        assert_eq!(status, "403", "{path}: {problem}");
        assert_eq!(problem["type"], "urn:backstop:problem:forbidden", "{path}");
    }
    let (_, audit) = ask(&server, VIEWER, "GET", "/audit", None).await;
    let entries = audit["items"].as_array().expect("a list");
    assert_eq!(entries.len(), 11);
    assert!(entries.iter().all(|entry| entry["error"] == "this needs the operator role"), "{entries:?}");
    let (_, count) = ask(&server, VIEWER, "GET", "/letters/count?status=open", None).await;
    assert_eq!(count["letters"], 20);
}

#[tokio::test]
async fn a_redrive_is_made_once_a_key_and_only_as_expected() {
    let server = guarded().await;
    let (_, plan) = ask(&server, VIEWER, "GET", "/plan?error=warehouse", None).await;
    assert_eq!((&plan["matched"], &plan["would_send"]), (&json!(12), &json!(12)), "{plan}");
    let start = |expected: u64, key: &str| {
        Some(
            json!({ "filter": { "error": "warehouse" }, "order": { "canary": "3" }, "expected": expected, "key": key }),
        )
    };
    let (status, problem) = ask(&server, TOKEN, "POST", "/redrives", start(11, "a")).await;
    assert_eq!((status.as_str(), &problem["type"]), ("409", &json!("urn:backstop:problem:conflict")));
    let (status, made) = ask(&server, TOKEN, "POST", "/redrives", start(12, "b")).await;
    assert_eq!(
        (status.as_str(), &made["cohort"], &made["created_by"]),
        ("201", &json!(12), &json!("operator"))
    );
    let (_, again) = ask(&server, TOKEN, "POST", "/redrives", start(12, "b")).await;
    assert_eq!(again["id"], made["id"]);
    let (_, all) = ask(&server, TOKEN, "GET", "/redrives", None).await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1));
    let other = Some(json!({ "filter": { "fingerprint": "f2" }, "key": "b" }));
    assert_eq!(ask(&server, TOKEN, "POST", "/redrives", other).await.0, "409", "the key stands for another");
    let id = made["id"].as_str().expect("an id");
    let steer = |action: &str| format!("/redrives/{id}/{action}");
    let (_, paused) = ask(&server, TOKEN, "POST", &steer("pause"), Some(json!({}))).await;
    assert_eq!((&paused["run"], &paused["why"]), (&json!("paused"), &json!("by operator")));
    let (_, faster) = ask(&server, TOKEN, "POST", &steer("rate"), Some(json!({ "rate": 7.5 }))).await;
    assert_eq!(faster["rate"], 7.5);
    assert_eq!(ask(&server, TOKEN, "POST", &steer("pause"), Some(json!({}))).await.0, "409");
}

/// A typing error in a filter must not make it wider.
#[tokio::test]
async fn what_makes_no_sense_is_a_problem_and_changes_nothing() {
    let server = guarded().await;
    let because = "a try";
    for (path, body) in [
        ("/letters/discard", json!({ "filter": { "fingerprnt": "f1" }, "because": because })),
        ("/letters/discard", json!({ "filter": {}, "because": because })),
        ("/letters/discard", json!({ "filter": { "fingerprint": "" }, "because": because })),
        ("/letters/discard", json!({ "filter": { "status": "gone" }, "because": because })),
        ("/letters/discard", json!({ "filter": { "fingerprint": "f1" }, "because": "  " })),
        ("/redrives", json!({ "filter": { "status": "resolved" } })),
        ("/redrives", json!({ "filter": { "fingerprint": "f1" }, "order": { "rate": "-1" } })),
    ] {
        let (status, problem) = ask(&server, TOKEN, "POST", path, Some(body.clone())).await;
        assert!(status.starts_with('4'), "{body}: {problem}");
        assert!(problem["detail"].is_string() && problem["title"].is_string(), "{body}: {problem}");
    }
    for path in [
        "/letters?limit=1000000000",
        "/letters?since=x",
        "/letters/none",
        "/nothing",
        "/redrives/x",
        "/outboxes/x/dead",
    ] {
        let (status, problem) = ask(&server, TOKEN, "GET", path, None).await;
        assert!(status.starts_with('4'), "{path}: {problem}");
        assert_eq!(problem["status"].to_string(), status, "{path}");
    }
    let (_, count) = ask(&server, VIEWER, "GET", "/letters/count?status=open", None).await;
    assert_eq!(count["letters"], 20);
}

#[tokio::test]
async fn people_sign_in_with_a_name_and_a_token_and_the_name_is_written_down() {
    use base64::Engine;
    let server = guarded().await;
    let basic = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let answer = get_with(&server, "/", "\r\nHost: relay").await;
    assert!(
        status(&answer) == "401" && answer.contains("www-authenticate: Basic realm=\"Backstop\""),
        "{answer}"
    );
    let ann = format!("Authorization: Basic {}", basic(format!("ann:{TOKEN}")));
    let answer = get_with(&server, "/", &format!("\r\nHost: relay\r\n{ann}")).await;
    assert!(answer.contains("ann · operator"), "{answer}");
    let head = format!(
        "POST /dead-letters/letter-f1-004/reveal HTTP/1.1\r\nHost: relay\r\n{ann}\r\nOrigin: https://relay\r\nContent-Type: application/x-www-form-urlencoded"
    );
    assert_eq!(status(&send_body(&server, &head, "because=why").await), "200");
    let (_, audit) = ask(&server, VIEWER, "GET", "/audit?action=letters.reveal", None).await;
    assert_eq!(audit["items"][0]["who"], "ann");
    for wrong in [format!("ann:{TOKEN}x"), format!("{TOKEN}:"), "ann".to_owned()] {
        let header = format!("\r\nHost: relay\r\nAuthorization: Basic {}", basic(wrong));
        assert_eq!(status(&get_with(&server, "/", &header).await), "401");
    }
}

#[tokio::test]
async fn the_openapi_document_names_every_path_and_every_reference_resolves() {
    let server = guarded().await;
    let (status, document) = ask(&server, VIEWER, "GET", "/openapi.json", None).await;
    assert_eq!(status, "200");
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.len(), 25, "{:?}", paths.keys());
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("operations") {
            let problem = &operation["responses"]["4XX"]["content"]["application/problem+json"];
            assert!(problem.is_object(), "{method} {path} says how it fails");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = &reference[..reference.find('"').expect("closed")];
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}
