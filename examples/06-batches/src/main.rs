//! Orders that wait are handled together: one statement for all of them, and each is still applied once.
use backstop::schema::Schema;
use backstop::{BatchHandler, Consumer, Delivery, HandlerError, Message, Outcomes};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx};
use backstop_testkit::memory::Broker;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Order {
    item: String,
    quantity: u32,
}

struct Take;

impl BatchHandler<SqliteTx> for Take {
    type Message = Order;

    async fn handle(&self, batch: &[&Delivery<Order>], tx: &mut SqliteTx) -> Result<Outcomes, HandlerError> {
        let orders: Vec<&Order> = batch.iter().map(|delivery| delivery.body()).collect();
        let take = "UPDATE stock SET free = free - taken.quantity \
                    FROM (SELECT value ->> 'item' AS item, sum(value ->> 'quantity') AS quantity \
                          FROM json_each(?) GROUP BY 1) AS taken \
                    WHERE stock.item = taken.item";
        sqlx::query(take).bind(serde_json::to_string(&orders)?).execute(&mut **tx).await?;
        Ok(Outcomes::handled())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let pool = backstop_sqlite::open(&folder.path().join("stock.sqlite").to_string_lossy()).await?;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;
    sqlx::raw_sql("CREATE TABLE stock AS SELECT 'tea' AS item, 2000 AS free UNION SELECT 'coffee', 2000")
        .execute(&pool)
        .await?;

    let broker = Broker::new();
    broker.create("orders", 4);
    for n in 0..1_000 {
        let order = Order { item: ["tea", "coffee"][n % 2].to_owned(), quantity: 1 + n as u32 % 3 };
        let message =
            Message::new("order").id(n.to_string()).key(format!("customer-{}", n % 50)).json(&order)?;
        broker.publish("orders", message.clone());
        broker.publish("orders", message); // comes again, as brokers do, and is taken once
    }
    let source = broker.source("stock", ["orders"]).ends_when_idle();
    let consumer = Consumer::batch("stock", source, SqliteInbox::new(pool.clone()), Take);
    let report =
        consumer.dead_letter(broker.dead_letters()).concurrency(2).run(std::future::pending()).await?;

    println!(
        "{} orders, {} duplicates, in batches: {}",
        report.handled,
        report.duplicates,
        report.grouped > 0
    );
    let stock = sqlx::query_as("SELECT item, free FROM stock ORDER BY item").fetch_all(&pool).await?;
    stock.iter().for_each(|(item, free): &(String, i64)| println!("{item}: {free} free"));
    Ok(())
}
