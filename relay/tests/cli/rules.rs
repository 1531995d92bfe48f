//! What somebody wrote is done by itself, once, and told: `[[dead_letters.rules]]` and `rules …`.

use std::time::{Duration, Instant};

use backstop_core::cloudevents::encode;
use backstop_core::report_in::ConsumerState;
use backstop_core::sink::Sink;
use backstop_core::{ConsumerReport, Destination};
use backstop_kafka::{KafkaSettings, KafkaSink, MockBroker};
use serde_json::{Value, json};

use crate::letters::with_letters_and;
use crate::relay::Relay;

const RULES: &str = "[outbox]\nenabled = false\n[dead_letters]\nenabled = true\nsources = [\"orders.stock.dlq\"]\n\
                     receipts = [\"receipts\"]\n[[dead_letters.rules]]\nname = \"stock-fixed\"\nafter = \"new-version\"\n\
                     wait = \"0s\"\nconsumer = \"stock\"\nfingerprint = \"f-stock\"\ncanary = 2\n";

/// A ledger with six letters, four of which a rule may send.
pub(crate) fn with_rules() -> (Relay, MockBroker) {
    let (relay, broker) = with_letters_and(RULES);
    broker.create_topic("receipts", 1).expect("created");
    (relay, broker)
}

fn listed(relay: &Relay) -> Value {
    relay.run("rules list --output json").json()["rules"][0].clone()
}

/// Reports this version until `done` says so.
fn report(broker: &MockBroker, version: &str, mut done: impl FnMut() -> bool) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let sink = KafkaSink::new(KafkaSettings::new(broker.bootstrap_servers()));
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "version {version} is in vain");
        let mut report = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
        report.version = Some(version.to_owned());
        let envelope = encode(report.to_message(), sink.binding());
        let published = runtime.block_on(sink.publish(&Destination::new("receipts"), envelope));
        published.expect("published");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_new_version_redrives_what_somebody_wrote_and_nothing_else() {
    let (relay, broker) = with_rules();
    let finding = |relay: &Relay| {
        let findings = relay.run("check --output json").json()["findings"].clone();
        let of_rule = |finding: &&Value| finding["subject"] == "rule stock-fixed";
        findings.as_array().expect("a list").iter().find(of_rule).expect("a finding").clone()
    };
    let before = finding(&relay);
    assert_eq!(
        (&before["severity"], &before["detail"]),
        (&json!("warning"), &json!("stock does not report in"))
    );
    let ended = relay.run_while("run", || {
        report(&broker, "1", || listed(&relay)["standing"]["state"] == "watching");
        assert_eq!((&listed(&relay)["sends_now"], &listed(&relay)["last"]), (&json!(4), &Value::Null));
        report(&broker, "2", || listed(&relay)["last"].is_object());
        let last = listed(&relay)["last"].clone();
        let id = last["redrive"].as_str().expect("an id");
        assert_eq!(last["after"], "version 2 reported in");
        let made = relay.run(&format!("redrives show {id} --output json")).json();
        assert_eq!((&made["created_by"], &made["canary"]), (&json!("rule stock-fixed"), &json!(2)));
        assert_eq!(made["other_letters"]["pending"], 2, "the canary is waited for");
        let audited = relay.run(&format!("audit --redrive {id} --action redrive.start --output json")).json();
        assert_eq!(audited["entries"].as_array().map(Vec::len), Some(1), "{audited}");
        assert_eq!(audited["entries"][0]["who"], "rule stock-fixed");
        let resumed = relay.run("rules resume stock-fixed --because test");
        assert!(
            resumed.code == 1 && resumed.stderr.contains("rule stock-fixed does not rest"),
            "{}",
            resumed.stderr
        );
        assert_eq!(relay.run(&format!("redrives cancel {id} --because enough")).code, 0);
        assert_eq!(
            listed(&relay)["standing"],
            json!({ "state": "resting", "why": "its last redrive was cancelled: enough" })
        );
        let resumed = relay.run("rules resume stock-fixed --because test");
        assert_eq!(
            resumed.stdout, "rule stock-fixed fires again when its time comes: watching\n",
            "{}",
            resumed.stderr
        );
        assert_eq!(
            relay.run("redrives list --output json").json()["redrives"].as_array().map(Vec::len),
            Some(1)
        );
        assert_eq!(finding(&relay)["severity"], "ok");
    });
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

/// What a rule would do is also done by hand, and is then somebody's.
#[test]
fn a_rule_is_run_by_hand() {
    let (relay, _broker) = with_rules();
    let plan = relay.run("rules run stock-fixed --dry-run --output json").json();
    assert_eq!((&plan["plan"]["matching"], &plan["plan"]["to_send"]), (&json!(4), &json!(4)));
    assert_eq!(relay.run("redrives list").stdout, "no redrives\n");
    let held = relay.run("dead-letters hold --id letter-1 --because case-7 --yes");
    assert_eq!(held.code, 0, "{}", held.stderr);
    let plan = relay.run("rules run stock-fixed --dry-run --output json").json();
    assert_eq!(plan["plan"]["matching"], 3);
    let asked = relay.run("rules run stock-fixed");
    assert_eq!(asked.code, 10, "nobody can be asked: {}", asked.stderr);
    let ended = relay.run_while("rules run stock-fixed --because mended --yes", || {
        let begun = Instant::now();
        let made = loop {
            let made = relay.run("redrives list --output json").json()["redrives"][0].clone();
            if made["canary_letters"]["waiting"] == 2 {
                break made;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{made}");
        };
        assert_eq!((&made["because"], &made["rate"]), (&json!("mended"), &json!(50.0)));
        assert_ne!(made["created_by"], "rule stock-fixed");
    });
    assert!(
        ended.code == 1 && ended.stderr.contains("is not done"),
        "it waits for the canary: {}",
        ended.stderr
    );
    let audited = relay.run("audit --action rules --output json").json();
    assert_eq!(audited["entries"][0]["action"], "rules run");
}
