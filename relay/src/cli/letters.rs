//! `dead-letters …` on the command line.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use backstop_core::ledger::{HeaderFilter, LetterFilter, LetterStatus, Outcome, terms};
use chrono::{DateTime, Utc};
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};

use crate::desk::filter::without_secrets;

/// `dead-letters …`
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Letters that failed alike: how many, since when, and how fast more come.
    Groups {
        /// Which letters.
        #[command(flatten)]
        filter: Box<Filter>,
        /// At most so many groups, the largest first.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// List letters, oldest first.
    List {
        /// Which ones.
        #[command(flatten)]
        filter: Box<Filter>,
        /// At most so many.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Begin after the letter with this id.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Show one letter and its history.
    Show {
        /// The letter's id.
        id: String,
        /// Show headers, key and body, which may hold personal data.
        #[arg(long)]
        reveal: bool,
    },
    /// Send letters to their consumer again, through its door.
    ///
    /// Which ones is decided now: what fails later is not among them. The redrive is a job in the ledger: it goes on in
    /// `run` when this command is cut off, and `redrives` steers it.
    Redrive(Box<Redrive>),
    /// Put a copy with another body in a letter's place.
    ///
    /// Headers stay as they are. The letter is kept as superseded, and the copy, which has an id of its own, is open and can
    /// be redriven. Only where the configuration has `edit = true` in `[dead_letters]`.
    Edit(Box<LetterEdit>),
    /// Give letters up.
    Discard(Box<LetterChange>),
    /// Put letters under legal hold, so that nobody can discard them; or end it.
    Hold {
        /// Which ones, and how.
        #[command(flatten)]
        change: Box<LetterChange>,
        /// End the hold instead.
        #[arg(long)]
        end: bool,
    },
    /// Write letters, with headers, key and body, to a file of JSON Lines.
    Export {
        /// Which ones.
        #[command(flatten)]
        filter: Box<Filter>,
        /// The file, which must not be there yet; standard output unless given.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Write letters whose time in the ledger is over to the archive, and delete them.
    ///
    /// By `[dead_letters.retention]` of the configuration, once and now; `run` does the same by itself.
    Archive,
    /// Take letters from a file that `export` wrote, or from an archive in a folder or a bucket. Those that are in the ledger already stay as they are.
    Import {
        /// The file, or the address of an object, such as `s3://bucket/prefix/name.jsonl.gz`.
        file: PathBuf,
    },
    /// Encrypt the bodies of all letters with the newest key: those in clear, and those with a key before it.
    ///
    /// In batches; cut off, it can be begun again. Give every relay the new key before.
    Reencrypt {
        /// Say how bodies are stored and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `dead-letters redrive`
#[derive(Debug, Args)]
pub struct Redrive {
    /// Which ones.
    #[command(flatten)]
    pub filter: Filter,
    /// At most so many, the first that the ledger took.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Send so many first, and the rest only once all of these are handled. A canary that fails ends the redrive.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub canary: u64,
    /// Send at most so many letters a second.
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Pause when more than this share of the letters fails again.
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub brake: u8,
    /// Send letters without a door back to the topic or queue that they came from, where every consumer sees them again.
    /// Only such as the configuration names.
    #[arg(long)]
    pub accept_fanout: bool,
    /// Send also what is older than `inbox_retention` of the configuration.
    #[arg(long)]
    pub include_old: bool,
    /// Wait until every outcome is known, too.
    #[arg(long)]
    pub wait: bool,
    /// What was mended.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub because: Option<String>,
    /// Print the plan and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// `dead-letters edit`
#[derive(Debug, Args)]
pub struct LetterEdit {
    /// The letter's id.
    pub id: String,
    /// The file that holds the new body, byte for byte; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub body: PathBuf,
    /// Why; goes to the history of both letters and to the audit log.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub because: String,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// A change of letters by hand.
#[derive(Debug, Args)]
pub struct LetterChange {
    /// Which ones.
    #[command(flatten)]
    pub filter: Filter,
    /// Why; goes to the letters' history and to the audit log.
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub because: String,
    /// Say how many it would be and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
}

/// Which letters are meant. Every option narrows the choice.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which letters")]
pub struct Filter {
    /// The letter with this id; may be repeated.
    #[arg(long, value_name = "ID")]
    pub id: Vec<String>,
    /// Letters with this fingerprint: the same failure.
    #[arg(long)]
    pub fingerprint: Option<String>,
    /// Letters of this consumer.
    #[arg(long)]
    pub consumer: Option<String>,
    /// Letters from this topic or queue.
    #[arg(long)]
    pub place: Option<String>,
    /// Letters whose last error is of this class, such as `transient`.
    #[arg(long)]
    pub class: Option<String>,
    /// Letters that were given up for this reason, such as `exhausted`.
    #[arg(long)]
    pub reason: Option<String>,
    /// Letters with this status.
    #[arg(long, default_value = "open")]
    pub status: Status,
    /// Dead since this time, or for at most so long: `2026-11-21T10:00:00Z` or `2h`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<DateTime<Utc>>,
    /// Dead before this time, or for longer than that.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<DateTime<Utc>>,
    /// Letters with this ordering key.
    #[arg(long)]
    pub key: Option<String>,
    /// Letters of the message with this identity.
    #[arg(long, value_name = "KEY")]
    pub message_key: Option<String>,
    /// Letters with this header, or with this value of it.
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = header)]
    pub header: Option<HeaderFilter>,
    /// Letters whose error has all these words.
    #[arg(long, value_name = "WORDS", value_parser = words)]
    pub error: Option<String>,
    /// Letters whose last redrive ended, or stands, so.
    #[arg(long)]
    pub outcome: Option<OutcomeName>,
    /// Letters that the redrive with this id sent last.
    #[arg(long, value_name = "ID")]
    pub redrive: Option<String>,
    /// Letters that are under legal hold, or that are not.
    #[arg(long, value_name = "BOOL")]
    pub on_hold: Option<bool>,
}

/// A status on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// Waiting for somebody.
    Open,
    /// Sent to the door; the outcome is not known yet.
    Redriving,
    /// Handled after all.
    Resolved,
    /// Given up, with a reason.
    Discarded,
    /// Failed again after a redrive, or edited: another letter stands for it.
    Superseded,
    /// Every status.
    All,
}

/// An outcome on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutcomeName {
    /// Sent, and nothing heard yet.
    Waiting,
    /// Handled.
    Resolved,
    /// Failed again.
    FailedAgain,
    /// Sent, and nothing heard in time.
    Silent,
    /// Sent to where nobody tells outcomes.
    Unknown,
}

impl OutcomeName {
    fn in_ledger(self) -> Outcome {
        match self {
            Self::Waiting => Outcome::Waiting,
            Self::Resolved => Outcome::Resolved,
            Self::FailedAgain => Outcome::FailedAgain,
            Self::Silent => Outcome::Silent,
            Self::Unknown => Outcome::Unknown,
        }
    }
}

impl Status {
    /// The ledger's status; `None` for all.
    pub fn in_ledger(self) -> Option<LetterStatus> {
        match self {
            Self::Open => Some(LetterStatus::Open),
            Self::Redriving => Some(LetterStatus::Redriving),
            Self::Resolved => Some(LetterStatus::Resolved),
            Self::Discarded => Some(LetterStatus::Discarded),
            Self::Superseded => Some(LetterStatus::Superseded),
            Self::All => None,
        }
    }
}

impl Filter {
    /// The filter as the ledger takes it.
    pub fn in_ledger(&self) -> LetterFilter {
        LetterFilter {
            ids: self.id.clone(),
            fingerprint: self.fingerprint.clone(),
            consumer: self.consumer.clone(),
            place: self.place.clone(),
            class: self.class.clone(),
            reason: self.reason.clone(),
            status: self.status.in_ledger(),
            since: self.since,
            until: self.until,
            key: self.key.clone(),
            message_key: self.message_key.clone(),
            header: self.header.clone(),
            error: self.error.clone(),
            outcome: self.outcome.map(OutcomeName::in_ledger),
            redrive: self.redrive.clone(),
            on_hold: self.on_hold,
        }
    }
}

/// As the audit log tells it.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let document = serde_json::to_string(&without_secrets(self.in_ledger())).map_err(|_| fmt::Error)?;
        f.write_str(&document)
    }
}

/// Words of an error: a filter without any would mean every letter.
fn words(text: &str) -> Result<String, String> {
    match terms::has_words(text) {
        true => Ok(text.to_owned()),
        false => Err("give a word of letters or digits".to_owned()),
    }
}

/// A time, or how long ago it was.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    let ago: Duration = humantime::parse_duration(text).map_err(|_| {
        "use a time such as 2026-11-21T10:00:00Z, or how long ago it was, such as 2h".to_owned()
    })?;
    let ago = chrono::TimeDelta::from_std(ago).map_err(|_| "that is too long ago".to_owned())?;
    Utc::now().checked_sub_signed(ago).ok_or_else(|| "that is too long ago".to_owned())
}

fn header(text: &str) -> Result<HeaderFilter, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("name the header".to_owned());
    }
    Ok(HeaderFilter { name: name.to_owned(), value })
}

/// Letters a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("use a number above 0".to_owned()),
    }
}
