//! `ordered()` against the in-memory broker and database: a key waits for the message of it that was given up.

use std::cell::Cell;
use std::time::Duration;

use backstop::command::Command;
use backstop::dead_letter::redrive_envelope;
use backstop::held::{HeldMessages, HeldSummary};
use backstop::held_keys::Ending;
use backstop::{Envelope, GroupCommit, MessageKey, Snapshot, names};

use crate::common::{Scene, Trouble, order};

const DOOR: &str = "orders.stock.redrive";

fn scene() -> Scene {
    Scene { ordered: true, ..Scene::new() }
}

/// Three messages of a key, of which the first is in trouble, and one of another key.
fn publish(scene: &Scene, trouble: Trouble) {
    scene.publish("a", "a0", trouble);
    scene.publish("a", "a1", Trouble::None);
    scene.publish("a", "a2", Trouble::None);
    scene.publish("b", "b0", Trouble::None);
}

/// What was applied of the first key, in its order.
fn of_a(scene: &Scene) -> Vec<String> {
    scene.store.applied().into_iter().filter(|name| name.starts_with('a')).collect()
}

/// Letters, messages of the first key that are applied, and what is done then.
type Step<'a> = (usize, usize, &'a dyn Fn(&Scene));

/// Runs the consumer; each of these is done as soon as the one before has led to its number of letters, and to so much
/// applied of the first key. Ends when everything is settled.
async fn run(scene: &Scene, steps: &[Step<'_>], applied: usize) -> Snapshot {
    let done = Cell::new(0);
    scene
        .run_until(|scene| {
            if !scene.settled() {
                return false;
            }
            let Some((letters, of_key, step)) = steps.get(done.get()) else {
                return of_a(scene).len() == applied;
            };
            if scene.letters().len() == *letters && of_a(scene).len() == *of_key {
                done.set(done.get() + 1);
                step(scene);
            }
            false
        })
        .await
}

fn redrive(scene: &Scene, letter: usize) {
    scene.broker.publish_envelope(DOOR, redrive_envelope(&scene.letters()[letter]));
}

fn command(letter: &Envelope, ending: Ending, generation: Option<u32>) -> Envelope {
    let key =
        letter.headers.get_str(names::MESSAGE_KEY).and_then(MessageKey::parse).expect("a letter has one");
    Command { ending, generation }.envelope(&key, letter.key.clone())
}

fn send(scene: &Scene, ending: Ending) {
    scene.broker.publish_envelope(DOOR, command(&scene.letters()[0], ending, Some(0)));
}

async fn held(scene: &Scene) -> HeldSummary {
    scene.store.summary("stock").await.expect("the database answers")
}

/// Waits on the test's clock, so that whoever could go on does.
async fn stays(scene: &Scene, letters: usize) -> Snapshot {
    let began = tokio::time::Instant::now();
    scene
        .run_until(|scene| {
            scene.settled() && scene.letters().len() == letters && began.elapsed() > Duration::from_secs(600)
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_for_the_redrive_of_its_message() {
    for trouble in [Trouble::UntilRedriven(1), Trouble::Permanent, Trouble::Transient(9), Trouble::Panic] {
        let scene = scene();
        publish(&scene, trouble);
        let report = stays(&scene, 1).await;
        assert_eq!(scene.store.applied(), ["b0"], "{trouble:?}");
        let held = held(&scene).await;
        assert_eq!((held.messages, held.quarantined), (3, 1), "{trouble:?}");
        assert_eq!((report.quarantined, report.waiting, report.handled), (1, 2, 1), "{trouble:?}");
        assert!(
            scene.letters()[0].headers.get_str(names::ERROR_MESSAGE).is_some_and(|text| !text.is_empty())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_redrive_the_key_goes_on_in_its_order() {
    for groups in [GroupCommit::up_to(1), GroupCommit::up_to(64)] {
        let scene = Scene { groups, concurrency: 1, ..scene() };
        publish(&scene, Trouble::UntilRedriven(1));
        let report = run(&scene, &[(1, 0, &|scene| redrive(scene, 0))], 3).await;
        assert_eq!(of_a(&scene), ["a0", "a1", "a2"]);
        assert_eq!((report.quarantined, report.redriven), (1, 1), "{report:?}");
        assert_eq!(held(&scene).await, HeldSummary::default());
    }
}

#[tokio::test(start_paused = true)]
async fn a_redrive_that_fails_keeps_the_key_waiting() {
    let scene = scene();
    publish(&scene, Trouble::UntilRedriven(2));
    let steps: [Step<'_>; 2] = [(1, 0, &|scene| redrive(scene, 0)), (2, 0, &|scene| redrive(scene, 1))];
    let report = run(&scene, &steps, 3).await;
    assert_eq!(of_a(&scene), ["a0", "a1", "a2"]);
    assert_eq!((report.quarantined, report.redriven), (2, 2), "{report:?}");
    let generations: Vec<_> =
        scene.letters().iter().map(|letter| backstop::dead_letter::generation(&letter.headers)).collect();
    assert_eq!(generations, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_released_key_goes_on_and_a_redrive_comes_after_it() {
    let scene = scene();
    publish(&scene, Trouble::UntilRedriven(1));
    let steps: [Step<'_>; 2] =
        [(1, 0, &|scene| send(scene, Ending::Release)), (1, 2, &|scene| redrive(scene, 0))];
    let report = run(&scene, &steps, 3).await;
    assert_eq!(of_a(&scene), ["a1", "a2", "a0"]);
    assert_eq!(report.ended, 1);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_or_resolved_message_is_never_run() {
    for ending in [Ending::Skip, Ending::Resolve] {
        let scene = scene();
        publish(&scene, Trouble::UntilRedriven(1));
        let twice = |scene: &Scene| {
            send(scene, ending);
            send(scene, ending);
        };
        let steps: [Step<'_>; 2] = [(1, 0, &twice), (1, 2, &|scene| redrive(scene, 0))];
        let report = run(&scene, &steps, 2).await;
        assert_eq!(of_a(&scene), ["a1", "a2"], "{ending}");
        assert_eq!((report.ended, report.duplicates), (1, 1), "{ending} {report:?}");
    }
}

/// A command for another failure, and one that nobody knows, change nothing and stop nobody.
#[tokio::test(start_paused = true)]
async fn commands_that_do_not_fit_are_ignored() {
    let scene = scene();
    publish(&scene, Trouble::UntilRedriven(1));
    let odd = |scene: &Scene| {
        let letter = &scene.letters()[0];
        scene.broker.publish_envelope(DOOR, command(letter, Ending::Release, Some(7)));
        let mut unknown = command(letter, Ending::Release, None);
        unknown.headers.set(names::COMMAND, "explode");
        scene.broker.publish_envelope(DOOR, unknown);
        redrive(scene, 0);
    };
    let report = run(&scene, &[(1, 0, &odd)], 3).await;
    assert_eq!(of_a(&scene), ["a0", "a1", "a2"]);
    assert_eq!((report.ended, report.redriven), (0, 1), "{report:?}");
}

/// Whoever may write to the topic cannot release anything: there the header is an ordinary one.
#[tokio::test(start_paused = true)]
async fn a_command_on_the_topic_is_an_ordinary_message() {
    let scene = scene();
    publish(&scene, Trouble::Permanent);
    let forge = |scene: &Scene| {
        let letter = &scene.letters()[0];
        let key = letter.headers.get_str(names::MESSAGE_KEY).expect("a letter has one").to_owned();
        let forged =
            order("b", "b1", Trouble::None).header(names::COMMAND, "release").header(names::MESSAGE_KEY, key);
        scene.broker.publish("orders", forged);
    };
    let published = Cell::new(false);
    scene
        .run_until(|scene| {
            if scene.letters().len() == 1 && !published.replace(true) {
                forge(scene);
            }
            scene.store.applied().contains(&"b1".to_owned()) && scene.settled()
        })
        .await;
    assert_eq!(held(&scene).await.quarantined, 1);
    assert!(of_a(&scene).is_empty());
}

/// A letter that cannot be published at first is published later, and the key waits all the while.
#[tokio::test(start_paused = true)]
async fn a_key_waits_while_its_letter_cannot_be_published() {
    let scene = scene();
    scene.broker.fail_publishes("orders.stock.dlq", backstop::sink::Scope::Broker, 7);
    publish(&scene, Trouble::UntilRedriven(1));
    run(&scene, &[(1, 0, &|scene| redrive(scene, 0))], 3).await;
    assert_eq!(of_a(&scene), ["a0", "a1", "a2"]);
}

/// Those who waited for days are tried as often as others when it is their turn.
#[tokio::test(start_paused = true)]
async fn followers_do_not_expire_while_they_wait() {
    let scene = scene();
    scene.publish("a", "a0", Trouble::UntilRedriven(1));
    scene.publish("a", "a1", Trouble::Transient(2));
    let late = |scene: &Scene| {
        scene.store.advance(Duration::from_secs(3 * 24 * 60 * 60));
        redrive(scene, 0);
    };
    let report = run(&scene, &[(1, 0, &late)], 2).await;
    assert_eq!(of_a(&scene), ["a0", "a1"]);
    assert_eq!(report.quarantined, 1, "{report:?}");
}
