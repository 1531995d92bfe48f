//! What Backstop costs: each figure beside the bare drivers on the same servers, in one run.
//!
//! `docs/benchmarks.md` says how each is measured and what the last run showed. A timing is never a test: the
//! program fails only when messages are lost or come out of order.

mod consumer;
mod database;
mod event;
mod grouped;
mod kafka;
mod latency;
mod machine;
mod options;
mod rabbitmq;
mod relay;
mod report;
mod servers;

use std::error::Error;
use std::process::ExitCode;

use crate::database::Database;
use crate::options::{Options, Sizes};
use crate::report::Figure;
use crate::servers::Servers;

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

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
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
    if options.relay {
        relay::run(&mut bench).await?;
    }
    if options.consumer {
        consumer::run(&mut bench).await?;
    }
    if options.grouped {
        grouped::run(&mut bench).await?;
    }
    if options.latency {
        latency::run(&mut bench).await?;
    }
    print!("\n{}", report::table(&bench.figures));
    if options.json {
        println!("{}", report::json(&machine, &bench.figures));
    }
    bench.database.drop().await
}
