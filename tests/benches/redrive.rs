//! A redrive with a canary and a rate, beside that rate, while live messages of the same keys come in.

use backstop_tests::program::Broker;
use backstop_tests::redriven::{PATIENCE, Scene};

use crate::report::Figure;
use crate::{Bench, Outcome};

/// Letters a second that are asked for.
const RATE: usize = 2_000;
/// Parts in which the live messages come in.
const TURNS: usize = 10;

/// One broker after the other.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    for (broker, name) in [(Broker::Kafka, "Kafka"), (Broker::RabbitMq, "RabbitMQ")] {
        eprintln!("redrive, {name}");
        let rate = redriven(broker, bench.sizes.redriven).await?;
        let figure = Figure::new(format!("redrive, {name}"), rate, "letters/s");
        bench.push(figure.beside("asked for", RATE as f64).ratio_at_least(0.95).ratio_at_most(1.05));
    }
    Ok(())
}

/// Letters a second, of letters that are all resolved in the end.
async fn redriven(broker: Broker, letters: usize) -> Outcome<f64> {
    let (scene, relay) = Scene::new(broker, letters, |_| false).await;
    let consuming = scene.consumer.start();
    let asked = scene.redrive(RATE);
    for turn in 0..TURNS {
        scene.turn(turn, TURNS, || {}).await;
    }
    asked.ended(PATIENCE).await;
    scene.until_count("the redrive is done", "backstop_redrive WHERE run = 'done'", 1).await;
    let resolved = scene.count("backstop_redrive_letter WHERE step = 'resolved'").await;
    if resolved != letters {
        return Err(format!("{resolved} of {letters} letters are resolved").into());
    }
    let rate = scene.rate().await;
    consuming.stop().await;
    drop(relay);
    scene.database.drop().await;
    Ok(rate as f64)
}
