//! Rules, over the API and in the console.

use backstop_core::ConsumerReport;
use backstop_core::ledger::NewAuditEntry;
use backstop_core::report_in::{BreakerState, ConsumerState};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::scene;
use super::*;
use crate::rules::Keeper;

/// Of a failure with five letters, and of all letters, of which one redrive takes three.
pub(super) const RULES: &str = "[broker]\nkind = \"rabbitmq\"\nurl = \"amqp://localhost/\"\n\
    [dead_letters]\nenabled = true\nsources = [\"orders.stock.dlq\"]\nreceipts = [\"receipts\"]\n\
    [[dead_letters.rules]]\nname = \"stock-fixed\"\nafter = \"new-version\"\nwait = \"0s\"\nconsumer = \"stock\"\n\
    fingerprint = \"f2\"\ncanary = 2\n\
    [[dead_letters.rules]]\nname = \"stock-back\"\nafter = \"breaker-closed\"\nconsumer = \"stock\"\nsince = \"7d\"\nlimit = 3\n";
const VIEWER: &str = "V1ew3r-V1ew3r-V1ew3r";
const RESUME: &str = "/rules/stock-fixed/resume";

async fn guarded(rules: &str) -> Running {
    let tokens = format!("token = \"{TOKEN}\"\nviewer_token = \"{VIEWER}\"\n");
    let server = serve(&format!("{tokens}{rules}")).await;
    scene::fill(&server).await;
    server
}

/// Asks the API; the status and the document.
async fn ask(server: &Running, token: &str, path: &str, body: Option<Value>) -> (String, Value) {
    let method = if body.is_some() { "POST" } else { "GET" };
    let head = format!(
        "{method} /api/v1{path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json"
    );
    let answer = send_body(server, &head, &body.map(|body| body.to_string()).unwrap_or_default()).await;
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

/// The first rule, or the second.
async fn listed(server: &Running, n: usize) -> Value {
    let (status, rules) = ask(server, VIEWER, "/rules", None).await;
    assert_eq!(status, "200", "{rules}");
    rules["items"][n].clone()
}

fn signed(token: &str) -> String {
    format!("Host: relay\r\nAuthorization: Basic {}", STANDARD.encode(format!("ann:{token}")))
}

/// A page as somebody with this token sees it.
async fn page(server: &Running, token: &str, path: &str) -> String {
    let answer = get_with(server, path, &format!("\r\n{}", signed(token))).await;
    assert_eq!(status(&answer), "200", "{path}: {answer}");
    answer
}

/// What a form of the console sends.
async fn form(server: &Running, token: &str, origin: &str, form: &str) -> String {
    let head = format!(
        "POST {RESUME} HTTP/1.1\r\n{}\r\nOrigin: {origin}\r\nContent-Type: application/x-www-form-urlencoded",
        signed(token)
    );
    send_body(server, &head, form).await
}

/// A relay attends to the rules, until this is dropped.
fn attend(server: &Running) -> tokio_util::sync::DropGuard {
    let text = format!("[database]\nurl = \"sqlite::memory:\"\n{RULES}");
    let letters = Config::parse(&text, &Environment::default()).expect("sound").dead_letters;
    let stop = CancellationToken::new();
    let keeper = Keeper::new(server.ledger.clone(), letters).looking_every(Duration::from_millis(20));
    tokio::spawn(keeper.run(stop.clone()));
    stop.drop_guard()
}

/// The consumer reports this version until the first rule is as `done` says.
async fn report(server: &Running, version: &str, done: impl Fn(&Value) -> bool) -> Value {
    let reporting = async {
        loop {
            let mut report = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
            report.version = Some(version.to_owned());
            (report.breaker, report.breaker_closings) = (Some(BreakerState::Closed), Some(0));
            server.ledger.record_reports(&[report]).await.expect("recorded");
            let rule = listed(server, 0).await;
            if done(&rule) {
                return rule;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), reporting).await.expect("in time")
}

/// The first rule has fired, and somebody has cancelled its redrive, whose id this is.
async fn resting(server: &Running) -> String {
    report(server, "1", |rule| rule["standing"]["state"] == "watching").await;
    let rule = report(server, "2", |rule| rule["last"]["redrive"].is_string()).await;
    assert_eq!(
        (&rule["last"]["after"], &rule["last"]["run"]),
        (&json!("version 2 reported in"), &json!("running"))
    );
    let id = rule["last"]["redrive"].as_str().expect("an id").to_owned();
    let because = Some(json!({ "because": "enough" }));
    let (status, _) = ask(server, TOKEN, &format!("/redrives/{id}/cancel"), because).await;
    assert_eq!(status, "200");
    id
}

async fn tried(server: &Running) -> Vec<NewAuditEntry> {
    let filter = backstop_core::ledger::AuditFilter { action: Some("rules".into()), ..Default::default() };
    let entries = server.ledger.read_audit(&filter, 100).await.expect("read");
    entries.into_iter().map(|entry| entry.entry).collect()
}

#[tokio::test]
async fn a_program_sees_what_rules_would_send_and_why_they_cannot_fire() {
    let server = guarded(RULES).await;
    let (fixed, back) = (listed(&server, 0).await, listed(&server, 1).await);
    assert_eq!((&fixed["name"], &fixed["after"]), (&json!("stock-fixed"), &json!("new-version")));
    assert_eq!(
        fixed["filter"],
        json!({ "consumer": "stock", "fingerprint": "f2", "status": "open", "on_hold": "false" })
    );
    assert_eq!(
        (&fixed["sends_now"], &fixed["or_more"], &fixed["last"]),
        (&json!(5), &json!(false), &Value::Null)
    );
    assert_eq!((&fixed["canary"], &fixed["rate"], &fixed["brake"]), (&json!(2), &json!(50), &json!(0.05)));
    let remedy = "give it `.receipts(…)`, and check how its name is spelt";
    let blocked = json!({ "state": "blocked", "why": "stock does not report in", "remedy": remedy });
    assert_eq!((&fixed["standing"], &back["standing"]), (&blocked, &blocked));
    assert_eq!(
        (&back["sends_now"], &back["over_limit"], &back["since_seconds"]),
        (&json!(3), &json!(14), &json!(604_800.0))
    );
    let of_back = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(
            back["filter"]
                .as_object()
                .expect("an object")
                .iter()
                .map(|(name, value)| (name, value.as_str().expect("a text"))),
        )
        .finish();
    let (_, plan) = ask(&server, VIEWER, &format!("/plan?{of_back}"), None).await;
    assert_eq!(plan["would_send"], 17, "the filter is one of /plan: {plan}");
}

#[tokio::test]
async fn without_rules_there_is_an_empty_list_and_a_line() {
    let server = guarded("").await;
    let (status, rules) = ask(&server, VIEWER, "/rules", None).await;
    assert_eq!((status.as_str(), &rules), ("200", &json!({ "items": [] })));
    for path in ["/redrives", "/rules"] {
        let page = page(&server, VIEWER, path).await;
        assert!(page.contains("no rules: nothing is redriven unless somebody asks for it"), "{path}: {page}");
        assert!(!page.contains("aria-label=\"Rules\""), "{path}: {page}");
    }
    let (status, problem) = ask(&server, TOKEN, RESUME, Some(json!({ "because": "x" }))).await;
    assert_eq!((status.as_str(), &problem["hint"]), ("404", &json!("write one with [[dead_letters.rules]]")));
}

#[tokio::test]
async fn a_program_resumes_a_rule_that_rests_and_the_audit_log_has_why() {
    let server = guarded(RULES).await;
    let _relay = attend(&server);
    let because = |text: &str| Some(json!({ "because": text }));
    let (status, problem) = ask(&server, TOKEN, RESUME, because("x")).await;
    assert_eq!((status.as_str(), &problem["detail"]), ("409", &json!("rule stock-fixed does not rest")));
    let id = resting(&server).await;
    let standing =
        json!({ "state": "resting", "why": "its last redrive was cancelled: enough (by operator)" });
    assert_eq!(listed(&server, 0).await["standing"], standing);
    for (path, body, expected, hint) in [
        (RESUME, json!({ "because": " " }), "400", "say why, in a few words"),
        (RESUME, json!({ "because": "x", "reason": "x" }), "422", "see /api/v1/openapi.json"),
        ("/rules/none/resume", json!({ "because": "x" }), "404", "name one of stock-fixed, stock-back"),
        ("/rules/stock-back/resume", json!({ "because": "x" }), "409", "look at how it stands"),
    ] {
        let (status, problem) = ask(&server, TOKEN, path, Some(body.clone())).await;
        assert_eq!((status.as_str(), &problem["hint"]), (expected, &json!(hint)), "{path} {body}: {problem}");
    }
    assert_eq!(ask(&server, VIEWER, RESUME, because("x")).await.0, "403");
    assert_eq!(listed(&server, 0).await["standing"], standing, "it rests all the same");

    let (status, rule) = ask(&server, TOKEN, RESUME, because("INC-7")).await;
    assert_eq!((status.as_str(), &rule["standing"]), ("200", &json!({ "state": "watching" })), "{rule}");
    assert_eq!((&rule["last"]["run"], &rule["sends_now"]), (&json!("cancelled"), &json!(5)));
    let tried = tried(&server).await;
    let last = &tried[0];
    assert_eq!(
        (last.who.as_str(), last.action.as_str(), last.object.as_str()),
        ("operator", "rules resume", "stock-fixed")
    );
    assert_eq!(
        (last.step.as_str(), last.because.as_deref(), last.redrive.as_ref()),
        ("done", Some("INC-7"), Some(&id))
    );
    assert_eq!(last.letters, Some(5));
    let refused = tried.iter().filter(|entry| entry.step.as_str() == "refused");
    assert!(
        refused.clone().count() == 5 && refused.clone().all(|entry| entry.redrive.is_none()),
        "{tried:#?}"
    );
    report(&server, "2", |rule| rule["standing"]["state"] == "watching").await;
}

#[tokio::test]
async fn the_console_shows_rules_and_only_operators_resume_them() {
    let server = guarded(RULES).await;
    let redrives = page(&server, VIEWER, "/redrives").await;
    assert!(
        redrives.contains("<a class=\"n\" href=\"/rules\" data-count=\"2\">2</a> rules make redrives"),
        "{redrives}"
    );
    let shown = page(&server, VIEWER, "/rules").await;
    assert!(shown.contains("cannot fire") && shown.contains("check how its name is spelt"), "{shown}");
    assert!(
        shown.contains("3 of <a class=\"n\" href=\"/rules/stock-back/letters\" data-count=\"17\">"),
        "{shown}"
    );
    let plan = "/plan?fingerprint=f2&amp;consumer=stock&amp;status=open&amp;on_hold=false&amp;canary=2&amp;rate=50&amp;brake=5&amp;limit=10000";
    assert!(shown.contains(plan) && shown.contains("since=7d"), "{shown}");
    let letters = page(&server, VIEWER, "/rules/stock-back/letters").await;
    assert!(
        letters.contains("of which a redrive takes 3, the first") && !letters.contains("letter-f3"),
        "{letters}"
    );
    assert_eq!(
        status(&get_with(&server, "/rules/none/letters", &format!("\r\n{}", signed(VIEWER))).await),
        "404"
    );

    let _relay = attend(&server);
    let id = resting(&server).await;
    let (viewer, operator) = (page(&server, VIEWER, "/rules").await, page(&server, TOKEN, "/rules").await);
    assert!(!viewer.contains("<form") && viewer.contains("needs the operator role"), "{viewer}");
    assert_eq!(operator.matches("<form").count(), 1, "only one rests: {operator}");
    assert!(
        operator.contains(&format!("href=\"/redrives/{id}\"")) && operator.contains("version 2 reported in"),
        "{operator}"
    );
    for (token, origin, body, expected) in [
        (VIEWER, "https://relay", "because=x", "403"),
        (TOKEN, "https://evil.example", "because=x", "403"),
        (TOKEN, "https://relay", "because=", "400"),
        (TOKEN, "https://relay", "because=INC-7", "303"),
        (TOKEN, "https://relay", "because=INC-7", "409"),
    ] {
        assert_eq!(status(&form(&server, token, origin, body).await), expected, "{origin} {body}");
    }
    let resumed = page(&server, TOKEN, "/rules").await;
    assert!(!resumed.contains("<form") && resumed.contains("watching"), "{resumed}");
    assert_eq!(tried(&server).await.iter().filter(|entry| entry.step.as_str() == "done").count(), 1);
}
