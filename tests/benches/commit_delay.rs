//! Consumers whose commits take longer, as on disks that are slower or farther away, beside the same with commits as
//! they are here.

use backstop::GroupCommit;

use crate::consumer::{Work, consume, create_account};
use crate::grouped::{self, BATCH, consume_batches};
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// How long the server waits before it flushes the log, in microseconds. Whoever commits meanwhile shares the flush.
const DELAY: u32 = 1_000;

/// How messages share transactions.
#[derive(Debug, Clone, Copy)]
enum Form {
    Single,
    Groups,
    Batches,
}

/// All forms, and what each should keep of its rate.
const FORMS: [(Form, &str, f64); 3] = [
    (Form::Single, "one transaction each", 0.7),
    (Form::Groups, "group commit", 0.9),
    (Form::Batches, "batches", 0.9),
];

/// Measures all forms with and without.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let single = unique("single");
    kafka::create_topic(&bench.servers, &single).await?;
    kafka::produce(&bench.servers, &single, bench.sizes.messages).await?;
    let grouped = grouped::fill(bench, grouped::work(bench)).await?;
    let rates = measure(bench, &single, &grouped).await;
    // The parts that follow use the same database, whatever has come of this one.
    delay(bench, None).await?;
    kafka::delete_topics(&bench.servers, &[&single, &grouped]).await?;
    for ((_, name, asked), rates) in FORMS.into_iter().zip(rates?) {
        let [without, with] = rates.map(|rates| median(&rates));
        let figure = Figure::new(format!("{name}, commits 1 ms longer"), with, "messages/s");
        bench.push(figure.beside("as they are", without).ratio_at_least(asked));
    }
    Ok(())
}

/// Of each form the rates without and with the delay.
async fn measure(bench: &Bench, single: &str, grouped: &str) -> Outcome<[[Vec<f64>; 2]; 3]> {
    let mut rates: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 1..=bench.sizes.rounds {
        eprintln!("commit delay, round {round} of {}", bench.sizes.rounds);
        for ((form, ..), [without, with]) in FORMS.into_iter().zip(&mut rates) {
            delay(bench, None).await?;
            without.push(form.consume(bench, single, grouped).await?);
            delay(bench, Some(DELAY)).await?;
            with.push(form.consume(bench, single, grouped).await?);
        }
    }
    Ok(rates)
}

impl Form {
    /// Messages a second.
    async fn consume(self, bench: &Bench, single: &str, grouped: &str) -> Outcome<f64> {
        let work = grouped::work(bench);
        match self {
            Self::Single => consume(bench, single, Work::of(bench.sizes.messages)).await,
            Self::Groups => consume(bench, grouped, work).await,
            Self::Batches => {
                let groups = GroupCommit::up_to(BATCH);
                consume_batches(bench, grouped, Work { groups, ..work }).await
            }
        }
    }
}

/// Lets commits of new sessions wait so long, also where nobody else has a transaction open; or as long as always.
async fn delay(bench: &Bench, micros: Option<u32>) -> Outcome<()> {
    bench.database.set("commit_delay", micros).await?;
    bench.database.set("commit_siblings", micros.map(|_| 0)).await?;
    let pool = bench.database.pool_of(1).await?;
    let told: String = sqlx::query_scalar("SHOW commit_delay").fetch_one(&pool).await?;
    pool.close().await;
    let expected = micros.unwrap_or_default().to_string();
    if told == expected { Ok(()) } else { Err(format!("commit_delay is {told}, not {expected}").into()) }
}
