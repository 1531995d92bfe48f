//! What a consumer shows of itself, and how it is steered from outside.

use std::time::Duration;

use backstop::{BreakerPhase, Consumer, Delivery, Handler, HandlerError, RunState};
use tokio::time::{Instant, sleep};

use crate::steered::{Mode, Scene, Switch, seconds};

#[tokio::test(start_paused = true)]
async fn a_consumer_tells_where_it_is_in_its_life() {
    let scene = Scene::new();
    scene.store.set_unreachable(true);
    let run = scene.start(Mode::Transactional(1));
    sleep(seconds(30)).await;
    assert_eq!(run.handle.state(), RunState::Starting, "its database does not answer");
    scene.store.set_unreachable(false);
    scene.until("it runs", || run.handle.state() == RunState::Running).await;
    assert_eq!(run.handle.consumer(), "stock");
    let handle = run.handle.clone();
    run.stop().await;
    assert_eq!(handle.state(), RunState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_pause_begins_nothing_and_ends() {
    for mode in [Mode::Transactional(1), Mode::Transactional(32), Mode::Plain] {
        let scene = Scene::new();
        let run = scene.start(mode);
        scene.publish_over(5, 0..10);
        scene.until("it runs", || scene.applied() == 10).await;
        run.handle.pause();
        scene.publish_over(5, 10..1_000);
        sleep(seconds(3_600)).await;
        assert_eq!((scene.applied(), run.handle.state()), (10, RunState::Paused), "{mode:?}");
        run.handle.health().expect("a pause is a reason");
        run.handle.resume();
        run.handle.health().expect("it has only just begun again");
        scene.until("it goes on", || scene.applied() == 1_000).await;
        assert_eq!(run.handle.state(), RunState::Running);
        run.stop().await;
        scene.assert_order_of_keys();
    }
}

#[tokio::test(start_paused = true)]
async fn held_messages_wait_in_a_pause_too() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.down.set(true);
    scene.publish_over(1, 0..1);
    scene.until("it is held", || scene.is_settled()).await;
    run.handle.pause();
    scene.down.set(false);
    sleep(seconds(600)).await;
    assert_eq!(scene.applied(), 0);
    run.handle.resume();
    scene.until("it is applied", || scene.applied() == 1).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_consumer_in_order() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(5, 0..500);
    scene.until("it runs", || scene.applied() > 10).await;
    run.handle.drain().await;
    assert_eq!(run.handle.state(), RunState::Stopped);
    let applied = scene.applied();
    sleep(seconds(60)).await;
    assert_eq!(scene.applied(), applied);
    run.stop().await;
    let next = scene.start(Mode::Transactional(1));
    scene.until("the next one goes on", || scene.applied() == 500 && scene.is_settled()).await;
    assert_eq!(next.stop().await.duplicates, 0, "what was handled was settled");
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_consumer_that_is_paused_or_that_starts() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(5, 0..500);
    run.handle.pause();
    sleep(seconds(5)).await;
    run.handle.drain().await;
    run.stop().await;
    scene.store.set_unreachable(true);
    let run = scene.start(Mode::Transactional(1));
    sleep(seconds(5)).await;
    run.handle.drain().await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_whose_source_has_ended_can_be_stopped_in_an_outage() {
    let scene = Scene::new();
    scene.publish_over(5, 0..50);
    let source = scene.broker.source("stock", ["orders"]).ends_when_idle();
    let consumer = Consumer::plain("stock", source, crate::steered::apply(&scene));
    let consumer = consumer.dead_letter(scene.broker.dead_letters());
    let handle = consumer.handle();
    scene.down.set(true);
    let run = tokio::spawn(consumer.run(std::future::pending()));
    sleep(seconds(600)).await;
    assert_eq!(scene.applied(), 0);
    handle.drain().await;
    run.await.expect("no panic").expect("an orderly end");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_named() {
    let scene = Scene::new();
    scene.hang(7);
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(1, 0..20);
    scene.until("it gets there", || scene.applied() == 7).await;
    let began = Instant::now();
    scene.until("it is noticed", || run.handle.health().is_err()).await;
    let noticed = began.elapsed();
    assert!((seconds(59)..seconds(62)).contains(&noticed), "after {noticed:?}");
    let stalled = run.handle.health().expect_err("as before");
    assert_eq!((&*stalled.message.place, stalled.message.attempt), ("orders", 1));
    assert_eq!(stalled.message.key.as_deref(), Some("key-0"));
    assert_eq!((stalled.message.partition.is_some(), stalled.message.offset), (true, Some(7)));
    let text = stalled.to_string();
    for part in ["\"stock\"", "orders partition ", "offset 7", "key \"key-0\"", "attempt 1", "13 in flight"] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert_eq!(run.handle.status().stalled, Some(stalled));
}

#[tokio::test(start_paused = true)]
async fn what_waited_through_an_outage_is_not_stalled_when_it_ends() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.until("it runs", || run.handle.state() == RunState::Running).await;
    scene.store.set_unreachable(true);
    scene.publish_over(5, 0..50);
    sleep(seconds(600)).await;
    assert_eq!((scene.applied(), run.handle.state()), (0, RunState::BreakerOpen));
    assert!(run.handle.status().in_flight > 0 && !run.handle.status().at_work.is_empty());
    run.handle.close_breaker();
    assert_eq!(run.handle.breaker().state, BreakerPhase::Closing);
    run.handle.health().expect("it begins again just now");
    sleep(seconds(1)).await;
    assert_eq!(run.handle.state(), RunState::BreakerOpen, "it is still down");
    scene.store.set_unreachable(false);
    scene.until("it goes on", || scene.applied() == 50).await;
    run.stop().await;
}

/// Blocks its thread at the message of that number until it is released: no time limit can cut it off.
struct Blocks {
    number: u64,
    released: Switch,
}

impl Handler<()> for Blocks {
    type Message = u64;

    async fn handle(&self, delivery: &Delivery<u64>, _: &mut ()) -> Result<(), HandlerError> {
        if *delivery.body() == self.number {
            let blocked = || {
                while !self.released.is_on() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            tokio::task::block_in_place(blocked);
        }
        Ok(())
    }
}

/// Lets the test end, however it does.
struct Release(Switch);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_is_named_although_others_go_on() {
    let scene = Scene::new();
    let released = Switch::default();
    let release = Release(released.clone());
    let handler = Blocks { number: 7, released };
    let source = scene.broker.source("stock", ["orders"]);
    let consumer = Consumer::plain("stock", source, handler)
        .dead_letter(scene.broker.dead_letters())
        .handler_timeout(Duration::from_millis(100))
        .stalled_after(Duration::from_millis(400));
    let handle = consumer.handle();
    let run = tokio::spawn(consumer.run(std::future::pending()));
    let mut published = 0;
    while handle.health().is_ok() {
        scene.publish_over(10, published..published + 10);
        published += 10;
        sleep(Duration::from_millis(20)).await;
        assert!(published < 10_000, "it is never noticed");
    }
    assert!(handle.stats().handled > 20, "others go on");
    let stalled = handle.health().expect_err("as before");
    assert_eq!(stalled.message.key.as_deref(), Some("key-7"));
    drop(release);
    handle.drain().await;
    run.await.expect("no panic").expect("an orderly end");
}

#[tokio::test(start_paused = true)]
async fn an_idle_consumer_is_well() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(5, 0..5);
    scene.until("it runs", || scene.applied() == 5).await;
    sleep(seconds(3_600)).await;
    run.handle.health().expect("nothing waits");
    scene.publish_over(5, 5..10);
    scene.until("it goes on", || scene.applied() == 10 || run.handle.health().is_err()).await;
    run.handle.health().expect("what has just come does not wait yet");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn lag_and_watermark_are_told() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(1, 0..30);
    scene.until("it runs", || scene.applied() == 30 && scene.is_settled()).await;
    assert_eq!(run.handle.status().lag, Some(0));
    run.handle.open_breaker();
    assert_eq!(run.handle.breaker().state, BreakerPhase::Open);
    scene.publish_over(1, 30..530);
    sleep(seconds(1)).await;
    let status = run.handle.status();
    assert_eq!((status.lag, status.state), (Some(500), RunState::BreakerOpen));
    let busy = status.partitions.iter().find(|partition| partition.lag > Some(0)).expect("there is lag");
    assert_eq!((&*busy.place, busy.watermark), ("orders", Some(30)));
    assert_eq!(status.counters.handled, 30);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn keys_are_redacted() {
    let scene = Scene::new();
    scene.hang(0);
    scene.publish_over(1, 0..1);
    let source = scene.broker.source("stock", ["orders"]);
    let consumer =
        Consumer::transactional("stock", source, scene.store.clone(), crate::steered::apply(&scene))
            .redact(|text| text.replace("key-0", "(a key)"))
            .dead_letter(scene.broker.dead_letters());
    let handle = consumer.handle();
    let run = tokio::spawn(consumer.run(std::future::pending()));
    scene.until("it hangs", || !handle.status().at_work.is_empty()).await;
    assert_eq!(handle.status().at_work[0].key.as_deref(), Some("(a key)"));
    run.abort();
    assert!(run.await.is_err());
    assert_eq!(handle.state(), RunState::Stopped, "however it ended");
}
