//! What is run, and in which numbers.

use std::time::Duration;

/// What the command line says.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The relay beside the bare drivers.
    pub(crate) relay: bool,
    /// The consumer beside the bare statements.
    pub(crate) consumer: bool,
    /// The same with several messages in one transaction.
    pub(crate) grouped: bool,
    /// Latencies.
    pub(crate) latency: bool,
    /// A line of JSON at the end.
    pub(crate) json: bool,
    /// The numbers.
    pub(crate) sizes: Sizes,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    /// Rows of the backlog that the relay drains.
    pub(crate) backlog: usize,
    /// Messages that the consumer handles.
    pub(crate) messages: usize,
    /// Messages that it handles in groups.
    pub(crate) grouped: usize,
    /// Every throughput is the median of so many.
    pub(crate) rounds: usize,
    /// How long the steady load lasts.
    pub(crate) steady: Duration,
    /// Single messages on an idle system.
    pub(crate) singles: usize,
}

const FULL: Sizes = Sizes {
    backlog: 200_000,
    messages: 50_000,
    grouped: 200_000,
    rounds: 3,
    steady: Duration::from_secs(20),
    singles: 20,
};
const SHORT: Sizes = Sizes {
    backlog: 10_000,
    messages: 5_000,
    grouped: 5_000,
    rounds: 1,
    steady: Duration::from_secs(3),
    singles: 3,
};

/// How it is called.
pub(crate) const USAGE: &str =
    "usage: cargo bench -p backstop-tests [-- [relay] [consumer] [grouped] [latency] [--short] [--json]]
  relay      drains a backlog into Kafka and RabbitMQ, beside the bare drivers
  consumer   handles messages from Kafka, beside the bare statements
  grouped    the same with several messages in one transaction
  latency    from commit to broker and to effect, under steady load and idle
  --short    small numbers: shows that the benches work, measures nothing
  --json     ends with one line of JSON";

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// Cargo passes `--bench` when it benches; without it (`cargo test --all-targets`) the numbers are small.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options =
            Self { relay: false, consumer: false, grouped: false, latency: false, json: false, sizes: SHORT };
        let mut short = false;
        for argument in arguments {
            match argument.as_str() {
                "relay" => options.relay = true,
                "consumer" => options.consumer = true,
                "grouped" => options.grouped = true,
                "latency" => options.latency = true,
                "--json" => options.json = true,
                "--short" => short = true,
                "--bench" => options.sizes = FULL,
                other => return Err(format!("\"{other}\" is not known\n{USAGE}")),
            }
        }
        if short {
            options.sizes = SHORT;
        }
        if !(options.relay || options.consumer || options.grouped || options.latency) {
            (options.relay, options.consumer, options.grouped, options.latency) = (true, true, true, true);
        }
        Ok(options)
    }
}
