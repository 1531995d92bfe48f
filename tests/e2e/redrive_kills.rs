//! A redrive by the relay while relay and consumer are killed again and again, and live events of the same keys come in.
//!
//! `BACKSTOP_E2E_REDRIVEN` sizes the run; `tests/long` sets what the promise names. The rate that is kept without kills is
//! measured by the bench `redrive`.

use std::collections::BTreeSet;

use backstop_testkit::oracle::Books;
use backstop_tests::apply::Fail;
use backstop_tests::program::{Broker, Program};
use backstop_tests::redriven::{PATIENCE, Scene};
use backstop_tests::{size, wait};

/// One letter of so many fails again, whatever is mended; none of the canary does, for they are all in the second half.
const ONE_HOPELESS_OF: usize = 100;

/// Letters; a second's share of them; how often each of relay and consumer is killed.
#[derive(Debug, Clone, Copy)]
struct Size {
    letters: usize,
    rate: usize,
    kills: usize,
}

impl Size {
    fn asked() -> Self {
        match size::asked("BACKSTOP_E2E_REDRIVEN") {
            Some(letters) => Self { letters, rate: 2_000, kills: 5 },
            None => Self { letters: 400, rate: 100, kills: 2 },
        }
    }

    fn hopeless(self) -> usize {
        self.letters / ONE_HOPELESS_OF
    }

    fn is_hopeless(self, n: usize) -> bool {
        n >= self.letters / 2 && n % (ONE_HOPELESS_OF / 2) == ONE_HOPELESS_OF / 2 - 1
    }
}

/// Each time that another part of the letters is sent, relay or consumer is replaced, and some live events come in.
async fn kill_by_turns(
    scene: &Scene,
    kills: usize,
    mut relay: Program,
    mut consumer: Program,
) -> (Program, Program) {
    for turn in 0..2 * kills {
        let replace = || match turn % 2 {
            0 => std::mem::replace(&mut relay, scene.relay.spawn(None)).kill(),
            _ => std::mem::replace(&mut consumer, scene.consumer.spawn(None)).kill(),
        };
        scene.turn(turn, 2 * kills, replace).await;
    }
    (relay, consumer)
}

async fn assert_balanced(scene: &Scene) {
    let of_event = "SELECT split_part(message_key, '|', 2) FROM backstop_letter WHERE status = 'open'";
    let open =
        sqlx::query_scalar(of_event).fetch_all(&scene.database.pool).await.expect("PostgreSQL answers");
    let ids = |fail: Fail| -> BTreeSet<String> {
        let events = scene.events.iter().filter(|placed| placed.event.fail.as_ref() == Some(&fail));
        events.map(|placed| placed.id.clone()).collect()
    };
    let books = scene.database.books(&scene.consumer.group).await;
    Books {
        injected: ids(Fail::Hopeless),
        dead_letters: open.into_iter().collect(),
        parked: ids(Fail::Permanent),
        ..books
    }
    .audit()
    .assert_balanced();
}

async fn redriven(broker: Broker) {
    let size = Size::asked();
    let Size { letters, rate, kills } = size;
    let (scene, relay) = Scene::new(broker, letters, |n| size.is_hopeless(n)).await;
    let consumer = scene.consumer.spawn(None);
    let asked = scene.redrive(rate);
    let (relay, consumer) = kill_by_turns(&scene, kills, relay, consumer).await;
    asked.ended(PATIENCE).await;
    scene.until_count("the redrive is done", "backstop_redrive WHERE run = 'done'", 1).await;

    let hopeless = size.hopeless();
    let step = |step: &str| format!("backstop_redrive_letter WHERE step = '{step}'");
    assert_eq!(scene.count(&step("resolved")).await, letters - hopeless);
    assert_eq!(scene.count(&step("failed-again")).await, hopeless);
    assert_eq!(scene.count("backstop_redrive_letter").await, letters, "none is silent, none was left out");
    let applied = (scene.events.len() - hopeless) as i64;
    wait::until("all is applied", PATIENCE, || async {
        scene.database.applied(&scene.consumer.group).await == applied && scene.database.held().await == 0
    })
    .await;
    // The second letter of each: the first is superseded.
    scene.until_count("they are letters again", "backstop_letter WHERE status = 'open'", hopeless).await;
    assert_balanced(&scene).await;
    println!("{letters} letters, at {} a second where {rate} were asked for", scene.rate().await);
    drop((relay, consumer));
    scene.database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_redrive_survives_kills_of_relay_and_consumer_on_kafka() {
    redriven(Broker::Kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_redrive_survives_kills_of_relay_and_consumer_on_rabbitmq() {
    redriven(Broker::RabbitMq).await;
}
