//! From alarm to repaired, by commands alone: `dead-letters …` and `redrives …`.

use std::time::{Duration, Instant};

use backstop_kafka::MockBroker;
use serde_json::json;

use crate::relay::{Ran, Relay};

/// Letters of two failures, with what an export holds of them.
pub(crate) fn lines() -> String {
    let line = |n: u32| {
        let (fingerprint, error) =
            if n.is_multiple_of(3) { ("f-card", "card declined") } else { ("f-stock", "sold out") };
        let letter = json!({
            "id": format!("letter-{n}"), "message_key": format!("/orders|{n}"), "consumer": "stock",
            "place": "orders", "found_in": "orders.stock.dlq", "door": "orders.stock.redrive",
            "reason": "exhausted", "class": "transient", "error_type": "shop::Refused", "error": error,
            "fingerprint": fingerprint, "attempts": 6, "generation": 0, "first_failed_at": null,
            "dead_at": format!("2026-11-21T10:00:0{n}Z"), "status": "open", "outcome": null, "redrive": null,
            "hold": null, "collected_at": "2026-11-21T10:01:00Z",
        });
        let headers = json!([["backstop-message-key", format!("/orders|{n}")], ["tenant", "acme"]]);
        json!({ "letter": letter, "content": { "key": "tea", "headers": headers, "body": "card 4111" } })
    };
    (1..=6).map(|n| format!("{}\n", line(n))).collect()
}

/// A ledger with six letters, and a broker to which they belong.
pub(crate) fn with_letters() -> (Relay, MockBroker) {
    with_letters_and("")
}

/// The same, with more in the configuration.
pub(crate) fn with_letters_and(more: &str) -> (Relay, MockBroker) {
    let broker = MockBroker::start().expect("a mock broker");
    for topic in ["orders.stock.dlq", "orders.stock.redrive"] {
        broker.create_topic(topic, 2).expect("created");
    }
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"kafka\"\nbrokers = \"{}\"\n{more}",
        broker.bootstrap_servers()
    ));
    assert_eq!(relay.run("migrate").code, 0);
    relay.write("letters.jsonl", &lines());
    let ran = relay.run("dead-letters import letters.jsonl");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "6 letters read, 6 of them new\n"), "{}", ran.stderr);
    (relay, broker)
}

fn id_of(ran: &Ran) -> String {
    ran.json()["redrive"]["id"].as_str().expect("an id").to_owned()
}

#[test]
fn what_is_exported_comes_back() {
    let (relay, _broker) = with_letters();
    let ran = relay.run("dead-letters export --to copy.jsonl");
    assert_eq!(ran.stdout, "6 letters written to copy.jsonl\n", "{}", ran.stderr);
    let ran = relay.run("dead-letters export --to copy.jsonl");
    assert_eq!(ran.code, 1, "nothing is overwritten");
    assert_eq!(
        relay.run("dead-letters import copy.jsonl").stdout,
        "6 letters read, 0 of them new\n",
        "they are there already"
    );
    let other = Relay::new("[database]\nurl = \"sqlite:y.db?mode=rwc\"\n");
    assert_eq!(other.run("migrate").code, 0);
    let copy = std::fs::read_to_string(relay.path("copy.jsonl")).expect("readable");
    assert!(copy.contains("card 4111"));
    other.write("copy.jsonl", &copy);
    assert_eq!(other.run("dead-letters import copy.jsonl").stdout, "6 letters read, 6 of them new\n");
    let shown = |relay: &Relay| {
        relay.run("dead-letters show letter-3 --reveal --output json").json()["content"].clone()
    };
    assert_eq!(shown(&other), shown(&relay));
    other.write("odd.jsonl", "{}\n");
    let ran = other.run("dead-letters import odd.jsonl");
    assert!(ran.code == 1 && ran.stderr.contains("odd.jsonl: line 1 is no letter"), "{}", ran.stderr);
}

/// The copy is redriven and the original is not.
#[test]
fn an_edited_copy_is_redriven_in_a_letters_place() {
    let command = |letter: &str, more: &str| {
        format!("dead-letters edit {letter} --body mended.txt --because INC-7 --yes {more}")
    };
    let (strict, _broker) = with_letters();
    strict.write("mended.txt", "card, mended");
    let ran = strict.run(&command("letter-1", ""));
    assert!(ran.code == 1 && ran.stderr.contains("edit = true"), "off unless allowed: {}", ran.stderr);
    let (relay, _broker) = with_letters_and("[dead_letters]\nedit = true\n");
    relay.write("mended.txt", "card, mended");
    let edit = |letter: &str, more: &str| relay.run(&command(letter, more));
    let ran = edit("letter-1", "--output json");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let copy = ran.json()["id"].as_str().expect("an id").to_owned();
    let ran = edit("letter-1", "");
    assert!(ran.code == 1 && ran.stderr.contains("superseded"), "{}", ran.stderr);
    let ran = edit(&copy, "");
    assert!(ran.code == 1 && ran.stderr.contains("body already"), "{}", ran.stderr);
    let shown = relay.run(&format!("dead-letters show {copy} --reveal --output json")).json();
    assert_eq!(shown["content"]["body"], "card, mended");
    assert_eq!(shown["history"][1]["what"], "edit-of");
    let ran = relay.run("dead-letters redrive --message-key /orders|1 --yes --output json");
    assert_eq!((ran.code, &ran.json()["plan"]["to_send"]), (0, &json!(1)), "{}", ran.stdout);
    let kept = relay.run("dead-letters show letter-1 --reveal --output json").json();
    assert_eq!(
        (&kept["letter"]["status"], &kept["content"]["body"]),
        (&json!("superseded"), &json!("card 4111"))
    );
}

/// Nothing that is under legal hold goes, and what goes is proven and can be had back.
#[test]
fn letters_whose_time_is_over_go_to_the_archive_and_come_back() {
    let relay = Relay::new(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[dead_letters.retention]\narchive = \"kept\"\ndiscarded = \"1s\"\n",
    );
    assert_eq!(relay.run("migrate").code, 0);
    relay.write("letters.jsonl", &lines().replace("2026-11-21T", "2020-11-21T"));
    assert_eq!(relay.run("dead-letters import letters.jsonl").code, 0);
    assert_eq!(relay.run("dead-letters discard --fingerprint f-card --because test --yes").code, 0);
    assert_eq!(relay.run("dead-letters hold --status all --id letter-3 --because case-7 --yes").code, 0);
    let until = Instant::now() + Duration::from_secs(60);
    let archive = loop {
        // A second after the last thing that happened to them, their time is over.
        let passed = relay.run("dead-letters archive --output json").json()["passed"].clone();
        let discarded = passed.as_array().expect("a list").iter().find(|it| it["status"] == "discarded");
        let discarded = discarded.expect("one of each status").clone();
        if discarded["deleted"] == 1 {
            break discarded["archives"][0].clone();
        }
        assert!(Instant::now() < until, "nothing is archived: {discarded}");
    };
    assert_eq!((&archive["letters"], &archive["first_id"]), (&json!(1), &json!("letter-6")));
    let left = relay.run("dead-letters list --status all --output json").json();
    assert_eq!(left["matching"], 5, "the other one is under legal hold");
    let file = format!("kept/{}", archive["file"].as_str().expect("a name"));
    let ran = relay.run(&format!("dead-letters import {file}"));
    assert_eq!(
        ran.stdout, "1 letter read, 1 of them new; the file is as its manifest says\n",
        "{}",
        ran.stderr
    );
    let shown = relay.run("dead-letters show letter-6 --reveal --output json").json();
    assert_eq!(
        (&shown["letter"]["status"], &shown["content"]["body"]),
        (&json!("discarded"), &json!("card 4111"))
    );
    let mut bytes = std::fs::read(relay.path(&file)).expect("readable");
    bytes.push(0);
    std::fs::write(relay.path(&file), bytes).expect("written");
    let ran = relay.run(&format!("dead-letters import {file}"));
    assert!(ran.code == 1 && ran.stderr.contains("its manifest was written for"), "{}", ran.stderr);
}

/// Whoever redrives may choose letters by a secret; whoever looks at redrives does not see it.
#[test]
fn a_redrive_by_the_value_of_a_secret_header_does_not_show_it() {
    let (relay, _broker) = with_letters();
    relay.write(
        "more.jsonl",
        &lines().replace("letter-", "more-").replace("tenant", "x-api-key").replace("acme", "Tr0ub4dor"),
    );
    assert_eq!(relay.run("dead-letters import more.jsonl").code, 0);
    let made = relay.run("dead-letters redrive --header x-api-key=Tr0ub4dor --canary 0 --yes --output json");
    let id = id_of(&made);
    assert_eq!(made.json()["redrive"]["filter"]["header"]["value"], "***", "{}", made.stdout);
    let mut all = vec![made];
    for command in ["list", "show ID", "pause ID", "rate ID 7", "resume ID", "cancel ID"] {
        for output in ["", " --output json"] {
            all.push(relay.run(&format!("redrives {}{output}", command.replace("ID", &id))));
        }
    }
    for ran in all {
        assert!(!ran.stdout.is_empty() || !ran.stderr.is_empty());
        assert!(
            !format!("{}{}", ran.stdout, ran.stderr).contains("Tr0ub4dor"),
            "{}{}",
            ran.stdout,
            ran.stderr
        );
    }
}

/// Cards are not stored, and what was changed is not sent.
#[test]
fn what_is_redacted_is_neither_shown_nor_redriven() {
    let broker = MockBroker::start().expect("a mock broker");
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"kafka\"\nbrokers = \"{}\"\n\
         [[dead_letters.redact]]\npattern = \"card [0-9]{{4}}\"\nreplace = \"card …\"\n",
        broker.bootstrap_servers()
    ));
    assert_eq!(relay.run("migrate").code, 0);
    relay.write("letters.jsonl", &lines());
    assert_eq!(relay.run("dead-letters import letters.jsonl").code, 0);
    let shown = relay.run("dead-letters show letter-1 --reveal").stdout;
    assert!(shown.contains("card …") && !shown.contains("4111"), "{shown}");
    assert!(shown.contains("none: it cannot be redriven"), "{shown}");
    let plan = relay.run("dead-letters redrive --dry-run --output json").json();
    assert_eq!((&plan["plan"]["to_send"], &plan["plan"]["without_target"]), (&json!(0), &json!(6)));
}

/// Promise 10 in part: what an operator cannot do under legal hold, and what the audit log tells.
#[test]
fn letters_on_hold_stay_and_every_step_is_told() {
    let (relay, _broker) = with_letters();
    let held = relay.run("dead-letters hold --id letter-3 --because case-7 --yes");
    assert_eq!((held.code, held.stdout.as_str()), (0, "1 letter put on hold\n"));
    for step in ["begins", "ended"] {
        assert!(held.stderr.contains("dead-letters hold") && held.stderr.contains(step), "{}", held.stderr);
    }
    let ran = relay.run("dead-letters discard --fingerprint f-card --because test");
    assert_eq!(ran.code, 10, "nobody can be asked: {}", ran.stderr);
    let ran = relay.run("dead-letters discard --fingerprint f-card --because test --yes");
    assert_eq!(ran.stdout, "1 letter discarded\n1 letter on legal hold, left alone\n", "{}", ran.stderr);
    let shown = relay.run("dead-letters show letter-3 --output json").json();
    assert_eq!((&shown["letter"]["status"], &shown["letter"]["hold"]), (&json!("open"), &json!("case-7")));
    assert_eq!(shown["content"]["hidden"], true);
    assert_eq!(relay.run("dead-letters hold --end --id letter-3 --because closed --yes").code, 0);
    let ran = relay.run("dead-letters discard --id letter-3 --because test --yes --output json");
    assert_eq!(ran.json(), json!({ "matching": 1, "changed": 1, "on_hold": 0 }));
    let ran = relay.run("dead-letters discard --status resolved --because test --yes");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let told = relay.run("audit --limit 4 --output json").json();
    let told: Vec<_> = told["entries"].as_array().expect("a list").iter().collect();
    let text = |entry: &serde_json::Value, name: &str| entry[name].as_str().expect("a text").to_owned();
    assert_eq!(
        told.iter().map(|entry| (text(entry, "action"), text(entry, "because"))).collect::<Vec<_>>(),
        [
            ("dead-letters discard", "test"),
            ("dead-letters hold --end", "closed"),
            ("dead-letters discard", "test"),
            ("dead-letters hold", "case-7"),
        ]
        .map(|(action, because)| (action.to_owned(), because.to_owned()))
    );
    for entry in told {
        assert_eq!((&entry["step"], &entry["letters"]), (&json!("done"), &json!(1)), "{entry}");
        assert!(text(entry, "origin").starts_with("command line on "), "{entry}");
    }
}

#[test]
fn the_same_filters_everywhere() {
    let (relay, _broker) = with_letters();
    for (filter, expected) in [
        ("--fingerprint f-card", 2),
        ("--error SOLD", 4),
        ("--error declined --consumer stock", 2),
        ("--header tenant=acme", 6),
        ("--header tenant=other", 0),
        ("--key tea --since 2026-11-21T10:00:03Z --until 2026-11-21T10:00:05Z", 2),
        ("--reason exhausted --class permanent", 0),
        ("--message-key /orders|5", 1),
        ("--on-hold true", 0),
        ("--outcome silent", 0),
    ] {
        let listed = relay.run(&format!("dead-letters list {filter} --output json")).json();
        assert_eq!(listed["matching"], expected, "{filter}");
        let groups = relay.run(&format!("dead-letters groups {filter} --output json")).json();
        assert_eq!(groups["matching"], expected, "{filter}");
        let plan = relay.run(&format!("dead-letters redrive {filter} --dry-run --output json")).json();
        assert_eq!(plan["plan"]["matching"], expected, "{filter}");
        assert_eq!(plan["plan"]["to_send"], expected, "{filter}");
    }
    let ran = relay.run("dead-letters list --since yesterday");
    assert!(ran.code == 2 && ran.stderr.contains("use a time such as"), "{}", ran.stderr);
}

#[test]
fn a_redrive_is_sent_looked_at_and_steered() {
    let (relay, _broker) = with_letters();
    let ran = relay.run("dead-letters redrive --fingerprint f-stock --because mended --yes --output json");
    let document = ran.json();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        (&document["plan"]["to_send"], &document["redrive"]["other_letters"]["waiting"]),
        (&json!(4), &json!(4))
    );
    let id = id_of(&ran);
    let shown = relay.run(&format!("redrives show {id} --output json")).json();
    assert_eq!(
        (&shown["run"], &shown["phase"], &shown["because"]),
        (&json!("running"), &json!("settling"), &json!("mended"))
    );
    assert_eq!(relay.run("dead-letters list --status redriving --output json").json()["matching"], 4);
    assert_eq!(
        relay.run(&format!("dead-letters list --status all --redrive {id} --output json")).json()["matching"],
        4
    );
    assert_eq!(relay.run(&format!("redrives pause {id}")).code, 0);
    let again = relay.run(&format!("redrives pause {id}"));
    assert!(again.code == 1 && again.stderr.contains("the redrive is paused"), "{}", again.stderr);
    assert_eq!(relay.run(&format!("redrives rate {id} 50")).code, 0);
    assert_eq!(relay.run(&format!("redrives resume {id}")).code, 0);
    let cancelled = relay.run(&format!("redrives cancel {id} --because enough --output json"));
    assert_eq!((&cancelled.json()["run"], &cancelled.json()["why"]), (&json!("cancelled"), &json!("enough")));
    assert_eq!(relay.run(&format!("redrives rate {id} 50")).code, 1);
    let watched = relay.run(&format!("redrives watch {id}"));
    assert!(watched.code == 1 && watched.stderr.contains("was cancelled: enough"), "{}", watched.stderr);
    assert_eq!(relay.run("redrives list --output json").json()["redrives"].as_array().map(Vec::len), Some(1));
    assert_eq!(relay.run("redrives show nobody").code, 1);
    let ran = relay.run("dead-letters redrive --accept-fanout --yes");
    assert!(ran.code == 3 && ran.stderr.contains("[dead_letters.redrive]"), "{}", ran.stderr);
}
