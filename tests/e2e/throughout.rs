//! From pgbench's transactions to a ledger, with nothing lost, twice or out of order.
//!
//! `BACKSTOP_E2E_TRANSACTIONS` and `BACKSTOP_E2E_KILLS` size the runs; `tests/long` sets what the promises name.

use std::time::Duration;

use backstop_testkit::oracle::{Books, Verdict};
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, Program, RelayConfig};
use backstop_tests::{servers, size, wait, workload};

/// Long enough for a lease to run out, and a Kafka group to notice that a member is gone, some times over.
const PATIENCE: Duration = Duration::from_secs(240);

fn transactions() -> usize {
    size::asked("BACKSTOP_E2E_TRANSACTIONS").unwrap_or(4_000)
}

struct Scene {
    database: Database,
    place: String,
    relay: RelayConfig,
    consumer: ConsumerConfig,
}

impl Scene {
    async fn new(broker: Broker) -> Self {
        let place = servers::unique("accounts");
        workload::create_ordered_place(broker, &place, 8).await;
        Self::at(broker, place).await
    }

    async fn at(broker: Broker, place: String) -> Self {
        let database = Database::fresh("pgbench").await;
        let relay = RelayConfig::new(broker, &database.schema, &[]);
        let consumer = ConsumerConfig::new(broker, &place, &servers::unique("ledger"), &database.schema);
        Self { database, place, relay, consumer }
    }

    /// Waits until everything that was committed is applied, and asks the oracle.
    async fn settle(self) {
        let books = self.quiet().await;
        books.audit().assert_balanced();
        self.database.drop().await;
    }

    async fn quiet(&self) -> Books {
        let (database, consumer) = (&self.database, &self.consumer.group);
        let committed = database.committed().await;
        let patience = PATIENCE + Duration::from_millis(10) * transactions() as u32;
        wait::until("all is applied", patience, || async {
            let waiting = database.backlog().await + database.held().await;
            database.applied(consumer).await >= committed && waiting == 0
        })
        .await;
        database.books(consumer).await
    }
}

async fn undisturbed(broker: Broker) {
    let scene = Scene::new(broker).await;
    let _relay = scene.relay.spawn(None);
    let _consumer = scene.consumer.spawn(None);
    workload::pgbench(&scene.database, &scene.place, transactions()).await;
    scene.settle().await;
}

/// Two relays and two consumers, of which one or the other is killed all the time.
async fn killed(scene: &Scene) -> Books {
    let mut relays = [scene.relay.spawn(None), scene.relay.spawn(None)];
    let mut consumers = [scene.consumer.spawn(None), scene.consumer.spawn(None)];
    let writers = workload::pgbench(&scene.database, &scene.place, transactions());
    let killer = async {
        for n in 0..size::asked("BACKSTOP_E2E_KILLS").unwrap_or(4) {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(300..3_000))).await;
            replace(&mut relays[n % 2], || scene.relay.spawn(None));
            tokio::time::sleep(Duration::from_millis(fastrand::u64(300..3_000))).await;
            replace(&mut consumers[n % 2], || scene.consumer.spawn(None));
        }
    };
    tokio::join!(writers, killer);
    scene.quiet().await
}

/// SIGKILL for one, and another in its place.
fn replace(program: &mut Program, spawn: impl FnOnce() -> Program) {
    std::mem::replace(program, spawn()).kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn real_writers_through_kafka() {
    undisturbed(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_writers_through_rabbitmq() {
    undisturbed(Broker::RabbitMq).await;
}

/// F1, F2, F3, F7: at any moment, of two relays.
#[tokio::test(flavor = "multi_thread")]
async fn relays_and_consumers_killed_through_kafka() {
    let scene = Scene::new(Broker::Kafka).await;
    killed(&scene).await.audit().assert_balanced();
    scene.database.drop().await;
}

/// F1, F2, F3, F7: at any moment, of two relays.
#[tokio::test(flavor = "multi_thread")]
async fn relays_and_consumers_killed_through_rabbitmq() {
    let scene = Scene::new(Broker::RabbitMq).await;
    killed(&scene).await.audit().assert_balanced();
    scene.database.drop().await;
}

/// Consumers that share a queue: nothing is lost or applied twice, and order is not promised.
#[tokio::test(flavor = "multi_thread")]
async fn competing_consumers_killed_through_rabbitmq() {
    let place = servers::unique("accounts");
    workload::create_place(Broker::RabbitMq, &place, 8).await;
    let scene = Scene::at(Broker::RabbitMq, place).await;
    let verdict = killed(&scene).await.audit();
    Verdict { out_of_order: Default::default(), ..verdict }.assert_balanced();
    scene.database.drop().await;
}

/// The owner is killed; the lease's end lets the other one in, within the lease time.
///
/// F7: one stands by.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_relay_takes_over() {
    let scene = Scene::new(Broker::Kafka).await;
    let first = scene.relay.spawn(None);
    let owner = || async {
        let query = "SELECT owner FROM backstop_lease WHERE expires_at > clock_timestamp()";
        sqlx::query_scalar::<_, String>(query)
            .fetch_optional(&scene.database.pool)
            .await
            .expect("a lease table")
    };
    wait::until("the first relay owns the outbox", PATIENCE, || async { owner().await.is_some() }).await;
    let before = owner().await;
    let _second = scene.relay.spawn(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(owner().await, before, "the second one stands by");
    first.kill();
    let limit = Duration::from_secs(11);
    wait::until("the second relay owns the outbox", limit, || async {
        let now = owner().await;
        now.is_some() && now != before
    })
    .await;
    scene.database.drop().await;
}
