//! What may pass is retried in order, what will not is quarantined, and comes back when the handler is mended.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::dead_letter::redrive_envelope;
use backstop::schema::Schema;
use backstop::{Consumer, Delivery, ErrorClass, Handler, HandlerError, Message, RetryPolicy, names};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx};
use backstop_testkit::memory::Broker;
use serde::{Deserialize, Serialize};

static WAREHOUSE_IS_MENDED: AtomicBool = AtomicBool::new(false);

#[derive(Serialize, Deserialize)]
struct Order(String);

struct Reserve;

impl Handler<SqliteTx> for Reserve {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut SqliteTx) -> Result<(), HandlerError> {
        let Order(item) = delivery.body();
        let attempt = delivery.attempt();
        if item == "tea" && attempt < 3 {
            println!("{item}, attempt {attempt}: the shelf is locked");
            return Err(HandlerError::transient("the shelf is locked"));
        }
        if item == "gold" && !WAREHOUSE_IS_MENDED.load(Ordering::SeqCst) {
            return Err(HandlerError::permanent("nobody knows what gold is"));
        }
        sqlx::query("INSERT INTO reserved VALUES (?)").bind(item).execute(&mut **tx).await?;
        println!("{item}, attempt {attempt}: reserved");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let pool = backstop_sqlite::open(&folder.path().join("stock.sqlite").to_string_lossy()).await?;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;
    sqlx::query("CREATE TABLE reserved (item TEXT NOT NULL)").execute(&pool).await?;

    let broker = Broker::new();
    broker.publish("orders", Message::new("order").key("shelf-1").json(&Order("tea".into()))?);
    broker.publish("orders", Message::new("order").key("shelf-1").json(&Order("coffee".into()))?); // waits for tea
    let consumer = |reserved: i64| {
        Consumer::transactional(
            "stock",
            broker.source("stock", ["orders"]),
            SqliteInbox::new(pool.clone()),
            Reserve,
        )
        .dead_letter(broker.dead_letters())
        .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_millis(50)).max_attempts(5))
        .run(reserved_at_least(pool.clone(), reserved))
    };
    consumer(2).await?;

    broker.publish("orders", Message::new("order").key("shelf-2").json(&Order("gold".into()))?);
    broker.publish("orders", Message::new("order").key("shelf-2").json(&Order("milk".into()))?);
    consumer(3).await?;
    let letter = &broker.published("orders.stock.dlq")[0];
    println!("dead letter: {}", letter.headers.get_str(names::ERROR_MESSAGE).unwrap_or_default());

    WAREHOUSE_IS_MENDED.store(true, Ordering::SeqCst);
    broker.publish_envelope("orders.stock.redrive", redrive_envelope(letter)); // what the relay's redrive does
    consumer(4).await?;
    Ok(())
}

async fn reserved_at_least(pool: sqlx::SqlitePool, count: i64) {
    while sqlx::query_scalar("SELECT count(*) FROM reserved").fetch_one(&pool).await.unwrap_or(0) < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
