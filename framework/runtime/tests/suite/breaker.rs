//! Outages against the in-memory broker and database: nothing is charged, nothing is dead, and it goes on by itself.

use std::time::Duration;

use backstop::{BreakerCause, BreakerPhase, RunState, names};

use crate::steered::{Mode, Scene, seconds};

/// Messages per second under an outage, and how long it lasts.
const RATE: u64 = 4;
const OUTAGE: Duration = Duration::from_secs(300);

/// Publishes for the whole of an outage that `begin` and `end` make; how long after it the first message gets through
/// that was not handled before.
async fn outage(scene: &Scene, run: &crate::steered::Run, begin: impl Fn(), end: impl Fn()) -> Duration {
    scene.publish_over(20, 0..40);
    scene.until("it runs", || scene.applied() == 40).await;
    begin();
    scene.publish_over(20, 40..60);
    scene.until("the breaker opens", || run.handle.state() == RunState::BreakerOpen).await;
    let before = scene.tries();
    for n in 0..OUTAGE.as_secs() {
        let first = 60 + n * RATE;
        scene.publish_over(20, first..first + RATE);
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(run.handle.state(), RunState::BreakerOpen, "after {n} s");
        run.handle.health().expect("an open breaker is a reason");
    }
    let tries = scene.tries() - before;
    assert!(tries <= 200, "{tries} tries while it was open");
    let applied = scene.applied();
    end();
    let ended = tokio::time::Instant::now();
    scene.until("it goes on", || scene.applied() > applied).await;
    let resumed = ended.elapsed();
    let all = 60 + OUTAGE.as_secs() as usize * RATE as usize;
    scene.until("all are applied", || scene.applied() == all && scene.is_settled()).await;
    resumed
}

async fn nothing_is_charged(scene: Scene, mode: Mode, database: bool) {
    let run = scene.start(mode);
    let (store, down) = (scene.store.clone(), scene.down.clone());
    let switch = |is_down| match database {
        true => store.set_unreachable(is_down),
        false => down.set(is_down),
    };
    let resumed = outage(&scene, &run, || switch(true), || switch(false)).await;
    assert!(resumed <= seconds(5), "after {resumed:?}");
    tokio::time::sleep(seconds(10)).await;
    assert_eq!(run.handle.breaker().state, BreakerPhase::Closed);
    let report = run.stop().await;
    assert_eq!(report.quarantined, 0);
    assert_eq!(scene.highest_attempt(), 1, "nobody was charged");
    scene.assert_order_of_keys();
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_charges_nothing() {
    nothing_is_charged(Scene::new(), Mode::Transactional(1), true).await;
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_charges_nothing_in_groups() {
    nothing_is_charged(Scene::new(), Mode::Transactional(32), true).await;
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_away_charges_nothing() {
    nothing_is_charged(Scene::new(), Mode::Transactional(1), false).await;
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_away_charges_nothing_in_groups() {
    nothing_is_charged(Scene::new(), Mode::Transactional(32), false).await;
}

#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_away_for_longer_than_a_plain_consumer_keeps_messages() {
    nothing_is_charged(Scene::new(), Mode::Plain, false).await;
}

/// One key says so for ever, others come and go.
async fn the_poison_is_quarantined(mode: Mode) {
    let scene = Scene::new();
    scene.poison("key-3");
    let run = scene.start(mode);
    let mut published = 0;
    while scene.letters().is_empty() {
        scene.publish_over(10, published..published + 10);
        published += 10;
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(run.handle.breaker().state, BreakerPhase::Closed, "one key is no outage");
        assert!(published < 1_000, "it is never given up");
    }
    let letter = &scene.letters()[0];
    assert_eq!(letter.headers.get_str(names::REASON), Some("exhausted"));
    scene.heal();
    let all = published as usize - scene.letters().len();
    scene.until("all others are applied", || scene.applied() == all && scene.is_settled()).await;
    assert_eq!(run.stop().await.quarantined, 1);
    scene.assert_order_of_keys();
}

#[tokio::test(start_paused = true)]
async fn one_message_that_is_always_unavailable_is_quarantined_at_last() {
    the_poison_is_quarantined(Mode::Transactional(1)).await;
}

#[tokio::test(start_paused = true)]
async fn one_message_that_is_always_unavailable_is_quarantined_at_last_in_groups() {
    the_poison_is_quarantined(Mode::Transactional(32)).await;
}

#[tokio::test(start_paused = true)]
async fn one_message_that_is_always_unavailable_is_quarantined_at_last_without_a_database() {
    the_poison_is_quarantined(Mode::Plain).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_charged_while_nobody_else_succeeds() {
    let scene = Scene::new();
    scene.poison("key-0");
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(1, 0..1);
    tokio::time::sleep(seconds(3_600)).await;
    assert!(scene.letters().is_empty() && scene.highest_attempt() == 1, "who is to know?");
    assert_eq!(run.handle.breaker().state, BreakerPhase::Closed);
    let waiting = run.handle.status().waiting_keys;
    assert_eq!(waiting.len(), 1, "but it is told");
    assert_eq!((&*waiting[0].key, waiting[0].attempts), ("key-0", 0));
    assert!(waiting[0].why.contains("is down") && waiting[0].waits_for_s >= 3_500, "{waiting:?}");
    scene.heal();
    scene.until("it is applied", || scene.applied() == 1).await;
    assert!(run.handle.status().waiting_keys.is_empty());
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_consumer_notices_that_its_database_is_lost_and_back() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    tokio::time::sleep(seconds(60)).await;
    scene.store.set_unreachable(true);
    scene.until("it notices", || run.handle.breaker().cause == Some(BreakerCause::Database)).await;
    scene.store.set_unreachable(false);
    scene.until("it notices", || run.handle.breaker().state == BreakerPhase::Closed).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn probes_are_found_where_everything_waits_at_the_source() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.down.set(true);
    scene.publish_over(3, 0..3);
    scene.until("it opens", || run.handle.state() == RunState::BreakerOpen).await;
    scene.until("all three are held", || scene.is_settled()).await;
    // Another instance, whose dependency is not down, sees to what is held.
    let other = Scene { store: scene.store.clone(), ..Scene::new() };
    let elsewhere = other.start(Mode::Transactional(1));
    other.until("it handles them", || other.applied() == 3).await;
    elsewhere.stop().await;
    assert_eq!(run.handle.state(), RunState::BreakerOpen, "this one does not know");
    scene.down.set(false);
    scene.publish_over(1, 10..11);
    scene.until("the new one is the probe", || scene.applied() == 4).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_stops_in_the_middle_of_an_outage() {
    for mode in [Mode::Transactional(1), Mode::Transactional(32), Mode::Plain] {
        let scene = Scene::new();
        let run = scene.start(mode);
        scene.down.set(true);
        scene.publish_over(50, 0..500);
        scene.until("it opens", || run.handle.state() == RunState::BreakerOpen).await;
        let began = tokio::time::Instant::now();
        run.stop().await;
        assert!(began.elapsed() < seconds(5), "{mode:?}: {:?}", began.elapsed());
        let scene = Scene { down: Default::default(), ..scene };
        let run = scene.start(mode);
        scene.until("the next one handles all", || scene.applied() == 500).await;
        assert_eq!(run.stop().await.quarantined, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_pauses_the_source_at_its_bound() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    scene.publish_over(50, 0..50);
    scene.until("it runs", || scene.applied() == 50).await;
    run.handle.open_breaker();
    scene.publish_over(50, 50..5_000);
    tokio::time::sleep(seconds(3_600)).await;
    assert_eq!(scene.applied(), 50, "nothing passes, not even probes");
    assert!(run.handle.status().in_flight <= crate::steered::WINDOW, "{}", run.handle.status().in_flight);
    assert_eq!(run.handle.breaker().cause, Some(BreakerCause::Operator));
    run.handle.close_breaker();
    scene.until("it goes on", || scene.applied() == 5_000).await;
    run.stop().await;
    scene.assert_order_of_keys();
}
