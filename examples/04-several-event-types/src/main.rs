//! Several event types on one topic: each goes to the handler of its kind.
use backstop::schema::Schema;
use backstop::{Consumer, Delivery, Handler, HandlerError, Message, Router, Unrouted};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx};
use backstop_testkit::memory::Broker;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    item: String,
    quantity: u32,
}

#[derive(Serialize, Deserialize)]
struct OrderCancelled {
    item: String,
    reason: String,
}

struct ReserveStock;

impl Handler<SqliteTx> for ReserveStock {
    type Message = OrderPlaced;

    async fn handle(&self, delivery: &Delivery<OrderPlaced>, _: &mut SqliteTx) -> Result<(), HandlerError> {
        println!("reserve {} x {}", delivery.body().quantity, delivery.body().item);
        Ok(())
    }
}

struct FreeStock;

impl Handler<SqliteTx> for FreeStock {
    type Message = OrderCancelled;

    async fn handle(
        &self,
        delivery: &Delivery<OrderCancelled>,
        _: &mut SqliteTx,
    ) -> Result<(), HandlerError> {
        println!("free {}: {}", delivery.body().item, delivery.body().reason);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let pool = backstop_sqlite::open(&folder.path().join("stock.sqlite").to_string_lossy()).await?;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;

    let broker = Broker::new();
    let publish = |message: Message| broker.publish("orders", message.key("order-7"));
    publish(Message::new("order.placed").json(&OrderPlaced { item: "tea".into(), quantity: 2 })?);
    publish(Message::new("order.praised").json(&"lovely")?); // nobody's business here
    publish(
        Message::new("order.cancelled")
            .json(&OrderCancelled { item: "tea".into(), reason: "sold out".into() })?,
    );

    let router = Router::new()
        .on("order.placed", ReserveStock)
        .on("order.cancelled", FreeStock)
        .otherwise(Unrouted::Skip);
    let orders = broker.source("stock", ["orders"]).ends_when_idle();
    let consumer = Consumer::transactional("stock", orders, SqliteInbox::new(pool), router);
    let report = consumer.dead_letter(broker.dead_letters()).run(backstop::shutdown_signal()).await?;
    println!("{} handled", report.handled);
    Ok(())
}
