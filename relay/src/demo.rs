//! `demo`: the whole way of a message in one process, with everything that goes wrong on it.
//!
//! A shop places orders, whose events go through outbox, relay and broker to a payment service that fails in several
//! ways. Relay and consumer are the real ones, as `run` and an application start them; only the broker is librdkafka's
//! mock cluster. At the end the ledger is counted from the tables, and the exit status says whether it balances.

mod balance;
mod ending;
mod folder;
mod lively;
mod payments;
mod shop;
mod steps;
mod story;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::dead_letter::kafka_letters;
use backstop_core::schema::Schema;
use backstop_kafka::MockBroker;
use tokio_util::sync::CancellationToken;

use crate::cli::{Demo, Global};
use crate::commands::{self, Context, database};
use crate::database::Database;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::supervise::{Supervisor, until_signalled};
use balance::Balance;
use folder::Folder;
use payments::{CONSUMER, Payments, RECEIPTS};
use shop::{Shop, TOPIC};
use story::Story;

pub(crate) use shop::FEWEST_EVENTS;

/// Partitions of each topic.
const PARTITIONS: i32 = 4;
/// How long a thousand events may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a demo may take that runs until it is stopped.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
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
    let limit = if args.keep_running { FOREVER } else { PATIENCE * args.events.div_ceil(1_000) };
    let stop = CancellationToken::new();
    let mut counted = None;
    let work = async {
        counted = in_time(limit, &story, &folder, play(global, args, &folder, &story, &stop)).await?;
        Ok(())
    };
    let ended = until_signalled(stop.clone(), Box::pin(work)).await;
    let told = match (ended, counted) {
        (Ok(()), Some(balance)) => ending::tell(&story, &folder, &balance, begun.elapsed()),
        (Ok(()), None) if args.keep_running => return Ok(Exit::Ok),
        (Ok(()), None) => return Err(stopped()),
        (Err(failure), _) => Err(failure),
    };
    if told.is_err() {
        folder.keep();
    }
    told
}

fn stopped() -> Failure {
    let what = "stopped by a signal before the ledger was complete";
    Failure::new(Exit::Failed, what, "let it run to its end to see the ledger")
}

/// Plays until the end or until it has taken too long.
async fn in_time(
    limit: Duration,
    story: &Story,
    folder: &Folder,
    play: impl Future<Output = Result<Option<Balance>, Failure>>,
) -> Result<Option<Balance>, Failure> {
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

/// Sets the scene, starts relay and payment service, lets everything happen, stops them, and counts. `None` when a
/// signal came before.
async fn play(
    global: &Global,
    args: &Demo,
    folder: &Folder,
    story: &Story,
    stop: &CancellationToken,
) -> Result<Option<Balance>, Failure> {
    story.stage("setting up");
    let scene = set(global, args, folder).await?;
    introduce(story, args, folder, &scene)?;
    let mut supervisor = Supervisor::default();
    let (brokers, file) = (scene.broker.bootstrap_servers(), folder.database());
    let mut payments = Payments::start(brokers, &file.to_string_lossy(), &mut supervisor, stop).await?;
    let (context, token) = (scene.context.clone(), stop.clone());
    supervisor.spawn("the relay", async move { Box::pin(commands::run::work(&context, token)).await });
    let mut running = std::pin::pin!(supervisor.wait(stop.clone()));
    let happens = async {
        steps::take(story, args.events, &scene, &mut payments).await?;
        if args.keep_running { lively::go_on(story, args.events, &scene).await } else { Ok(()) }
    };
    let happened = tokio::select! {
        happened = Box::pin(happens) => happened,
        ended = &mut running => return ended.map(|()| None),
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
    Balance::read(&scene.shop, &scene.relay, payments.counters().duplicates).await.map(Some)
}

/// Broker, topics, configuration and tables, as an operator would make them.
async fn set(global: &Global, args: &Demo, folder: &Folder) -> Result<Scene, Failure> {
    let broker = MockBroker::start().map_err(|error| Failure::broker(&error))?;
    let made = broker.create_topic(TOPIC, PARTITIONS);
    let made = made.and_then(|()| broker.create_owned_topics(TOPIC, CONSUMER, PARTITIONS));
    let made = made.and_then(|()| broker.create_topic(RECEIPTS, 1));
    made.map_err(|error| Failure::broker(&error))?;
    let console = if args.keep_running { Some(lively::free_address()?) } else { None };
    folder.configure(broker.bootstrap_servers(), &kafka_letters(TOPIC, CONSUMER), console)?;
    let context = Context::load(Global { config: folder.config(), ..global.clone() })?;
    let relay = Database::create(&context.config.database).await.map_err(database)?;
    Schema::migrate(&*relay.schema).await.map_err(database)?;
    let shop = Shop::open(&folder.database().to_string_lossy()).await?;
    Ok(Scene { shop, relay, context: Arc::new(context), broker })
}

fn introduce(story: &Story, args: &Demo, folder: &Folder, scene: &Scene) -> Result<(), Failure> {
    let fate = if folder.is_temporary() { "removed when all went well; --folder keeps it" } else { "stays" };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_with_what_it_waited_for() {
        let outer = tempfile::tempdir().expect("a directory");
        let (story, folder) = (Story::new(true), Folder::make(Some(outer.path())).expect("made"));
        let play = async {
            story.until("payments", 200, async || Ok(199)).await?;
            Ok(None)
        };
        let failure = in_time(PATIENCE, &story, &folder, play).await.expect_err("given up");
        assert_eq!(failure.to_string(), "gave up after 60 s, waiting for payments: 199 of 200");
        assert_eq!(failure.exit(), Exit::Failed);
    }
}
