//! The soaks in their short form; `tests/soak` has the long ones. How long a fault is felt is for those to judge: these
//! share their machine with a build.

use std::time::Duration;

use backstop_tests::soak::consumers::{self, Keys};
use backstop_tests::soak::relays;

/// F1, F2, F5, F11, F15, F16, F35, F41: one after the other, under real writers and three relays on each outbox.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_turn() {
    let outcome = relays::run(Duration::from_secs(60), Duration::from_secs(5)).await;
    assert!(!outcome.observed.is_empty(), "something was broken");
    assert_eq!(outcome.relays_ended, 0, "relays that ended by themselves");
}

/// F48, F49, F50, F65, F81, F87: one after the other, under two groups of consumers whose keys wait for their dead
/// letters; all of them are redriven in the end.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_consumers_in_turn() {
    let outcome = consumers::run(Keys::Wait, Duration::from_secs(40), Duration::from_secs(4)).await;
    assert!(!outcome.observed.is_empty(), "something was broken");
    assert_eq!(outcome.ended, 0, "instances that ended by themselves");
}
