//! The command line.

mod audit;
mod dead_rows;
mod held;
mod letters;
mod redrives;
mod replay;
mod rules;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use audit::Audit;
pub use dead_rows::{DeadRowChange, DeadRowChoice, OutboxDeadCommand};
pub use held::{AskedEnding, HeldAsk, HeldChange, HeldCommand};
pub use letters::{DeadLettersCommand, Filter, LetterChange, LetterEdit, OutcomeName, Redrive, Status};
pub use redrives::RedrivesCommand;
pub use replay::Replay;
pub use rules::{RuleRun, RulesCommand};

use crate::commands;
use crate::exit::{Exit, Failure};
use crate::logging::LogFormat;
use crate::output::Format;
use crate::secret::Scrubber;

/// Drains a transactional outbox into a broker, collects dead letters and redrives them.
#[derive(Debug, Parser)]
#[command(name = "backstop-relay", version, arg_required_else_help = true, after_help = Exit::help())]
pub struct Cli {
    /// What all commands have in common.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BACKSTOP_CONFIG",
        hide_env_values = true,
        default_value = crate::config::USUAL_FILE
    )]
    pub config: PathBuf,
    /// The form of the output: `human` or `json`.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human", hide_possible_values = true)]
    pub output: Format,
    /// The form of the log on standard error: `human` or `json`.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human", hide_possible_values = true)]
    pub log_format: LogFormat,
    /// What to log: a level, or a filter such as `info,backstop_relay=debug`. Unless set, `run` logs `info`, and other
    /// commands log nothing.
    #[arg(long, global = true, value_name = "FILTER", env = "BACKSTOP_LOG", hide_env_values = true)]
    pub log: Option<String>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a message's whole way, and what goes wrong on it, with nothing to install.
    ///
    /// A shop's orders go through outbox, relay and broker to a payment service that fails in several ways. Relay and
    /// consumer are the real ones; database and broker live in this process. The exit status says whether the ledger
    /// balances at the end.
    Demo(Demo),
    /// A command that needs a configuration file.
    #[command(flatten)]
    Configured(ConfiguredCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell.
    ///
    /// For bash: `backstop-relay completions bash > /etc/bash_completion.d/backstop-relay`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page: `backstop-relay man > backstop-relay.1`.
    Man,
}

/// A command that needs a configuration file.
#[derive(Debug, Subcommand)]
pub enum ConfiguredCommand {
    /// Drain the outbox and, where enabled, collect dead letters, until a signal.
    Run,
    /// Create, upgrade or take back the tables.
    Migrate(Migrate),
    /// Look at the configuration, databases and broker, and say what to mend.
    Check {
        /// Ask the addresses that notices go to, too, whether anybody answers (HEAD; nothing is told).
        #[arg(long)]
        notify: bool,
    },
    /// Dead letters in the ledger.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Redrives of dead letters: look at them and steer them.
    #[command(subcommand)]
    Redrives(RedrivesCommand),
    /// Rules by which the relay redrives dead letters by itself.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Who did what by hand over the ledger, newest first.
    Audit(Audit),
    /// The outbox.
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Messages that consumers hold in this database.
    #[command(subcommand)]
    Held(HeldCommand),
    /// Send a part of a Kafka topic once more, to one consumer's door or to another topic.
    ///
    /// Reads from where it is told to where the topic ends now, beside every consumer group. Messages go out in the
    /// order of each partition. With --state a replay that was cut off goes on where it was.
    Replay(Replay),
}

/// `demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// How many orders the shop places, from 30 to 10,000.
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(i64::from(crate::demo::FEWEST_EVENTS)..=10_000))]
    pub events: u32,
    /// Where to keep the database and the relay's configuration. Unless given, a temporary folder, which is removed
    /// when all went well.
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
    /// Go on afterwards, with orders that fail among them, and leave the console open, until it is stopped (Ctrl-C).
    #[arg(long)]
    pub keep_running: bool,
}

/// `migrate`
#[derive(Debug, Args)]
pub struct Migrate {
    /// What to do; `up` unless told.
    #[command(subcommand)]
    pub direction: Option<MigrateCommand>,
    /// Print the statements and change nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
}

/// A direction of `migrate`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum MigrateCommand {
    /// Apply every step that is missing.
    Up,
    /// Take steps back, newest first.
    Down {
        /// The version to go back to; 0 takes everything back, with its data.
        #[arg(long, value_name = "VERSION")]
        to: i64,
    },
    /// List the steps and whether they are applied.
    Status,
}

/// `config …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum ConfigCommand {
    /// Print the configuration with every default, and without secrets.
    Print,
    /// Print the JSON schema of the configuration file, for editors. Needs no configuration.
    Schema,
}

/// `outbox …`
#[derive(Debug, Clone, Subcommand)]
pub enum OutboxCommand {
    /// How many rows wait, and for how long, in each outbox.
    Status,
    /// Rows that can never be sent.
    #[command(subcommand)]
    Dead(OutboxDeadCommand),
}

/// Runs the program with these arguments, of which the first is its name, and says how it ended.
///
/// Every failure is an `error:` line and, where a remedy is known, a `hint:` line on standard error.
pub fn start(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let exit = match commands::run(cli) {
        Ok(exit) => exit,
        Err((failure, scrubber)) => report(&failure, &scrubber),
    };
    ExitCode::from(exit.code())
}

fn usage(error: &clap::Error) -> ExitCode {
    // A closed standard output is no failure.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Ok }.code())
}

fn report(failure: &Failure, scrubber: &Scrubber) -> Exit {
    let mut err = std::io::stderr().lock();
    for line in failure.lines(scrubber) {
        // Nobody can be told that standard error is closed.
        let _ = writeln!(err, "{line}");
    }
    failure.exit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn migrate_means_up_and_takes_dry_run_before_and_after() {
        for args in [&["migrate", "--dry-run"][..], &["migrate", "up", "--dry-run"]] {
            let cli = Cli::try_parse_from([&["backstop-relay"], args].concat()).expect("sound");
            let Command::Configured(ConfiguredCommand::Migrate(migrate)) = cli.command else {
                panic!("migrate expected")
            };
            assert!(migrate.dry_run);
        }
    }
}
