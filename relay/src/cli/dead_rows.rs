//! `outbox dead …` on the command line.

use std::fmt;

use backstop_core::dead_rows::DeadRowFilter;
use clap::{ArgGroup, Args, Subcommand};

/// `outbox dead …`
#[derive(Debug, Clone, Subcommand)]
pub enum OutboxDeadCommand {
    /// List them, oldest first.
    List {
        /// Which ones.
        #[command(flatten)]
        choice: DeadRowChoice,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Of the outbox with this name; needed where the configuration has several.
        #[arg(long, value_name = "NAME")]
        outbox: Option<String>,
    },
    /// Show one row, with what it was to carry.
    Show {
        /// The number that it had in the outbox.
        seq: i64,
        /// Show headers, key and body, which may hold personal data.
        #[arg(long)]
        reveal: bool,
        /// Of the outbox with this name; needed where the configuration has several.
        #[arg(long, value_name = "NAME")]
        outbox: Option<String>,
    },
    /// Move rows back into the outbox, with new numbers and the same ids, once the cause is mended.
    ///
    /// They are published after what waits there now.
    Retry {
        /// Which ones, and how.
        #[command(flatten)]
        change: DeadRowChange,
        /// What was mended; goes to the audit log.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        because: Option<String>,
    },
    /// Delete rows for good.
    Discard {
        /// Which ones, and how.
        #[command(flatten)]
        change: DeadRowChange,
        /// Why they are not needed; goes to the audit log and to the output.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        because: String,
    },
}

impl OutboxDeadCommand {
    /// The outbox that was named.
    pub fn outbox(&self) -> Option<&str> {
        match self {
            Self::List { outbox, .. } | Self::Show { outbox, .. } => outbox.as_deref(),
            Self::Retry { change, .. } | Self::Discard { change, .. } => change.outbox.as_deref(),
        }
    }
}

/// Which dead rows are meant. Every option narrows the choice.
#[derive(Debug, Clone, Args)]
pub struct DeadRowChoice {
    /// The row that had this number in the outbox; may be repeated.
    #[arg(long, value_name = "N")]
    pub seq: Vec<i64>,
    /// Rows for this topic, exchange or queue.
    #[arg(long, value_name = "NAME")]
    pub destination: Option<String>,
    /// Rows that died for this reason, such as `too-large`.
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
}

/// As the audit log tells it.
impl fmt::Display for DeadRowChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seqs = self.seq.iter().map(|seq| format!("seq={seq}"));
        let destination = self.destination.iter().map(|name| format!("destination={name:?}"));
        let reason = self.reason.iter().map(|reason| format!("reason={reason:?}"));
        let all: Vec<String> = seqs.chain(destination).chain(reason).collect();
        if all.is_empty() { f.write_str("all") } else { f.write_str(&all.join(" ")) }
    }
}

impl DeadRowChoice {
    /// The filter as the outbox takes it.
    pub fn filter(&self) -> DeadRowFilter {
        DeadRowFilter {
            seqs: self.seq.clone(),
            destination: self.destination.clone(),
            reason: self.reason.clone(),
            up_to: None,
        }
    }
}

/// `outbox dead retry`, and what `discard` has in common with it
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("which").args(["seq", "destination", "reason", "all"]).multiple(true).required(true))]
pub struct DeadRowChange {
    /// Which ones.
    #[command(flatten)]
    pub choice: DeadRowChoice,
    /// Every dead row.
    #[arg(long, conflicts_with_all = ["seq", "destination", "reason"])]
    pub all: bool,
    /// Of the outbox with this name; needed where the configuration has several.
    #[arg(long, value_name = "NAME")]
    pub outbox: Option<String>,
    /// Print the plan and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}
