//! `audit` on the command line.

use clap::Args;

/// `audit`
#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// Actions whose names begin so, such as `redrive` or `dead-letters discard`.
    #[arg(long, value_name = "TEXT")]
    pub action: Option<String>,
    /// Of this person.
    #[arg(long, value_name = "NAME")]
    pub who: Option<String>,
    /// About the redrive with this id.
    #[arg(long, value_name = "ID")]
    pub redrive: Option<String>,
    /// Entries with a lower number than this.
    #[arg(long, value_name = "N")]
    pub before: Option<i64>,
    /// At most so many.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
}
