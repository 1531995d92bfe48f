//! A bank that does not answer for a while: the breaker opens, nothing is charged, and HTTP tells of it.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop::{Consumer, Delivery, Handler, HandlerError, Message, RunState, http};
use backstop_testkit::memory::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static BANK_ANSWERS: AtomicBool = AtomicBool::new(false);

struct Charge;

impl Handler<()> for Charge {
    type Message = u32;

    async fn handle(&self, _: &Delivery<u32>, _: &mut ()) -> Result<(), HandlerError> {
        let answers = BANK_ANSWERS.load(Ordering::SeqCst);
        answers.then_some(()).ok_or_else(|| HandlerError::unavailable("the bank does not answer"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = Broker::new();
    let consumer = Consumer::plain("billing", broker.source("billing", ["orders"]), Charge);
    let consumer = consumer.dead_letter(broker.dead_letters());
    let handle = consumer.handle();
    let running = tokio::spawn(consumer.run(backstop::shutdown_signal()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = axum::Router::new().nest("/backstop", http::router([handle.clone()]));
    tokio::spawn(async { axum::serve(listener, app).await });

    for order in 0..5 {
        broker.publish("orders", Message::new("order").key(format!("customer-{order}")).json(&order)?);
    }
    while handle.state() != RunState::BreakerOpen {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("no answer:   {}", get(address, "/backstop/ready").await?);
    BANK_ANSWERS.store(true, Ordering::SeqCst);
    while handle.stats().handled < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("answers:     {}", get(address, "/backstop/ready").await?);
    handle.drain().await;
    let report = running.await??;
    println!("{} charged, {} dead letters", report.handled, report.quarantined);
    Ok(())
}

async fn get(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    let (mut stream, mut answer) = (TcpStream::connect(address).await?, String::new());
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}
