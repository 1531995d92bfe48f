//! Queues, the bare publisher with confirms, and reading back what a queue holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};

use crate::event::{self, Check};
use crate::servers::Servers;
use crate::{Outcome, relay};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(5);

async fn connect(servers: &Servers) -> Outcome<Connection> {
    Ok(Connection::connect(&servers.amqp, ConnectionProperties::default()).await?)
}

/// Says goodbye. lapin calls it an error when a channel is being closed at that moment, or never hears of the end; nothing
/// depends on it.
pub(crate) async fn close(connection: &Connection) {
    drop(tokio::time::timeout(FAREWELL, connection.close(200, "OK".into())).await);
}

/// Declares a durable quorum queue.
pub(crate) async fn create_queue(servers: &Servers, queue: &str) -> Outcome<()> {
    declare(servers, queue, &[]).await
}

/// Declares a durable quorum queue that is full: the broker refuses what is published to it.
pub(crate) async fn create_full_queue(servers: &Servers, queue: &str) -> Outcome<()> {
    let length = ("x-max-length", AMQPValue::LongInt(1));
    let overflow = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
    declare(servers, queue, &[length, overflow]).await?;
    let connection = connect(servers).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    // It takes a few more than its length.
    while let Confirmation::Ack(_) =
        channel.basic_publish("".into(), queue.into(), options, b"fill", properties.clone()).await?.await?
    {
    }
    close(&connection).await;
    Ok(())
}

async fn declare(servers: &Servers, queue: &str, limits: &[(&str, AMQPValue)]) -> Outcome<()> {
    let connection = connect(servers).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (name, value) in limits {
        arguments.insert((*name).into(), value.clone());
    }
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
/// Over as many channels and with the same window as the program, and with the properties and headers that
/// the relay sets, made before the clock starts. Nothing keeps the order of a key.
pub(crate) async fn publish(servers: &Servers, queue: &str, events: usize) -> Outcome<f64> {
    let (channels, window) = relay::channels_and_window(servers)?;
    let mut shares: Vec<Vec<Record>> = (0..channels).map(|_| Vec::new()).collect();
    for n in 0..events {
        shares[n % event::KEYS % channels].push((event::payload(n), properties(n)));
    }
    let connection = connect(servers).await?;
    let mut confirmed = Vec::new();
    for _ in 0..channels {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        confirmed.push(Arc::new(channel));
    }
    let began = Instant::now();
    let tasks: Vec<_> = confirmed
        .into_iter()
        .zip(shares)
        .map(|(channel, share)| tokio::spawn(publish_share(channel, window, queue.into(), share)))
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = events as f64 / began.elapsed().as_secs_f64();
    close(&connection).await;
    Ok(rate)
}

async fn publish_share(
    channel: Arc<Channel>,
    window: usize,
    queue: ShortString,
    share: Vec<Record>,
) -> Outcome<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut under_way = FuturesUnordered::new();
    for (payload, properties) in share {
        if under_way.len() >= window
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

/// A reader of a queue that is given so many messages before it acks the first; and its connection.
pub(crate) async fn reader(servers: &Servers, queue: &str, prefetch: u16) -> Outcome<(Connection, Consumer)> {
    let connection = connect(servers).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let deliveries = channel.basic_consume(queue.into(), "bench".into(), options, arguments).await?;
    Ok((connection, deliveries))
}

/// Reads as many messages as the queue holds now.
pub(crate) async fn read_back(servers: &Servers, queue: &str, mut check: Check) -> Outcome<Check> {
    let connection = connect(servers).await?;
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let held = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?.message_count();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut deliveries =
        channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await?;
    for _ in 0..held {
        let delivery = tokio::time::timeout(PATIENCE, deliveries.next()).await?;
        let delivery = delivery.ok_or("RabbitMQ has ended the reading of a queue")??;
        let id = delivery.properties.message_id().as_ref().map_or("", ShortString::as_str);
        check.see(id.as_bytes(), &delivery.data);
    }
    close(&connection).await;
    Ok(check)
}
