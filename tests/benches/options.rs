//! What the command line says.

use std::time::Duration;

use crate::sizes::{FULL, SHORT, Sizes};

/// What can be measured on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Drain,
    Databases,
    Latency,
    Held,
    Growth,
    Memory,
    Kills,
    Outage,
    Consumer,
    Grouped,
    Plain,
    CommitDelay,
    SharedRows,
    SlowKey,
    Effect,
    Collect,
    Redrive,
    Pages,
}

impl Part {
    /// Whether it is about consumers and dead letters, rather than what `relay` stands for: an outbox that is drained.
    fn is_of_consumer(self) -> bool {
        matches!(
            self,
            Self::Consumer
                | Self::Grouped
                | Self::Plain
                | Self::CommitDelay
                | Self::SharedRows
                | Self::SlowKey
                | Self::Effect
                | Self::Collect
                | Self::Redrive
                | Self::Pages
        )
    }
}

/// The parts in the order in which they run: name and content.
const PARTS: [(Part, &str, &str); 18] = [
    (Part::Drain, "drain", "a backlog into Kafka and RabbitMQ, beside the bare drivers"),
    (Part::Databases, "databases", "the same from MariaDB and SQLite, beside PostgreSQL"),
    (Part::Latency, "latency", "from commit to broker and to effect, under steady load and idle"),
    (Part::Held, "held", "with a snapshot or a writer held open, beside without"),
    (Part::Growth, "growth", "cost per row by size of the backlog; log bytes and transactions"),
    (Part::Memory, "memory", "of the program, while it drains and idle; its idle queries"),
    (Part::Kills, "kills", "rows sent twice after SIGKILL and after SIGTERM"),
    (Part::Outage, "outage", "a broker that is away, one destination of ten that is denied"),
    (Part::Consumer, "consumer", "messages from Kafka, beside consumers written by hand"),
    (Part::Grouped, "grouped", "the same with messages that share a transaction, from RabbitMQ too"),
    (Part::Plain, "plain", "messages without a database, beside the poll loop and a loop by hand"),
    (Part::CommitDelay, "commit-delay", "consumers whose commits take 1 ms more, beside without"),
    (Part::SharedRows, "shared-rows", "group commit by handlers that share rows, beside rows of their own"),
    (Part::SlowKey, "slow-key", "the other keys beside one that takes 1 s for each message; memory"),
    (Part::Effect, "effect", "from produced to applied at 500/s, beside a consumer written by hand"),
    (Part::Collect, "collect", "dead letters into the ledger, beside bare inserts of the same rows"),
    (Part::Redrive, "redrive", "dead letters sent again at 2,000 a second, beside that rate"),
    (Part::Pages, "pages", "every page of console and API over a full ledger, with every filter"),
];

/// What is run, and in which numbers.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// What is measured, in order.
    pub(crate) parts: Vec<Part>,
    /// A line of JSON at the end.
    pub(crate) json: bool,
    /// The numbers.
    pub(crate) sizes: Sizes,
}

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// Cargo passes `--bench` when it benches; without it (`cargo test --all-targets`) the numbers are small.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let arguments: Vec<String> = arguments.into_iter().collect();
        let given = |name: &str| arguments.iter().any(|argument| argument == name);
        let sizes = if given("--bench") && !given("--short") { FULL } else { SHORT };
        let mut options = Self { parts: Vec::new(), json: false, sizes };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut number = || positive(argument, rest.next());
            match argument.as_str() {
                "--bench" | "--short" => {}
                "--json" => options.json = true,
                "--rows" => options.sizes.set_rows(number()?),
                "--rate" => options.sizes.rate = number()?,
                "--rounds" => options.sizes.rounds = number()?,
                "--minutes" => options.sizes.set_outage(Duration::from_secs(60 * number()? as u64)),
                "relay" => options.parts.extend(all().filter(|part| !part.is_of_consumer())),
                name => options.parts.push(part(name)?),
            }
        }
        let asked = std::mem::take(&mut options.parts);
        options.parts.extend(all().filter(|part| asked.is_empty() || asked.contains(part)));
        Ok(options)
    }
}

fn all() -> impl Iterator<Item = Part> {
    PARTS.iter().map(|(part, ..)| *part)
}

fn part(name: &str) -> Result<Part, String> {
    let found = PARTS.iter().find(|(_, known, _)| *known == name);
    found.map(|(part, ..)| *part).ok_or_else(|| format!("\"{name}\" is not known\n{}", usage()))
}

fn positive(name: &str, value: Option<&String>) -> Result<usize, String> {
    let number = value.and_then(|value| value.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| format!("{name} needs a number\n{}", usage()))
}

fn usage() -> String {
    let parts = PARTS.map(|(_, name, content)| format!("  {name:<12} {content}\n")).concat();
    format!(
        "usage: cargo bench -p backstop-tests [-- [PART...] [OPTION...]]
{parts}  relay        those before consumer
  --short      small numbers: shows that the benches work, measures nothing
  --rows N     rows of every backlog
  --rate N     commits a second of the steady load
  --minutes N  of every outage
  --rounds N   each throughput is the median of so many
  --json       ends with one line of JSON"
    )
}
