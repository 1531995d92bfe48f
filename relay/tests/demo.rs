//! The demo as a newcomer meets it: the built program, alone in an empty directory, without network or servers.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use sqlx::SqlitePool;
use tempfile::TempDir;

/// The demo's arguments, in a directory of its own for its files, temporary ones included.
struct Demo {
    directory: TempDir,
    command: Command,
}

impl Demo {
    fn new(args: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop-relay"));
        command.arg("demo").args(args.split_whitespace()).current_dir(directory.path());
        command.env("TMPDIR", directory.path()).env_remove("BACKSTOP_LOG").env_remove("BACKSTOP_CONFIG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { directory, command }
    }

    fn run(&mut self) -> (String, String, i32) {
        told(self.command.output().expect("started"))
    }

    /// Starts it and reads until a line begins with `mark`.
    fn start(&mut self, mark: &str) -> (Child, BufReader<std::process::ChildStdout>) {
        let mut child = self.command.spawn().expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        while !line.starts_with(mark) {
            line.clear();
            assert!(lines.read_line(&mut line).expect("readable") > 0, "it ended without {mark:?}");
        }
        (child, lines)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).expect("readable").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn told(output: Output) -> (String, String, i32) {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(output.stdout), text(output.stderr), output.status.code().expect("an exit code"))
}

async fn open(file: &Path) -> SqlitePool {
    backstop_sqlite::open(&file.to_string_lossy()).await.expect("opened")
}

#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("{part:?} is missing or out of order in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

#[tokio::test]
async fn the_story_is_told_in_a_few_lines_and_its_database_bears_it_out() {
    let mut demo = Demo::new("--folder kept --output text");
    let (stdout, stderr, code) = demo.run();
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.lines().count() <= 32, "{stdout}");
    assert!(
        stdout.lines().all(|line| line.chars().count() <= 120 || line.starts_with(['L', ' '])),
        "{stdout}"
    );
    in_order(
        &stdout,
        &[
            "kept/shop.sqlite (SQLite; stays)",
            "librdkafka's mock of Kafka in this process",
            "1. Placed 200 orders",
            "order-201 was rolled back",
            "order-5, order-8, order-11",
            "2. The relay published 203 events",
            "3. order-17 failed: payment gateway timed out (1 of 5), again in 50 ms; eve's later orders wait",
            "order-17 failed: payment gateway timed out (2 of 5)",
            "order-17 failed: payment gateway timed out (3 of 5)",
            "in this order: order-17 (attempt 4), order-18, order-19.",
            "4. The inbox absorbed 3 copies",
            "5. order-24 cannot be paid: no tax rate for a gift card.",
            "199 of 200 are paid, order-25 too",
            "collected it from orders.payments.dlq",
            "6. Mended: INSERT INTO tax_rates VALUES ('gift card', 0)",
            "Redrove 1 letter through orders.payments.redrive",
            "finn's orders are paid, too: order-25, order-24.",
            "placed 200   handled 200   duplicates absorbed 3   dead letters 1   redriven 1   lost 0   twice 0",
            "The ledger balances, after ",
        ],
    );
    let pool = open(&demo.directory.path().join("kept/shop.sqlite")).await;
    let count =
        async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("counted");
    assert_eq!(count("SELECT count(*) FROM payments").await, 200);
    assert_eq!(count("SELECT count(DISTINCT order_id) FROM payments").await, 200);
    assert_eq!(count("SELECT count(*) FROM backstop_inbox").await, 200);
    assert_eq!(count("SELECT count(*) FROM backstop_outbox").await, 0);
    let mut list = Command::new(env!("CARGO_BIN_EXE_backstop-relay"));
    list.args(["dead-letters", "list", "--status", "all", "--config", "kept/relay.toml"]);
    let (stdout, stderr, code) = told(list.current_dir(demo.directory.path()).output().expect("started"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    in_order(
        &stdout,
        &["resolved", "payments", "orders", "permanent", "no tax rate for a gift card", "1 of 1 letters"],
    );
}

#[test]
fn a_program_gets_one_document_and_nothing_is_left_behind() {
    let mut demo = Demo::new("--events 30 --output json");
    let (stdout, stderr, code) = demo.run();
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let document: Value = serde_json::from_str(&stdout).expect("one JSON document");
    assert_eq!((&document["balanced"], &document["database"]), (&Value::Bool(true), &Value::Null));
    let expected = serde_json::json!({
        "placed": 30, "sent": 33, "handled": 30, "duplicates_absorbed": 3, "dead_letters": 1, "redriven": 1,
        "lost": 0, "twice": 0, "poisoned": 1, "handled_after_redrive": 1, "never_placed": 0, "out_of_order": 0,
        "left_in_outbox": 0, "faults": [],
    });
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&document[name], value, "{name}");
    }
    assert_eq!(demo.files(), [""; 0]);
}

#[test]
fn two_run_at_the_same_time_under_load() {
    let mut demos: Vec<Demo> = (0..2).map(|_| Demo::new("--events 2000 --output json")).collect();
    let running: Vec<Child> = demos.iter_mut().map(|demo| demo.command.spawn().expect("started")).collect();
    for child in running {
        let (stdout, stderr, code) = told(child.wait_with_output().expect("ended"));
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        let document: Value = serde_json::from_str(&stdout).expect("one JSON document");
        assert_eq!((&document["placed"], &document["handled"]), (&Value::from(2000), &Value::from(2000)));
    }
}

/// Somebody breaks the promise behind the demo's back: a trigger pays an order twice.
#[tokio::test]
async fn a_ledger_that_does_not_balance_has_an_exit_code_of_its_own() {
    for (output, mark) in [("human", "1. Placed"), ("json", "{")] {
        let mut demo = Demo::new(&format!("--events 30 --folder kept --output {output}"));
        let file = demo.directory.path().join("kept/shop.sqlite");
        let thief = async {
            let pool = open(&file).await;
            let trigger = "CREATE TRIGGER again AFTER INSERT ON payments WHEN NEW.via = 'door' BEGIN \
                           INSERT INTO payments SELECT NULL, order_id, customer, cents, attempt, via \
                           FROM payments WHERE n = NEW.n; END";
            while sqlx::raw_sql(trigger).execute(&pool).await.is_err() {
                tokio::task::yield_now().await;
            }
            pool.close().await;
        };
        let (child, mut lines) = if output == "human" {
            let started = demo.start(mark);
            thief.await;
            started
        } else {
            let mut child = demo.command.spawn().expect("started");
            let lines = BufReader::new(child.stdout.take().expect("piped"));
            while !demo.directory.path().join("kept/relay.toml").exists() {
                tokio::task::yield_now().await;
            }
            thief.await;
            (child, lines)
        };
        let mut stdout = String::new();
        lines.read_to_string(&mut stdout).expect("readable");
        let (_, stderr, code) = told(child.wait_with_output().expect("ended"));
        assert_eq!(code, 11, "{stdout}{stderr}");
        in_order(
            &stderr,
            &["error: the ledger does not balance: 1 orders were paid twice", "hint: the database is kept: "],
        );
        if output == "json" {
            let document: Value = serde_json::from_str(&stdout).expect("one JSON document");
            assert_eq!((&document["balanced"], &document["twice"]), (&Value::Bool(false), &Value::from(1)));
        } else {
            assert!(stdout.contains("lost 0   twice 1") && !stdout.contains("balances"), "{stdout}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_in_order() {
    let mut demo = Demo::new("");
    let (child, _lines) = demo.start("2. The relay published");
    let sent = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
    let (_, stderr, code) = told(child.wait_with_output().expect("ended"));
    let expected = "error: stopped by a signal before the ledger was complete\n\
                    hint: let it run to its end to see the ledger\n";
    assert_eq!((code, stderr.as_str()), (1, expected));
    assert_eq!(demo.files(), [""; 0]);
}

#[test]
fn a_reader_who_leaves_does_not_change_the_outcome() {
    let mut demo = Demo::new("--events 30");
    let (child, lines) = demo.start("A shop");
    drop(lines);
    let (_, stderr, code) = told(child.wait_with_output().expect("ended"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(demo.files(), [""; 0]);
}

#[test]
fn what_cannot_work_is_refused() {
    for args in ["--events 29", "--events 10001", "--events x", "--nonsense"] {
        let (stdout, _, code) = Demo::new(args).run();
        assert_eq!((code, stdout.as_str()), (2, ""), "{args}");
    }
    let mut demo = Demo::new("--folder kept");
    let kept = demo.directory.path().join("kept");
    std::fs::create_dir(&kept).expect("made");
    std::fs::write(kept.join("shop.sqlite"), "precious").expect("written");
    let (stdout, stderr, code) = demo.run();
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("shop.sqlite is there already"), "{stderr}");
    assert_eq!(std::fs::read(kept.join("shop.sqlite")).expect("there"), b"precious");
    let (stdout, stderr, code) = Demo::new("--folder /dev/null/x").run();
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("hint: name a folder that can be written to with --folder"), "{stderr}");
}
