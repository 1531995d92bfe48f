//! Queues, exchanges and bindings: looked at passively, declared only where they are missing.
//!
//! Every check and declaration has a channel of its own, because a refused one closes its channel. What exists is
//! left as it is, whatever its arguments.

use std::collections::BTreeMap;

use backstop_core::AdapterError;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::error::{adapter_error, code, reply_code};
use crate::link::Link;
use crate::settings::RabbitSettings;

/// Deliveries of one message by a quorum queue of ours. RabbitMQ 4 drops a message after 20 unless told otherwise;
/// giving up is Backstop's business.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// Declares a durable quorum queue unless a queue of that name exists.
///
/// Several consumers on it share the messages, so that two messages of a key may be handled at once by two of them;
/// [`declare_ordered_queue`] keeps the order of each key.
///
/// # Errors
/// When the broker cannot be reached or the user may not configure the queue.
pub async fn declare_queue(settings: &RabbitSettings, queue: &str) -> Result<(), AdapterError> {
    declare(settings, queue, Share::Competing).await
}

/// Declares a durable quorum queue with a single active consumer, unless a queue of that name exists.
///
/// One instance gets all messages and handles those of each key in order; the others take over when it ends.
///
/// # Errors
/// When the broker cannot be reached or the user may not configure the queue.
pub async fn declare_ordered_queue(settings: &RabbitSettings, queue: &str) -> Result<(), AdapterError> {
    declare(settings, queue, Share::SingleActive).await
}

async fn declare(settings: &RabbitSettings, queue: &str, share: Share) -> Result<(), AdapterError> {
    let link = Link::new(settings.clone());
    let declared = ensure_queue(&link, queue, share).await;
    link.close().await;
    declared
}

/// Who gets the messages of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All consumers, each a part of them.
    Competing,
    /// One consumer at a time.
    SingleActive,
}

/// Declares a durable exchange (`direct`, `topic`, `fanout` or `headers`) unless one of that name exists, and binds
/// `queue` to it with `routing_key`.
///
/// # Errors
/// When the broker cannot be reached, the queue does not exist or the user may not configure the exchange.
pub async fn declare_exchange(
    settings: &RabbitSettings,
    exchange: &str,
    kind: &str,
    queue: &str,
    routing_key: &str,
) -> Result<(), AdapterError> {
    let link = Link::new(settings.clone());
    let declared = async {
        ensure_exchange(&link, exchange, kind).await?;
        bind(&link, exchange, queue, routing_key).await
    };
    let declared = declared.await;
    link.close().await;
    declared
}

/// Deletes a queue with everything in it; a queue that does not exist is no error.
///
/// # Errors
/// When the broker cannot be reached or the user may not configure the queue.
pub async fn delete_queue(settings: &RabbitSettings, queue: &str) -> Result<(), AdapterError> {
    let link = Link::new(settings.clone());
    let deleted = async {
        let channel = link.channel().await?;
        let result = channel.queue_delete(short(queue)?, QueueDeleteOptions::default()).await;
        result.map(drop).map_err(|error| adapter_error(&format!("cannot delete queue {queue}"), error))
    };
    let deleted = deleted.await;
    link.close().await;
    deleted
}

/// Checks that a queue exists.
pub(crate) async fn check_queue(link: &Link, queue: &str) -> Result<(), AdapterError> {
    find_queue(link, queue)
        .await?
        .map_err(|error| adapter_error(&format!("cannot find queue {queue}"), error))
}

/// Checks that an exchange exists.
pub(crate) async fn check_exchange(link: &Link, exchange: &str) -> Result<(), AdapterError> {
    let found = find_exchange(link, exchange).await?;
    found.map_err(|error| adapter_error(&format!("cannot find exchange {exchange}"), error))
}

/// Declares a durable quorum queue unless a queue of that name exists.
pub(crate) async fn ensure_queue(link: &Link, queue: &str, share: Share) -> Result<(), AdapterError> {
    let what = format!("cannot declare queue {queue}");
    match find_queue(link, queue).await? {
        Ok(()) => return Ok(()),
        Err(error) if reply_code(&error) == Some(code::NOT_FOUND) => {}
        Err(error) => return Err(adapter_error(&what, error)),
    }
    let arguments = BTreeMap::from([
        ("x-queue-type".into(), AMQPValue::LongString("quorum".into())),
        ("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT)),
        ("x-single-active-consumer".into(), AMQPValue::Boolean(share == Share::SingleActive)),
    ]);
    let channel = link.channel().await?;
    let declared =
        channel.queue_declare(short(queue)?, QueueDeclareOptions::durable(), arguments.into()).await;
    match declared {
        Ok(_) => Ok(()),
        // somebody else declared it in the meantime, in another way
        Err(error) if reply_code(&error) == Some(code::PRECONDITION_FAILED) => check_queue(link, queue).await,
        Err(error) => Err(adapter_error(&what, error)),
    }
}

/// Declares a durable exchange unless one of that name exists.
pub(crate) async fn ensure_exchange(link: &Link, exchange: &str, kind: &str) -> Result<(), AdapterError> {
    let what = format!("cannot declare exchange {exchange}");
    match find_exchange(link, exchange).await? {
        Ok(()) => return Ok(()),
        Err(error) if reply_code(&error) == Some(code::NOT_FOUND) => {}
        Err(error) => return Err(adapter_error(&what, error)),
    }
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let kind = ExchangeKind::Custom(kind.to_owned());
    let channel = link.channel().await?;
    match channel.exchange_declare(short(exchange)?, kind, options, FieldTable::default()).await {
        Ok(()) => Ok(()),
        Err(error) if reply_code(&error) == Some(code::PRECONDITION_FAILED) => {
            check_exchange(link, exchange).await
        }
        Err(error) => Err(adapter_error(&what, error)),
    }
}

/// Binds a queue; binding it again changes nothing.
pub(crate) async fn bind(
    link: &Link,
    exchange: &str,
    queue: &str,
    routing_key: &str,
) -> Result<(), AdapterError> {
    let channel = link.channel().await?;
    let (queue_name, exchange_name, key) = (short(queue)?, short(exchange)?, short(routing_key)?);
    let bound = channel.queue_bind(
        queue_name,
        exchange_name,
        key,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound
        .await
        .map_err(|error| adapter_error(&format!("cannot bind queue {queue} to exchange {exchange}"), error))
}

async fn find_queue(link: &Link, queue: &str) -> Result<lapin::Result<()>, AdapterError> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    Ok(channel.queue_declare(short(queue)?, options, FieldTable::default()).await.map(drop))
}

async fn find_exchange(link: &Link, exchange: &str) -> Result<lapin::Result<()>, AdapterError> {
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    Ok(channel.exchange_declare(short(exchange)?, ExchangeKind::Direct, options, FieldTable::default()).await)
}

/// A name as AMQP carries it.
pub(crate) fn short(name: &str) -> Result<ShortString, AdapterError> {
    ShortString::try_new(name).map_err(|_| {
        AdapterError::new(backstop_core::FaultKind::Invalid, "a name is longer than 255 bytes, AMQP's limit")
    })
}
