//! The promises hold in every order of steps, and every flaw is caught.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use super::rules::{COMMITTED, FENCED, LOST, ORDER, SKIPPED};
use super::{Flaw, Scene};

/// Tries everything; every promise must hold, and everything that gives it a meaning must have been seen.
#[track_caller]
fn holds(name: &str, scene: Scene) {
    let begun = Instant::now();
    let checker = scene.checker().spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps deep, {:.1?}",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    checker.assert_properties();
}

/// Tries until the flaw does its harm.
#[track_caller]
fn is_caught(promise: &'static str, scene: Scene) {
    let begun = Instant::now();
    let flaw = scene.flaw.expect("a flaw");
    let checker = scene.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery(promise).unwrap_or_else(|| panic!("{flaw:?} does no harm to: {promise}"));
    println!(
        "{flaw:?}: {} states, {:.1?}: {:?}",
        checker.unique_state_count(),
        begun.elapsed(),
        path.into_actions()
    );
}

/// The same for a scene that takes minutes and gigabytes: only where `BACKSTOP_MODEL` is `wide`, as `tests/long` sets
/// it.
#[track_caller]
fn holds_when_wide(name: &str, scene: Scene) {
    if std::env::var_os("BACKSTOP_MODEL").is_some_and(|size| size == "wide") {
        holds(name, scene);
    }
}

/// Three writers, two of one key.
fn busy() -> Scene {
    Scene::claiming(&[0, 0, 1], 3)
}

/// Two relays, of which one may stop and come back.
fn contended() -> Scene {
    Scene { relays: 2, expiries: 1, refusals: 1, ..Scene::claiming(&[0], 2) }
}

/// A server that is lost, with one writer and one relay.
fn failover() -> Scene {
    Scene { failovers: 1, transactions: 2, ..Scene::claiming(&[0], 2) }
}

/// F1, F13, F14: in every order of steps that a small model has.
#[test]
fn claiming_loses_nothing_and_keeps_the_order() {
    holds("claiming", Scene::claiming(&[0, 0, 1], 2));
    holds("claiming without the sequence", Scene { sequence: false, ..Scene::claiming(&[0, 0, 1], 3) });
    holds_when_wide("claiming", busy());
}

#[test]
fn small_reads_leave_nothing_behind() {
    holds("small reads", Scene { limit: 1, deletes_apart: true, ..Scene::claiming(&[0, 1], 3) });
    holds_when_wide("deletes", Scene { deletes_apart: true, ..Scene::claiming(&[0, 1], 3) });
}

#[test]
fn savepoints_lose_nothing() {
    holds("savepoints", Scene { savepoints: true, ..Scene::claiming(&[0, 1], 2) });
}

/// F13: in every order of steps.
#[test]
fn prepared_transactions_lose_nothing() {
    let prepared = Scene { prepared: true, ..Scene::claiming(&[0, 1], 2) };
    holds_when_wide("savepoints and prepared", Scene { savepoints: true, ..prepared.clone() });
    holds("prepared", prepared);
}

/// F5, F8: in every order of steps.
#[test]
fn owners_that_stop_and_come_back_do_no_harm() {
    holds("owners", contended());
    holds("owners that die", Scene { crashes: 1, refusals: 0, ..contended() });
    holds_when_wide("owners with refusals", Scene { transactions: 2, ..contended() });
    holds_when_wide("owners and keys", Scene { writers: vec![0, 1], refusals: 0, ..contended() });
}

/// F17: in every order of steps.
#[test]
fn a_server_that_lags_behind_loses_no_more_than_what_it_lacks() {
    holds("fail-over", failover());
    holds_when_wide("fail-over of owners", Scene { relays: 2, expiries: 1, ..failover() });
}

#[test]
fn a_bare_cursor_is_caught() {
    is_caught(SKIPPED, busy().with(Flaw::BareCursor));
}

#[test]
fn gaps_by_xmin_are_caught() {
    is_caught(SKIPPED, busy().with(Flaw::GapsByXmin));
}

#[test]
fn holders_of_before_are_caught() {
    is_caught(SKIPPED, Scene { sequence: false, ..busy() }.with(Flaw::HoldersBefore));
}

#[test]
fn a_dirty_read_is_caught() {
    is_caught(COMMITTED, busy().with(Flaw::DirtyRead));
}

#[test]
fn a_missing_fence_is_caught() {
    is_caught(FENCED, contended().with(Flaw::NoFence));
}

#[test]
fn several_workers_are_caught() {
    is_caught(ORDER, contended().with(Flaw::SkipLocked));
}

#[test]
fn a_delete_by_number_is_caught() {
    is_caught(LOST, failover().with(Flaw::DeleteByNumber));
}

#[test]
fn an_owner_that_reads_on_is_caught() {
    is_caught(SKIPPED, Scene { crashes: 1, ..contended() }.with(Flaw::NoReset));
}

#[test]
fn a_server_known_by_its_sequence_is_caught() {
    is_caught(SKIPPED, failover().with(Flaw::ServerBySequence));
}

#[test]
fn a_new_name_is_caught() {
    let scene = Scene { prepared: true, ..Scene::claiming(&[0, 1], 3) };
    is_caught(SKIPPED, scene.with(Flaw::NewNames));
}

#[test]
fn numbers_ahead_are_caught() {
    is_caught(SKIPPED, busy().with(Flaw::NumbersAhead));
}
