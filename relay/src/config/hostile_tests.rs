//! What hostile or clumsy configuration meets: the cases S15, S22, S28, S32, S33 and S36 of
//! docs/reference/security.md.

use super::*;

const MINIMAL: &str = "[database]\nurl = \"sqlite:/tmp/x.db\"\n";

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &Environment::default())
}

/// What is said of a text with one fault.
fn fault(text: &str) -> String {
    let faults = parse(text).expect_err(text);
    assert_eq!(faults.len(), 1, "{text}: {faults:#?}");
    faults[0].what.clone()
}

#[test]
fn s36_unknown_keys_by_the_thousand_are_refused_in_words() {
    let keys: String = (0..20_000).map(|n| format!("k{n} = 1\n")).collect();
    assert_eq!(parse(&keys).expect_err("unknown keys").len(), 20_001);
}

#[test]
fn s36_nesting_of_any_depth_is_refused_in_words() {
    let deep = format!("[database]\nurl = {}1{}\n", "[".repeat(5_000), "]".repeat(5_000));
    assert!(parse(&deep).is_err());
    let dotted = format!("{}a = 1\n", "a.".repeat(400_000));
    assert!(parse(&dotted).is_err(), "a dotted key");
    let header = format!("[{}a]\n", "a.".repeat(400_000));
    assert!(parse(&header).is_err(), "a table");
    let tables = format!("a = {}1{}\n", "{a=".repeat(200_000), "}".repeat(200_000));
    assert!(parse(&tables).is_err(), "inline tables");
    let variable = format!("BACKSTOP__{}A", "A__".repeat(40_000));
    assert!(Config::parse(MINIMAL, &Environment::from_iter([(variable, "1")])).is_err(), "a variable");
}

#[test]
fn s36_files_and_variables_without_end_are_read_up_to_a_limit() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(files::MAX_CONFIG + 1).expect("grown");
    for endless in [file.path(), Path::new("/dev/zero")] {
        let failure = Config::load(endless, &Environment::default()).expect_err("too large");
        assert!(failure.to_string().contains("larger than 1024 KiB"), "{failure}");
    }
    let what = fault("[database]\nurl_file = \"/dev/zero\"\n");
    assert!(what.contains("larger than 64 KiB"), "{what}");

    let text = format!("[database]\nurl = \"sqlite:{}\"\n", "${BIG}".repeat(1_000));
    let faults = Config::parse(&text, &Environment::from_iter([("BIG", "x".repeat(100_000))]));
    assert!(faults.expect_err("a bomb").iter().all(|fault| fault.what.contains("longer than 64 KiB")));
}

#[test]
fn s36_tables_by_the_thousand_take_no_time_to_compare() {
    let outboxes: String = (0..20_000).map(|n| format!("[[outbox]]\nname = \"{n}\"\n")).collect();
    let faults = parse(&format!("{MINIMAL}{outboxes}")).expect_err("one table for all");
    assert_eq!(faults.len(), 19_999);
}

#[test]
fn s36_parameters_of_a_url_that_nobody_knows_are_refused() {
    let of = |url: &str| fault(&format!("[database]\nurl = \"{url}\"\n"));
    assert!(of("postgres://h/d?sslrootcrt=/ca.pem").ends_with("unknown parameter \"sslrootcrt\""));
    assert!(of("mysql://h/d?ssl_mode=VERIFY_IDENTITY").ends_with("unknown parameter \"ssl_mode\""));
    assert!(!of("postgres://h/d?passwd=S3cret").contains("S3cret"));
    for url in [
        "postgres://h/d?sslmode=disable&options[search_path]=a&application_name=x",
        "mysql://h/d?ssl-mode=DISABLED&ssl-ca=/ca.pem",
    ] {
        assert!(parse(&format!("[database]\nurl = \"{url}\"\n")).is_ok(), "{url}");
    }
}

#[test]
fn s15_names_of_tables_are_checked_wherever_they_stand() {
    let injection = "x\\\"; drop table y;--";
    for name in [injection, "a.b", "tüte", "x'", "", "a\\u0000b", &"x".repeat(65)] {
        let parts = ["prefix", "schema"]
            .map(|key| format!("[database]\nurl = \"postgres://h/d\"\n{key} = \"{name}\"\n"));
        let outbox = format!(
            "[database]\nurl = \"postgres://h/d\"\n[[outbox]]\ndatabase = {{ prefix = \"{name}\" }}\n"
        );
        let columns = ["id", "key", "type", "payload", "timestamp", "route_by"].map(|column| {
            format!("[database]\nurl = \"postgres://h/d\"\n[outbox]\nlayout = \"debezium\"\n[outbox.debezium]\n{column} = \"{name}\"\n")
        });
        for text in parts.iter().chain([&outbox]).chain(&columns) {
            assert!(fault(text).contains("SQL name"), "{text}");
        }
    }
}

#[test]
fn s22_an_open_address_needs_a_token_that_can_be_sent() {
    let http = |more: &str| format!("{MINIMAL}[http]\n{more}");
    assert!(fault(&http("listen = \"0.0.0.0:80\"")).contains("there is no token"));
    assert!(fault(&http("listen = \"[::]:80\"")).contains("there is no token"));
    assert!(parse(&http("listen = \"0.0.0.0:80\"\ninsecure = true")).is_ok());
    for odd in ["0123456789abcdef ", "0123456789\\nabcdef", "0123456789abcdefü", "0123456789\\u0000abcdef"] {
        let what = fault(&http(&format!("token = \"{odd}\"")));
        assert_eq!(what, "[http] token holds white space or characters that are not ASCII", "{odd}");
    }
    let empty = tempfile::NamedTempFile::new().expect("a file");
    let what = fault(&http(&format!("listen = \"0.0.0.0:80\"\ntoken_file = \"{}\"", empty.path().display())));
    assert!(what.ends_with("is empty"), "{what}");
}

#[test]
fn s20_names_that_no_header_can_hold_are_refused() {
    for host in ["", "*", "*.internal", "relay:8642", "http://relay", "relay/x", "a b"] {
        let what = fault(&format!("{MINIMAL}[http]\nallowed_hosts = [\"{host}\"]\n"));
        assert!(what.ends_with("is no host"), "{what}");
    }
    let text =
        format!("{MINIMAL}[http]\nallowed_hosts = [\"Relay.internal\", \"10.0.0.7\", \"[fd00::7]\"]\n");
    assert!(parse(&text).is_ok());
}

#[test]
fn s33_no_password_and_no_token_goes_to_kafka_without_tls_unless_told() {
    let kafka = |protocol: &str, mechanism: &str, more: &str| {
        format!(
            "{MINIMAL}[broker]\nkind = \"kafka\"\nbrokers = [\"kafka:9092\"]\n{more}\n[broker.properties]\n\
             \"security.protocol\" = \"{protocol}\"\n\"sasl.mechanism\" = \"{mechanism}\"\n"
        )
    };
    for (protocol, mechanism) in
        [("SASL_PLAINTEXT", "PLAIN"), (" sasl_plaintext", "plain"), ("sasl_plaintext", "OAUTHBEARER")]
    {
        assert!(fault(&kafka(protocol, mechanism, "")).contains("without TLS"));
        assert!(parse(&kafka(protocol, mechanism, "allow_plaintext = true")).is_ok());
        assert!(parse(&kafka("SASL_SSL", mechanism, "")).is_ok());
    }
}

#[test]
fn an_outbox_of_a_layout_that_the_database_lacks_is_refused() {
    for url in ["sqlite:x.db", "mysql://h/d", "mariadb://h/d"] {
        let what = fault(&format!("[database]\nurl = \"{url}\"\n[outbox]\nlayout = \"debezium\"\n"));
        assert_eq!(what, "[outbox] layout: \"debezium\" needs PostgreSQL");
    }
    assert!(fault("[database]\nurl = \"sqlite:x.db\"\nschema = \"a\"\n").contains("has no schemas"));
}

#[test]
fn a_table_has_one_owner() {
    let two = |more: &str| format!("{MINIMAL}[[outbox]]\n[[outbox]]\nname = \"b\"\n{more}");
    assert!(fault(&two("")).contains("reads a table that another one reads"));
    assert!(parse(&two("enabled = false\n")).is_ok());
    assert!(parse(&two("database = { prefix = \"b\" }\n")).is_ok());
    assert!(fault(&two("database = { url = \"sqlite:/tmp/x.db\" }\n")).contains("another one reads"));
}

/// How many warnings there are of a configuration.
fn loosened(text: &str) -> usize {
    parse(text).unwrap_or_else(|faults| panic!("{text}: {faults:#?}")).loosened().len()
}

#[test]
fn s30_what_is_given_up_of_verified_connections_is_said_aloud() {
    let database = |url: &str| format!("[database]\nurl = \"{url}\"\n");
    for (url, warnings) in [
        ("postgres://h/d", 0),
        ("postgres://h/d?sslmode=verify-full", 0),
        ("mysql://h/d?ssl-mode=verify_identity", 0),
        ("postgres://localhost/d?sslmode=disable", 0),
        ("sqlite:x.db", 0),
        ("postgres://h/d?sslmode=verify-full&sslmode=verify-ca", 1),
        ("postgres://h/d?sslmode=prefer", 1),
        ("mysql://h/d?ssl-mode=REQUIRED", 1),
    ] {
        assert_eq!(loosened(&database(url)), warnings, "{url}");
    }
    let broker = |lines: &str| format!("{MINIMAL}[broker]\n{lines}\n");
    let kafka = "kind = \"kafka\"\nbrokers = [\"h:1\"]\nallow_plaintext = true\n[broker.properties]\n";
    for (lines, warnings) in [
        ("kind = \"rabbitmq\"\nurl = \"amqps://h/x\"".to_owned(), 0),
        ("kind = \"rabbitmq\"\nurl = \"amqp://h/x\"\nallow_plaintext = true".to_owned(), 1),
        (format!("{kafka}\"security.protocol\" = \"SSL\""), 0),
        (format!("{kafka}\"enable.ssl.certificate.verification\" = false"), 1),
        (format!("{kafka}\"ssl.endpoint.identification.algorithm\" = \"none\""), 1),
        (format!("{kafka}\"security.protocol\" = \"SASL_PLAINTEXT\"\n\"sasl.mechanism\" = \"PLAIN\""), 1),
        (
            "kind = \"kafka\"\nbrokers = [\"h:1\"]\n[http]\nlisten = \"0.0.0.0:1\"\ninsecure = true"
                .to_owned(),
            1,
        ),
    ] {
        assert_eq!(loosened(&broker(&lines)), warnings, "{lines}");
    }
}

/// A configuration with an archive, and more lines behind that.
fn archived(archive: &str, more: &str) -> String {
    format!("{MINIMAL}[dead_letters.retention]\narchive = \"{archive}\"\n{more}")
}

/// What is refused of an archive in a bucket, by line or variable; and no secret is told.
#[test]
fn a_bucket_that_cannot_be_reached_safely_is_refused() {
    let s3 = |lines: &str| archived("s3://letters/old", &format!("[dead_letters.retention.s3]\n{lines}"));
    for (text, expected) in [
        (archived("s3://AKIA:S3cret@letters", ""), "archive holds a user, a password or a port"),
        (archived("ftp://u:S3cret@host/x", ""), "archive is a URL of a kind that archives do not go to"),
        (archived("s3:///old", ""), "archive names no bucket"),
        (archived("", ""), "archive is empty"),
        (
            archived("/kept", "[dead_letters.retention.s3]\nregion = \"eu\"\n"),
            "is for an archive in a bucket",
        ),
        (
            s3("endpoint = \"http://minio.internal:9000\""),
            "[dead_letters.retention.s3] endpoint is without TLS",
        ),
        (s3("endpoint = \"https://u:S3cret@minio.internal\""), "endpoint holds a user or a password"),
        (s3("endpoint = \"minio.internal:9000\""), "endpoint is no address of a web server"),
        (s3("access_key_id = \"AKIA\""), "access_key_id and secret_access_key belong together"),
        (s3("secret_access_key = \"S3cret\""), "access_key_id and secret_access_key belong together"),
        (s3("secret = \"S3cret\""), "unknown key \"secret\" in [dead_letters.retention.s3]"),
    ] {
        let what = fault(&text);
        assert!(what.contains(expected) && !what.contains("S3cret"), "{text}: {what}");
    }
    for sound in [
        s3("endpoint = \"http://127.0.0.1:9000\""),
        s3("endpoint = \"http://minio.internal:9000\"\nallow_plaintext = true"),
        s3("access_key_id = \"AKIA\"\nsecret_access_key = \"S3cret\""),
    ] {
        let config = parse(&sound).unwrap_or_else(|faults| panic!("{sound}: {faults:#?}"));
        let shown = format!("{config:?} {}", serde_json::to_string(&config).expect("JSON"));
        assert!(!shown.contains("S3cret"), "{shown}");
    }
    let open = s3("endpoint = \"http://minio.internal:9000\"\nallow_plaintext = true");
    assert_eq!((loosened(&open), loosened(&s3("endpoint = \"http://[::1]:9000\""))), (1, 0));
}

/// The vendor's variables stand for what the file leaves out, and only that.
#[test]
fn the_environment_says_how_a_bucket_is_reached() {
    let env = |endpoint: &str| {
        Environment::from_iter([
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "S3cret-of-the-store"),
        ])
    };
    let text = archived("s3://letters", "");
    let faults = Config::parse(&text, &env("http://minio.internal")).expect_err("without TLS");
    assert_eq!(
        (&faults[0].place, &*faults[0].what),
        (&Place::Variable("AWS_ENDPOINT_URL".to_owned()), "it is without TLS")
    );
    let s3 = |text: &str| {
        let config = Config::parse(text, &env("https://minio.internal")).expect("sound");
        assert_eq!(config.scrubber().scrub("S3cret-of-the-store").contains("S3cret"), text.contains("other"));
        config.dead_letters.retention.and_then(|retention| retention.s3).expect("a bucket")
    };
    let of_environment = s3(&text);
    assert_eq!(of_environment.endpoint.as_deref(), Some("https://minio.internal"));
    assert_eq!((of_environment.region.as_deref(), of_environment.credentials.len()), (Some("eu-west-1"), 2));
    let more = "[dead_letters.retention.s3]\nregion = \"us-east-2\"\naccess_key_id = \"other\"\nsecret_access_key = \"x\"\n";
    let of_file = s3(&archived("s3://letters", more));
    assert_eq!(of_file.region.as_deref(), Some("us-east-2"));
    assert_eq!(
        (of_file.access_key_id.as_deref(), of_file.credentials.len()),
        (Some("other"), 0),
        "halves are not mixed"
    );
    // Archives of a folder have nothing to do with them.
    assert!(Config::parse(&archived("/kept", ""), &env("http://minio.internal")).is_ok());
}
