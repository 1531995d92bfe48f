//! One connection, opened when it is needed and opened anew when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use backstop_core::{AdapterError, FaultKind};
use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::runtime::default_runtime;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::{adapter_error, timed_out};
use crate::settings::RabbitSettings;
use crate::tls::{may_be_distrust, overheard};

/// What RabbitMQ and lapin agree on unless one of them is configured otherwise.
const DEFAULT_FRAME_MAX: u32 = 131_072;

/// A connection that several channels share.
#[derive(Debug)]
pub(crate) struct Link {
    settings: RabbitSettings,
    connection: Mutex<Option<Arc<Connection>>>,
    frame_max: AtomicU32,
}

impl Link {
    pub(crate) fn new(settings: RabbitSettings) -> Self {
        Self { settings, connection: Mutex::new(None), frame_max: AtomicU32::new(DEFAULT_FRAME_MAX) }
    }

    pub(crate) fn settings(&self) -> &RabbitSettings {
        &self.settings
    }

    /// The largest frame, in bytes; all properties and headers of a message must fit into one.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed) as usize
    }

    /// Whether the connection stands, as far as is known; `false` also while somebody is opening it.
    pub(crate) fn is_connected(&self) -> bool {
        let connection = self.connection.try_lock();
        connection.is_ok_and(|slot| slot.as_ref().is_some_and(|connection| connection.status().connected()))
    }

    /// Opens a channel, and a connection before it where there is none.
    ///
    /// Fails at once while the broker blocks publishing on the connection: nothing can be written to it then, not
    /// even its end, so that a new one each time would pile up until the alarm is over.
    pub(crate) async fn channel(&self) -> Result<Channel, AdapterError> {
        let what = format!("cannot open a channel to RabbitMQ at {}", self.settings);
        let mut slot = self.connection.lock().await;
        let connection = match slot.as_ref().filter(|connection| connection.status().connected()) {
            Some(connection) if connection.status().blocked() => return Err(blocked(&what)),
            Some(connection) => connection.clone(),
            None => slot.insert(Arc::new(Box::pin(self.connect()).await?)).clone(),
        };
        let opened = match timeout(self.settings.connect_timeout, connection.create_channel()).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(error)) => adapter_error(&what, error),
            Err(_) => timed_out(&what),
        };
        // A connection that cannot open a channel is of no use to anybody.
        *slot = None;
        Err(opened)
    }

    /// Opens a channel on which the broker confirms every publish.
    pub(crate) async fn confirm_channel(&self) -> Result<Channel, AdapterError> {
        let channel = self.channel().await?;
        let what = format!("cannot switch on publisher confirms at {}", self.settings);
        let selected = channel.confirm_select(ConfirmSelectOptions::default());
        match timeout(self.settings.connect_timeout, selected).await {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(error)) => Err(adapter_error(&what, error)),
            Err(_) => Err(timed_out(&what)),
        }
    }

    /// Says goodbye, if there is anybody to say it to.
    pub(crate) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            let closed = connection.close(200, "OK".into());
            if !matches!(timeout(self.settings.connect_timeout, closed).await, Ok(Ok(()))) {
                tracing::debug!(broker = %self.settings, "the connection was not closed in order");
            }
        }
    }

    async fn connect(&self) -> Result<Connection, AdapterError> {
        let what = format!("cannot connect to RabbitMQ at {}", self.settings);
        let mut uri = self.settings.uri.clone();
        uri.query.connection_timeout = u64::try_from(self.settings.connect_timeout.as_millis()).ok();
        let properties = ConnectionProperties::default()
            .with_connection_name(self.settings.name.clone().into())
            .with_client_property("product".into(), "backstop".into());
        let tls = self.settings.tls.read().await?;
        let runtime = default_runtime().map_err(|error| adapter_error(&what, error))?;
        let connecting = Connection::connect_uri_with_config(uri.clone(), properties, tls, runtime);
        let connection = match timeout(self.settings.connect_timeout, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if may_be_distrust(&uri, &error) => {
                let reason = overheard(&uri, &self.settings.tls).await;
                return Err(adapter_error(&what, reason.unwrap_or(error)));
            }
            Ok(Err(error)) => return Err(adapter_error(&what, error)),
            Err(_) => return Err(timed_out(&what)),
        };
        self.frame_max.store(connection.configuration().frame_max(), Ordering::Relaxed);
        tokio::spawn(report(self.settings.clone(), connection.events_listener()));
        tracing::debug!(broker = %self.settings, "connected");
        Ok(connection)
    }
}

fn blocked(what: &str) -> AdapterError {
    let what = format!("{what}: the broker blocks publishing because of an alarm");
    AdapterError::new(FaultKind::Unreachable, what)
        .with_hint("free memory or disk space of the broker; `rabbitmq-diagnostics alarms` tells which")
}

/// Logs alarms of the broker, once when they begin and once when they end.
async fn report(settings: RabbitSettings, events: impl futures_util::Stream<Item = Event>) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => tracing::warn!(
                broker = %settings,
                reason,
                "the broker takes no messages now; publishing waits until its alarm is over"
            ),
            Event::ConnectionUnblocked => {
                tracing::info!(broker = %settings, "the broker takes messages again")
            }
            Event::Error(_) => return,
            _ => {}
        }
    }
}

/// Waits between attempts: from 100 ms, doubling, to 5 s, each between the half and the whole, for ever.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_millis(2_500))
        .with_factor(2.0)
        // Which adds up to as much again.
        .with_jitter()
        .without_max_times()
        .build()
}
