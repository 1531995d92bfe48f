//! What Backstop costs: each figure beside the bare drivers on the same servers, in one run.
//!
//! `docs/benchmarks.md` says how each is measured and what the last run showed. A timing is never a test: the
//! program fails only when messages are lost, come out of order, or come twice without a kill.

mod broker;
mod clock;
mod collect;
mod commit_delay;
mod consumer;
mod database;
mod databases;
mod denied;
mod drain;
mod effect;
mod effects;
mod event;
mod grouped;
mod grouped_rabbitmq;
mod growth;
mod held;
mod kafka;
mod kills;
mod latency;
mod machine;
mod mariadb;
mod memory;
mod options;
mod order;
mod outage;
mod outbox;
mod pages;
mod plain;
mod program;
mod rabbitmq;
mod redrive;
mod relay;
mod report;
mod server_cost;
mod servers;
mod shared_rows;
mod sizes;
mod slow_consumer;
mod slow_key;
mod sqlite;
mod waves;

use std::error::Error;
use std::process::ExitCode;

use crate::database::Database;
use crate::options::{Options, Part};
use crate::report::Figure;
use crate::servers::Servers;
use crate::sizes::Sizes;

/// What every step ends with.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What every part works with.
#[derive(Debug)]
struct Bench {
    servers: Servers,
    database: Database,
    sizes: Sizes,
    figures: Vec<Figure>,
}

impl Bench {
    /// Keeps a figure, and shows it for those who wait.
    fn push(&mut self, figure: Figure) {
        eprint!("{}", report::line(&figure));
        self.figures.push(figure);
    }
}

/// That of the relay's program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [slow_consumer::COMMAND, task] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return ended(slow_consumer::main(task).await);
    }
    match Options::parse(arguments) {
        Ok(options) => ended(run(&options).await),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn ended(outcome: Outcome<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Outcome<()> {
    let servers = Servers::from_environment()?;
    let database = Database::fresh(&servers, "all").await?;
    let machine = machine::describe(&database).await?;
    for (name, value) in &machine {
        println!("{name:<12} {value}");
    }
    let mut bench = Bench { servers, database, sizes: options.sizes.clone(), figures: Vec::new() };
    let measured = measure_all(&mut bench, &options.parts).await;
    print!("\n{}", report::table(&bench.figures));
    if options.json {
        println!("{}", report::json(&machine, &bench.figures));
    }
    bench.database.drop().await?;
    measured
}

async fn measure_all(bench: &mut Bench, parts: &[Part]) -> Outcome<()> {
    for part in parts {
        measure(bench, *part).await?;
    }
    Ok(())
}

async fn measure(bench: &mut Bench, part: Part) -> Outcome<()> {
    match part {
        Part::Drain => drain::run(bench).await,
        Part::Databases => databases::run(bench).await,
        Part::Latency => latency::run(bench).await,
        Part::Held => held::run(bench).await,
        Part::Growth => {
            growth::run(bench).await?;
            server_cost::run(bench).await
        }
        Part::Memory => {
            program::build()?;
            memory::run(bench).await
        }
        Part::Kills => {
            program::build()?;
            kills::run(bench).await
        }
        Part::Outage => {
            program::build()?;
            outage::run(bench).await?;
            denied::run(bench).await
        }
        Part::Consumer => consumer::run(bench).await,
        Part::Effect => effect::run(bench).await,
        Part::Grouped => {
            grouped::run(bench).await?;
            grouped_rabbitmq::run(bench).await
        }
        Part::Plain => plain::run(bench).await,
        Part::CommitDelay => commit_delay::run(bench).await,
        Part::SharedRows => shared_rows::run(bench).await,
        Part::SlowKey => slow_key::run(bench).await,
        Part::Collect => collect::run(bench).await,
        Part::Redrive => {
            program::build()?;
            redrive::run(bench).await
        }
        Part::Pages => {
            program::build()?;
            pages::run(bench).await
        }
    }
}
