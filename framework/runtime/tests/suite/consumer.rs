//! The loop against the in-memory broker and database: what happens to a message, whatever goes wrong.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstop::sink::Scope;
use backstop::{
    Codec, Consumer, DecodeError, Delivery, Handler, HandlerError, Json, Message, StopPartition, names,
};
use backstop_testkit::memory::{Broker, CommitFault, MemoryTx};
use tokio::sync::oneshot;

use crate::common::{Apply, InTrouble, Order, Scene, Trouble, order};

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_absorbed_and_settled() {
    let scene = Scene::new();
    for _ in 0..3 {
        scene.publish("a", "one", Trouble::None);
    }
    let report = scene.run_until(Scene::settled).await;
    assert_eq!(scene.store.applied(), ["one"]);
    assert_eq!((report.handled, report.duplicates), (1, 2));
}

/// F59: the key waits.
#[tokio::test(start_paused = true)]
async fn a_failed_message_keeps_its_key_in_order_and_lets_others_go_on() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Transient(2));
    scene.publish("a", "a2", Trouble::None);
    scene.publish("a", "a3", Trouble::None);
    scene.publish("b", "b1", Trouble::None);
    let report = scene.run_until(|scene| scene.store.applied().len() == 4).await;
    assert_eq!(scene.store.applied(), ["b1", "a1", "a2", "a3"]);
    assert_eq!((report.failures, report.held), (2, 1));
    assert!(scene.letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_exhausted_is_quarantined_and_its_key_goes_on() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Transient(99));
    scene.publish("a", "a2", Trouble::None);
    let report = scene.run_until(|scene| scene.store.applied() == ["a2"]).await;
    assert_eq!((report.failures, report.quarantined), (3, 1));
    let letter = &scene.letters()[0];
    assert_eq!(letter.headers.get_str(names::REASON), Some("exhausted"));
    assert_eq!(letter.headers.get_str(names::ATTEMPTS), Some("3"));
    assert_eq!(letter.body, order("a", "a1", Trouble::Transient(99)).body);
}

#[tokio::test(start_paused = true)]
async fn what_will_never_pass_is_quarantined_at_once() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Permanent);
    scene.broker.publish("orders", Message::new("order").id("odd").key("a").body("text/plain", "not JSON"));
    scene.run_until(|scene| scene.letters().len() == 2 && scene.settled()).await;
    let reasons: Vec<_> = scene
        .letters()
        .iter()
        .map(|letter| letter.headers.get_str(names::REASON).map(str::to_owned))
        .collect();
    assert!(reasons.contains(&Some("permanent".into())) && reasons.contains(&Some("undecodable".into())));
    assert_eq!(scene.handler.0.load(Ordering::SeqCst), 1, "the handler never sees what cannot be read");
}

/// F84: panic and timeout.
#[tokio::test(start_paused = true)]
async fn a_panic_and_a_slow_handler_are_failures_like_others() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Panic);
    scene.publish("b", "b1", Trouble::Slow(1));
    scene.publish("a", "a2", Trouble::None);
    scene.run_until(|scene| scene.letters().len() == 1 && scene.store.applied().len() == 2).await;
    assert!(
        scene.letters()[0]
            .headers
            .get_str(names::ERROR_MESSAGE)
            .is_some_and(|text| text.contains("panicked"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_dependency_charges_nothing() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Unavailable(40));
    let report = scene.run_until(|scene| scene.store.applied() == ["a1"]).await;
    assert_eq!((report.failures, report.quarantined), (40, 0));
}

#[tokio::test(start_paused = true)]
async fn a_swallowed_error_is_a_failure() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Swallow(1));
    let report = scene.run_until(|scene| scene.store.applied() == ["a1"]).await;
    assert_eq!(report.failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handlers_own_commit_counts_and_its_rollback_is_given_up() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::RawCommit);
    scene.publish("b", "b1", Trouble::RawRollback);
    scene.run_until(|scene| scene.letters().len() == 1 && scene.settled()).await;
    assert_eq!(scene.store.applied(), ["a1"]);
    assert_eq!(scene.letters()[0].headers.get_str(names::REASON), Some("permanent"));
}

/// F85: whatever the database.
#[tokio::test(start_paused = true)]
async fn a_commit_nobody_knows_of_is_looked_up() {
    for fault in [
        CommitFault::Unknown { committed: true },
        CommitFault::Unknown { committed: false },
        CommitFault::RolledBack,
    ] {
        let scene = Scene::new();
        scene.store.fail_next_commit(fault);
        scene.publish("a", "a1", Trouble::None);
        let report = scene.run_until(|scene| scene.settled() && !scene.store.applied().is_empty()).await;
        assert_eq!(scene.store.applied(), ["a1"], "{fault:?}");
        assert_eq!((report.handled, report.quarantined), (1, 0), "{fault:?}");
    }
}

/// F87: messages wait.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_down_is_waited_for() {
    let scene = Scene::new();
    scene.store.fail_begins(25);
    scene.publish("a", "a1", Trouble::None);
    let report = scene.run_until(|scene| scene.store.applied() == ["a1"]).await;
    assert_eq!((report.failures, report.held), (0, 0));
}

/// F56: whatever the broker.
#[tokio::test(start_paused = true)]
async fn a_letter_that_is_not_confirmed_keeps_its_message() {
    let scene = Scene::new();
    scene.broker.fail_publishes("orders.stock.dlq", Scope::Destination, 12);
    scene.publish("a", "a1", Trouble::Permanent);
    scene.publish("b", "b1", Trouble::None);
    scene.run_until(|scene| scene.letters().len() == 1 && scene.store.applied() == ["b1"]).await;
    assert_eq!(scene.handler.0.load(Ordering::SeqCst), 2, "what is given up is not run again");
    assert_eq!(scene.letters()[0].headers.get_str(names::REASON), Some("permanent"));
}

#[tokio::test(start_paused = true)]
async fn without_a_destination_a_key_waits_until_its_cause_is_mended() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Permanent);
    scene.publish("a", "a2", Trouble::None);
    let mended = Arc::new(AtomicU32::new(0));
    let handler = Mendable { apply: scene.handler.clone(), mended: mended.clone() };
    let source = scene.broker.source("stock", ["orders"]);
    let (stop, stopped) = oneshot::channel::<()>();
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), handler);
    let run = tokio::spawn(consumer.dead_letter(StopPartition).run(async {
        let _ = stopped.await;
    }));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let tries = scene.handler.0.load(Ordering::SeqCst);
    assert!((5..20).contains(&tries), "tried now and then: {tries}");
    assert!(scene.store.applied().is_empty() && scene.letters().is_empty());
    mended.store(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(scene.store.applied(), ["a1", "a2"]);
    stop.send(()).expect("the consumer runs");
    run.await.expect("no panic").expect("an orderly end");
}

/// Fails as orders ask until it is mended.
struct Mendable {
    apply: Apply,
    mended: Arc<AtomicU32>,
}

impl Handler<MemoryTx> for Mendable {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        if self.mended.load(Ordering::SeqCst) == 0 {
            return self.apply.handle(delivery, tx).await;
        }
        tx.apply(&delivery.body().name);
        Ok(())
    }
}

/// A codec that cannot cope.
struct Panicking;

impl Codec<Order> for Panicking {
    fn decode(&self, message: &Message) -> Result<Order, DecodeError> {
        assert_ne!(message.id, "a1", "a codec's own fault");
        Json.decode(message)
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_has_not_decoded() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::None);
    scene.publish("a", "a2", Trouble::None);
    let source = scene.broker.source("stock", ["orders"]).ends_when_idle();
    let consumer = Consumer::transactional("stock", source, scene.store.clone(), scene.handler.clone());
    let consumer = consumer.codec(Panicking).dead_letter(scene.broker.dead_letters());
    consumer.run(std::future::pending()).await.expect("an orderly end");
    assert_eq!(scene.letters()[0].headers.get_str(names::REASON), Some("undecodable"));
    assert_eq!(scene.store.applied(), ["a2"]);
}

/// F80: at the door.
#[tokio::test(start_paused = true)]
async fn a_redriven_message_is_applied_once() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Transient(3));
    scene.run_until(|scene| scene.letters().len() == 1).await;
    let mut redriven = backstop::dead_letter::redrive_envelope(&scene.letters()[0]);
    redriven.body = order("a", "a1", Trouble::None).body;
    for _ in 0..2 {
        scene.broker.publish_envelope("orders.stock.redrive", redriven.clone());
    }
    let report = scene.run_until(|scene| scene.settled() && !scene.store.applied().is_empty()).await;
    assert_eq!(scene.store.applied(), ["a1"]);
    assert_eq!(report.handled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_at_the_door_with_a_forged_origin_stops_nobody() {
    let scene = Scene::new();
    for (n, topic) in ["orders\0", &"x".repeat(100_000), "payments"].into_iter().enumerate() {
        let name = format!("d{n}");
        let trouble = if n == 2 { Trouble::Permanent } else { Trouble::None };
        let forged = order("a", &name, trouble)
            .header(names::ORIGINAL_TOPIC, topic.to_owned())
            .header(names::ORIGINAL_PARTITION, "0")
            .header(names::ORIGINAL_OFFSET, "0");
        scene.broker.publish("orders.stock.redrive", forged);
    }
    scene.publish("a", "a1", Trouble::None);
    scene.run_until(|scene| scene.settled() && scene.store.applied().len() == 3).await;
    assert_eq!(scene.letters()[0].headers.get_str(names::ORIGINAL_TOPIC), Some("orders.stock.redrive"));
}

fn large(key: &str, name: &str, trouble: Trouble) -> Message {
    let mut message = order(key, name, trouble);
    let mut body = message.body.take().expect("a body").to_vec();
    body.resize(2_000, b' ');
    message.body("application/json", body)
}

#[tokio::test(start_paused = true)]
async fn what_the_database_will_never_hold_is_quarantined_and_its_key_goes_on() {
    let scene = Scene::new();
    scene.store.hold_at_most(1_000);
    scene.broker.publish("orders", large("a", "a1", Trouble::Transient(1)));
    scene.publish("a", "a2", Trouble::None);
    scene.publish("b", "b1", Trouble::Transient(2));
    scene.broker.publish("orders", large("b", "b2", Trouble::None));
    scene.broker.publish("orders.stock.redrive", large("c", "c1", Trouble::None));
    scene.broker.publish("orders.stock.redrive", order("c", "c2", Trouble::None));
    scene.run_until(|scene| scene.settled() && scene.store.applied().len() == 3).await;
    assert_eq!(scene.store.applied().into_iter().collect::<BTreeSet<_>>().len(), 3);
    let letters: BTreeSet<_> = scene.letters().iter().map(told).collect();
    let told = |id: &str, attempts: &str| (id.to_owned(), "refused".to_owned(), attempts.to_owned());
    assert_eq!(letters, [told("a1", "1"), told("b2", "0"), told("c1", "0")].into());
    let chain = scene.letters()[0].headers.get_str(names::ERROR_CHAIN).map(str::to_owned);
    assert!(chain.as_ref().is_some_and(|chain| chain.contains("larger than")), "{chain:?}");
}

/// Id, reason and attempts of a letter.
fn told(letter: &backstop::Envelope) -> (String, String, String) {
    let of = |name: &str| letter.headers.get_str(name).expect("a header of every letter").to_owned();
    (of("ce_id"), of(names::REASON), of(names::ATTEMPTS))
}

#[tokio::test(start_paused = true)]
async fn a_database_that_refuses_everything_is_waited_for() {
    let scene = Scene::new();
    scene.publish("a", "a1", Trouble::Slow(1));
    let store = scene.store.clone();
    let outage = tokio::spawn(async move {
        // The consumer has started by then, and its handler is at work.
        tokio::time::sleep(Duration::from_millis(10)).await;
        store.set_damaged(true);
        tokio::time::sleep(Duration::from_secs(600)).await;
        store.set_damaged(false);
    });
    scene.run_until(|scene| scene.store.applied() == ["a1"]).await;
    outage.await.expect("no panic");
    assert!(scene.letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_without_a_name_or_workers_says_so() {
    let scene = Scene::new();
    let consumer = |name: &str, workers| {
        Consumer::transactional(
            name,
            scene.broker.source("stock", ["orders"]),
            scene.store.clone(),
            Apply::default(),
        )
        .dead_letter(scene.broker.dead_letters())
        .concurrency(workers)
        .run(std::future::pending())
    };
    let error = consumer("", 1).await.expect_err("no name");
    assert!(error.to_string().contains("consumer name"));
    let error = consumer("stock", 0).await.expect_err("no workers");
    assert!(error.to_string().contains("concurrency"));
}

/// Fails the first two times it is called for a message.
#[derive(Clone, Default)]
struct Flaky(Arc<AtomicU32>);

impl Handler<()> for Flaky {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, (): &mut ()) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        if delivery.attempt() <= 2 { Err(InTrouble.into()) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_consumer_retries_in_place() {
    let broker = Broker::new();
    broker.create("orders", 1);
    broker.publish("orders", order("a", "a1", Trouble::None));
    let handler = Flaky::default();
    let report =
        Consumer::plain("stock", broker.source("stock", ["orders"]).ends_when_idle(), handler.clone())
            .dead_letter(broker.dead_letters())
            .run(std::future::pending())
            .await
            .expect("an orderly end");
    assert_eq!((report.handled, report.failures), (1, 2));
    assert_eq!(broker.unsettled("stock"), 0);
}

/// What is written under a claim is lost with it: a held message whose failures are forgotten would have no end.
#[tokio::test(start_paused = true)]
async fn a_held_failure_that_cannot_be_written_under_its_claim_counts_all_the_same() {
    for fault in [CommitFault::RolledBack, CommitFault::Unknown { committed: true }] {
        let (scene, armed) = (Scene::new(), Cell::new(false));
        scene.publish("a", "a0", Trouble::Transient(9));
        let calls = scene.handler.0.clone();
        scene
            .run_until(|scene| {
                if calls.load(Ordering::SeqCst) == 1 && !armed.replace(true) {
                    scene.store.fail_next_commit(fault);
                }
                scene.letters().len() == 1
            })
            .await;
        assert_eq!(scene.letters()[0].headers.get_str(names::ATTEMPTS), Some("3"), "{fault:?}");
        assert_eq!(calls.load(Ordering::SeqCst), 3, "{fault:?}");
    }
}
