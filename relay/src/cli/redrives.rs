//! `redrives …` on the command line.

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use super::letters::rate;

/// `redrives …`
#[derive(Debug, Subcommand)]
pub enum RedrivesCommand {
    /// List redrives, newest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// Begin after the redrive with this id.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Show one redrive: what was asked for, and what became of its letters.
    Show {
        /// Its id.
        id: String,
    },
    /// Follow a redrive until it is over, or paused.
    Watch {
        /// Its id.
        id: String,
    },
    /// Send nothing more until somebody resumes it.
    Pause {
        /// Its id.
        id: String,
        /// Why.
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        because: Option<String>,
    },
    /// Go on; the brake judges anew.
    Resume {
        /// Its id.
        id: String,
    },
    /// End it for good: what is not sent yet stays open, what is being sent waits for its outcome.
    Cancel {
        /// Its id.
        id: String,
        /// Why.
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        because: Option<String>,
    },
    /// Change how many letters a second it sends, while it runs.
    Rate {
        /// Its id.
        id: String,
        /// Letters a second.
        #[arg(value_parser = rate)]
        rate: f64,
    },
}
