//! Messages that fell the process that handles them: they go, and the fleet stays.

use std::time::Duration;

use backstop::names;
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::fleet::Fleet;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, size, wait};

/// Instances of the consumer.
const FLEET: usize = 3;
/// Far above what is promised: it only ends tests that hang.
const PATIENCE: Duration = Duration::from_secs(180);
/// Events, unless `BACKSTOP_TEST_CRASH_POISON` names another number, as `tests/long` does.
const COUNT: usize = 300;

fn count() -> usize {
    size::asked("BACKSTOP_TEST_CRASH_POISON").unwrap_or(COUNT)
}

/// One event among many ends the process, after so many errors; how many processes it has ended when it is a letter
/// and all others are applied once.
async fn poison(broker: Broker, errors: u32, tune: impl Fn(&mut ConsumerConfig)) -> u32 {
    let (database, count) = (Database::fresh("poison").await, count());
    let place = servers::unique("poison");
    workload::create_place(broker, &place, 6).await;
    let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
    tune(&mut config);
    // Instances that compete for a queue keep no order.
    let keys = if broker == Broker::RabbitMq { count } else { 40 };
    let events = workload::events(count, keys, |n| (n == count / 3).then_some(Fail::Abort(errors)));
    let publisher = Publisher::new(broker);
    workload::publish(&database, &publisher, &place, &events).await;
    let mut fleet = Fleet::start(config.clone(), FLEET);
    wait::until("all others are applied, and the one is given up", PATIENCE, || {
        fleet.tend();
        async { database.applied(&config.group).await == count as i64 - 1 && database.held().await == 0 }
    })
    .await;
    // It may be the last of all, and fell others still.
    let mending = async {
        loop {
            fleet.tend();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let letters = tokio::select! {
        letters = letters::read_distinct(&config, 1) => letters,
        () = mending => unreachable!("it goes on"),
    };
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].headers.get_str(names::REASON), Some("crashed-process"));
    let deaths = fleet.ended;
    fleet.tend();
    assert_eq!(fleet.ended, deaths, "the fleet is up");
    database.assert_balanced_but_for(&config.group, &events, &letters).await;
    // A process that died between the commit of a message and the end of its charge leaves one that counts no more: the
    // inbox knows its message.
    let others = format!(
        "SELECT count(*) FROM backstop_charge AS c WHERE crashes < {} AND NOT EXISTS (SELECT FROM backstop_inbox AS i \
         WHERE i.consumer = c.consumer AND i.message_key = c.message_key)",
        config.max_crashes
    );
    assert_eq!(database.number(&others).await, 0, "nobody else is charged any more");
    drop(fleet);
    database.drop().await;
    deaths
}

/// A charge is taken back where it is not known whether the claim that made it came about, which may cost a process or
/// two more on a machine that is slow to answer; none is saved.
fn assert_deaths(deaths: u32, expected: u32) {
    assert!((expected..=expected + 2).contains(&deaths), "{deaths} processes died, rather than {expected}");
}

/// The first process dies with many messages at work, so that nobody is charged for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_aborts_its_process_is_quarantined_on_rabbitmq() {
    assert_deaths(poison(Broker::RabbitMq, 0, |_| {}).await, 1 + 3);
}

/// The same on Kafka, among messages that share transactions.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_aborts_its_process_is_quarantined_on_kafka() {
    let deaths = poison(Broker::Kafka, 0, |config| {
        // Each death costs the group a session of 6 s.
        (config.shared, config.concurrency, config.max_crashes) = (16, 4, 2);
    });
    assert_deaths(deaths.await, 1 + 2);
}

/// A held message is charged from the first time on.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_message_that_aborts_its_process_is_quarantined() {
    assert_deaths(poison(Broker::Kafka, 1, |_| {}).await, 3);
}
