//! `soak [MINUTES]`: writers, relays and consumers through both brokers, with a fault every 20 s. `tests/soak` brings
//! up the servers first.

use std::time::Duration;

use backstop_tests::soak;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let minutes: u64 = std::env::args().nth(1).as_deref().unwrap_or("10").parse()?;
    let outcome = soak::run(Duration::from_secs(60 * minutes), Duration::from_secs(20)).await;
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
