//! A relay with default settings, in this process or as the program.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::outbox::OutboxStore;
use backstop_core::sink::Publisher;
use backstop_relay::config::{BrokerConfig, Config, Environment};
use backstop_relay::pump::{Pump, PumpError, PumpReport, PumpSettings, PumpStatus};
use backstop_tests::program::{Relay as Program, RelayConfig};
use backstop_tests::wait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::Outcome;
use crate::broker::Broker;
use crate::database::Database;
use crate::servers::Servers;

/// The longest wait for the program to begin or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// A relay in this process.
#[derive(Debug)]
pub(crate) struct Relay {
    status: watch::Receiver<PumpStatus>,
    stop: CancellationToken,
    task: JoinHandle<Result<PumpReport, PumpError>>,
}

impl Relay {
    /// Starts it on that outbox.
    pub(crate) fn start(servers: &Servers, store: Arc<dyn OutboxStore>, broker: Broker) -> Outcome<Self> {
        let pump = Pump::new(store, publisher(servers, broker)?, PumpSettings::default());
        let (status, stop) = (pump.status(), CancellationToken::new());
        let task = tokio::spawn(pump.run(stop.clone()));
        Ok(Self { status, stop, task })
    }

    /// Waits until it has deleted so many rows.
    pub(crate) async fn has_deleted(&mut self, rows: usize, limit: Duration) -> Outcome<()> {
        let deleted = self.status.wait_for(|status| status.deleted >= rows as u64);
        tokio::time::timeout(limit, deleted).await.map_err(|_| "the relay does not drain its backlog")??;
        Ok(())
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> Outcome<PumpReport> {
        self.stop.cancel();
        Ok(self.task.await??)
    }
}

/// What the program would publish with.
fn publisher(servers: &Servers, broker: Broker) -> Outcome<Box<dyn Publisher>> {
    Ok(backstop_relay::broker::publisher(&broker_config(servers, broker)?)?)
}

/// Channels and unconfirmed messages of each, as the program has them towards RabbitMQ.
pub(crate) fn channels_and_window(servers: &Servers) -> Outcome<(usize, usize)> {
    match broker_config(servers, Broker::RabbitMq)? {
        BrokerConfig::RabbitMq(config) => {
            Ok((usize::try_from(config.channels)?, usize::try_from(config.window.div_ceil(config.channels))?))
        }
        BrokerConfig::Kafka(_) => Err("another broker was configured".into()),
    }
}

fn broker_config(servers: &Servers, broker: Broker) -> Outcome<BrokerConfig> {
    let text = text("sqlite:unused.db", broker, address(servers, broker));
    let config = Config::parse(&text, &Environment::of_process()).map_err(|faults| format!("{faults:?}"))?;
    config.broker.ok_or_else(|| "no broker was configured".into())
}

fn address(servers: &Servers, broker: Broker) -> &str {
    match broker {
        Broker::Kafka => &servers.kafka,
        Broker::RabbitMq => &servers.amqp,
    }
}

/// A configuration of the program.
fn text(database: &str, broker: Broker, address: &str) -> String {
    let broker = match broker {
        Broker::Kafka => format!("kind = \"kafka\"\nbrokers = [\"{address}\"]"),
        Broker::RabbitMq => format!("kind = \"rabbitmq\"\nurl = \"{address}\""),
    };
    format!("[database]\nurl = \"{database}\"\n[broker]\n{broker}\n")
}

/// The program's configuration, for a broker at its usual address.
pub(crate) fn config(servers: &Servers, database: &Database, broker: Broker) -> RelayConfig {
    config_through(database, broker, address(servers, broker))
}

/// The program's configuration, for a broker at another address.
pub(crate) fn config_through(database: &Database, broker: Broker, address: &str) -> RelayConfig {
    RelayConfig::of(&text(&database.url(), broker, address))
}

/// Starts the program, and waits until it says that it is ready.
pub(crate) async fn ready(config: &RelayConfig) -> Program {
    let relay = config.watched();
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    relay
}

/// Ends the program in order.
pub(crate) async fn terminate(mut relay: Program) {
    relay.terminate(PATIENCE).await;
}
