//! Harnesses of the adapters in memory.

use std::sync::Arc;

use backstop_core::ledger::Ledger;
use backstop_core::outbox::OutboxStore;
use backstop_core::{Message, Outgoing};
use chrono::{DateTime, Utc};

use super::{BrokerCapabilities, BrokerHarness, StoreCapabilities, StoreHarness};
use crate::memory::{Broker, MemoryDeadLetters, MemoryPublisher, MemorySink, MemorySource, MemoryTx, Store};

/// [`Store`] as the suite sees it.
#[derive(Debug)]
pub struct MemoryStore(Store);

impl StoreHarness for MemoryStore {
    type Store = Store;

    const CAPABILITIES: StoreCapabilities = StoreCapabilities {
        concurrent_writers: true,
        failure_dooms_transaction: true,
        handler_can_commit: true,
        sees_ends_between_handlers: true,
        runs: true,
        unreadable_rows: true,
        schema: false,
    };

    async fn fresh() -> Self {
        Self(Store::new())
    }

    fn store(&self) -> Store {
        self.0.clone()
    }

    fn outbox(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.0.clone())
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(self.0.clone())
    }

    async fn write_effect(&self, tx: &mut MemoryTx, name: &str) {
        tx.apply(name);
    }

    async fn effects(&self, name: &str) -> u64 {
        self.0.applied().iter().filter(|effect| *effect == name).count() as u64
    }

    async fn enqueue(&self, tx: &mut MemoryTx, outgoing: Outgoing) {
        tx.enqueue(outgoing);
    }

    async fn enqueue_at(&self, tx: &mut MemoryTx, outgoing: Outgoing, at: DateTime<Utc>) {
        tx.enqueue_at(outgoing, at);
    }

    async fn enqueue_unreadable(&self, destination: &str) {
        let outgoing = Outgoing::to(destination, Message::new("odd"));
        self.0.enqueue_unreadable(outgoing, "headers must be a JSON object, not a number");
    }

    async fn swallow_failed_statement(&self, tx: &mut MemoryTx) {
        tx.fail_statement();
    }

    async fn raw_commit(&self, tx: &mut MemoryTx) {
        tx.commit_raw();
    }
}

/// [`Broker`] as the suite sees it.
#[derive(Debug)]
pub struct MemoryBroker(Broker);

/// Largest message of the broker that the suite runs on.
const MAX_BYTES: usize = 4 << 20;

impl BrokerHarness for MemoryBroker {
    type Source = MemorySource;
    type Sink = MemorySink;
    type Publisher = MemoryPublisher;
    type DeadLetters = MemoryDeadLetters;

    const CAPABILITIES: BrokerCapabilities = BrokerCapabilities {
        key_order_over_members: true,
        coordinates_identity: true,
        settles_in_order: true,
        null_headers: true,
        repeated_headers: true,
        tombstones: true,
        binary_keys: true,
        size_limit: true,
        missing_destination: true,
        asks_for_destinations: true,
    };

    async fn fresh() -> Self {
        let broker = Broker::new();
        broker.set_max_bytes(MAX_BYTES);
        for topic in ["orders", "orders.stock.redrive", "orders.stock.dlq"] {
            broker.create(topic, 4);
        }
        Self(broker)
    }

    fn place(&self) -> String {
        "orders".to_owned()
    }

    fn group(&self) -> String {
        "stock".to_owned()
    }

    fn door(&self) -> String {
        "orders.stock.redrive".to_owned()
    }

    async fn source(&self, window: usize) -> MemorySource {
        self.0.source("stock", ["orders"]).window(window)
    }

    async fn letters(&self) -> MemorySource {
        self.0.source("collector", ["orders.stock.dlq"])
    }

    async fn sink(&self) -> MemorySink {
        self.0.sink()
    }

    async fn publisher(&self) -> MemoryPublisher {
        self.0.publisher()
    }

    async fn dead_letters(&self) -> MemoryDeadLetters {
        self.0.dead_letters()
    }

    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }
}
