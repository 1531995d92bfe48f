//! The soak in its short form; `tests/soak MINUTES` is the long one.

use std::time::Duration;

use backstop_tests::soak;

/// F1, F2, F5, F11, F15, F16, F35, F41: one after the other, under real writers and three relays on each outbox.
#[tokio::test(flavor = "multi_thread")]
async fn every_fault_in_turn() {
    let outcome = soak::run(Duration::from_secs(100), Duration::from_secs(5)).await;
    // How long rows stood still is for the long form to judge: this one shares its machine with a build.
    assert!(!outcome.observed.is_empty(), "something was broken");
    assert_eq!(outcome.relays_ended, 0, "relays that ended by themselves");
}
