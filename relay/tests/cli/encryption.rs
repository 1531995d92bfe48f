//! Bodies at rest: what the database, archives and exports hold, and what becomes of letters whose key is gone.

use std::time::{Duration, Instant};

use backstop_core::sink::Sink;
use backstop_core::{Destination, Envelope};
use backstop_kafka::{KafkaSettings, KafkaSink, MockBroker};
use serde_json::{Value, json};

use crate::letters::lines;
use crate::relay::Relay;

const BODY: &str = "card 4111";
const OLD: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
/// The ids of both.
const OLD_ID: &str = "9323404720701012";
const NEW_ID: &str = "9f91922b0c6463a1";

const DATABASE: &str = "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n";

/// The configuration with these keys, which are in files.
fn configure(relay: &Relay, keys: &str) {
    relay.write("relay.toml", &format!("{DATABASE}[dead_letters.encryption]\n{keys}"));
}

/// A ledger with six letters, whose bodies are encrypted with the old key.
fn with_encrypted_letters() -> Relay {
    let relay = Relay::new("");
    relay.write("old.key", &format!("{OLD}\n"));
    relay.write("new.key", NEW);
    configure(&relay, "key_file = \"old.key\"\n");
    assert_eq!(relay.run("migrate").code, 0);
    relay.write("letters.jsonl", &lines().replace("2026-11-21T", "2020-11-21T"));
    let ran = relay.run("dead-letters import letters.jsonl");
    assert_eq!(ran.stdout, "6 letters read, 6 of them new\n", "{}", ran.stderr);
    relay
}

/// Every byte that the database has on the disk.
fn dump(relay: &Relay) -> Vec<u8> {
    let files =
        ["x.db", "x.db-wal", "x.db-shm"].map(|name| std::fs::read(relay.path(name)).unwrap_or_default());
    files.concat()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn shown(relay: &Relay, id: &str) -> Value {
    relay.run(&format!("dead-letters show {id} --reveal --output json")).json()["content"].clone()
}

#[test]
fn s29_nothing_of_an_encrypted_body_is_in_the_database() {
    let relay = with_encrypted_letters();
    let dump = dump(&relay);
    assert!(!holds(&dump, BODY) && !holds(&dump, "4111"), "the body is in the database");
    assert!(holds(&dump, "acme") && holds(&dump, "sold out"), "headers and errors are found by");
    assert_eq!(shown(&relay, "letter-3")["body"], BODY);
    let hidden = relay.run("dead-letters show letter-3");
    assert!(hidden.stdout.contains("2 headers and 9 bytes, hidden"), "{}", hidden.stdout);
    assert!(hidden.stdout.contains(&format!("encryption      with key {OLD_ID}")), "{}", hidden.stdout);
    for (filter, matching) in [("--header tenant=acme", 6), ("--error SOLD", 4), ("--key tea", 6)] {
        let listed = relay.run(&format!("dead-letters list {filter} --output json")).json();
        assert_eq!(listed["matching"], matching, "{filter}");
    }
    assert_eq!(relay.run("dead-letters export --to copy.jsonl").code, 0);
    let copy = std::fs::read_to_string(relay.path("copy.jsonl")).expect("readable");
    assert_eq!(copy.matches(BODY).count(), 6, "an export is a reveal");
    assert!(!copy.contains("encrypted_with"));
}

#[test]
fn the_collector_encrypts_what_it_stores() {
    let broker = MockBroker::start().expect("a mock broker");
    broker.create_topic("orders.stock.dlq", 1).expect("created");
    let servers = broker.bootstrap_servers();
    let relay = Relay::new(&format!(
        "{DATABASE}[broker]\nkind = \"kafka\"\nbrokers = \"{servers}\"\n[outbox]\nenabled = false\n\
         [dead_letters]\nenabled = true\nsources = [\"orders.stock.dlq\"]\n\
         [dead_letters.encryption]\nkey = \"${{LEDGER_KEY}}\"\n"
    ))
    .with_env("LEDGER_KEY", OLD);
    assert_eq!(relay.run("migrate").code, 0);
    let envelope = Envelope { body: Some(BODY.into()), ..Envelope::default() };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let sink = KafkaSink::new(KafkaSettings::new(servers));
        sink.publish(&Destination::new("orders.stock.dlq"), envelope).await.expect("published");
    });
    let ran = relay.run_while("run", || {
        let until = Instant::now() + Duration::from_secs(60);
        while relay.run("dead-letters list --output json").json()["matching"] != 1 {
            assert!(Instant::now() < until, "nothing is collected");
        }
        assert!(!holds(&dump(&relay), BODY));
    });
    assert!(!ran.stderr.contains(BODY) && !ran.stderr.contains(OLD), "{}", ran.stderr);
    let id = relay.run("dead-letters list --output json").json()["letters"][0]["id"].clone();
    assert_eq!(shown(&relay, id.as_str().expect("an id"))["body"], BODY);
}

/// The letter is there, and says which key it needs; with the key everything is as before.
#[test]
fn a_letter_whose_key_is_gone_is_shown_and_kept_and_not_opened() {
    let relay = with_encrypted_letters();
    for keys in ["key_file = \"new.key\"\n", ""] {
        match keys {
            "" => relay.write("relay.toml", DATABASE),
            keys => configure(&relay, keys),
        }
        let ran = relay.run("dead-letters show letter-3");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let missing = format!("with key {OLD_ID}, which is not configured");
        assert!(ran.stdout.contains(&format!("encryption      {missing}")), "{}", ran.stdout);
        let ran = relay.run("dead-letters show letter-3 --reveal");
        assert_eq!(ran.code, 1);
        assert!(
            ran.stdout.contains("tenant: acme") && ran.stdout.contains("body            not shown"),
            "{}",
            ran.stdout
        );
        let lines: Vec<&str> = ran.stderr.lines().filter(|line| !line.contains("audit")).collect();
        assert_eq!(
            lines,
            [
                format!("error: its body is encrypted {missing}"),
                "hint: name the file that holds this key in [dead_letters.encryption] previous_key_files"
                    .to_owned(),
            ]
        );
        let ran = relay.run("dead-letters export --to copy.jsonl");
        assert!(ran.code == 1 && ran.stderr.contains("6 letters written as stored"), "{}", ran.stderr);
        let copy = std::fs::read_to_string(relay.path("copy.jsonl")).expect("readable");
        assert_eq!(copy.matches(&format!("\"encrypted_with\":\"{OLD_ID}\"")).count(), 6);
        std::fs::remove_file(relay.path("copy.jsonl")).expect("removed");
    }
    configure(&relay, "key_file = \"new.key\"\nprevious_key_files = [\"old.key\"]\n");
    assert_eq!(shown(&relay, "letter-3")["body"], BODY);
}

/// Keys are rotated: new letters have the new one, old ones are moved to it, and then the old one may go.
#[test]
fn all_letters_are_moved_to_the_newest_key() {
    let relay = with_encrypted_letters();
    let line = lines().lines().next().expect("a line").to_owned();
    relay.write("relay.toml", DATABASE);
    relay.write("clear.jsonl", &line.replace("letter-1", "letter-clear"));
    assert_eq!(relay.run("dead-letters import clear.jsonl").code, 0);
    let ran = relay.run("dead-letters reencrypt");
    assert!(ran.code == 3 && ran.stderr.contains("[dead_letters.encryption] is missing"), "{}", ran.stderr);
    configure(&relay, "key_file = \"new.key\"\nprevious_key_files = \"old.key\"\n");
    relay.write("newer.jsonl", &line.replace("letter-1", "letter-new"));
    assert_eq!(relay.run("dead-letters import newer.jsonl").code, 0);

    let stored = json!({
        "in clear": 1, (format!("with key {OLD_ID}")): 6, (format!("with key {NEW_ID}, the newest")): 1,
    });
    let report = |due: u64, changed: u64| json!({ "newest": NEW_ID, "stored": stored, "due": due, "changed": changed, "unreadable": 0 });
    let ran = relay.run("dead-letters reencrypt --dry-run --output json");
    assert_eq!((ran.code, ran.json()), (0, report(7, 0)), "{}", ran.stderr);
    let ran = relay.run("dead-letters reencrypt --output json");
    assert_eq!((ran.code, ran.json()), (0, report(7, 7)), "{}", ran.stderr);
    let again = relay.run("dead-letters reencrypt").stdout;
    assert!(again.ends_with(&format!("0 letters encrypted with key {NEW_ID}\n")), "{again}");
    assert!(again.contains(&format!("8        with key {NEW_ID}, the newest")), "{again}");
    let told = relay.run("audit --output json").json()["entries"].clone();
    assert_eq!((&told[1]["action"], &told[1]["letters"]), (&json!("dead-letters reencrypt"), &json!(7)));

    configure(&relay, "key_file = \"new.key\"\n");
    for id in ["letter-3", "letter-clear", "letter-new"] {
        assert_eq!(shown(&relay, id)["body"], BODY, "{id}");
    }
    let history = relay.run("dead-letters show letter-3 --output json").json()["history"].clone();
    assert_eq!(history.as_array().map(Vec::len), Some(1), "{history}");
    relay.write("relay.toml", DATABASE);
    let ran = relay.run("dead-letters show letter-3");
    assert!(ran.stdout.contains(&format!("with key {NEW_ID}, which is not configured")), "{}", ran.stdout);
}

#[test]
fn letters_that_cannot_be_opened_are_left_alone_by_reencrypt() {
    let relay = with_encrypted_letters();
    configure(&relay, "key_file = \"new.key\"\n");
    let ran = relay.run("dead-letters reencrypt");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("6 letters cannot be opened, the first because"), "{}", ran.stderr);
    configure(&relay, "key_file = \"old.key\"\n");
    assert_eq!(shown(&relay, "letter-1")["body"], BODY);
}

/// An archive keeps what was stored, and is read back by whoever has the key; nobody else, and no other letter.
#[test]
fn archives_stay_encrypted_and_come_back_with_the_key() {
    let relay = with_encrypted_letters();
    let retention = "[dead_letters.retention]\narchive = \"kept\"\ndiscarded = \"1s\"\n";
    configure(&relay, &format!("key_file = \"old.key\"\n{retention}"));
    let ran = relay.run("dead-letters discard --id letter-3 --because test --yes");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // The time of a letter is over when it died long ago, and nothing has happened to it for a second.
    let until = Instant::now() + Duration::from_secs(60);
    let archive = loop {
        let passed = relay.run("dead-letters archive --output json").json()["passed"].clone();
        let archives =
            passed.as_array().into_iter().flatten().filter_map(|it| it["archives"][0]["file"].as_str());
        if let Some(file) = archives.map(|file| format!("kept/{file}")).next() {
            break file;
        }
        assert!(Instant::now() < until, "nothing is archived: {passed}");
    };
    let mut text = String::new();
    let file = std::fs::File::open(relay.path(&archive)).expect("there");
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut text).expect("a text");
    assert!(!text.contains("4111") && text.contains(&format!("\"encrypted_with\":\"{OLD_ID}\"")), "{text}");

    configure(&relay, "key_file = \"new.key\"\n");
    let ran = relay.run(&format!("dead-letters import {archive}"));
    assert!(
        ran.code == 1 && ran.stderr.contains(&format!("line 1: its body is encrypted with key {OLD_ID}")),
        "{}",
        ran.stderr
    );
    configure(&relay, "key_file = \"new.key\"\nprevious_key_files = [\"old.key\"]\n");
    relay.write("moved.jsonl", &text.replace("letter-3", "letter-9"));
    let ran = relay.run("dead-letters import moved.jsonl");
    assert!(
        ran.code == 1 && ran.stderr.contains("it was changed, or it is another letter's"),
        "{}",
        ran.stderr
    );
    let ran = relay.run(&format!("dead-letters import {archive}"));
    assert_eq!(
        ran.stdout, "1 letter read, 1 of them new; the file is as its manifest says\n",
        "{}",
        ran.stderr
    );
    assert_eq!(shown(&relay, "letter-3")["body"], BODY);
    let shown = relay.run("dead-letters show letter-3").stdout;
    assert!(shown.contains(&format!("with key {NEW_ID}")), "it has the newest key now: {shown}");
}

#[test]
fn check_tells_of_keys() {
    let relay = with_encrypted_letters();
    let collecting = "[broker]\nkind = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\n[dead_letters]\nenabled = true\nsources = [\"x.dlq\"]\n";
    for (key, found) in [
        ("old.key", format!("bodies of new letters are encrypted with key {OLD_ID}")),
        ("new.key", "6 of the oldest 6 letters cannot be opened".to_owned()),
    ] {
        relay.write(
            "relay.toml",
            &format!("{DATABASE}{collecting}[dead_letters.encryption]\nkey_file = \"{key}\"\n"),
        );
        let findings = relay.run("check --output json").json()["findings"].clone();
        let of_keys = findings.as_array().expect("a list").iter().find(|it| it["subject"] == "encryption");
        let detail = of_keys.expect("a finding")["detail"].as_str().expect("a text");
        assert!(detail.starts_with(&found), "{detail}");
    }
}

#[test]
fn s28_no_key_of_the_ledger_is_ever_printed() {
    let relay = with_encrypted_letters();
    configure(&relay, &format!("key = \"{OLD}\"\nprevious_keys = [\"{NEW}\"]\n"));
    for command in [
        "config print",
        "config print --output json",
        "dead-letters list",
        "dead-letters reencrypt --dry-run",
    ] {
        let ran = relay.run(command);
        assert_eq!(ran.code, 0, "{command}: {}", ran.stderr);
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(OLD) && !text.contains(NEW), "{command}: {text}");
        }
    }
    assert!(relay.run("config print").stdout.contains("previous_keys = [\"***\"]"));
    configure(&relay, &format!("key = \"{OLD}x\"\n"));
    let ran = relay.run("dead-letters list");
    assert!(ran.code == 3 && !ran.stderr.contains(OLD), "{}", ran.stderr);
}
