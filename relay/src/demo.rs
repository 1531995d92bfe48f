//! `demo`: the whole way of a message in one process, with everything that goes wrong on it.
//!
//! A shop places orders, whose events go through outbox, relay and broker to a payment service that fails in several
//! ways. Relay and consumer are the real ones, as `run` and an application start them; only the broker is librdkafka's
//! mock cluster. At the end the ledger is counted from the tables, and the exit status says whether it balances.

mod balance;
mod folder;
mod payments;
mod shop;
mod story;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::dead_letter::{kafka_door, kafka_letters};
use backstop_core::ledger::{Letter, LetterFilter, LetterStatus};
use backstop_core::schema::Schema;
use backstop_kafka::MockBroker;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::broker;
use crate::cli::{Demo, Global};
use crate::commands::{self, Context, database};
use crate::database::Database;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::redrive::{Plan, redrive};
use crate::supervise::{Supervisor, until_signalled};
use balance::Balance;
use folder::Folder;
use payments::{ATTEMPTS, CONSUMER, Failed, Payments, RETRY_AFTER};
use shop::{FLAKY, MEND, Order, POISON, REPEATED, Shop, TOPIC};
use story::Story;

pub(crate) use shop::FEWEST_EVENTS;

/// Partitions of each topic.
const PARTITIONS: i32 = 4;
/// How long a thousand events may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long relay and consumer may take to stop.
const GOODBYE: Duration = Duration::from_secs(20);

/// Runs the demo.
///
/// # Errors
/// [`Exit::Unbalanced`] when it came to its end and the ledger is wrong; anything else when it did not.
pub(crate) async fn run(global: &Global, args: &Demo) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let story = Story::new(global.output == output::Format::Json);
    let folder = Folder::make(args.folder.as_deref())?;
    let stop = CancellationToken::new();
    let mut balance = None;
    let limit = PATIENCE * args.events.div_ceil(1_000);
    let work = async {
        balance = Some(in_time(limit, &story, &folder, play(global, args, &folder, &story, &stop)).await?);
        Ok(())
    };
    let ended = until_signalled(stop.clone(), Box::pin(work)).await;
    let told = match (ended, balance) {
        (Ok(()), Some(balance)) => conclude(&story, &folder, &balance, begun.elapsed()),
        (ended, _) => ended.map(|()| Exit::Ok),
    };
    if told.is_err() {
        folder.keep();
    }
    told
}

/// Plays until the end or until it has taken too long.
async fn in_time(
    limit: Duration,
    story: &Story,
    folder: &Folder,
    play: impl Future<Output = Result<Balance, Failure>>,
) -> Result<Balance, Failure> {
    let played = tokio::time::timeout(limit, Box::pin(play)).await;
    played.unwrap_or_else(|_| {
        let what = format!("gave up after {} s, {}", limit.as_secs(), story.last_stage());
        let hint = format!("run it again with --log info; its database is {}", folder.database().display());
        Err(Failure::new(Exit::Failed, what, hint))
    })
}

/// What is on stage.
struct Scene {
    shop: Shop,
    relay: Database,
    context: Arc<Context>,
    broker: MockBroker,
}

/// Sets the scene, starts relay and payment service, lets everything happen, stops them, and counts.
async fn play(
    global: &Global,
    args: &Demo,
    folder: &Folder,
    story: &Story,
    stop: &CancellationToken,
) -> Result<Balance, Failure> {
    story.stage("setting up");
    let scene = set(global, folder).await?;
    introduce(story, args, folder, &scene)?;
    let mut supervisor = Supervisor::default();
    let (context, token) = (scene.context.clone(), stop.clone());
    supervisor.spawn("the relay", async move { Box::pin(commands::run::work(&context, token)).await });
    let brokers = scene.broker.bootstrap_servers();
    let mut payments = Payments::start(brokers, &scene.shop, &mut supervisor, stop);
    let mut running = std::pin::pin!(supervisor.wait(stop.clone()));
    let happened = tokio::select! {
        happened = Box::pin(happen(story, args.events, &scene, &mut payments)) => happened,
        ended = &mut running => return Err(ended.err().unwrap_or_else(stopped)),
    };
    story.stage("stopping relay and payment service");
    stop.cancel();
    let ended = tokio::time::timeout(GOODBYE, running).await;
    happened?;
    ended.map_err(|_| {
        let what = format!("relay and payment service did not stop within {} s", GOODBYE.as_secs());
        Failure::new(Exit::Failed, what, "run it again with --log info")
    })??;
    story.stage("counting");
    Balance::read(&scene.shop, &scene.relay, payments.counters().duplicates).await
}

fn stopped() -> Failure {
    let what = "stopped by a signal before the ledger was complete";
    Failure::new(Exit::Failed, what, "let it run to its end to see the ledger")
}

/// Broker, topics, configuration and tables, as an operator would make them.
async fn set(global: &Global, folder: &Folder) -> Result<Scene, Failure> {
    let broker = MockBroker::start().map_err(|error| Failure::broker(&error))?;
    let made = broker.create_topic(TOPIC, PARTITIONS);
    let made = made.and_then(|()| broker.create_owned_topics(TOPIC, CONSUMER, PARTITIONS));
    made.map_err(|error| Failure::broker(&error))?;
    folder.configure(broker.bootstrap_servers(), &kafka_letters(TOPIC, CONSUMER))?;
    let context = Context::load(Global { config: folder.config(), ..global.clone() })?;
    let relay = Database::create(&context.config.database).await.map_err(database)?;
    Schema::migrate(&*relay.schema).await.map_err(database)?;
    let shop = Shop::open(&folder.database().to_string_lossy()).await?;
    Ok(Scene { shop, relay, context: Arc::new(context), broker })
}

fn introduce(story: &Story, args: &Demo, folder: &Folder, scene: &Scene) -> Result<(), Failure> {
    let fate = if folder.is_temporary() { "removed at the end; --folder keeps it" } else { "stays" };
    story.line(format!("A shop places {} orders, and a payment service takes the money.\n", args.events))?;
    story.line(format!("   database   {} (SQLite; {fate})", folder.database().display()))?;
    story.line(format!(
        "   broker     {} (librdkafka's mock of Kafka in this process, for trying out: nothing on disk,",
        scene.broker.bootstrap_servers()
    ))?;
    story.line(
        "              5 MiB a partition and then the oldest goes, no TLS, no SASL, no transactions)",
    )?;
    story.line(format!("   relay      outbox → topic {TOPIC}, dead letters → ledger"))?;
    story.line(format!("   consumer   {CONSUMER}: topic {TOPIC} → table payments, beside an inbox\n"))
}

/// The story itself, one step after another.
async fn happen(story: &Story, events: u32, scene: &Scene, payments: &mut Payments) -> Result<(), Failure> {
    place(story, events, &scene.shop).await?;
    let sent = u64::from(events) + REPEATED.len() as u64;
    publish(story, sent, scene).await?;
    retry(story, &scene.shop, payments).await?;
    absorb(story, events, &scene.shop, payments).await?;
    let letter = bury(story, events, scene).await?;
    bring_back(story, events, scene, &letter).await
}

async fn place(story: &Story, events: u32, shop: &Shop) -> Result<(), Failure> {
    for number in 1..=events {
        story.stage(format!("placing order {number} of {events}"));
        shop.place(Order(number)).await?;
    }
    let cancelled = Order(events + 1);
    shop.place_and_roll_back(cancelled).await?;
    for order in REPEATED {
        shop.send_again(order).await?;
    }
    let repeated = REPEATED.map(Order::id).join(", ");
    story
        .line(format!("1. Placed {events} orders, each in one transaction with its event in the outbox."))?;
    story.line(format!(
        "   {} was rolled back, and its event with it: nobody will hear of it.",
        cancelled.id()
    ))?;
    story.line(format!("   Sent again with the same id, after a missed answer: {repeated}."))
}

async fn publish(story: &Story, sent: u64, scene: &Scene) -> Result<(), Failure> {
    let outbox = &scene.relay.outbox;
    let gone = async || Ok(sent.saturating_sub(outbox.status().await.map_err(database)?.pending));
    story.until("events to leave the outbox", sent, gone).await?;
    story.line(format!("2. The relay published {sent} events to topic {TOPIC} and emptied the outbox."))?;
    story.line("   The payment service joins its group and checks its topics, which takes some seconds.")
}

async fn retry(story: &Story, shop: &Shop, payments: &mut Payments) -> Result<(), Failure> {
    let mut told = 0;
    let customer = FLAKY.customer();
    let paid = async || {
        while let Ok(failed) = payments.failures.try_recv() {
            tell_failure(story, &failed, told == 0)?;
            told += 1;
        }
        Ok(shop.paid_by(customer).await?.len() as u64)
    };
    story.until(&format!("payments by {customer}"), 3, paid).await?;
    let paid: Vec<String> = shop.paid_by(customer).await?.into_iter().map(in_words).collect();
    story.line(format!("   Then {customer}'s orders were paid, in this order: {}.", paid.join(", ")))
}

fn tell_failure(story: &Story, failed: &Failed, first: bool) -> Result<(), Failure> {
    let Failed { order, customer, attempt, error } = failed;
    let (lead, aside) = match first {
        true => ("3.", format!("; {customer}'s later orders wait, others go on")),
        false => ("  ", String::new()),
    };
    let after = RETRY_AFTER.as_millis();
    story.line(format!(
        "{lead} {order} failed: {error} ({attempt} of {ATTEMPTS}), again in {after} ms{aside}."
    ))
}

fn in_words((order, attempt): (String, u32)) -> String {
    if attempt > 1 { format!("{order} (attempt {attempt})") } else { order }
}

async fn absorb(story: &Story, events: u32, shop: &Shop, payments: &Payments) -> Result<(), Failure> {
    let copies = REPEATED.len() as u64;
    let absorbed = async || Ok(payments.counters().duplicates);
    story.until("copies to come to the inbox", copies, absorbed).await?;
    let healthy = u64::from(events) - 1;
    story.until("payments", healthy, async || paid_orders(shop).await).await?;
    let absorbed = payments.counters().duplicates;
    story.line(format!("4. The inbox absorbed {absorbed} copies: their orders are paid once."))
}

async fn paid_orders(shop: &Shop) -> Result<u64, Failure> {
    shop.count("SELECT count(DISTINCT order_id) FROM payments").await
}

/// The poison message becomes a dead letter in the relay's ledger.
async fn bury(story: &Story, events: u32, scene: &Scene) -> Result<Letter, Failure> {
    let (ledger, filter) = (&scene.relay.ledger, open_letters());
    let collected = async || ledger.count(&filter).await.map_err(database);
    story.until("dead letters in the ledger", 1, collected).await?;
    let letters = ledger.list(&filter, None, 1).await.map_err(database)?;
    let letter = letters.into_iter().next().expect("a letter was counted just now, and nobody else moves it");
    let (poison, next) = (POISON.id(), POISON.next().id());
    let error = letter.error.as_deref().unwrap_or("no error");
    let reason = letter.reason.as_deref().unwrap_or("no reason");
    let paid = paid_orders(&scene.shop).await?;
    story.line(format!("5. {poison} cannot be paid: {error}. Trying again would not help ({reason})."))?;
    story.line(format!(
        "   It is a dead letter now, and stopped nobody: {paid} of {events} are paid, {next} too."
    ))?;
    story.line(format!("   The relay collected it from {} as {}.", letter.found_in, letter.id))?;
    Ok(letter)
}

fn open_letters() -> LetterFilter {
    LetterFilter {
        consumer: Some(CONSUMER.to_owned()),
        status: Some(LetterStatus::Open),
        ..LetterFilter::default()
    }
}

/// The cause is mended and the letter redriven.
async fn bring_back(story: &Story, events: u32, scene: &Scene, letter: &Letter) -> Result<(), Failure> {
    story.stage("mending and redriving");
    scene.shop.mend().await?;
    let ledger = &*scene.relay.ledger;
    let plan = Plan::make(ledger, &open_letters(), None).await.map_err(database)?;
    let sink = broker::sink(scene.context.broker()?).map_err(|error| Failure::broker(&error))?;
    let (summary, result) =
        redrive(ledger, &sink, &plan, LetterStatus::Open, &CancellationToken::new()).await;
    result.map_err(|error| commands::redrive::failure(&error))?;
    story.until("payments", u64::from(events), async || paid_orders(&scene.shop).await).await?;
    let door = letter.door.clone().unwrap_or_else(|| kafka_door(TOPIC, CONSUMER));
    let paid = scene.shop.paid_by(POISON.customer()).await?.into_iter().map(in_words);
    story.line(format!("6. Mended: {MEND}."))?;
    story.line(format!("   Redrove {} letter through {door}, under its old id.", summary.sent))?;
    let (customer, paid) = (POISON.customer(), paid.collect::<Vec<_>>().join(", "));
    story.line(format!("   Now {customer}'s orders are paid, too: {paid}.\n"))
}

/// Shows the ledger and says how it ends.
fn conclude(story: &Story, folder: &Folder, balance: &Balance, took: Duration) -> Result<Exit, Failure> {
    let verdict = verdict(balance, folder);
    if story.is_silent() {
        let kept = !folder.is_temporary() || verdict.is_err();
        let document = json!({
            "balanced": verdict.is_ok(),
            "faults": balance.faults(),
            "ledger": balance,
            "database": kept.then(|| folder.database()),
            "seconds": (took.as_secs_f64() * 10.0).round() / 10.0,
        });
        story.document(&document)?;
        return verdict;
    }
    story.line(format!("   {}", balance.line()))?;
    if verdict.is_ok() {
        story.line(format!("\nThe ledger balances, after {:.1} s.", took.as_secs_f64()))?;
        what_next(story, folder)?;
    }
    verdict
}

/// Whether the ledger balances, as the exit status says it.
fn verdict(balance: &Balance, folder: &Folder) -> Result<Exit, Failure> {
    let faults = balance.faults();
    if faults.is_empty() {
        return Ok(Exit::Ok);
    }
    let hint = format!("the database is kept: {}", folder.database().display());
    Err(Failure::new(Exit::Unbalanced, format!("the ledger does not balance: {}", faults.join("; ")), hint))
}

fn what_next(story: &Story, folder: &Folder) -> Result<(), Failure> {
    if folder.is_temporary() {
        story
            .line("Look inside: run it again with --folder demo, which keeps its database and tells how.")?;
    } else {
        let query = "SELECT * FROM payments WHERE customer = 'eve'";
        story.line(format!("Look inside: sqlite3 '{}' \"{query}\"", folder.database().display()))?;
        let list = "cargo run -p backstop-relay -- dead-letters list --status all";
        story.line(format!("             {list} --config '{}'", folder.config().display()))?;
    }
    story.line("Next: a consumer of your own, examples/01-first-consumer; then README.md.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_with_what_it_waited_for() {
        let outer = tempfile::tempdir().expect("a directory");
        let (story, folder) = (Story::new(true), Folder::make(Some(outer.path())).expect("made"));
        let play = async {
            story.until("payments", 200, async || Ok(199)).await?;
            Ok(Balance::default())
        };
        let failure = in_time(PATIENCE, &story, &folder, play).await.expect_err("given up");
        assert_eq!(failure.to_string(), "gave up after 60 s, waiting for payments: 199 of 200");
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn the_exit_status_says_whether_the_ledger_balances() {
        let outer = tempfile::tempdir().expect("a directory");
        let folder = Folder::make(Some(outer.path())).expect("made");
        let balanced = Balance::balanced_for_tests();
        assert_eq!(verdict(&balanced, &folder), Ok(Exit::Ok));
        let failure = verdict(&Balance { lost: 1, ..balanced }, &folder).expect_err("unbalanced");
        assert_eq!(failure.exit().code(), 11);
        assert_eq!(failure.to_string(), "the ledger does not balance: 1 orders were lost");
    }
}
