//! Discard, hold and its end: as many letters as the page said, and those that were there then.

use backstop_core::ledger::{Change, Letter, LetterFilter, LetterStatus};
use serde_json::{Value, json};

use super::console::{field, page, post};
use super::doubt::{database, trigger};
use super::scene;
use super::*;

/// What the button of a form sends.
fn filled(page: &str, path: &str, more: &str) -> String {
    let begin = format!("action=\"/dead-letters/{path}\"");
    let rest = page.split(&begin).nth(1).unwrap_or_else(|| panic!("no form {path}: {page}"));
    let form = &rest[..rest.find("</form>").expect("closed")];
    let mut sent = url::form_urlencoded::Serializer::new(String::new());
    for part in form.split("<input type=\"hidden\" name=\"").skip(1) {
        let name = &part[..part.find('"').expect("closed")];
        sent.append_pair(name, &field(form, name));
    }
    format!("{}&because=INC-7{more}", sent.finish())
}

async fn send_form(server: &Running, path: &str, form: &str) -> String {
    post(server, &format!("/dead-letters/{path}"), form).await
}

async fn api(server: &Running, path: &str, order: Value) -> (String, Value) {
    api_at(server, &format!("letters/{path}"), order).await
}

async fn api_at(server: &Running, path: &str, order: Value) -> (String, Value) {
    let head = format!(
        "POST /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: one\r\nContent-Type: application/json"
    );
    let answer = send_body(server, &head, &order.to_string()).await;
    let document = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    (status(&answer).to_owned(), serde_json::from_str(document).unwrap_or(Value::Null))
}

async fn record(server: &Running, letters: impl Iterator<Item = Letter>) {
    let letters: Vec<Letter> = letters.collect();
    for some in letters.chunks(1_000) {
        server.ledger.record(some).await.expect("recorded");
    }
}

fn of_group(fingerprint: &str) -> LetterFilter {
    LetterFilter { fingerprint: Some(fingerprint.to_owned()), ..LetterFilter::default() }
}

async fn count(server: &Running, filter: LetterFilter) -> u64 {
    server.ledger.count(&filter).await.expect("counted")
}

async fn hold_some(server: &Running, ids: &[&str]) {
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    let hold = Change::Hold { because: "case 7".into() };
    server.ledger.change(&LetterFilter::of_ids(&ids), &hold, 100).await.expect("changed");
}

#[tokio::test]
async fn letters_that_come_after_the_page_are_not_discarded_with_the_others() {
    let server = serve("").await;
    scene::fill(&server).await;
    let group = page(&server, "/groups/f2").await;
    assert!(group.contains("Discard 5 letters…"), "{group}");
    record(&server, (9..12).map(|n| scene::letter(n, "f2", "gateway timed out", 0))).await;
    let answer = send_form(&server, "discard", &filled(&group, "discard", "")).await;
    assert!(answer.contains("5 letters discarded"), "{answer}");
    let open = LetterFilter { status: Some(LetterStatus::Open), ..of_group("f2") };
    assert_eq!(count(&server, open).await, 3, "nobody has seen these");
}

#[tokio::test]
async fn a_number_that_is_no_longer_so_changes_nothing() {
    let server = serve("").await;
    scene::fill(&server).await;
    hold_some(&server, &["letter-f2-000"]).await;
    let before = page(&server, "/groups/f2").await;
    // They died before the page was made, and were collected after it.
    record(&server, (9..11).map(|n| scene::letter(n, "f2", "gateway timed out", 1))).await;
    hold_some(&server, &["letter-f2-009"]).await;
    for (path, word) in [
        ("discard", "5 letters would be discarded now, not 4"),
        ("hold", "5 letters would be put under legal hold now, not 4"),
        ("release", "2 letters would be released from legal hold now, not 1"),
    ] {
        let answer = send_form(&server, path, &filled(&before, path, "")).await;
        assert_eq!(status(&answer), "409", "{path}: {answer}");
        assert!(answer.contains(word) && answer.contains("Nothing was done."), "{path}: {answer}");
    }
    assert_eq!(count(&server, LetterFilter { on_hold: Some(true), ..of_group("f2") }).await, 2);
    assert_eq!(count(&server, LetterFilter { status: Some(LetterStatus::Open), ..of_group("f2") }).await, 7);
}

/// Each button says how many letters it means, and not how many match.
#[tokio::test]
async fn a_hold_and_its_end_count_what_they_apply_to() {
    let server = serve("").await;
    scene::fill(&server).await;
    let list = page(&server, "/dead-letters?fingerprint=f3").await;
    for words in ["Hold 2 letters…", "End the hold of 1 letter…", "Discard 2 letters…"] {
        assert!(list.contains(words), "{words}: {list}");
    }
    let released = send_form(&server, "release", &filled(&list, "release", "")).await;
    assert!(released.contains("1 letter released from legal hold"), "{released}");
    let list = page(&server, "/dead-letters?fingerprint=f3").await;
    assert!(!list.contains("End the hold of"), "none is on hold: {list}");
    let held = send_form(&server, "hold", &filled(&list, "hold", "")).await;
    assert!(held.contains("3 letters put under legal hold"), "{held}");
    let old = page(&server, "/dead-letters?fingerprint=f1&status=discarded").await;
    assert!(!old.contains("/dead-letters/discard"), "what is discarded cannot be again: {old}");
}

#[tokio::test]
async fn a_large_number_is_typed_for_all_three() {
    let server = serve("").await;
    record(&server, (0..120).map(|n| scene::letter(n, "many", "no warehouse", 50))).await;
    for path in ["hold", "release", "discard"] {
        let list = page(&server, "/groups/many").await;
        let without = send_form(&server, path, &filled(&list, path, "")).await;
        assert!(status(&without) == "400" && without.contains("was not typed"), "{path}: {without}");
        let other = send_form(&server, path, &filled(&list, path, "&count=119")).await;
        assert_eq!(status(&other), "400", "{path}: {other}");
        let typed = send_form(&server, path, &filled(&list, path, "&count=120")).await;
        assert!(typed.contains("120 letters"), "{path}: {typed}");
    }
    let incomplete = send_form(&server, "discard", "fingerprint=many&because=x").await;
    assert!(incomplete.contains("the form is incomplete"), "{incomplete}");
}

/// A letter whose hold ends while the others are discarded was not one of them.
#[tokio::test]
async fn no_more_letters_are_discarded_than_were_counted() {
    let server = serve("").await;
    record(&server, (0..3).map(|n| scene::letter(n, "f4", "no warehouse", 50))).await;
    hold_some(&server, &["letter-f4-002"]).await;
    let when = "AFTER UPDATE OF status ON backstop_letter WHEN NEW.status = 'discarded'";
    trigger(&database(&server).await, "end", when, "UPDATE backstop_letter SET hold = NULL").await;
    let order = json!({ "filter": { "fingerprint": "f4" }, "because": "x" });
    let (code, changed) = api(&server, "discard", order).await;
    assert_eq!((code.as_str(), &changed["letters"], &changed["complete"]), ("200", &json!(2), &json!(true)));
    let open = LetterFilter { status: Some(LetterStatus::Open), ..of_group("f4") };
    assert_eq!(count(&server, open).await, 1);
}

/// Beyond 10,000 letters a count is no number that anybody can agree to; only whole groups are counted then.
#[tokio::test]
async fn what_cannot_be_counted_is_not_discarded_and_a_group_can_be() {
    let server = serve("").await;
    record(&server, (0..10_050).map(|n| scene::letter(n, "many", "no warehouse", 50))).await;
    hold_some(&server, &["letter-many-000", "letter-many-001"]).await;
    record(&server, (20_000..20_003).map(|n| scene::letter(n, "many", "no warehouse", 0))).await;
    let group = page(&server, "/groups/many").await;
    assert!(group.contains("Discard 10,048 letters…"), "without those on hold and the latest: {group}");
    let list = page(&server, "/dead-letters?error=warehouse").await;
    assert!(list.contains("Discard: more than 10,000 letters") && !list.contains("/dead-letters/discard"));
    let form = "error=warehouse&because=x&expected=10001&count=10001";
    let answer = send_form(&server, "discard", form).await;
    assert!(status(&answer) == "409" && answer.contains("too many to be counted"), "{answer}");
    for order in [
        json!({ "filter": { "error": "warehouse" }, "because": "x" }),
        json!({ "filter": { "error": "warehouse" }, "because": "x", "expected": 10_001 }),
    ] {
        let (code, problem) = api(&server, "discard", order).await;
        assert_eq!((code.as_str(), &problem["done"]), ("409", &json!("nothing")), "{problem}");
    }
    let all = json!({ "filter": { "fingerprint": "many" }, "because": "x", "expected": 10_048 });
    let (_, problem) = api(&server, "discard", all).await;
    assert!(problem["detail"].as_str().is_some_and(|text| text.starts_with("10051 letters")), "{problem}");
    let discarded = LetterFilter { status: Some(LetterStatus::Discarded), ..of_group("many") };
    assert_eq!(count(&server, discarded).await, 0);
}

#[tokio::test]
async fn a_program_may_say_how_many_letters_it_expects() {
    let server = serve("").await;
    scene::fill(&server).await;
    let order = |expected| json!({ "filter": { "fingerprint": "f1" }, "because": "x", "expected": expected });
    let (code, problem) = api(&server, "discard", order(14)).await;
    assert_eq!(code, "409", "two of them are discarded already: {problem}");
    assert_eq!(problem["detail"], "12 letters would be discarded now, not 14");
    let (code, changed) = api(&server, "discard", order(12)).await;
    assert_eq!((code.as_str(), &changed["letters"], &changed["complete"]), ("200", &json!(12), &json!(true)));
    let (code, again) =
        api(&server, "discard", json!({ "filter": { "fingerprint": "f1" }, "because": "x" })).await;
    assert_eq!((code.as_str(), &again["letters"], &again["complete"]), ("200", &json!(0), &json!(true)));
}

/// A script whose list is empty means no letter, not every one.
#[tokio::test]
async fn an_empty_field_of_a_filter_is_refused() {
    let server = serve("").await;
    scene::fill(&server).await;
    for path in ["redrives", "letters/discard", "letters/hold", "letters/release"] {
        for filter in
            [json!({ "ids": "" }), json!({ "fingerprint": "f1", "ids": "" }), json!({ "error": "" })]
        {
            let order = match path {
                "redrives" => json!({ "filter": filter }),
                _ => json!({ "filter": filter, "because": "x" }),
            };
            let (code, problem) = api_at(&server, path, order).await;
            assert_eq!(code, "422", "{path} {filter}: {problem}");
            assert!(problem["detail"].as_str().is_some_and(|text| text.contains("is empty")), "{problem}");
        }
    }
    assert_eq!(server.ledger.redrives(None, 10).await.expect("read"), []);
    let address = get_with(&server, "/api/v1/letters/count?ids=", "\r\nHost: localhost").await;
    assert_eq!(status(&address), "200", "as a form writes it: {address}");
}
