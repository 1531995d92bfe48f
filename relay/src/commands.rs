//! The commands, one module each.

mod audit;
mod check;
mod config;
mod content;
mod dead_letters;
mod generated;
mod held;
mod held_ask;
mod letter_changes;
mod letter_edit;
mod letter_files;
mod migrate;
mod outbox;
mod outbox_dead;
mod outbox_status;
pub(crate) mod redrive;
mod redrives;
mod reencrypt;
mod replay;
mod rules;
pub(crate) mod run;

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;

use backstop_core::AdapterError;
use backstop_core::ledger::Ledger;
use backstop_core::sink::Publisher;

use crate::broker;
use crate::cli::{Cli, Command, ConfigCommand, ConfiguredCommand, Global};
use crate::config::{BrokerConfig, Config, DatabaseConfig, Environment, OutboxConfig, S3Config};
use crate::database::Database;
use crate::encryption::Keyring;
use crate::exit::{Exit, Failure};
use crate::output::Format;
use crate::secret::Scrubber;

/// What `run` logs unless told. The brokers' clients are left out: the adapters report what matters of it, lapin would
/// log the bodies of returned messages, and librdkafka each attempt to connect.
const LOG: &str = "info,lapin=off,rdkafka=off,librdkafka=off";

/// What a command is given.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) global: Global,
    pub(crate) scrubber: Scrubber,
    /// How buckets are reached that the configuration does not name.
    s3: S3Config,
}

impl Context {
    pub(crate) fn load(global: Global) -> Result<Self, Failure> {
        let env = Environment::of_process();
        let config = Config::load(&global.config, &env)?;
        let mut scrubber = config.scrubber();
        let s3 = S3Config::of_environment(&env);
        s3.secrets().for_each(|secret| scrubber.learn(secret.expose()));
        Ok(Self { config, global, scrubber, s3 })
    }

    /// How buckets are reached: as the archive's is, where it is in one.
    pub(crate) fn s3(&self) -> &S3Config {
        let retention = self.config.dead_letters.retention.as_ref();
        retention.and_then(|retention| retention.s3.as_ref()).unwrap_or(&self.s3)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.global.output == Format::Json
    }

    /// The broker of the configuration.
    pub(crate) fn broker(&self) -> Result<&BrokerConfig, Failure> {
        self.config.broker.as_ref().ok_or_else(|| self.no_broker())
    }

    fn no_broker(&self) -> Failure {
        Failure::new(
            Exit::Configuration,
            format!("{}: [broker] is missing", self.global.config.display()),
            "add [broker] with kind = \"kafka\" or \"rabbitmq\"",
        )
    }

    /// What publishes the rows of an outbox, to one broker or several.
    pub(crate) fn pipeline(&self) -> Result<Box<dyn Publisher>, Failure> {
        match broker::pipeline(&self.config).map_err(|error| Failure::broker(&error))? {
            Some(pipeline) => Ok(pipeline),
            None => Err(self.no_broker()),
        }
    }

    /// The database that holds an outbox.
    pub(crate) async fn outbox(&self, outbox: &OutboxConfig) -> Result<Database, Failure> {
        let mut database = open(self.config.database_of(outbox)).await?;
        database.outbox = database.outbox_of(outbox).await.map_err(|error| Failure::database(&error))?;
        Ok(database)
    }

    /// The keys of the ledger.
    pub(crate) fn keys(&self) -> Keyring {
        Keyring::of(self.config.dead_letters.encryption.as_ref())
    }

    /// The ledger of dead letters.
    pub(crate) async fn ledger(&self) -> Result<Arc<dyn Ledger>, Failure> {
        open(self.config.ledger()).await?.ledger().map_err(database)
    }
}

async fn open(config: &DatabaseConfig) -> Result<Database, Failure> {
    Database::open(config).await.map_err(|error| Failure::database(&error))
}

/// Asks whether to go on. Without a terminal nobody can be asked, and that is a failure, too.
pub(crate) fn confirm(question: &str, declined: &str) -> Result<(), Failure> {
    let unconfirmed = |what: &str, hint| Err(Failure::new(Exit::NotConfirmed, what, hint));
    if !io::stdin().is_terminal() {
        return unconfirmed(
            "nobody can be asked whether to go on, because there is no terminal",
            "add --yes",
        );
    }
    let mut err = io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => unconfirmed(declined, "answer y, or add --yes"),
    }
}

/// A failure of the database, for `map_err`.
pub(crate) fn database(error: AdapterError) -> Failure {
    Failure::database(&error)
}

/// Runs the command; a failure comes with what is needed to show it without secrets.
pub(crate) fn run(cli: Cli) -> Result<Exit, (Failure, Scrubber)> {
    let without_secrets = |failure| (failure, Scrubber::default());
    match cli.command {
        Command::Demo(demo) => log(&cli.global, "off", &Scrubber::default())
            .and_then(|()| on_runtime(crate::demo::run(&cli.global, &demo)))
            .map_err(without_secrets),
        Command::Completions { shell } => generated::completions(shell).map_err(without_secrets),
        Command::Man => generated::man().map_err(without_secrets),
        Command::Config(ConfigCommand::Schema) => generated::schema().map_err(without_secrets),
        Command::Config(ConfigCommand::Print) => {
            let context = Context::load(cli.global).map_err(without_secrets)?;
            config::print(&context).map_err(|failure| (failure, context.scrubber.clone()))
        }
        Command::Configured(command) => {
            let context = Arc::new(Context::load(cli.global).map_err(without_secrets)?);
            dispatch(&context, command).map_err(|failure| (failure, context.scrubber.clone()))
        }
    }
}

fn log(global: &Global, usual: &str, scrubber: &Scrubber) -> Result<(), Failure> {
    let filter = global.log.as_deref().unwrap_or(usual);
    crate::logging::init(global.log_format, filter, scrubber.clone())
}

fn dispatch(context: &Arc<Context>, command: ConfiguredCommand) -> Result<Exit, Failure> {
    let usual = if matches!(command, ConfiguredCommand::Run) { LOG } else { "off" };
    log(&context.global, usual, &context.scrubber)?;
    on_runtime(async {
        match command {
            ConfiguredCommand::Run => run::run(context).await,
            ConfiguredCommand::Migrate(migrate) => migrate::run(context, migrate).await,
            ConfiguredCommand::Check { notify } => check::run(context, notify).await,
            ConfiguredCommand::Outbox(command) => outbox::run(context, command).await,
            ConfiguredCommand::Held(command) => held::run(context, command).await,
            ConfiguredCommand::Replay(args) => replay::run(context, args).await,
            ConfiguredCommand::DeadLetters(command) => dead_letters::run(context, command).await,
            ConfiguredCommand::Redrives(command) => redrives::run(context, command).await,
            ConfiguredCommand::Rules(command) => rules::run(context, command).await,
            ConfiguredCommand::Audit(args) => audit::run(context, args).await,
        }
    })
}

fn on_runtime(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| {
        let what = format!("cannot start threads: {error}");
        Failure::new(Exit::Failed, what, "check the limits of this process")
    })?;
    let result = runtime.block_on(work);
    // The process ends now. Ending the runtime before it would make threads of the brokers' clients panic aloud.
    std::mem::forget(runtime);
    result
}
