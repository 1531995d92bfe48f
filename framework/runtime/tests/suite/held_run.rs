//! Held messages that share transactions, against the in-memory broker and database.

use std::time::Duration;

use backstop::{GroupCommit, Snapshot};
use backstop_testkit::memory::CommitFault;

use crate::common::warm::*;
use crate::common::{Scene, Trouble};

/// Messages behind the one that fails first.
const BEHIND: usize = 30;
/// The one of those that is in trouble.
const ODD: usize = 20;

/// Publishes one that fails and is held, and those that wait behind it.
fn publish_behind(odd: Trouble) -> impl Fn(&Scene) {
    move |scene| {
        scene.publish("a", "a00", Trouble::Transient(1));
        for n in 1..=BEHIND {
            let trouble = if n == ODD { odd } else { Trouble::None };
            scene.publish("a", &format!("a{n:02}"), trouble);
        }
    }
}

async fn run(publish: impl Fn(&Scene), done: impl Fn(&Scene, &[String]) -> bool) -> (Scene, Snapshot) {
    let groups = GroupCommit::up_to(64).max_age(Duration::from_secs(3));
    let scene = Scene { groups, concurrency: 1, ..Scene::new() };
    publish_warmth(&scene);
    let report = scene.run_until(once_warm(publish, done)).await;
    (scene, report)
}

fn names(but: Option<usize>) -> Vec<String> {
    (0..=BEHIND).filter(|n| Some(*n) != but).map(|n| format!("a{n:02}")).collect()
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_failure_shares_transactions() {
    let (scene, report) = run(publish_behind(Trouble::None), |_, applied| applied.len() == BEHIND + 1).await;
    assert_eq!(applied(&scene), names(None));
    assert!(report.grouped > 120, "{report:?}");
    assert_eq!(
        (report.failures, report.regrouped, report.handled),
        (1, 1, 131),
        "the live group of the failure is the only one that failed"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_fails_in_a_run_is_charged_alone_and_keeps_its_key_in_order() {
    let (scene, report) =
        run(publish_behind(Trouble::Transient(2)), |_, applied| applied.len() == BEHIND + 1).await;
    assert_eq!(applied(&scene), names(None));
    assert_eq!((report.failures, report.quarantined), (3, 0), "{report:?}");
    assert_eq!(report.regrouped, 2, "a live group and one run: {report:?}");
    assert!(report.grouped > 120, "those before and behind it share transactions: {report:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_in_a_run_is_a_letter_and_its_neighbours_are_applied() {
    for trouble in [Trouble::Permanent, Trouble::Panic, Trouble::Slow(9), Trouble::Swallow(9)] {
        let done = |scene: &Scene, applied: &[String]| applied.len() == BEHIND && scene.letters().len() == 1;
        let (scene, _) = run(publish_behind(trouble), done).await;
        assert_eq!(applied(&scene), names(Some(ODD)), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ends_its_transaction_takes_no_neighbour_with_it() {
    for trouble in [Trouble::RawCommit, Trouble::RawCommitAndConflict] {
        let neighbours = |applied: &[String]| -> Vec<String> {
            applied.iter().filter(|name| **name != format!("a{ODD}")).cloned().collect()
        };
        let (scene, _) = run(publish_behind(trouble), |_, applied| neighbours(applied).len() >= BEHIND).await;
        assert_eq!(neighbours(&applied(&scene)), names(Some(ODD)), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_a_run_nobody_knows_of_is_looked_up() {
    for fault in [
        CommitFault::Unknown { committed: true },
        CommitFault::Unknown { committed: false },
        CommitFault::RolledBack,
    ] {
        let publish = |scene: &Scene| {
            publish_behind(Trouble::None)(scene);
            // That of the failure that runs again, of a run of those behind it, and of some that run by themselves after that.
            (0..4).for_each(|_| scene.store.fail_next_commit(fault));
        };
        let (scene, _) = run(publish, |_, applied| applied.len() == BEHIND + 1).await;
        assert_eq!(applied(&scene), names(None), "{fault:?}");
    }
}
