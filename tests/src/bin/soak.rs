//! `soak relays|consumers|ordered [MINUTES]`: load on real servers, with a fault every 20 s. `tests/soak` brings up the
//! servers first.

use std::time::Duration;

use backstop_tests::soak::consumers::Keys;
use backstop_tests::soak::{consumers, relays};

type Failure = Box<dyn std::error::Error>;

/// Time between two faults.
const EVERY: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let minutes: u64 = arguments.next().as_deref().unwrap_or("10").parse()?;
    let time = Duration::from_secs(60 * minutes);
    match what.as_str() {
        "relays" => soak_relays(time).await,
        "consumers" => soak_consumers(Keys::GoOn, time).await,
        "ordered" => soak_consumers(Keys::Wait, time).await,
        _ => Err(format!("what to soak: relays, consumers or ordered, not {what:?}").into()),
    }
}

async fn soak_relays(time: Duration) -> Result<(), Failure> {
    let outcome = relays::run(time, EVERY).await;
    let late = outcome.observed.iter().filter(|observed| !observed.in_time()).count();
    println!(
        "{} transactions, {} faults: nothing lost, nothing twice, every key in order",
        outcome.committed,
        outcome.observed.len()
    );
    println!(
        "{late} times late; ended by themselves: {} relays, {} consumers",
        outcome.relays_ended, outcome.consumers_ended
    );
    if late > 0 {
        return Err("rows stood still for longer than promised".into());
    }
    Ok(())
}

async fn soak_consumers(keys: Keys, time: Duration) -> Result<(), Failure> {
    let outcome = consumers::run(keys, time, EVERY).await;
    let longest = outcome.observed.iter().map(|observed| observed.caught_up).max().unwrap_or_default();
    println!(
        "{} events for each of two groups, {} of them dead letters{}; {} faults: nothing lost, nothing twice, every key in order",
        outcome.published,
        outcome.dead,
        if keys == Keys::Wait { " that were redriven" } else { "" },
        outcome.observed.len(),
    );
    println!(
        "caught up after {:.1} s at most; {} instances ended by themselves",
        longest.as_secs_f64(),
        outcome.ended
    );
    Ok(())
}
