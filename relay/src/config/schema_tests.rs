//! The published schema says what the reader does: the same keys, defaults and bounds.

use serde_json::{Map, Value};

use super::*;

/// Each table of the file, with the definition that describes it and what must stand before a key of it.
const TABLES: [(&str, &str, &str); 17] = [
    ("database", "database", "[database]\n"),
    ("kafka", "broker", "[broker]\nkind = \"kafka\"\n"),
    ("rabbitmq", "broker", "[broker]\nkind = \"rabbitmq\"\n"),
    ("route", "routes", "[[routes]]\n"),
    ("outbox", "outbox", "[[outbox]]\n"),
    ("database", "outbox.database", "[outbox.database]\n"),
    ("debezium", "outbox.debezium", "[outbox.debezium]\n"),
    ("http", "http", "[http]\n"),
    ("dead_letters", "dead_letters", "[dead_letters]\n"),
    ("redrive", "dead_letters.redrive", "[dead_letters.redrive]\n"),
    ("rule", "dead_letters.rules", "[[dead_letters.rules]]\n"),
    ("redact", "dead_letters.redact", "[[dead_letters.redact]]\n"),
    ("encryption", "dead_letters.encryption", "[dead_letters.encryption]\n"),
    ("retention", "dead_letters.retention", "[dead_letters.retention]\n"),
    ("s3", "dead_letters.retention.s3", "[dead_letters.retention.s3]\n"),
    ("database", "dead_letters.ledger", "[dead_letters.ledger]\n"),
    ("notify", "notify", "[[notify]]\n"),
];

fn properties(definition: &str) -> Map<String, Value> {
    let schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let of = |value: &Value| value["properties"].as_object().cloned().unwrap_or_default();
    if definition.is_empty() { of(&schema) } else { of(&schema["$defs"][definition]) }
}

fn faults(text: &str) -> Vec<Fault> {
    Config::parse(text, &Environment::default()).err().unwrap_or_default()
}

/// The keys that the reader names when it meets one that it does not know.
fn known(before: &str, table: &str) -> Vec<String> {
    let faults = faults(&format!("{before}zzzzzzzz = 1\n"));
    let unknown = faults.iter().find(|fault| fault.what.starts_with("unknown key \"zzzzzzzz\""));
    let hint = &unknown.unwrap_or_else(|| panic!("{table}: {faults:#?}")).hint;
    let mut known: Vec<_> =
        hint.strip_prefix("known are ").expect("a list").split(", ").map(str::to_owned).collect();
    known.sort();
    known
}

#[test]
fn the_schema_has_the_keys_that_the_reader_knows() {
    let sorted = |definition: &str| {
        let mut keys: Vec<String> = properties(definition).keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(sorted(""), known("", "the document"));
    for (definition, table, before) in TABLES {
        assert_eq!(sorted(definition), known(before, table), "{table}, {definition}");
    }
}

#[test]
fn the_schema_has_the_defaults_of_the_reader() {
    for (kind, broker) in
        [("kafka", "brokers = [\"localhost:9092\"]"), ("rabbitmq", "url = \"amqp://localhost/\"")]
    {
        let text = format!(
            "[database]\nurl = \"sqlite:x.db\"\n[broker]\nkind = \"{kind}\"\n{broker}\n[dead_letters.ledger]\nurl = \
             \"sqlite:l.db\"\n[[dead_letters.rules]]\nname = \"r\"\nafter = \"new-version\"\nconsumer = \"c\"\n[[dead_letters.redact]]\nheader = \"a\"\n[dead_letters.retention]\narchive = \"s3://a\"\n[http]\n[outbox]\nlayout = \
             \"debezium\"\n[outbox.database]\nurl = \"postgres://localhost/o\"\n[[notify]]\nurl = \"https://hooks.example/x\"\nsecret = \"0123456789abcdef\"\n"
        );
        let config = Config::parse(&text, &Environment::default()).expect("sound");
        let printed = serde_json::to_value(&config).expect("JSON");
        for (definition, table, _) in TABLES {
            if table == "broker" && definition != kind {
                continue;
            }
            let mut section = &printed;
            for name in table.split('.') {
                section = &section[name];
                section = section.get(0).unwrap_or(section);
            }
            for (key, property) in properties(definition) {
                if let Some(default) = property.get("default") {
                    assert_eq!(default, &section[&key], "{table}.{key}");
                }
            }
        }
    }
}

#[test]
fn the_schema_has_the_bounds_of_the_reader() {
    let refused = |before: &str, key: &str, value: &Value| {
        faults(&format!("{before}{key} = {value}\n")).iter().any(|fault| fault.what.contains("out of bounds"))
    };
    let mut bounded = 0;
    for (definition, table, before) in TABLES {
        for (key, property) in properties(definition) {
            let (Some(least), Some(most)) = (property["minimum"].as_u64(), property["maximum"].as_u64())
            else {
                assert_ne!(property["type"], "integer", "{table}.{key} has no bounds");
                continue;
            };
            bounded += 1;
            let below = least.checked_sub(1).map(|below| (below, true));
            for (value, expected) in
                [(least, false), (most, false), (most + 1, true)].into_iter().chain(below)
            {
                assert_eq!(refused(before, &key, &value.into()), expected, "{table}.{key} = {value}");
            }
        }
    }
    assert!(bounded >= 5, "only {bounded} numbers");
}

#[test]
fn the_schema_has_the_words_of_the_reader() {
    for (definition, table, before) in TABLES {
        for (key, property) in properties(definition) {
            let Some(words) = property["enum"].as_array() else { continue };
            let hint = faults(&format!("{before}{key} = \"zzz\"\n"))
                .into_iter()
                .find(|fault| fault.what.ends_with("is not known"))
                .map(|fault| fault.hint);
            let words: Vec<String> = words.iter().map(Value::to_string).collect();
            assert_eq!(hint, Some(format!("use {}", words.join(" or "))), "{table}.{key}");
        }
    }
}
