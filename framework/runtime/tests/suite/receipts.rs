//! Receipts and reports against the in-memory broker and database: told once at least, never untrue, and in nobody's
//! way.

use std::time::Duration;

use backstop::cloudevents::decode;
use backstop::command::Command;
use backstop::held_keys::Ending;
use backstop::report_in::{BreakerState, ConsumerState};
use backstop::sink::Scope;
use backstop::{
    Consumer, ConsumerReport, Delivery, Destination, ErrorClass, Handler, HandlerError, Message, MessageKey,
    Origin, Receipt, ReceiptOutcome, RetryPolicy, Via, names,
};
use backstop_testkit::memory::CommitFault;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::common::{Order, Scene, Trouble, order};

const RECEIPTS: &str = "receipts";
const DOOR: &str = "orders.stock.redrive";

/// A message as the relay sends it through the door.
fn redriven(name: &str, trouble: Trouble) -> Message {
    order("a", name, trouble)
        .header(names::MESSAGE_KEY, format!("/tests|{name}"))
        .header(names::DEAD_LETTER_ID, format!("letter-{name}"))
        .header(names::REDRIVE_GENERATION, "1")
        .header(names::REDRIVE_ID, "job-1")
        .header(names::ORIGINAL_TOPIC, "orders")
        .header(names::ORIGINAL_PARTITION, "0")
        .header(names::ORIGINAL_OFFSET, "0")
}

fn scene() -> Scene {
    let scene = Scene::new();
    scene.broker.create(RECEIPTS, 1);
    scene
}

/// A running consumer; dropped, it is killed.
struct Run {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Run {
    fn transactional(scene: &Scene) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let consumer = Consumer::transactional(
            "stock",
            scene.broker.source("stock", ["orders"]),
            scene.store.clone(),
            scene.handler.clone(),
        )
        .dead_letter(scene.broker.dead_letters())
        .receipts(scene.broker.sink(), Destination::new(RECEIPTS))
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)).max_attempts(3))
        .version("2.4.1");
        let task = tokio::spawn(async move {
            consumer.run(async { drop(stopped.await) }).await.expect("an orderly end");
        });
        Self { stop: Some(stop), task }
    }

    async fn stop(mut self) {
        self.stop.take().expect("not stopped yet").send(()).expect("the consumer runs");
        (&mut self.task).await.expect("no panic");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(3_600);
    while !done() {
        assert!(Instant::now() < patience, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn told(scene: &Scene) -> Vec<Message> {
    let origin = Origin::Kafka { topic: RECEIPTS.into(), partition: 0, offset: 0, timestamp: None };
    let published = scene.broker.published(RECEIPTS).into_iter();
    published.map(|envelope| decode(envelope, &origin, Via::Live, None).0).collect()
}

fn receipts(scene: &Scene) -> Vec<Receipt> {
    let told = told(scene);
    told.iter().filter_map(|message| Receipt::from_message(message).ok()).collect()
}

fn reports(scene: &Scene) -> Vec<ConsumerReport> {
    let told = told(scene);
    told.iter().filter_map(|message| ConsumerReport::from_message(message).ok()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_redriven_message_is_acknowledged_once_it_is_committed() {
    let scene = scene();
    scene.broker.publish(DOOR, redriven("a1", Trouble::Transient(2)));
    let run = Run::transactional(&scene);
    until("a receipt", || !receipts(&scene).is_empty()).await;
    run.stop().await;
    assert_eq!(scene.store.applied(), ["a1"]);
    let [receipt] = &receipts(&scene)[..] else { panic!("one receipt: {:?}", receipts(&scene)) };
    assert_eq!(receipt.message_key.as_str(), "/tests|a1");
    assert_eq!((receipt.letter.as_deref(), receipt.redrive.as_deref()), (Some("letter-a1"), Some("job-1")));
    assert_eq!((receipt.generation, receipt.outcome), (1, ReceiptOutcome::Handled));
    assert!(scene.store.receipts_owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_handled_before_is_acknowledged_too() {
    let scene = scene();
    scene.publish("a", "a1", Trouble::None);
    let run = Run::transactional(&scene);
    until("applied", || scene.store.applied() == ["a1"]).await;
    scene.broker.publish(DOOR, redriven("a1", Trouble::None));
    until("a receipt", || !receipts(&scene).is_empty()).await;
    run.stop().await;
    assert_eq!(scene.store.applied(), ["a1"]);
    assert_eq!(receipts(&scene)[0].outcome, ReceiptOutcome::AlreadyHandled);
    assert!(scene.settled());
}

#[tokio::test(start_paused = true)]
async fn live_and_replayed_messages_want_no_receipt_and_failed_ones_get_none() {
    let scene = scene();
    scene.publish("a", "a1", Trouble::None);
    scene.broker.publish(DOOR, order("b", "b1", Trouble::None));
    scene.broker.publish(DOOR, redriven("c1", Trouble::Permanent));
    let run = Run::transactional(&scene);
    until("all done", || scene.settled() && scene.letters().len() == 1 && scene.store.applied().len() == 2)
        .await;
    run.stop().await;
    assert_eq!(receipts(&scene), []);
    assert!(scene.store.receipts_owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_takes_nothing_is_in_nobodys_way() {
    let scene = scene();
    scene.broker.fail_publishes(RECEIPTS, Scope::Destination, 60);
    scene.broker.publish(DOOR, redriven("a1", Trouble::None));
    let run = Run::transactional(&scene);
    until("applied", || scene.store.applied() == ["a1"]).await;
    scene.publish("a", "a2", Trouble::None);
    until("the key goes on", || scene.store.applied() == ["a1", "a2"]).await;
    assert_eq!((receipts(&scene).len(), scene.settled()), (0, true));
    assert_eq!(scene.store.receipts_owed().len(), 1, "it is not forgotten");
    until("a receipt at last", || receipts(&scene).len() == 1).await;
    run.stop().await;
    assert!(scene.store.receipts_owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_its_process_took_along_is_published_by_another() {
    let scene = scene();
    scene.broker.fail_publishes(RECEIPTS, Scope::Destination, u32::MAX);
    scene.broker.publish(DOOR, redriven("a1", Trouble::None));
    let run = Run::transactional(&scene);
    until("applied", || scene.store.applied() == ["a1"] && scene.settled()).await;
    drop(run);
    assert_eq!(scene.store.receipts_owed().len(), 1);
    // The faults are still there for that topic; another name is as good for the next instance.
    let next = Scene { broker: scene.broker.clone(), store: scene.store.clone(), ..Scene::new() };
    next.broker.create("receipts-2", 1);
    let (stop, stopped) = oneshot::channel::<()>();
    let consumer = Consumer::transactional(
        "stock",
        next.broker.source("stock", ["orders"]),
        next.store.clone(),
        next.handler.clone(),
    )
    .dead_letter(next.broker.dead_letters())
    .receipts(next.broker.sink(), Destination::new("receipts-2"));
    let task = tokio::spawn(consumer.run(async { drop(stopped.await) }));
    scene.store.advance(Duration::from_secs(60));
    until("published by another", || scene.store.receipts_owed().is_empty()).await;
    stop.send(()).expect("the consumer runs");
    task.await.expect("no panic").expect("an orderly end");
    let kinds = next.broker.published("receipts-2");
    let kinds: Vec<_> = kinds.iter().filter_map(|told| told.headers.get_str("ce_type")).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == Receipt::KIND).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_rolls_back_by_itself_is_never_said_to_have_handled() {
    let scene = scene();
    scene.broker.publish(DOOR, redriven("a1", Trouble::RawRollback));
    let run = Run::transactional(&scene);
    until("given up", || scene.letters().len() == 1 && scene.settled()).await;
    run.stop().await;
    assert_eq!(receipts(&scene), []);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_knows_of_is_acknowledged_all_the_same() {
    for fault in [
        CommitFault::Unknown { committed: true },
        CommitFault::Unknown { committed: false },
        CommitFault::EndedByHandler { committed: true },
        CommitFault::RolledBack,
    ] {
        let scene = scene();
        let run = Run::transactional(&scene);
        // The fault is for the redriven message's own commit.
        until("started", || !reports(&scene).is_empty()).await;
        scene.store.fail_next_commit(fault);
        scene.broker.publish(DOOR, redriven("a1", Trouble::None));
        until("a receipt", || !receipts(&scene).is_empty()).await;
        run.stop().await;
        assert_eq!(scene.store.applied(), ["a1"], "{fault:?}");
        assert!(scene.store.receipts_owed().is_empty(), "{fault:?}");
    }
}

/// Handles everything.
struct Accept;

impl Handler<()> for Accept {
    type Message = Order;

    async fn handle(&self, _: &Delivery<Order>, (): &mut ()) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_consumer_settles_after_its_receipt() {
    let scene = scene();
    scene.broker.fail_publishes(RECEIPTS, Scope::Broker, 50);
    scene.broker.publish(DOOR, redriven("a1", Trouble::None));
    let (stop, stopped) = oneshot::channel::<()>();
    let consumer = Consumer::plain("stock", scene.broker.source("stock", ["orders"]), Accept)
        .dead_letter(scene.broker.dead_letters())
        .receipts(scene.broker.sink(), Destination::new(RECEIPTS));
    let task = tokio::spawn(consumer.run(async { drop(stopped.await) }));
    sleep(Duration::from_secs(10)).await;
    assert_eq!((receipts(&scene).len(), scene.settled()), (0, false), "it waits for its receipt");
    until("settled", || scene.settled()).await;
    assert_eq!(receipts(&scene).len(), 1);
    stop.send(()).expect("the consumer runs");
    task.await.expect("no panic").expect("an orderly end");
    assert_eq!(reports(&scene).last().map(|report| report.state), Some(ConsumerState::Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_reports_in_every_half_minute_and_says_goodbye() {
    let scene = scene();
    scene.publish("a", "a1", Trouble::Transient(1));
    scene.publish("a", "a2", Trouble::None);
    let run = Run::transactional(&scene);
    until("applied", || scene.store.applied().len() == 2).await;
    sleep(Duration::from_secs(95)).await;
    run.stop().await;
    let reports = reports(&scene);
    assert!((4..=5).contains(&(reports.len() - 1)), "{} reports", reports.len());
    let (last, others) = reports.split_last().expect("reports");
    assert_eq!(last.state, ConsumerState::Stopped);
    for report in others {
        assert_eq!((report.consumer.as_str(), report.state), ("stock", ConsumerState::Running));
        assert_eq!(report.version.as_deref(), Some("2.4.1"));
        assert_eq!(report.inbox_retention_seconds, Some(7 * 24 * 60 * 60));
        assert_eq!(report.breaker, Some(BreakerState::Closed));
        assert_eq!(report.instance, last.instance);
    }
    let last = others.last().expect("reports");
    assert_eq!((last.held, last.oldest_held_seconds, last.lag), (Some(0), None, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_state_is_reported_at_once() {
    let scene = scene();
    let (stop, stopped) = oneshot::channel::<()>();
    let consumer = Consumer::plain("stock", scene.broker.source("stock", ["orders"]), Accept)
        .dead_letter(scene.broker.dead_letters())
        .receipts(scene.broker.sink(), Destination::new(RECEIPTS));
    let handle = consumer.handle();
    let task = tokio::spawn(consumer.run(async { drop(stopped.await) }));
    until("a first report", || reports(&scene).len() == 1).await;
    let began = Instant::now();
    handle.pause();
    until("a second report", || reports(&scene).len() == 2).await;
    handle.resume();
    handle.open_breaker();
    let open = || reports(&scene).last().is_some_and(|report| report.breaker == Some(BreakerState::Open));
    until("the breaker is told of", open).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(reports(&scene)[1].state, ConsumerState::Paused);
    assert!(reports(&scene).iter().all(|report| report.breaker_closings == Some(0)));
    handle.close_breaker();
    let closed = || reports(&scene).last().is_some_and(|report| report.breaker_closings == Some(1));
    until("that it has closed is told", closed).await;
    stop.send(()).expect("the consumer runs");
    task.await.expect("no panic").expect("an orderly end");
    let last = reports(&scene).pop().expect("reports");
    assert_eq!((last.state, last.breaker), (ConsumerState::Stopped, None));
    let closed_at: Vec<_> = reports(&scene).iter().filter_map(|report| report.breaker_closed_at).collect();
    assert!(closed_at.len() >= 2 && closed_at.iter().all(|at| *at == closed_at[0]), "{closed_at:?}");
    assert_eq!(last.breaker_closings, Some(1), "who goes tells it once more");
}

#[tokio::test(start_paused = true)]
async fn without_a_destination_nothing_is_owed() {
    let scene = Scene::new();
    scene.broker.publish(DOOR, redriven("a1", Trouble::None));
    scene.run_until(|scene| scene.store.applied() == ["a1"]).await;
    assert!(scene.store.receipts_owed().is_empty());
}

/// Whoever sent a command learns what became of it, as of a redrive of the same letter.
#[tokio::test(start_paused = true)]
async fn commands_are_acknowledged() {
    let scene = scene();
    for (id, ending) in
        [("a1", Ending::Skip), ("a2", Ending::Release), ("a3", Ending::Resolve), ("a1", Ending::Resolve)]
    {
        let key = MessageKey::new("/tests", id.as_bytes());
        let mut command = Command { ending, generation: Some(0) }.envelope(&key, None);
        command.headers.set(names::DEAD_LETTER_ID, format!("letter-{id}"));
        scene.broker.publish_envelope(DOOR, command);
    }
    let run = Run::transactional(&scene);
    until("receipts", || receipts(&scene).len() >= 4).await;
    run.stop().await;
    let mut told: Vec<_> = receipts(&scene)
        .into_iter()
        .map(|receipt| (receipt.letter.unwrap_or_default(), receipt.generation, receipt.outcome))
        .collect();
    told.sort_by_key(|(letter, _, outcome)| (letter.clone(), outcome.as_str()));
    let of = |id: &str, outcome| (format!("letter-{id}"), 1, outcome);
    let expected = [
        of("a1", ReceiptOutcome::AlreadyHandled),
        of("a1", ReceiptOutcome::Skipped),
        of("a2", ReceiptOutcome::Released),
        of("a3", ReceiptOutcome::Handled),
    ];
    assert_eq!(told, expected);
    assert!(scene.settled());
}
