//! An order and its event commit together, or not at all; the relay brings the event to the broker.
use std::sync::Arc;

use backstop::cloudevents::decode;
use backstop::outbox::OutboxStore;
use backstop::schema::Schema;
use backstop::{Message, Origin, Outgoing, Via};
use backstop_relay::pump::{Pump, PumpSettings};
use backstop_sqlite::{SqliteOutbox, SqliteOutboxStore, SqliteSchema, SqliteTables};
use backstop_testkit::memory::Broker;
use serde::Serialize;
use sqlx::SqlitePool;
use tokio_util::sync::CancellationToken;

#[derive(Serialize)]
struct OrderPlaced<'a> {
    item: &'a str,
    quantity: u32,
}

/// The business transaction: the order, and the event that tells others of it.
async fn place_order(pool: &SqlitePool, item: &str, quantity: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO orders VALUES (?, ?)").bind(item).bind(quantity).execute(&mut *tx).await?;
    let event = Message::new("order.placed").key(item.to_owned()).json(&OrderPlaced { item, quantity })?;
    SqliteOutbox::default().enqueue(&mut tx, Outgoing::to("orders", event)).await?;
    if quantity == 0 {
        return Ok(tx.rollback().await?); // neither order nor event
    }
    Ok(tx.commit().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let pool = backstop_sqlite::open(&folder.path().join("orders.sqlite").to_string_lossy()).await?;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;
    sqlx::query("CREATE TABLE orders (item TEXT, quantity INTEGER)").execute(&pool).await?;
    for (item, quantity) in [("tea", 2), ("nothing", 0), ("coffee", 1)] {
        place_order(&pool, item, quantity).await?;
    }
    let store = Arc::new(SqliteOutboxStore::new(pool, SqliteTables::default()));
    println!("in the outbox: {}", store.status().await?.pending);

    // A relay in this process; as a program of its own it is `backstop-relay run`.
    let broker = Broker::new();
    broker.create("orders", 1);
    let stop = CancellationToken::new();
    let pump = Pump::new(store.clone(), Box::new(broker.publisher()), PumpSettings::default());
    let relay = tokio::spawn(pump.run(stop.clone()));
    while store.status().await?.pending > 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    println!("published: {}", relay.await??.status.published);
    for envelope in broker.published("orders") {
        let origin = Origin::Kafka { topic: "orders".into(), partition: 0, offset: 0, timestamp: None };
        let (message, _) = decode(envelope, &origin, Via::Live, None);
        println!("{} {}", message.kind, String::from_utf8_lossy(&message.body.unwrap_or_default()));
    }
    Ok(())
}
