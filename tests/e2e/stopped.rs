//! Instances that are stopped for longer than anybody waits for them, and instances that come and go all the time.

use std::time::Duration;

use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{servers, wait};

const PATIENCE: Duration = Duration::from_secs(180);

struct Scene {
    database: Database,
    config: ConsumerConfig,
    publisher: Publisher,
}

impl Scene {
    async fn new(broker: Broker, stem: &str) -> Self {
        let database = Database::fresh(stem).await;
        let place = servers::unique(stem);
        workload::create_ordered_place(broker, &place, 8).await;
        let mut config = ConsumerConfig::new(broker, &place, &servers::unique("group"), &database.schema);
        config.concurrency = 8;
        config.work_ms = 2;
        Self { database, config, publisher: Publisher::new(broker) }
    }

    async fn publish(&self, events: &[workload::Placed]) {
        workload::publish(&self.database, &self.publisher, &self.config.place, events).await;
    }

    async fn applied(&self, count: i64) {
        wait::until(&format!("{count} are applied"), PATIENCE, || async {
            self.database.applied(&self.config.group).await >= count
        })
        .await;
    }

    async fn balanced(self) {
        self.database.assert_balanced(&self.config.group).await;
        self.database.drop().await;
    }
}

/// One instance sleeps with work under way until another has done it, wakes up, and shares what comes then.
async fn asleep(broker: Broker) {
    let scene = Scene::new(broker, "asleep").await;
    let events = workload::events(1_600, 40, |_| None);
    let sleeper = scene.config.spawn(None);
    scene.publish(&events[..1_000]).await;
    scene.applied(100).await;
    sleeper.signal("STOP");
    let other = scene.config.spawn(None);
    scene.applied(1_000).await;
    sleeper.signal("CONT");
    scene.publish(&events[1_000..]).await;
    scene.applied(1_600).await;
    sleeper.kill();
    other.kill();
    scene.balanced().await;
}

/// F50, F76: a member that lost its partitions in its sleep commits nothing late.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_slept_for_longer_than_its_session() {
    asleep(Broker::Kafka).await;
}

/// F50: the same where the broker shares the partitions.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_slept_under_kip_848() {
    asleep(Broker::KafkaNext).await;
}

/// Members come and go far more often than a group needs to settle.
async fn storm(broker: Broker) {
    let scene = Scene::new(broker, "storm").await;
    let events = workload::events(2_000, 60, |_| None);
    let mut members = vec![scene.config.start()];
    for part in events.chunks(400) {
        scene.publish(part).await;
        members.push(scene.config.start());
        if members.len() > 3 {
            members.remove(0).stop().await;
        }
    }
    scene.applied(2_000).await;
    for member in members {
        member.stop().await;
    }
    scene.balanced().await;
}

/// F65: nothing is lost, applied twice or out of order.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_rebalances_among_cooperative_members() {
    storm(Broker::Kafka).await;
}

/// F65: the same where the broker shares the partitions.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_rebalances_under_kip_848() {
    storm(Broker::KafkaNext).await;
}
