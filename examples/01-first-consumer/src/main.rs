//! A first consumer: each name is greeted once, however often it is delivered.
use backstop::schema::Schema;
use backstop::{Consumer, Delivery, Handler, HandlerError, Message};
use backstop_sqlite::{SqliteInbox, SqliteSchema, SqliteTables, SqliteTx};
use backstop_testkit::memory::Broker;

struct Greet;

impl Handler<SqliteTx> for Greet {
    type Message = String;

    async fn handle(&self, delivery: &Delivery<String>, tx: &mut SqliteTx) -> Result<(), HandlerError> {
        let greeting = format!("hello, {}", delivery.body());
        sqlx::query("INSERT INTO greetings VALUES (?)").bind(&greeting).execute(&mut **tx).await?;
        println!("{greeting}");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let pool = backstop_sqlite::open(&folder.path().join("greetings.sqlite").to_string_lossy()).await?;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;
    sqlx::query("CREATE TABLE greetings (greeting TEXT NOT NULL)").execute(&pool).await?;

    let broker = Broker::new(); // in memory; see the README for Kafka and RabbitMQ
    for (id, name) in [("1", "Ada"), ("2", "Grace"), ("1", "Ada")] {
        broker.publish("names", Message::new("name").id(id).key("all").json(&name)?);
    }
    let names = broker.source("greeter", ["names"]).ends_when_idle();
    let consumer = Consumer::transactional("greeter", names, SqliteInbox::new(pool), Greet);
    let report = consumer.dead_letter(broker.dead_letters()).run(backstop::shutdown_signal()).await?;
    println!("{} greeted, {} duplicate absorbed", report.handled, report.duplicates);
    Ok(())
}
