//! The page for whoever is on call: its commands lead from the alarm to the end, as they stand there.

use std::path::Path;
use std::time::Duration;

use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);
const ALL: usize = 160;
/// Every second event fails.
const DEAD: usize = ALL / 2;
/// Letters that fail again, whatever is mended.
const HOPELESS: usize = 2;
/// Most commands from the alarm to the end.
const MOST: usize = 6;

/// The commands of the page, in order, without the program's name.
fn commands() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/on-call.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let joined: Vec<String> = blocks.map(|block| block.replace("\\\n", " ")).collect();
    let lines = joined.iter().flat_map(|block| block.lines());
    lines.filter_map(|line| line.strip_prefix("backstop-relay ")).map(str::to_owned).collect()
}

/// The words of a command, as a shell splits them.
fn words(command: &str, group: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for character in command.chars() {
        match character {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            character => words.last_mut().expect("there is one").push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words.iter().map(|word| word.replace("$GROUP", group)).collect()
}

fn run(relay: &RelayConfig, command: &str, group: &str) -> String {
    let words = words(command, group);
    let arguments: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, output) = tokio::task::block_in_place(|| relay.command(&arguments));
    assert_eq!(code, 0, "{command}: {output}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_the_commands_of_the_page_lead_from_the_alarm_to_the_end() {
    let commands = commands();
    assert!((1..=MOST).contains(&commands.len()), "{commands:?}");
    let database = Database::fresh("on_call").await;
    let (place, told) = (servers::unique("on-call"), servers::unique("told"));
    workload::create_place(Broker::Kafka, &place, 2).await;
    workload::create_place(Broker::Kafka, &told, 1).await;
    let mut config = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    config.receipts = Some(told.clone());
    let consumer = config.start();
    let events = workload::events(ALL, 20, |n| match n {
        n if n >= ALL - 2 * HOPELESS && n % 2 == 1 => Some(Fail::Hopeless),
        n if n % 2 == 1 => Some(Fail::Permanent),
        _ => None,
    });
    workload::publish(&database, &Publisher::new(Broker::Kafka), &place, &events).await;
    let relay = RelayConfig::with_receipts(Broker::Kafka, &database.schema, &letters::place(&config), &told);
    let _relay = relay.spawn(None);
    let letters = async |status: &str| {
        let query = format!("SELECT count(*) FROM backstop_letter WHERE status = '{status}'");
        database.number(&query).await
    };
    wait::until("the ledger has the letters", PATIENCE, || async { letters("open").await == DEAD as i64 })
        .await;

    let group = run(&relay, "dead-letters groups --output json", "");
    let group: serde_json::Value = serde_json::from_str(&group).expect("JSON");
    let group = group["groups"][0]["fingerprint"].as_str().expect("one group").to_owned();
    let mut last = String::new();
    for command in &commands {
        if command.starts_with("dead-letters redrive") && !command.contains("--dry-run") {
            database.mend().await;
        }
        last = run(&relay, command, &group);
    }
    assert!(last.contains(&format!("{} resolved", DEAD - HOPELESS)), "{last}");
    assert!(last.contains(&format!("{HOPELESS} discarded")), "{last}");
    assert_eq!(letters("resolved").await, (DEAD - HOPELESS) as i64);
    assert_eq!((letters("discarded").await, letters("open").await), (HOPELESS as i64, 0));
    let reasons =
        "SELECT count(*) FROM backstop_letter_event WHERE what = 'discarded' AND detail LIKE 'INC-%'";
    assert_eq!(database.number(reasons).await, HOPELESS as i64);
    let written = "SELECT count(*) FROM backstop_audit WHERE step = 'done' AND because LIKE 'INC-%'";
    assert_eq!(database.number(written).await, 2, "the redrive and the discard, each with its reason");
    assert_eq!(database.applied(&config.group).await, (ALL - HOPELESS) as i64);
    consumer.stop().await;
    database.drop().await;
}
