//! From topic to topic: an order's invoice, its parcel and the fact that it was read are committed together.
use std::time::Duration;

use backstop::pipeline::Outputs;
use backstop::sink::Sink;
use backstop::{Consumer, Delivery, Destination, Handler, HandlerError, Message, Outgoing, cloudevents};
use backstop_kafka::{
    KafkaDeadLetters, KafkaExcerpt, KafkaPipeline, KafkaSettings, KafkaSink, KafkaSource, MockBroker,
    ReadFrom,
};

struct Bill;

impl Handler<Outputs> for Bill {
    type Message = u32;

    async fn handle(&self, order: &Delivery<u32>, out: &mut Outputs) -> Result<(), HandlerError> {
        let id = &order.message().id;
        out.send(Outgoing::to("invoices", Message::new("invoice").id(id).json(&(order.body() * 3))?));
        if *order.body() == 0 {
            return Err(HandlerError::permanent("nothing was ordered")); // its invoice is never written
        }
        out.send(Outgoing::to("parcels", Message::new("parcel").id(id).json(order.body())?));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = MockBroker::start()?; // in this process; elsewhere it is the address of Kafka
    let settings = KafkaSettings::new(broker.bootstrap_servers());
    for topic in ["orders", "invoices", "parcels"] {
        broker.create_topic(topic, 1)?;
    }
    broker.create_owned_topics("orders", "billing", 1)?;
    let sink = KafkaSink::new(settings.clone());
    for (id, quantity) in [("a", 2), ("b", 0), ("c", 7)] {
        let order = Message::new("order").id(id).json(&quantity)?;
        sink.publish(&Destination::new("orders"), cloudevents::encode(order, sink.binding())).await?;
    }

    let orders = KafkaSource::subscribe(broker.bootstrap_servers(), "billing", &["orders"]);
    let pipeline = KafkaPipeline::new(orders).transactional_id("billing-0");
    let letters = KafkaDeadLetters::new(settings.clone());
    let consumer = Consumer::pipeline("billing", pipeline, Bill).dead_letter(letters);
    let stats = consumer.stats();
    let all_committed = async {
        while stats.snapshot().handled + stats.snapshot().quarantined < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let report = consumer.run(all_committed).await?;
    println!("{} handled, {} quarantined", report.handled, report.quarantined);
    for topic in ["invoices", "parcels", "orders.billing.dlq"] {
        let read =
            KafkaExcerpt::open(&settings, topic, &ReadFrom::Beginning)?.read(10, Duration::from_secs(5))?;
        for (envelope, _) in read {
            let body = envelope.body.unwrap_or_default();
            let id = envelope.headers.get_str("ce_id").unwrap_or_default();
            println!("{topic}: {id} {}", String::from_utf8_lossy(&body));
        }
    }
    Ok(())
}
