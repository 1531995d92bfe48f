//! A test that kills the process at every step of the loop finds what is wrong with a handler, and where.
use backstop::{Delivery, Handler, HandlerError, Message, Outgoing};
use backstop_testkit::memory::MemoryTx;
use backstop_testkit::{Outside, TestConsumer};

/// Wrong: the card is charged before anybody knows whether the transaction commits.
struct ChargesAtOnce {
    bank: Outside, // in production a client of the bank
}

impl Handler<MemoryTx> for ChargesAtOnce {
    type Message = String;

    async fn handle(&self, order: &Delivery<String>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        self.bank.effect(&order.message().id, "charge the card");
        tx.apply(format!("ship {}", order.body()));
        Ok(())
    }
}

/// Right: the charge is an event of the outbox, which commits with the rest. Who handles it gives the bank its id.
struct ChargesByOutbox;

impl Handler<MemoryTx> for ChargesByOutbox {
    type Message = String;

    async fn handle(&self, order: &Delivery<String>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        tx.enqueue(Outgoing::to("charges", Message::new("charge.due").key(order.message().id.clone())));
        tx.apply(format!("ship {}", order.body()));
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let order = Message::new("order.placed").id("order-1").key("customer-1").json(&"tea")?;

    let wrong = TestConsumer::new(|bank| ChargesAtOnce { bank }).event(order.clone());
    println!("at once, undisturbed: {}", wrong.undisturbed().await);
    println!("at once: {}", wrong.crash_everywhere().await);

    let right = TestConsumer::new(|_: Outside| ChargesByOutbox).event(order);
    println!("by the outbox: {}", right.crash_everywhere().await);
    right.lose_commits().await.assert_exactly_once(); // what a test ends with
    Ok(())
}
