use super::*;

const MINIMAL: &str = "[database]\nurl = \"sqlite:/tmp/x.db\"\n";

fn env(name: &str) -> Option<String> {
    (name == "DB_PASSWORD").then(|| "S3cret!".to_owned())
}

fn faults(text: &str) -> Vec<(usize, String, String)> {
    let faults = Config::parse(text, &env).expect_err("a fault");
    faults.into_iter().map(|fault| (fault.line, fault.what, fault.hint)).collect()
}

fn only_fault(text: &str) -> (usize, String, String) {
    let mut faults = faults(text);
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = Config::parse(MINIMAL, &env).expect("sound");
    assert_eq!(config.database.prefix, "backstop");
    assert_eq!(
        (config.broker.is_none(), config.outbox.enabled, config.dead_letters.enabled),
        (true, true, false)
    );
    assert_eq!(config.outbox.lease_ttl, Duration::from_secs(10));
    assert_eq!(config.ledger(), &config.database);
}

#[test]
fn every_fault_is_reported_at_its_line() {
    let text = r#"
[database]
url = "mysql://u:S3cret@h/d"
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
fn values_from_the_environment_are_used_and_never_shown() {
    let text = "[database]\nurl = \"postgres://u:${DB_PASSWORD}@h/d\"\n[broker]\nkind = \"kafka\"\n\
                brokers = [\"localhost:9092\"]\n[broker.properties]\n\"sasl.password\" = \"${DB_PASSWORD}\"\n";
    let config = Config::parse(text, &env).expect("sound");
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
    let config = Config::parse(&format!("[database]\nurl_file = \"{path}\"\n"), &env).expect("sound");
    assert_eq!(config.database.url.expose(), "postgres://u:pw@localhost/d");
    let (line, what, _) = only_fault(&format!("[database]\nurl = \"sqlite:x\"\nurl_file = \"{path}\"\n"));
    assert_eq!((line, what.as_str()), (3, "[database] url and url_file are both set"));
    let (_, what, _) = only_fault("[database]\nurl_file = \"/nowhere/at/all\"\n");
    assert!(what.starts_with("[database] url_file: cannot read \"/nowhere/at/all\""), "{what}");
}

#[test]
fn unusable_database_urls_are_refused_without_being_shown() {
    for url in ["mysql://u:pw@h/d", "postgres:", "postgres://u:p/w@h/d", "sqlite:", "sqlite://", "h/d", ""] {
        let (line, what, _) = only_fault(&format!("[database]\nurl = \"{url}\"\n"));
        assert_eq!((line, what.as_str()), (2, "[database] url is no usable database URL"), "{url}");
    }
}

#[test]
fn passwords_do_not_cross_the_network_without_tls_unless_told() {
    let rabbit =
        |url: &str, more: &str| format!("{MINIMAL}[broker]\nkind = \"rabbitmq\"\nurl = \"{url}\"\n{more}");
    assert!(only_fault(&rabbit("amqp://u:pw@rabbit/", "")).1.contains("without TLS"));
    for (url, more) in [
        ("amqp://u:pw@127.0.0.1:5672/%2f", ""),
        ("amqp://u:pw@[::1]/", ""),
        ("amqps://u:pw@rabbit/", ""),
        ("amqp://u:pw@rabbit/", "allow_plaintext = true"),
    ] {
        assert!(Config::parse(&rabbit(url, more), &env).is_ok(), "{url}");
    }
    let kafka = "[broker]\nkind = \"kafka\"\nbrokers = [\"localhost:9092\", \"kafka:9092\"]\n\
                 [broker.properties]\n\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\"\n";
    assert!(only_fault(&format!("{MINIMAL}{kafka}")).1.contains("without TLS"));
    assert!(Config::parse(&format!("{MINIMAL}{}", kafka.replace(", \"kafka:9092\"", "")), &env).is_ok());
}

#[test]
fn what_is_printed_can_be_read_again() {
    let text = "[database]\nurl = \"postgres://localhost/d\"\nschema = \"shop\"\n[broker]\nkind = \"rabbitmq\"\n\
                url = \"amqp://localhost/\"\nordering = \"none\"\n[dead_letters]\nenabled = true\n\
                sources = [\"orders.dlq\"]\n[dead_letters.ledger]\nurl = \"sqlite:l.db\"\n";
    let config = Config::parse(text, &env).expect("sound");
    let printed = toml::to_string(&config).expect("TOML");
    assert_eq!(Config::parse(&printed, &env).expect("sound"), config);
}

#[test]
fn hostile_files_are_refused_in_words() {
    let keys: String = (0..20_000).map(|n| format!("k{n} = 1\n")).collect();
    assert_eq!(Config::parse(&keys, &env).expect_err("unknown keys").len(), 20_001);
    let deep = format!("[database]\nurl = {}1{}\n", "[".repeat(5_000), "]".repeat(5_000));
    assert!(Config::parse(&deep, &env).is_err());
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MAX_FILE + 1).expect("grown");
    let failure = Config::load(file.path(), &env).expect_err("too large");
    assert!(failure.to_string().contains("larger than 1 MiB"));
}
