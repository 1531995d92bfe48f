//! The command line as users meet it: what the built program prints, and how it ends.

#[path = "cli/archive.rs"]
mod archive;
#[path = "cli/bucket.rs"]
mod bucket;
#[path = "cli/encryption.rs"]
mod encryption;
#[path = "cli/held.rs"]
mod held;
#[path = "cli/letters.rs"]
mod letters;
#[path = "cli/outbox_dead.rs"]
mod outbox_dead;
#[path = "cli/relay.rs"]
mod relay;
#[path = "cli/routes.rs"]
mod routes;
#[path = "cli/rules.rs"]
mod rules;
#[path = "cli/snapshots.rs"]
mod snapshots;
#[path = "cli/status.rs"]
mod status;

use relay::{Ran, Relay, amqp, kafka, mysql, postgres};

/// A password that no text may show.
const SECRET: &str = "S3cret-Passw0rd";

#[track_caller]
fn fails(ran: &Ran, code: i32, lines: &[&str]) {
    assert_eq!(ran.stderr.lines().collect::<Vec<_>>(), lines, "exit code {}", ran.code);
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""));
}

#[test]
fn the_manual_names_every_command_and_the_shells_accept_the_completions() {
    let relay = Relay::new("");
    let man = relay.run("man").stdout.replace('\\', "");
    assert!(man.contains("\n.TH backstop-relay 1"), "{man}");
    for command in
        ["DEMO", "RUN", "MIGRATE DOWN", "OUTBOX DEAD LIST", "DEAD-LETTERS REDRIVE", "CONFIG SCHEMA"]
    {
        assert!(man.contains(&format!("\n.SH BACKSTOP-RELAY {command}\n")), "{command} is missing:\n{man}");
    }
    let script = relay.run("completions bash").stdout;
    // It is longer than an argument may be.
    relay.write("completions.bash", &script);
    let file = relay.path("completions.bash");
    let status = std::process::Command::new("bash").arg("-n").arg(file).status().expect("bash");
    assert!(status.success() && script.contains("backstop-relay"), "{script}");
}

#[test]
fn the_schema_needs_no_configuration() {
    let ran = Relay::new("nonsense").run("config schema");
    let schema: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((ran.code, &schema["type"]), (0, &"object".into()));
}

/// What follows the user information of a URL.
fn server_of(url: &str) -> String {
    url.rsplit_once('@').expect("a user in the URL").1.to_owned()
}

#[test]
fn an_unknown_key_is_refused_with_a_suggestion() {
    let relay = Relay::new("[database]\nurl = \"sqlite:x.db\"\nprefx = \"a\"\n[outbx]\n");
    fails(
        &relay.run("config print"),
        3,
        &[
            "error: relay.toml:3: unknown key \"prefx\" in [database]",
            "hint: did you mean \"prefix\"?",
            "error: relay.toml:4: unknown key \"outbx\"",
            "hint: did you mean \"outbox\"?",
        ],
    );
}

#[test]
fn a_bad_url_is_refused_without_being_shown() {
    let relay = Relay::new(&format!("[database]\nurl = \"mongodb://u:{SECRET}@h/d\"\n"));
    fails(
        &relay.run("check"),
        3,
        &[
            "error: relay.toml:2: [database] url is no usable database URL",
            "hint: write postgres://user:password@host:5432/database, mysql://… or sqlite:/path/to/file.db; \
             percent-encode @ : / ? # in a password",
        ],
    );
}

#[test]
fn missing_file_and_missing_variable_are_named() {
    let relay = Relay::new("[database]\nurl = \"postgres://u:${BACKSTOP_NO_SUCH}@localhost/d\"\n");
    fails(
        &relay.run("config print"),
        3,
        &[
            "error: relay.toml:2: environment variable BACKSTOP_NO_SUCH is not set",
            "hint: set BACKSTOP_NO_SUCH, or write $${BACKSTOP_NO_SUCH} if the text itself is meant",
        ],
    );
    fails(
        &relay.run("--config absent.toml config print"),
        3,
        &[
            "error: cannot read the configuration file absent.toml: No such file or directory (os error 2)",
            "hint: name the file with --config or BACKSTOP_CONFIG",
        ],
    );
}

#[test]
fn secrets_from_the_environment_and_files_are_not_printed() {
    let relay = Relay::new(
        "[database]\nurl_file = \"url.txt\"\n[broker]\nkind = \"kafka\"\nbrokers = [\"localhost:1\"]\n\
         [broker.properties]\n\"sasl.password\" = \"${PW}\"\n\"sasl.username\" = \"u\"\n",
    );
    relay.write("url.txt", &format!("postgres://u:{SECRET}@localhost:1/d\n"));
    for output in ["human", "json"] {
        let ran = relay.with_env("PW", SECRET).run(&format!("config print --output {output}"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("postgres://u:***@localhost:1/d") && !ran.stdout.contains(SECRET));
    }
}

#[test]
fn a_missing_broker_section_is_named() {
    let relay = Relay::new("[database]\nurl = \"sqlite:x.db?mode=rwc\"\n");
    let expected = [
        "error: relay.toml: [broker] is missing",
        "hint: add [broker] with kind = \"kafka\" or \"rabbitmq\"",
    ];
    fails(&relay.run("run"), 3, &expected);
    fails(&relay.run("dead-letters redrive"), 3, &expected);
}

#[test]
fn an_absent_database_is_told_from_a_wrong_password_and_a_missing_table() {
    let with =
        |url: &str| Relay::new(&format!("[database]\nurl = \"{url}\"\nprefix = \"{}\"\n", relay::unique()));
    let server = server_of(&postgres());
    let host = server.split('/').next().expect("a host");

    let absent = with(&format!("postgres://u:{SECRET}@127.0.0.1:1/d")).run("outbox status");
    fails(
        &absent,
        4,
        &[
            "error: cannot connect to PostgreSQL at 127.0.0.1:1: error communicating with database: \
             Connection refused (os error 111)",
            "hint: check that the server runs and can be reached",
        ],
    );
    let wrong = with(&format!("postgres://backstop:{SECRET}@{server}")).run("outbox status");
    assert_eq!((wrong.code, wrong.stdout.as_str()), (5, ""), "{}", wrong.stderr);
    let [error, hint] = wrong.lines();
    assert!(error.starts_with(&format!("error: cannot connect to PostgreSQL at {host}: ")), "{error}");
    assert!(error.contains("password authentication failed for user \"backstop\""), "{error}");
    assert_eq!(hint, "hint: check the user and password of the database URL");
    let missing = with(&postgres()).run("outbox status");
    assert_eq!((missing.code, missing.stdout.as_str()), (6, ""), "{}", missing.stderr);
    assert!(missing.lines()[1].starts_with("hint: run `backstop-relay migrate`"), "{}", missing.stderr);
    for ran in [absent, wrong, missing] {
        assert!(!ran.stderr.contains(SECRET));
    }
}

#[test]
fn an_absent_broker_and_a_wrong_password_are_found_by_check() {
    let with = |broker: &str| {
        Relay::new(&format!("[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\n{broker}\n"))
    };
    let refused = amqp().replace("guest:guest@", &format!("guest:{SECRET}@"));
    assert!(refused.contains(SECRET), "the test broker's user is guest");
    for (broker, expected) in [
        ("kind = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]".to_owned(), "check the bootstrap servers"),
        (
            format!("kind = \"rabbitmq\"\nurl = \"amqp://u:{SECRET}@127.0.0.1:1\""),
            "check that the broker runs",
        ),
        (format!("kind = \"rabbitmq\"\nurl = \"{refused}\""), "check user and password of the AMQP URL"),
    ] {
        let relay = with(&broker);
        assert_eq!(relay.run("migrate").code, 0);
        let ran = relay.run("check");
        assert_eq!((ran.code, ran.stderr.as_str()), (1, ""), "{}", ran.stdout);
        assert!(
            ran.stdout.lines().nth(1).is_some_and(|row| row.starts_with("error    broker")),
            "{}",
            ran.stdout
        );
        assert!(ran.stdout.contains(expected) && !ran.stdout.contains(SECRET), "{}", ran.stdout);
        assert!(ran.stdout.ends_with("\n1 error, 1 warning\n"), "{}", ran.stdout);
    }
}

/// F47: credentials that are refused at the start.
#[test]
fn run_exits_when_it_is_refused_and_shows_no_secret_at_any_level() {
    let refused = amqp().replace("guest:guest@", &format!("guest:{SECRET}@"));
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"{refused}\"\n"
    ));
    assert_eq!(relay.run("migrate").code, 0);
    for format in ["human", "json"] {
        let ran = relay.run(&format!("run --log trace --log-format {format}"));
        assert_eq!((ran.code, ran.stdout.as_str()), (8, ""), "{}", ran.stderr);
        assert!(!ran.stderr.contains(SECRET), "{}", ran.stderr);
    }
    let server = server_of(&postgres());
    let relay = Relay::new(&format!(
        "[database]\nurl = \"postgres://backstop:{SECRET}@{server}\"\n\
         [broker]\nkind = \"kafka\"\nbrokers = [\"{}\"]\n",
        kafka()
    ));
    let ran = relay.run("run --log trace");
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(!ran.stderr.contains(SECRET), "{}", ran.stderr);
}

#[test]
fn migrate_goes_up_and_down_and_says_so() {
    for url in [postgres(), mysql(), "sqlite:x.db".to_owned()] {
        let relay = Relay::new(&format!("[database]\nurl = \"{url}\"\nprefix = \"{}\"\n", relay::unique()));
        let dry = relay.run("migrate --dry-run");
        assert!(
            dry.stdout.contains("would be applied") && dry.stdout.contains("CREATE TABLE"),
            "{}",
            dry.stdout
        );
        let absent = if url.starts_with("sqlite") { 4 } else { 6 };
        assert_eq!(relay.run("outbox status").code, absent, "a dry run makes nothing");
        let up = relay.run("migrate --output json");
        assert_eq!((up.code, up.stderr.as_str()), (0, ""));
        let steps = up.json().as_array().expect("a list").len();
        assert!(steps > 0 && up.json()[0]["state"] == "applied");
        assert_eq!(relay.run("migrate").stdout, "nothing to do\n");
        assert_eq!(
            relay.run("outbox status").stdout,
            "OUTBOX  PENDING  OLDEST  ROWS/S   BLOCKED  PAUSED   DEAD  SCHEDULED  NEXT DUE  OWNER  LEASE ENDS IN\n\
             outbox  0        -       unknown  unknown  unknown  0     0          -         -      -\n"
        );
        assert_eq!(relay.run("outbox dead list").stdout, "no dead rows\n");
        let letters = relay.run("dead-letters list");
        if url.starts_with("mysql") {
            assert_eq!(
                (letters.code, letters.lines()[0]),
                (3, "error: the ledger of dead letters cannot be in MySQL")
            );
        } else {
            assert_eq!(letters.stdout, "no letters\n");
        }
        let dry = relay.run("migrate down --to 0 --dry-run");
        let there = relay.run("migrate status --output json").json();
        let applied =
            there.as_array().expect("a list").iter().filter(|step| step["state"] == "applied").count();
        assert_eq!(applied, steps, "a dry run changes nothing");
        assert!(
            dry.stdout.contains("would be taken back") && dry.stdout.contains("DROP TABLE"),
            "{}",
            dry.stdout
        );
        let down = relay.run("migrate down --to 0 --output json");
        assert_eq!((down.code, down.json().as_array().expect("a list").len()), (0, steps));
        assert_eq!(relay.run("outbox status").code, 6);
    }
}

#[test]
fn a_letter_that_is_not_there_is_named_without_its_escape_sequences() {
    let relay = Relay::new("[database]\nurl = \"sqlite:x.db?mode=rwc\"\n");
    assert_eq!(relay.run("migrate").code, 0);
    fails(
        &relay.run("dead-letters show \u{1b}[31mx"),
        1,
        &[
            "error: the ledger has no letter \\u{1b}[31mx",
            "hint: look for it with dead-letters list --status all",
        ],
    );
}

/// F11: from the start on.
#[test]
fn run_waits_for_a_broker_that_cannot_be_reached_and_stops_at_a_signal() {
    let relay = Relay::new(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"amqp://127.0.0.1:1\"\n",
    );
    assert_eq!(relay.run("migrate").code, 0);
    let ran = relay.run_until("run", "not reachable yet; trying again", "TERM");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

/// F4: the program, with its exit code.
#[test]
fn run_drains_and_stops_at_a_signal() {
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[broker]\nkind = \"kafka\"\nbrokers = [\"{}\"]\n",
        kafka()
    ));
    assert_eq!(relay.run("migrate").code, 0);
    let ran = relay.run_until("run", "lease taken", "INT");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("lease released"), "{}", ran.stderr);
}
