//! Dead letters, collected and redriven by the relay, while life goes on.

use std::time::Duration;

use backstop_testkit::oracle::Books;
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, wait};

const PATIENCE: Duration = Duration::from_secs(120);
const DEAD: usize = 100;

/// A hundred letters of one group are redriven after its handler is mended. On Kafka a second group reads the same
/// topic and must see none of them.
async fn redriven(broker: Broker) {
    let database = Database::fresh("redrive").await;
    let place = servers::unique("redrive");
    workload::create_place(broker, &place, 4).await;
    let mut failing = ConsumerConfig::new(broker, &place, &servers::unique("failing"), &database.schema);
    failing.work_ms = 1;
    let bystander = (broker == Broker::Kafka).then(|| {
        let mut config = ConsumerConfig::new(broker, &place, &servers::unique("bystander"), &database.schema);
        config.immune = true;
        config
    });
    let run = failing.start();
    let watching = bystander.as_ref().map(ConsumerConfig::start);
    let publisher = Publisher::new(broker);
    let first = workload::events(400, 25, |n| (n % 4 == 1).then_some(Fail::Permanent));
    workload::publish(&database, &publisher, &place, &first).await;
    let relay = RelayConfig::new(broker, &database.schema, &[letters::place(&failing)]);
    let _relay = relay.spawn(None);
    let open = "SELECT count(*) FROM backstop_letter WHERE status = 'open'";
    wait::until("the ledger has the letters", PATIENCE, || async {
        database.number(open).await == DEAD as i64
    })
    .await;

    database.mend().await;
    let live: Vec<_> = workload::events(600, 25, |_| None).into_iter().skip(400).collect();
    let traffic = workload::publish(&database, &publisher, &place, &live);
    let arguments = ["dead-letters", "redrive", "--consumer", &failing.group, "--yes"];
    let redrive = async { tokio::task::block_in_place(|| relay.command(&arguments)) };
    let ((), (code, output)) = tokio::join!(traffic, redrive);
    assert_eq!(code, 0, "{output}");

    let all = (first.len() + live.len()) as i64;
    wait::until("all is applied", PATIENCE, || async { database.applied(&failing.group).await == all }).await;
    wait::until("nothing is held", PATIENCE, || async { database.held().await == 0 }).await;
    let report = run.stop().await;
    assert_eq!(report.redriven, DEAD as u64, "{report:?}");
    let parked = first.iter().filter(|placed| placed.event.fail.is_some()).map(|placed| placed.id.clone());
    let books = database.books(&failing.group).await;
    Books { parked: parked.collect(), ..books }.audit().assert_balanced();

    if let (Some(config), Some(watching)) = (bystander, watching) {
        wait::until("the bystander is done", PATIENCE, || async {
            database.applied(&config.group).await == all
        })
        .await;
        let report = watching.stop().await;
        assert_eq!((report.handled, report.duplicates, report.redriven), (all as u64, 0, 0));
    }
    database.drop().await;
}

/// F80, F90: on Kafka.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_failing_group_sees_redriven_messages_on_kafka() {
    redriven(Broker::Kafka).await;
}

/// F80, F90: on RabbitMQ.
#[tokio::test(flavor = "multi_thread")]
async fn redriven_messages_are_applied_once_on_rabbitmq() {
    redriven(Broker::RabbitMq).await;
}
