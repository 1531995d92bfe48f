use super::*;
use crate::encryption::Key;

const MINIMAL: &str = "[database]\nurl = \"sqlite:/tmp/x.db\"\n";

fn env() -> Environment {
    Environment::from_iter([("DB_PASSWORD", "S3cret!")])
}

fn faults(text: &str) -> Vec<(usize, String, String)> {
    let faults = Config::parse(text, &env()).expect_err("a fault");
    faults.into_iter().map(|fault| (line(&fault.place), fault.what, fault.hint)).collect()
}

fn line(place: &Place) -> usize {
    match place {
        Place::Line(line) => *line,
        Place::Variable(name) => panic!("a fault of the variable {name}"),
    }
}

fn only_fault(text: &str) -> (usize, String, String) {
    let mut faults = faults(text);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = Config::parse(MINIMAL, &env()).expect("sound");
    assert_eq!(config.database.prefix, "backstop");
    assert_eq!(
        (config.broker.is_none(), config.outbox[0].enabled, config.dead_letters.enabled),
        (true, true, false)
    );
    assert_eq!(config.outbox[0].lease_ttl, Duration::from_secs(10));
    assert_eq!(config.ledger(), &config.database);
}

#[test]
fn every_fault_is_reported_at_its_line() {
    let text = r#"
[database]
url = "mongodb://u:S3cret@h/d"
prefix = 'x"; drop table y;--'

[brokr]

[outbox]
enabled = "yes"
lease_ttl = "10 parsecs"
batch_rows = 0
idle_pol = "1s"
on_unsendable = "drop"

[dead_letters]
enabled = true
sources = ["__consumer_offsets", 7]
"#;
    let faults = faults(text);
    let lines: Vec<usize> = faults.iter().map(|(line, ..)| *line).collect();
    assert_eq!(lines, [3, 4, 6, 9, 10, 11, 12, 13, 17, 17], "{faults:#?}");
    assert!(!format!("{faults:?}").contains("S3cret"));
    assert_eq!(faults[2].2, "did you mean \"broker\"?");
    assert_eq!(faults[6].1, "unknown key \"idle_pol\" in [outbox]");
    assert_eq!(faults[6].2, "did you mean \"idle_poll\"?");
}

#[test]
fn syntax_errors_have_a_line_and_show_no_text() {
    let text = "[database]\nurl = \"postgres://u:S3cret@h/d\nprefix = \"x_\"\n";
    let faults = faults(text);
    assert_eq!(faults[0].0, 2);
    assert!(!format!("{faults:?}").contains("S3cret"));
}

#[test]
fn a_missing_variable_is_named_once_with_its_line() {
    let (line, what, hint) = only_fault("[database]\nurl = \"postgres://u:${NOPE}@h/d\"\n");
    assert_eq!((line, what.as_str()), (2, "environment variable NOPE is not set"));
    assert_eq!(hint, "set NOPE, or write $${NOPE} if the text itself is meant");
}

#[test]
fn s28_values_from_the_environment_are_used_and_never_shown() {
    let text = "[database]\nurl = \"postgres://u:${DB_PASSWORD}@h/d\"\n[broker]\nkind = \"kafka\"\n\
                brokers = [\"localhost:9092\"]\n[broker.properties]\n\"sasl.password\" = \"${DB_PASSWORD}\"\n";
    let config = Config::parse(text, &env()).expect("sound");
    assert_eq!(config.database.url.expose(), "postgres://u:S3cret!@h/d");
    let json = serde_json::to_string(&config).expect("JSON");
    let toml = toml::to_string(&config).expect("TOML");
    for shown in [format!("{config:?}"), json, toml, config.scrubber().scrub("S3cret!")] {
        assert!(!shown.contains("S3cret"), "{shown}");
    }
    let (_, what, _) = only_fault(&format!("{MINIMAL}[outbox]\nlease_ttl = \"${{DB_PASSWORD}}\"\n"));
    assert_eq!(what, "[outbox] lease_ttl: the value from the environment is no duration");
}

#[test]
fn secrets_come_from_files_without_the_line_end() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "postgres://u:pw@localhost/d\n").expect("written");
    let path = file.path().display();
    let config = Config::parse(&format!("[database]\nurl_file = \"{path}\"\n"), &env()).expect("sound");
    assert_eq!(config.database.url.expose(), "postgres://u:pw@localhost/d");
    let (line, what, _) = only_fault(&format!("[database]\nurl = \"sqlite:x\"\nurl_file = \"{path}\"\n"));
    assert_eq!((line, what.as_str()), (3, "[database] url and url_file are both set"));
    let (_, what, _) = only_fault("[database]\nurl_file = \"/nowhere/at/all\"\n");
    assert!(what.starts_with("[database] url_file: cannot read \"/nowhere/at/all\""), "{what}");
}

#[test]
fn s28_unusable_database_urls_are_refused_without_being_shown() {
    for url in [
        "mongodb://u:pw@h/d",
        "mysql://u:pw@h",
        "postgres:",
        "postgres://u:p/w@h/d",
        "sqlite:",
        "sqlite://",
        "h/d",
        "",
    ] {
        let (line, what, _) = only_fault(&format!("[database]\nurl = \"{url}\"\n"));
        assert_eq!((line, what.as_str()), (2, "[database] url is no usable database URL"), "{url}");
    }
}

#[test]
fn s33_passwords_do_not_cross_the_network_without_tls_unless_told() {
    let rabbit =
        |url: &str, more: &str| format!("{MINIMAL}[broker]\nkind = \"rabbitmq\"\nurl = \"{url}\"\n{more}");
    assert!(only_fault(&rabbit("amqp://u:pw@rabbit/", "")).1.contains("without TLS"));
    for (url, more) in [
        ("amqp://u:pw@127.0.0.1:5672/%2f", ""),
        ("amqp://u:pw@[::1]/", ""),
        ("amqps://u:pw@rabbit/", ""),
        ("amqp://u:pw@rabbit/", "allow_plaintext = true"),
    ] {
        assert!(Config::parse(&rabbit(url, more), &env()).is_ok(), "{url}");
    }
    let kafka = "[broker]\nkind = \"kafka\"\nbrokers = [\"localhost:9092\", \"kafka:9092\"]\n\
                 [broker.properties]\n\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n";
    assert!(only_fault(&format!("{MINIMAL}{kafka}")).1.contains("without TLS"));
    assert!(Config::parse(&format!("{MINIMAL}{}", kafka.replace(", \"kafka:9092\"", "")), &env()).is_ok());
}

#[test]
fn what_is_printed_can_be_read_again() {
    let text = "[database]\nurl = \"postgres://localhost/d\"\nschema = \"shop\"\n[broker]\nkind = \"rabbitmq\"\n\
                url = \"amqp://localhost/\"\nordering = \"none\"\n[dead_letters]\nenabled = true\n\
                sources = [\"orders.dlq\"]\n[dead_letters.ledger]\nurl = \"sqlite:l.db\"\n";
    let config = Config::parse(text, &env()).expect("sound");
    let printed = toml::to_string(&config).expect("TOML");
    assert_eq!(Config::parse(&printed, &env()).expect("sound"), config);
}

const SEVERAL: &str = r#"
[database]
url = "sqlite:/tmp/x.db"
prefix = "shop"
[brokers.audit]
kind = "rabbitmq"
url = "amqp://localhost/"
[[routes]]
destination = "audit.*"
broker = "audit"
[[outbox]]
[[outbox]]
name = "old"
database = { prefix = "old" }
[[outbox]]
name = "far"
database = { url = "sqlite:/tmp/far.db" }
"#;

#[test]
fn outboxes_and_routes_may_be_several() {
    let config = overridden(SEVERAL, &[("BACKSTOP__OUTBOX__2__LEASE_TTL", "3s")]).expect("sound");
    let names: Vec<&str> = config.outbox.iter().map(|outbox| outbox.name.as_str()).collect();
    assert_eq!(names, ["outbox", "old", "far"]);
    assert_eq!(config.outbox[2].lease_ttl, Duration::from_secs(3));
    let places: Vec<(&str, &str)> = (config.outbox.iter())
        .map(|outbox| config.database_of(outbox))
        .map(|database| (database.url.expose(), database.prefix.as_str()))
        .collect();
    let expected =
        [("sqlite:/tmp/x.db", "shop"), ("sqlite:/tmp/x.db", "old"), ("sqlite:/tmp/far.db", "backstop")];
    assert_eq!(places, expected);
    assert_eq!(config.databases().len(), 3);
    let printed = toml::to_string(&config).expect("TOML");
    assert_eq!(Config::parse(&printed, &env()).expect("sound"), config, "{printed}");
}

#[test]
fn routes_and_outboxes_that_cannot_be_meant_are_refused() {
    let text = SEVERAL.replace("broker = \"audit\"", "broker = \"adit\"").replace("\"far\"", "\"old\"");
    let faults = faults(&text);
    let lines: Vec<(usize, &str)> = faults.iter().map(|(line, what, _)| (*line, what.as_str())).collect();
    let expected = [
        (5, "no route leads to [brokers.audit]"),
        (10, "[routes] broker: there is no [brokers.adit]"),
        (15, "[[outbox]] has the name \"old\" twice"),
    ];
    assert_eq!(lines, expected);
    let variables = [("BACKSTOP__OUTBOX__7__NAME", "x")];
    let faults = overridden(SEVERAL, &variables).expect_err("there are three");
    assert_eq!(faults[0].place, Place::Variable("BACKSTOP__OUTBOX__7__NAME".to_owned()));
}

#[test]
fn outbox_and_dead_letters_do_not_share_a_lease() {
    let named = |outbox: &str, more: &str| {
        format!(
            "{MINIMAL}[outbox]\nname = \"{outbox}\"\n[dead_letters]\nenabled = true\nname = \"shop\"\nsources = [\"a\"]\n{more}"
        )
    };
    for outbox in ["shop", "shop.rules", &crate::retention::lease("shop")] {
        let (line, what, _) = only_fault(&named(outbox, ""));
        assert_eq!(line, 5);
        assert_eq!(what, format!("[dead_letters] name \"shop\" takes the lease of [outbox] {outbox:?}"));
    }
    let elsewhere = "[dead_letters.ledger]\nurl = \"sqlite:letters.db\"\n";
    for sound in [named("shop", elsewhere), named("shopping", "")] {
        assert!(Config::parse(&sound, &env()).is_ok(), "{sound}");
    }
}

#[test]
fn s22_http_beyond_this_host_needs_a_token() {
    let http = |more: &str| format!("{MINIMAL}[http]\n{more}");
    let config = Config::parse(&http(""), &env()).expect("sound");
    assert_eq!(config.http.expect("given").listen.to_string(), "127.0.0.1:8642");
    let (line, what, _) = only_fault(&http("listen = \"0.0.0.0:80\""));
    assert_eq!(line, 4);
    assert!(what.contains("can be reached from other hosts, and there is no token"), "{what}");
    for more in ["token = \"0123456789abcdef\"", "insecure = true"] {
        let config = Config::parse(&http(&format!("listen = \"[::]:80\"\n{more}")), &env()).expect("sound");
        let shown = format!("{config:?}{}", toml::to_string(&config).expect("TOML"));
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
    }
    assert_eq!(only_fault(&http("token = \"short\"")).1, "[http] token has less than 16 characters");
    assert_eq!(only_fault(&http("listen = \"localhost\"")).1, "[http] listen: \"localhost\" is no address");
}

/// The configuration of the text with these overrides.
fn overridden(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &variables.iter().copied().collect())
}

#[test]
fn the_environment_overrides_every_kind_of_key() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "pw\n").expect("written");
    let text = "[database]\nurl_file = \"/nowhere\"\n[broker]\nkind = \"rabbitmq\"\n[broker.properties]\n\
                \"sasl.password\" = \"old\"\n";
    let config = overridden(
        text,
        &[
            ("BACKSTOP__DATABASE__URL", "sqlite:$x${y}.db"),
            ("BACKSTOP__BROKER__KIND", "kafka"),
            ("BACKSTOP__BROKER__BROKERS", "localhost:1, localhost:2"),
            ("BACKSTOP__BROKER__PROPERTIES__SASL_PASSWORD_FILE", &file.path().display().to_string()),
            ("BACKSTOP__OUTBOX__LEASE_TTL", "5s"),
            ("BACKSTOP__OUTBOX__ENABLED", "false"),
            ("BACKSTOP__OUTBOX__BATCH_ROWS", "17"),
            ("BACKSTOP__DEAD_LETTERS__LEDGER__URL", "sqlite:l.db"),
            ("BACKSTOP_LOG", "info"),
        ],
    );
    let config = config.expect("sound");
    assert_eq!(config.database.url.expose(), "sqlite:$x${y}.db", "values are not interpolated");
    let Some(BrokerConfig::Kafka(kafka)) = &config.broker else { panic!("Kafka expected") };
    assert_eq!(kafka.brokers, ["localhost:1", "localhost:2"]);
    assert_eq!(kafka.properties["sasl.password"].expose(), "pw");
    assert_eq!(config.outbox[0].lease_ttl, Duration::from_secs(5));
    assert_eq!((config.outbox[0].enabled, config.outbox[0].batch_rows), (false, 17));
    assert_eq!(config.ledger().url.expose(), "sqlite:l.db");
}

#[test]
fn s28_faults_of_overrides_name_the_variable_and_not_its_value() {
    let variables = [
        ("BACKSTOP__DATABASE", "S3cret"),
        ("BACKSTOP__OUTBOX__BATCH_ROWS", "S3cret"),
        ("BACKSTOP__OUTBOX__ENABLED", "S3cret"),
        ("BACKSTOP__OUTBOX__IDLE_POL", "1s"),
        ("BACKSTOP__OUTBOX__LEASE_TTL", "S3cret"),
    ];
    let faults = overridden(MINIMAL, &variables).expect_err("faults");
    let places: Vec<&Place> = faults.iter().map(|fault| &fault.place).collect();
    let names: Vec<Place> = variables.iter().map(|(name, _)| Place::Variable((*name).to_owned())).collect();
    assert_eq!(places, names.iter().collect::<Vec<_>>(), "{faults:#?}");
    assert!(!format!("{faults:?}").contains("S3cret"), "{faults:#?}");
    assert_eq!(faults[3].hint, "did you mean \"idle_poll\"?");
}

#[cfg(unix)]
#[test]
fn an_override_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let name = std::ffi::OsString::from("BACKSTOP__OUTBOX__NAME");
    let value = std::ffi::OsString::from_vec(vec![0xff]);
    let faults = Config::parse(MINIMAL, &Environment::from_iter([(name, value)])).expect_err("a fault");
    assert!(faults.iter().any(|fault| fault.what == "the value is not UTF-8"), "{faults:#?}");
}

#[test]
fn s28_who_is_told_is_checked_and_no_address_is_shown() {
    let (url, secret) = ("url = \"https://hooks.example/s3cret-path\"\n", "secret = \"0123456789abcdef\"\n");
    for (text, what) in [
        (secret.to_owned(), "[notify] url is missing"),
        (format!("url = \"http://hooks.example/s3cret-path\"\n{secret}"), "[notify] url is without TLS"),
        (
            format!("url = \"file:///etc/s3cret-path\"\n{secret}"),
            "[notify] url is no address of a web server",
        ),
        (url.to_owned(), "[notify] secret is missing"),
        (format!("{url}secret = \"s3cret\"\n"), "[notify] secret has less than 16 characters"),
        (format!("{url}{secret}kind = \"slack\"\n"), "[notify] secret signs nothing with kind = \"slack\""),
        (format!("{url}{secret}kind = \"pager\"\n"), "[notify] kind: \"pager\" is not known"),
        (format!("{url}{secret}on = [\"group-old\"]\n"), "[notify] on: \"group-old\" is not known"),
        (
            format!("{url}{secret}console = \"relay\"\n"),
            "[notify] console: \"relay\" is no address of a web server",
        ),
        (format!("{url}{secret}growing_over = 0\n"), "[notify] growing_over = 0 is out of bounds"),
        (format!("{url}{secret}[[notify]]\n{url}{secret}"), "[notify] name: there are two called \"notify\""),
    ] {
        let (_, told, hint) = only_fault(&format!("{MINIMAL}[[notify]]\n{text}"));
        assert_eq!(told, what);
        assert!(!told.contains("s3cret") && !hint.contains("s3cret"), "{told} {hint}");
    }
    let text = format!(
        "{MINIMAL}[[notify]]\n{url}{secret}[[notify]]\nname = \"b\"\nkind = \"slack\"\nurl = \"http://127.0.0.1:1/\"\n"
    );
    let config = Config::parse(&text, &env()).expect("sound");
    assert_eq!(config.notify.len(), 2);
    assert_eq!(config.notify[0].on.len(), 3);
    let printed = serde_json::to_string(&config).expect("JSON");
    assert!(!printed.contains("s3cret") && !printed.contains("0123456789abcdef"), "{printed}");
    assert!(!config.scrubber().scrub("to https://hooks.example/s3cret-path").contains("s3cret"));
}

/// Every fault of what is kept, redacted and found by pattern, with its remedy.
#[test]
fn faults_of_the_ledger_are_told_at_once() {
    let text = "[database]\nurl = \"sqlite:x.db\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"amqp://localhost/\"\n\
                management = \"http://u:s3cret@rabbit.internal:15672\"\n[dead_letters]\nsources = [\"^(\"]\n\
                [dead_letters.retention]\nresolved = \"1ms\"\n\
                [[dead_letters.redact]]\npointer = \"card\"\n\
                [[dead_letters.redact]]\npattern = \"[0-9]*\"\n\
                [[dead_letters.redact]]\nheader = \"a\"\npointer = \"/b\"\n";
    let faults = Config::parse(text, &Environment::default()).expect_err("faults");
    let told: Vec<&str> = faults.iter().map(|fault| fault.what.as_str()).collect();
    let expected = [
        "[broker] management would send its password over the network without TLS",
        "[dead_letters] sources: \"^(\" is no regular expression",
        "[dead_letters.retention] archive is missing: letters would be deleted and kept nowhere",
        "[dead_letters.retention] resolved: \"1ms\" is out of bounds",
        "[dead_letters.redact] pointer: \"card\" is no JSON pointer",
        "[dead_letters.redact] pattern: \"[0-9]*\" is no regular expression",
        "[[dead_letters.redact]] names 2 of pointer, header and pattern",
    ];
    for what in expected {
        assert!(told.contains(&what), "{what}: {told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    let sound = text
        .replace("http://u:s3cret@rabbit.internal", "http://u:s3cret@localhost")
        .replace("\"^(\"", "\"^a$\"")
        .replace("1ms", "never\"\nwithout_archive = true\nopen = \"36h")
        .replace("\"card\"", "\"/card\"")
        .replace("[0-9]*", "[0-9]+")
        .replace("header = \"a\"\n", "");
    let config = Config::parse(&sound, &Environment::default()).expect("sound");
    let retention = config.dead_letters.retention.expect("retention");
    assert_eq!((retention.resolved, retention.open), (None, Some(Duration::from_secs(36 * 3_600))));
    assert_eq!(config.dead_letters.redact.len(), 3);
}

/// Every fault of a rule, with its line and remedy.
#[test]
fn faults_of_rules_are_told_at_once() {
    let text = "[database]\nurl = \"sqlite:x.db\"\n[[dead_letters.rules]]\nafter = \"breaker-closed\"\n\
                [[dead_letters.rules]]\nname = \"a\"\nconsumer = \"stock\"\n\
                [[dead_letters.rules]]\nname = \"b\"\nafter = \"tuesday\"\nconsumer = \"\"\ncanary = 0\nbrake = 101\n\
                [[dead_letters.rules]]\nname = \"c d\"\nafter = \"new-version\"\nconsumer = \"stock\"\nwait = \"2d\"\n\
                header = \"x-api-token=hunter2\"\nstatus = \"open\"\n\
                [[dead_letters.rules]]\nname = \"c d\"\nafter = \"new-version\"\nconsumer = \"stock\"\nheader = \"=eu\"\n";
    let faults = faults(text);
    let told: Vec<(usize, &str)> = faults.iter().map(|(line, what, _)| (*line, what.as_str())).collect();
    let expected = [
        (3, "[dead_letters.rules] name is missing"),
        (3, "[dead_letters.rules] consumer is missing"),
        (5, "[dead_letters.rules] after is missing"),
        (10, "[dead_letters.rules] after: \"tuesday\" is not known"),
        (11, "[dead_letters.rules] consumer: \"\" is nothing that a letter has"),
        (12, "[dead_letters.rules] canary = 0 is out of bounds"),
        (13, "[dead_letters.rules] brake = 101 is out of bounds"),
        (15, "[dead_letters.rules] name: \"c d\" is no usable name"),
        (18, "[dead_letters.rules] wait: \"2d\" is out of bounds"),
        (19, "[dead_letters.rules] header may hold a secret, and rules are shown"),
        (20, "unknown key \"status\" in [dead_letters.rules]"),
        (21, "[dead_letters.rules] name: there are two called \"c d\""),
        (22, "[dead_letters.rules] name: \"c d\" is no usable name"),
        (25, "[dead_letters.rules] header has no name"),
    ];
    for fault in expected {
        assert!(told.contains(&fault), "{fault:?}: {told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    assert!(faults.iter().all(|(.., hint)| !hint.is_empty()));
    assert!(!format!("{faults:?}").contains("hunter2"));
}

#[test]
fn a_rule_is_printed_as_it_can_be_read_again() {
    let text = format!(
        "{MINIMAL}[[dead_letters.rules]]\nname = \"back\"\nafter = \"breaker-closed\"\nconsumer = \"stock\"\n\
         class = \"transient\"\nheader = \"tenant=acme\"\nsince = \"2h\"\nwait = \"0s\"\ncanary = 3\nbrake = 0\n"
    );
    let config = Config::parse(&text, &env()).expect("sound");
    let rule = &config.dead_letters.rules[0];
    assert_eq!((rule.after, rule.canary, rule.brake, rule.rate), (RuleTrigger::BreakerClosed, 3, 0, 50));
    assert_eq!((rule.wait, rule.since), (Duration::ZERO, Some(Duration::from_secs(7_200))));
    let printed = toml::to_string(&config).expect("TOML");
    assert_eq!(Config::parse(&printed, &env()).expect("sound"), config, "{printed}");
    assert_eq!(Config::parse(MINIMAL, &env()).expect("sound").dead_letters.rules, [], "off unless written");
}

#[test]
fn s28_keys_of_the_ledger_are_checked_and_never_shown() {
    let (old, new) = ("S3cretS3cretS3cretS3cretS3cretS3cretS3cretA", "01".repeat(32));
    let with = |keys: &str| format!("{MINIMAL}[dead_letters.encryption]\n{keys}");
    for (keys, what) in [
        (String::new(), "[dead_letters.encryption] key is missing"),
        (
            "key = \"S3cret\"".to_owned(),
            "[dead_letters.encryption] key is no 32 bytes in base64 or hexadecimal digits",
        ),
        (
            format!("key = \"{new}\"\nprevious_keys = [\"{old}\", \"S3cret\"]"),
            "[dead_letters.encryption] previous_keys is no 32 bytes in base64 or hexadecimal digits",
        ),
        (
            format!("key = \"{new}\"\nprevious_keys = [\"{old}\", \"{new}\"]"),
            "[dead_letters.encryption] previous_keys has the key of new letters, too",
        ),
        (
            format!("key = \"{new}\"\nkey_file = \"x\""),
            "[dead_letters.encryption] key and key_file are both set",
        ),
    ] {
        let (_, told, hint) = only_fault(&with(&keys));
        assert_eq!(told, what);
        assert!(!format!("{told}{hint}").contains("S3cret") && !hint.contains(&new), "{told} {hint}");
    }
    let (_, what, _) = only_fault(&with(&format!("key = \"{new}\"\nprevious_key_files = [\"/nowhere\"]")));
    assert!(
        what.starts_with("[dead_letters.encryption] previous_key_files: cannot read \"/nowhere\""),
        "{what}"
    );
    let config =
        Config::parse(&with(&format!("key = \"{old}\"\nprevious_keys = \"{new}\"")), &env()).expect("sound");
    let printed = toml::to_string(&config).expect("TOML");
    for shown in [format!("{config:?}"), printed, config.scrubber().scrub(&format!("{old} {new}"))] {
        assert!(!shown.contains("S3cret") && !shown.contains(&new), "{shown}");
    }
}

#[test]
fn the_environment_overrides_the_keys_of_the_ledger() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |byte: &str| {
        let path = folder.path().join(byte);
        std::fs::write(&path, format!("{}\n", byte.repeat(32))).expect("written");
        path.display().to_string()
    };
    let text = format!("{MINIMAL}[dead_letters.encryption]\nkey = \"${{LEDGER_KEY}}\"\nprevious_keys = []\n");
    let files = format!("{},{}", file("02"), file("03"));
    let variables = [
        ("BACKSTOP__DEAD_LETTERS__ENCRYPTION__KEY_FILE", file("01")),
        ("BACKSTOP__DEAD_LETTERS__ENCRYPTION__PREVIOUS_KEY_FILES", files),
        ("BACKSTOP__DEAD_LETTERS__ENCRYPTION__PREVIOUS_KEYS", "04".repeat(32)),
        ("LEDGER_KEY", "05".repeat(32)),
    ];
    let config = Config::parse(&text, &Environment::from_iter(variables.clone())).expect("sound");
    let encryption = config.dead_letters.encryption.expect("keys");
    let ids: Vec<_> = encryption.keys().map(Key::id).collect();
    let expected = ["01", "04", "02", "03"].map(|byte| Key::parse(&byte.repeat(32)).expect("a key").id());
    assert_eq!(ids, expected);
    let config = Config::parse(&text, &Environment::from_iter(variables[3..].to_vec())).expect("sound");
    let encryption = config.dead_letters.encryption.expect("keys");
    assert_eq!(encryption.key.id(), Key::parse(&"05".repeat(32)).expect("a key").id());
}
