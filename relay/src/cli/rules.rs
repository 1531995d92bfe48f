//! `rules …` on the command line.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

/// `rules …`
#[derive(Debug, Clone, Subcommand)]
pub enum RulesCommand {
    /// List the rules: what each waits for and would send, what it did last, and why it cannot fire.
    List,
    /// Redrive by hand what a rule would send now, as it would.
    ///
    /// The redrive is yours: the rule does not count it as its own, and fires all the same.
    Run(RuleRun),
    /// Let a rule fire again whose last redrive was stopped by its canary, or cancelled.
    ///
    /// A new version of its consumer does the same.
    Resume {
        /// Its name.
        name: String,
        /// Why.
        #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
        because: String,
    },
}

/// `rules run`
#[derive(Debug, Clone, Args)]
pub struct RuleRun {
    /// Its name.
    pub name: String,
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
