//! The arguments of `replay`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args};

/// `replay`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true), group = ArgGroup::new("from"))]
pub struct Replay {
    /// The topic to read.
    pub topic: String,
    /// Send to the door of this group of the topic: through its inbox, so that what it has handled is not handled
    /// again.
    #[arg(long, value_name = "GROUP", group = "target")]
    pub to_door: Option<String>,
    /// Send to this topic, as they are.
    #[arg(long, value_name = "TOPIC", group = "target")]
    pub to: Option<String>,
    /// Begin at the oldest message.
    #[arg(long, group = "from")]
    pub from_beginning: bool,
    /// Begin at the first message that is not older, by the brokers' timestamps, such as 2026-03-01T12:00:00Z.
    #[arg(long, value_name = "TIME", group = "from")]
    pub from_time: Option<DateTime<Utc>>,
    /// Begin at this offset of a partition; may be repeated, and leaves out the other partitions.
    #[arg(long, value_name = "PARTITION:OFFSET", group = "from")]
    pub from_offset: Vec<String>,
    /// Let the consumer handle even what it has handled: its effects are applied once more.
    #[arg(long, requires = "to_door")]
    pub again: bool,
    /// At most so many messages a second.
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// The file that remembers how far it came. One that is there is gone on with.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Print the plan and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}
