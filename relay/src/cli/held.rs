//! `held …` on the command line.

use backstop_core::held_keys::Ending;
use clap::{Args, Subcommand, ValueEnum};

/// `held …`
#[derive(Debug, Clone, Subcommand)]
pub enum HeldCommand {
    /// List keys that are held: of each its head, what that waits for, and how many messages wait behind it.
    List {
        /// Keys of this consumer.
        #[arg(long, value_name = "NAME")]
        consumer: Option<String>,
        /// Keys of this topic or queue.
        #[arg(long, value_name = "NAME")]
        place: Option<String>,
        /// Only keys that wait for somebody: their head was given up.
        #[arg(long)]
        quarantined: bool,
        /// Heads with a higher number than this.
        #[arg(long, value_name = "N")]
        after: Option<i64>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// In the database of the outbox with this name; needed where the configuration has several.
        #[arg(long, value_name = "NAME")]
        outbox: Option<String>,
    },
    /// Let the keys of quarantined messages go on without them.
    ///
    /// The messages are left to their letters: a redrive runs them, after what came later.
    Release {
        /// Which ones, and how.
        #[command(flatten)]
        change: HeldChange,
        /// Why; goes to the audit log.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        because: Option<String>,
    },
    /// Never run these messages: their keys go on, and a redrive finds them handled.
    Skip {
        /// Which ones, and how.
        #[command(flatten)]
        change: HeldChange,
        /// Why they are not needed; goes to the audit log and to the output.
        #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        because: String,
    },
    /// Ask consumers, through their doors, to end the wait for messages that they gave up.
    ///
    /// For consumers whose database is out of reach from here. It has happened once the consumer's receipt is in the
    /// history of the letter: see `dead-letters show`.
    Ask(HeldAsk),
}

/// `held ask`: what a consumer is asked through its door.
#[derive(Debug, Clone, Args)]
pub struct HeldAsk {
    /// What it is to do.
    #[arg(value_enum)]
    pub ending: AskedEnding,
    /// The ids of the letters of the messages for which their keys wait, as `dead-letters list` shows them.
    #[arg(required = true, value_name = "LETTER")]
    pub letters: Vec<String>,
    /// Why; goes to the audit log and the histories of the letters.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub because: String,
    /// Print the plan and ask nobody.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask whether to go on.
    #[arg(long, short)]
    pub yes: bool,
}

/// How a consumer is to end the wait for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AskedEnding {
    /// Let the key go on without it; the letter stays open.
    Release,
    /// Never run it; the letter is discarded.
    Skip,
    /// Take it for handled, because somebody has brought about its effects; the letter is resolved.
    Resolve,
}

impl AskedEnding {
    /// The command that asks for it.
    pub fn ending(self) -> Ending {
        match self {
            Self::Release => Ending::Release,
            Self::Skip => Ending::Skip,
            Self::Resolve => Ending::Resolve,
        }
    }
}

/// What `held release` and `held skip` have in common.
#[derive(Debug, Clone, Args)]
pub struct HeldChange {
    /// The numbers of heads, as `held list` shows them.
    #[arg(required = true, value_name = "N")]
    pub numbers: Vec<i64>,
    /// In the database of the outbox with this name; needed where the configuration has several.
    #[arg(long, value_name = "NAME")]
    pub outbox: Option<String>,
    /// Print the plan and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

impl HeldChange {
    /// As the audit log tells it.
    pub fn choice(&self) -> String {
        self.numbers.iter().map(|n| format!("n={n}")).collect::<Vec<_>>().join(" ")
    }
}
