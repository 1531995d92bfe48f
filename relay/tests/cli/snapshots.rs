//! What every command prints, as it was read and found good: its help, its output, its errors.
//!
//! `INSTA_UPDATE=always cargo test -p backstop-relay --test cli snapshots` records everything anew, to be read in the
//! difference.

use insta::{assert_snapshot, with_settings};

use crate::held::with_held_messages;
use crate::letters::with_letters;
use crate::outbox_dead::with_dead_rows;
use crate::relay::{Relay, amqp, mysql, postgres, unique};
use crate::rules::with_rules;

/// A configuration that needs no server.
const FILE: &str = "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n";
/// A broker that nobody is.
const NO_BROKER: &str = "[broker]\nkind = \"kafka\"\nbrokers = [\"127.0.0.1:1\"]\n";

/// Commands, each with what it prints on both outputs, and how it ends unless all is well.
fn transcript(relay: &Relay, commands: &[&str]) -> String {
    let mut text = String::new();
    for command in commands {
        let ran = relay.run(command);
        text.push_str(&format!("$ backstop-relay {command}\n{}{}", ran.stdout, ran.stderr));
        if ran.code != 0 {
            text.push_str(&format!("(exit code {})\n", ran.code));
        }
        text.push('\n');
    }
    text
}

/// What differs from run to run.
const REDACTED: [(&str, &str); 7] = [
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "[time]"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "[uuid]"),
    (r"\bt[0-9a-f]{12}", "[prefix]"),
    (r"\b\d+(m?s)( |$|\n)", "[age]$2"),
    (r#""(oldest|lease)_seconds": [\d.]+"#, "\"${1}_seconds\": [seconds]"),
    (r"backstop-relay \d+\.\d+\.\d+", "backstop-relay [version]"),
    (r#"( user="[^"]*")? uid=\d+"#, " uid=[uid]"),
];

macro_rules! snapshot {
    ($name:expr, $text:expr) => {
        with_settings!({ filters => REDACTED.to_vec(), omit_expression => true }, {
            assert_snapshot!($name, $text);
        });
    };
}

/// Every command there is, found by asking for help.
fn commands(relay: &Relay, command: &str, found: &mut Vec<String>) {
    found.push(command.to_owned());
    let help = relay.run(format!("{command} --help").trim()).stdout;
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    let names =
        listed.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| *name != "help") {
        commands(relay, format!("{command} {name}").trim(), found);
    }
}

#[test]
fn help() {
    let relay = Relay::new("");
    let mut found = Vec::new();
    commands(&relay, "", &mut found);
    assert!(found.len() > 20, "{found:?}");
    for command in found {
        let asked = format!("{command} --help");
        let name = format!("help {command}").trim().replace(' ', "-");
        snapshot!(name, transcript(&relay, &[asked.trim()]));
    }
}

#[test]
fn usage() {
    let commands = [
        "",
        "nonsense",
        "outbox",
        "migrate down",
        "migrate down --to x",
        "outbox dead list --limit 0",
        "outbox dead retry",
        "outbox dead retry --all --seq 1",
        "outbox dead discard --all",
        "held release",
        "held skip 1",
        "dead-letters list --status x",
        "completions dash",
        "demo --events 3",
        "check --output xml",
        "--version",
    ];
    snapshot!("usage", transcript(&Relay::new(FILE), &commands));
}

#[test]
fn migrate() {
    let commands = [
        "migrate status",
        "migrate --dry-run",
        "migrate status --output json",
        "migrate",
        "migrate",
        "migrate down --to 5 --dry-run",
        "migrate down --to 5",
        "migrate status",
        "migrate --output json",
    ];
    snapshot!("migrate", transcript(&Relay::new(FILE), &commands));
}

#[test]
fn outbox() {
    let relay = Relay::new(FILE);
    relay.run("migrate");
    let empty = [
        "outbox status",
        "outbox status --output json",
        "outbox dead list",
        "outbox dead list --output json",
    ];
    snapshot!("outbox-empty", transcript(&relay, &empty));
    let commands = [
        "outbox dead list",
        "outbox dead list --output json",
        "outbox dead show 1",
        "outbox dead show 1 --reveal",
        "outbox dead show 1 --output json --reveal",
        "outbox dead show 7",
        "outbox dead retry --all",
        "outbox dead retry --seq 1 --dry-run",
        "outbox dead retry --seq 1 --yes",
        "outbox dead discard --all --because test --dry-run --output json",
        "outbox dead discard --all --because test --yes",
        "outbox dead discard --all --because test --yes",
        "outbox dead list --outbox other",
    ];
    snapshot!("outbox-dead", transcript(&with_dead_rows(), &commands));
}

#[test]
fn held() {
    let commands = [
        "held list",
        "held list --quarantined --output json",
        "held list --consumer other",
        "held release 1",
        "held release 1 --dry-run --output json",
        "held release 1 3 7 --yes",
        "held skip 2 --because test --yes --output json",
        "held skip 2 --because test --yes",
    ];
    snapshot!("held", transcript(&with_held_messages(), &commands));
}

#[test]
fn letters() {
    let relay = Relay::new(&format!("{FILE}{NO_BROKER}"));
    relay.run("migrate");
    let commands = [
        "dead-letters list",
        "dead-letters list --output json",
        "dead-letters show x",
        "dead-letters redrive --dry-run",
        "dead-letters redrive --dry-run --output json",
        "dead-letters redrive",
    ];
    snapshot!("letters", transcript(&relay, &commands));
}

#[test]
fn letters_that_are_repaired() {
    let (relay, _broker) = with_letters();
    let commands = [
        "dead-letters groups",
        "dead-letters groups --error declined --output json",
        "dead-letters list --limit 2",
        "dead-letters show letter-3",
        "dead-letters redrive --fingerprint f-stock --dry-run",
        "dead-letters redrive --fingerprint f-stock",
        "dead-letters redrive --fingerprint f-stock --because mended --yes",
        "dead-letters hold --id letter-3 --because case-7 --yes",
        "dead-letters discard --fingerprint f-card --because test --dry-run",
        "dead-letters discard --fingerprint f-card --because test --yes",
        "dead-letters groups --status all",
        "redrives show nobody",
    ];
    snapshot!("letters-repaired", transcript(&relay, &commands));
}

#[test]
fn rules() {
    let commands = [
        "rules list",
        "rules list --output json",
        "rules run stock-fixed --dry-run",
        "rules run stock-fixed",
        "rules run nobody --dry-run",
        "rules resume stock-fixed --because test",
    ];
    let (relay, _broker) = with_rules();
    snapshot!("rules", transcript(&relay, &commands));
    snapshot!("rules-none", transcript(&Relay::new(FILE), &["rules list", "rules run stock-fixed"]));
}

#[test]
fn configuration() {
    let relay = Relay::new(&format!("{FILE}{NO_BROKER}"));
    snapshot!("config", transcript(&relay, &["config print", "config print --output json"]));
    let wrong = [
        ("absent", None),
        ("not-toml", Some("[database\n")),
        ("empty", Some("")),
        ("unknown", Some("[database]\nurl = \"sqlite:x.db\"\nprefx = \"a\"\n[outbx]\n")),
        (
            "values",
            Some("[database]\nurl = \"mongodb://u:p@h/d\"\n[outbox]\nbatch_rows = 0\nlease_ttl = \"soon\"\n"),
        ),
        ("broker", Some("[database]\nurl = \"sqlite:x.db\"\n[broker]\nkind = \"mqtt\"\n")),
        ("variable", Some("[database]\nurl = \"sqlite:${BACKSTOP_NO_SUCH}.db\"\n")),
    ];
    let tried = wrong.map(|(name, text)| match text {
        Some(text) => format!("# {name}\n{}", transcript(&Relay::new(text), &["config print"])),
        None => transcript(&Relay::new(""), &["--config absent.toml config print"]),
    });
    snapshot!("config-errors", tried.concat());
}

/// Every command that needs a server, where it is not there, refuses, or lacks something.
#[test]
fn failures() {
    let all = ["run", "migrate", "outbox status", "outbox dead list", "dead-letters list", "check"];
    let absent = format!("[database]\nurl = \"postgres://u:p@127.0.0.1:1/d\"\n{NO_BROKER}");
    snapshot!("absent-postgres", transcript(&Relay::new(&absent), &all[1..]));
    let absent = format!("[database]\nurl = \"mysql://u:p@127.0.0.1:1/d\"\n{NO_BROKER}");
    snapshot!("absent-mysql", transcript(&Relay::new(&absent), &all[1..]));
    let relay = Relay::new(&format!("{FILE}{NO_BROKER}"));
    snapshot!("missing-tables", transcript(&relay, &all));
    let relay = Relay::new(FILE);
    snapshot!("missing-broker", transcript(&relay, &["migrate", "run", "check", "dead-letters redrive"]));
    let nothing = format!("{FILE}{NO_BROKER}[outbox]\nenabled = false\n");
    snapshot!("nothing-to-run", transcript(&Relay::new(&nothing), &["migrate", "run"]));
    let refused = amqp().replace("guest:guest@", "guest:wrong@");
    let rabbit = format!("{FILE}[broker]\nkind = \"rabbitmq\"\nurl = \"{refused}\"\n");
    snapshot!("refused-rabbitmq", transcript(&Relay::new(&rabbit), &["migrate --log off", "check"]));
}

/// All is well but for the relay that does not run, on each database.
#[test]
fn check() {
    for (name, url) in
        [("postgres", postgres()), ("mysql", mysql()), ("sqlite", "sqlite:x.db?mode=rwc".to_owned())]
    {
        let broker = format!("[broker]\nkind = \"rabbitmq\"\nurl = \"{}\"\n", amqp());
        let prefix = unique();
        let relay = Relay::new(&format!("[database]\nurl = \"{url}\"\nprefix = \"{prefix}\"\n{broker}"));
        assert_eq!(relay.run("migrate").code, 0);
        let mut text = transcript(&relay, &["check"]);
        // Versions of servers, and what other tests do to them meanwhile.
        let varies = [
            "ok       server",
            "  open transactions",
            "  prepared transactions",
            "  deleted rows",
            "  metadata locks",
        ];
        text = text
            .lines()
            .filter(|line| !varies.iter().any(|it| line.contains(it)))
            .collect::<Vec<_>>()
            .join("\n");
        relay.run("migrate down --to 0");
        snapshot!(format!("check-{name}"), text);
    }
}
