//! One key whose messages take a second each, and many of other keys around and behind them.
//!
//! A consumer without a database keeps what waits in memory, within the source's windows: a key that takes up the
//! window of its partition lets the others of that partition stand.

use std::process::Stdio;

use tokio::process::Command;

use crate::report::{Figure, median};
use crate::servers::unique;
use crate::slow_consumer::{COMMAND, Seen, Share, Task};
use crate::{Bench, Outcome, event, kafka};

/// What the source may hold by its defaults: 64 MiB under way, and as much that librdkafka has fetched ahead.
const BOUND_MIB: f64 = 128.0;

/// Measures a slow key with as many messages as any, and one with as many as all others together.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let [rate, handled, peak] = measure(bench, Share::Even, "one key in 1,000 is slow").await?;
    bench.push(rate.ratio_at_least(0.8));
    bench.push(handled);
    bench.push(peak.at_most(BOUND_MIB));
    // Without any slowness that key is behind the others all the same, so that their rates say nothing here.
    let [_, handled, peak] = measure(bench, Share::Half, "every second message is of it").await?;
    bench.push(handled);
    bench.push(peak.at_most(BOUND_MIB));
    Ok(())
}

/// Rate and number of messages of other keys that go on, and the memory, with the slow key beside without.
async fn measure(bench: &Bench, share: Share, name: &str) -> Outcome<[Figure; 3]> {
    let (rounds, topic) = (bench.sizes.rounds, unique("slow"));
    kafka::create_topic(&bench.servers, &topic).await?;
    let key = move |n| event::key(share.key(n));
    kafka::produce_with(&bench.servers, &topic, bench.sizes.behind, key).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        eprintln!("slow key, {name}, round {round} of {rounds}");
        without.push(consume(bench, &topic, share, false).await?);
        with.push(consume(bench, &topic, share, true).await?);
    }
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    let figure = |what: &str, unit, of: fn(&Seen) -> f64| {
        let [with, without] = [&with, &without].map(|seen| median(&seen.iter().map(of).collect::<Vec<_>>()));
        Figure::new(format!("{what}, {name}"), with, unit).beside("none is", without)
    };
    Ok([
        figure("other keys", "messages/s", |seen| seen.rate),
        figure("of the other keys", "messages", |seen| seen.handled as f64),
        figure("peak memory", "MiB", |seen| seen.peak_mib),
    ])
}

/// A consumer in a process of its own reads the topic.
async fn consume(bench: &Bench, topic: &str, share: Share, slow: bool) -> Outcome<Seen> {
    let (brokers, messages) = (bench.servers.kafka.clone(), bench.sizes.behind);
    let task = Task { brokers, topic: topic.to_owned(), messages, share, slow };
    let process = Command::new(std::env::current_exe()?)
        .args([COMMAND, &serde_json::to_string(&task)?])
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = process.await?;
    if !output.status.success() {
        return Err(format!("the consumer of {topic} has failed").into());
    }
    let seen: Seen = serde_json::from_slice(&output.stdout)?;
    eprintln!("  slow {slow}: {} of {} messages of other keys went on", seen.handled, seen.others);
    Ok(seen)
}
