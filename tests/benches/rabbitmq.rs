//! Queues, the bare publisher with confirms, and reading back what a queue holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::event::{self, Check};
use crate::{Outcome, servers::Servers};

/// Channels and window of the relay's publisher, by default.
const CHANNELS: usize = 4;
const WINDOW_PER_CHANNEL: usize = 1_000;

async fn connect(servers: &Servers) -> Outcome<Connection> {
    Ok(Connection::connect(&servers.amqp, ConnectionProperties::default()).await?)
}

/// Says goodbye. lapin calls it an error when a channel is being closed at that moment; nothing depends on it.
async fn close(connection: &Connection) {
    drop(connection.close(200, "OK".into()).await);
}

/// Declares a durable quorum queue.
pub(crate) async fn create_queue(servers: &Servers, queue: &str) -> Outcome<()> {
    let connection = connect(servers).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    connection.create_channel().await?.queue_declare(queue.into(), options, arguments).await?;
    close(&connection).await;
    Ok(())
}

/// Deletes a queue.
pub(crate) async fn delete_queue(servers: &Servers, queue: &str) -> Outcome<()> {
    let connection = connect(servers).await?;
    connection.create_channel().await?.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    close(&connection).await;
    Ok(())
}

type Record = (Vec<u8>, BasicProperties);

/// Publishes the events with the bare driver, persistent, mandatory and confirmed; messages a second.
///
/// Over as many channels and with the same window as the relay's publisher, and with the properties and headers that
/// the relay sets, made before the clock starts. Nothing keeps the order of a key.
pub(crate) async fn publish(servers: &Servers, queue: &str, events: usize) -> Outcome<f64> {
    let mut shares: Vec<Vec<Record>> = (0..CHANNELS).map(|_| Vec::new()).collect();
    for n in 0..events {
        shares[n % event::KEYS % CHANNELS].push((event::payload(n), properties(n)));
    }
    let connection = connect(servers).await?;
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channels.push(Arc::new(channel));
    }
    let began = Instant::now();
    let tasks: Vec<_> = channels
        .into_iter()
        .zip(shares)
        .map(|(channel, share)| tokio::spawn(publish_share(channel, queue.into(), share)))
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = events as f64 / began.elapsed().as_secs_f64();
    close(&connection).await;
    Ok(rate)
}

async fn publish_share(channel: Arc<Channel>, queue: ShortString, share: Vec<Record>) -> Outcome<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut under_way = FuturesUnordered::new();
    for (payload, properties) in share {
        if under_way.len() >= WINDOW_PER_CHANNEL
            && let Some(confirmation) = under_way.next().await
        {
            confirmed(confirmation)?;
        }
        let queue = queue.clone();
        under_way.push(channel.basic_publish("".into(), queue, options, &payload, properties).await?);
    }
    while let Some(confirmation) = under_way.next().await {
        confirmed(confirmation)?;
    }
    Ok(())
}

fn confirmed(confirmation: lapin::Result<Confirmation>) -> Outcome<()> {
    match confirmation? {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("RabbitMQ did not take a message: {other:?}").into()),
    }
}

fn properties(n: usize) -> BasicProperties {
    let id = event::id(n);
    let key = event::key(n);
    let pairs = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", &id),
        ("cloudEvents:source", "/bench"),
        ("cloudEvents:type", "bench.event"),
        ("cloudEvents:time", "2026-01-01T00:00:00.123456Z"),
        ("cloudEvents:partitionkey", &key),
    ];
    let mut headers = FieldTable::default();
    for (name, value) in pairs {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(id.as_str().into())
        .with_type("bench.event".into())
        .with_timestamp(1_767_225_600)
        .with_content_type("application/json".into())
        .with_headers(headers)
}

/// Reads the queue until it has been silent for a while.
pub(crate) async fn check(servers: &Servers, queue: &str, events: usize) -> Outcome<String> {
    let connection = connect(servers).await?;
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut deliveries =
        channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await?;
    let mut check = Check::new(events);
    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_secs(2), deliveries.next()).await {
        check.see(&delivery?.data);
    }
    close(&connection).await;
    Ok(check.verdict()?)
}
