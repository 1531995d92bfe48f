//! Dead letters from the brokers into the ledger, beside the ledger alone and beside bare inserts of the same rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::header_column;
use backstop_core::ledger::{Ledger, Letter};
use backstop_core::{Envelope, Message, Origin};
use backstop_postgres::{PgLedger, PgTables};
use backstop_relay::broker;
use backstop_relay::collector::Collector;
use backstop_relay::config::{Config, Environment};
use backstop_relay::letters::letter;
use backstop_relay::owner::OwnerSettings;
use backstop_tests::{dead, program};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome};

const PATIENCE: Duration = Duration::from_secs(600);
/// Groups of letters.
const GROUPS: usize = 12;
/// Letters in one transaction, as the collector has them.
pub(crate) const TOGETHER: usize = 1_000;

/// The table without what makes letters searchable, counted and supersedable.
const BARE: &str = "CREATE TABLE bare_letter (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
                    id text COLLATE \"C\" NOT NULL UNIQUE, found_in text NOT NULL, error text, msg_key bytea, \
                    headers bytea NOT NULL, body bytea)";

const INSERT: &str = "INSERT INTO bare_letter (id, found_in, error, msg_key, headers, body) \
                      SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[]) \
                      ON CONFLICT (id) DO NOTHING";

/// Measures everything in turn, round by round.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    let (rounds, count) = (bench.sizes.rounds, bench.sizes.letters);
    sqlx::query(BARE).execute(&bench.database.pool).await?;
    let letters = letters(count);
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 1..=rounds {
        eprintln!("collect, round {round} of {rounds}");
        rates[0].push(bare(bench, &letters).await?);
        rates[1].push(recorded(bench, &letters).await?);
        rates[2].push(collected(bench, Broker::Kafka, count).await?);
        rates[3].push(collected(bench, Broker::RabbitMq, count).await?);
    }
    clear(bench).await?;
    let [bare, ledger, kafka, rabbit] = rates.map(|rates| median(&rates));
    bench.push(Figure::new("bare inserts", bare, "letters/s"));
    bench.push(Figure::new("ledger alone", ledger, "letters/s").beside("bare inserts", bare));
    for (name, rate) in [("Kafka -> ledger", kafka), ("RabbitMQ -> ledger", rabbit)] {
        bench.push(Figure::new(name, rate, "letters/s").beside("bare inserts", bare).at_least(10_000.0));
    }
    Ok(())
}

/// The letters as the collector makes them of what it reads.
fn letters(count: usize) -> Vec<Letter> {
    let letter = |n: usize| as_collected(n, dead::letter(n, n % GROUPS));
    (0..count).map(letter).collect()
}

/// What the collector makes of the message `n` of a topic.
pub(crate) fn as_collected(n: usize, envelope: Envelope) -> Letter {
    let mut message = Message::new("");
    (message.key, message.headers, message.body) = (envelope.key, envelope.headers, envelope.body);
    let offset = i64::try_from(n).unwrap_or(i64::MAX);
    letter(
        message,
        &Origin::Kafka { topic: "orders.stock.dlq".into(), partition: 0, offset, timestamp: None },
    )
}

async fn clear(bench: &Bench) -> Outcome<()> {
    let tables = "backstop_letter, backstop_letter_event, backstop_letter_group, backstop_letter_count, \
                  backstop_letter_minute, backstop_redrive_letter, bare_letter";
    sqlx::query(sqlx::AssertSqlSafe(format!("TRUNCATE {tables}"))).execute(&bench.database.pool).await?;
    Ok(())
}

/// The driver alone, with transactions of the same size; letters a second.
async fn bare(bench: &Bench, letters: &[Letter]) -> Outcome<f64> {
    clear(bench).await?;
    let began = Instant::now();
    for chunk in letters.chunks(TOGETHER) {
        let bytes =
            |field: fn(&Letter) -> Option<&[u8]>| -> Vec<Option<&[u8]>> { chunk.iter().map(field).collect() };
        let headers = chunk.iter().map(|letter| header_column::encode(&letter.envelope.headers));
        let headers: Vec<Vec<u8>> = headers.collect::<Result<_, _>>()?;
        sqlx::query(INSERT)
            .bind(chunk.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|letter| letter.found_in.as_str()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|letter| letter.error.as_deref()).collect::<Vec<_>>())
            .bind(bytes(|letter| letter.envelope.key.as_deref()))
            .bind(headers)
            .bind(bytes(|letter| letter.envelope.body.as_deref()))
            .execute(&bench.database.pool)
            .await?;
    }
    let rate = letters.len() as f64 / began.elapsed().as_secs_f64();
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM bare_letter").fetch_one(&bench.database.pool).await?;
    same("bare inserts", rows, letters.len())?;
    Ok(rate)
}

/// The ledger without a broker; letters a second.
async fn recorded(bench: &Bench, letters: &[Letter]) -> Outcome<f64> {
    clear(bench).await?;
    let ledger = PgLedger::new(bench.database.pool.clone(), PgTables::default());
    let began = Instant::now();
    for chunk in letters.chunks(TOGETHER) {
        ledger.record(chunk).await?;
    }
    let rate = letters.len() as f64 / began.elapsed().as_secs_f64();
    same("the ledger alone", collected_letters(bench).await?, letters.len())?;
    Ok(rate)
}

/// A collector that has just started reads everything; letters a second, from its first to its last.
async fn collected(bench: &Bench, broker: Broker, count: usize) -> Outcome<f64> {
    clear(bench).await?;
    let place = format!("{}.dlq", unique("letters"));
    broker.create(&bench.servers, &place).await?;
    let kind = match broker {
        Broker::Kafka => program::Broker::Kafka,
        Broker::RabbitMq => program::Broker::RabbitMq,
    };
    dead::publish(kind, (0..count).map(|n| (place.clone(), dead::letter(n, n % GROUPS)))).await;
    let config = config(bench, broker, &place)?;
    let section = config.broker.as_ref().ok_or("no broker")?;
    let sources = broker::sources(section, &config.dead_letters)?;
    let ledger: Arc<dyn Ledger> = Arc::new(PgLedger::new(bench.database.pool.clone(), PgTables::default()));
    let (owner, stop) =
        (OwnerSettings { lease: place.clone(), ..OwnerSettings::default() }, CancellationToken::new());
    let running = tokio::spawn(Collector::new(ledger, sources, owner).run(stop.clone()));
    let rate = timeout(PATIENCE, rate(bench, count)).await.map_err(|_| "the collector does not end")?;
    stop.cancel();
    running.await?;
    same(&format!("the collector of {}", broker.name()), collected_letters(bench).await?, count)?;
    broker.delete(&bench.servers, &place).await?;
    rate
}

fn config(bench: &Bench, broker: Broker, place: &str) -> Outcome<Config> {
    let section = match broker {
        Broker::Kafka => format!("kind = \"kafka\"\nbrokers = \"{}\"", bench.servers.kafka),
        Broker::RabbitMq => format!("kind = \"rabbitmq\"\nurl = \"{}\"", bench.servers.amqp),
    };
    let text = format!(
        "[database]\nurl = \"{}\"\n[broker]\n{section}\n\
         [dead_letters]\nenabled = true\nname = \"{place}\"\nsources = [\"{place}\"]\n",
        bench.database.url
    );
    Config::parse(&text, &Environment::default()).map_err(|faults| format!("{faults:?}").into())
}

async fn rate(bench: &Bench, count: usize) -> Outcome<f64> {
    let (mut began, mut first) = (None, 0);
    loop {
        let now = collected_letters(bench).await?;
        match began {
            None if now > 0 => (began, first) = (Some(Instant::now()), now),
            Some(began) if now >= i64::try_from(count)? => {
                return Ok((now - first) as f64 / Instant::elapsed(&began).as_secs_f64());
            }
            _ => {}
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// By the counts that the ledger keeps, so that looking costs little.
async fn collected_letters(bench: &Bench) -> Outcome<i64> {
    let count = "SELECT coalesce(sum(letters), 0)::bigint FROM backstop_letter_count";
    Ok(sqlx::query_scalar(count).fetch_one(&bench.database.pool).await?)
}

fn same(what: &str, rows: i64, letters: usize) -> Outcome<()> {
    if usize::try_from(rows)? == letters {
        return Ok(());
    }
    Err(format!("{what}: {rows} letters of {letters}").into())
}
