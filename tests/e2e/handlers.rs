//! Handlers that break the rules: nothing is settled that is not committed, and nothing is applied twice.

use std::time::Duration;

use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{servers, wait};

const PATIENCE: Duration = Duration::from_secs(90);

/// Every third event misbehaves so, on 6 keys; all must be applied once and in order, with nothing dead.
async fn all_are_applied_once(misbehaviour: Fail, failures_expected: bool) {
    let database = Database::fresh("handlers").await;
    let place = servers::unique("handlers");
    workload::create_place(Broker::Kafka, &place, 2).await;
    let mut config = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    config.handler_timeout_ms = 500;
    let publisher = Publisher::new(Broker::Kafka);
    let events = workload::events(30, 6, |n| (n % 3 == 0).then_some(misbehaviour));
    workload::publish(&database, &publisher, &place, &events).await;
    let run = config.start();
    wait::until("all are applied", PATIENCE, || async {
        database.applied(&config.group).await == events.len() as i64 && database.held().await == 0
    })
    .await;
    let report = run.stop().await;
    database.assert_balanced(&config.group).await;
    assert_eq!(report.failures > 0, failures_expected, "{report:?}");
    assert_eq!(report.quarantined, 0);
    database.drop().await;
}

/// PostgreSQL answers COMMIT with a rollback; the loop must not take that for a success.
#[tokio::test(flavor = "multi_thread")]
async fn a_swallowed_error_is_not_a_success() {
    all_are_applied_once(Fail::Swallow(2), true).await;
}

/// The handler's own COMMIT takes the inbox row along: it is handled, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_the_handlers_own_applies_nothing_twice() {
    all_are_applied_once(Fail::RawCommit, false).await;
}

/// F84: a handler that does not yield cannot be cut off; when it comes back its time is over, and nothing of it commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_blocks_its_thread_is_tried_again() {
    all_are_applied_once(Fail::Block(1), true).await;
}

/// F84: on PostgreSQL, with its statement still running.
/// The statement runs on after the handler's time is over, and cannot commit late.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_takes_too_long_is_tried_again() {
    all_are_applied_once(Fail::Sleep(1), true).await;
}
