//! The relay's own metrics. Their names are part of the public interface.

use backstop_core::outbox::OutboxStatus;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};

use crate::exit::{Exit, Failure};
use crate::jobs::{Jobs, OutboxJob};
use crate::pump::PumpStatus;
use crate::receipts::ReceiptCounts;

mod traffic;

use traffic::TrafficCollector;

type Read<T> = fn(&T) -> u64;

/// What a pump tells of itself; counters run from the start of the process.
const COUNTERS: [(&str, &str, Read<PumpStatus>); 5] = [
    ("backstop_outbox_published", "Messages that a broker confirmed, duplicates included.", |status| {
        status.published
    }),
    ("backstop_outbox_deleted", "Rows deleted after confirmation.", |status| status.deleted),
    ("backstop_outbox_buried", "Rows moved to the dead rows.", |status| status.dead),
    ("backstop_outbox_promoted", "Scheduled rows moved into the outbox.", |status| status.promoted),
    ("backstop_outbox_stragglers", "Rows that only the full scan found.", |status| status.stragglers),
];

/// How a pump stands.
const GAUGES: [(&str, &str, Read<PumpStatus>); 5] = [
    ("backstop_relay_leader", "Whether this relay owns the outbox.", |status| {
        u64::from(status.token.is_some())
    }),
    ("backstop_outbox_in_flight", "Messages sent and not confirmed.", |status| status.under_way as u64),
    ("backstop_outbox_undeleted", "Rows confirmed and not yet deleted.", |status| status.undeleted as u64),
    ("backstop_outbox_paused_destinations", "Destinations that take nothing now.", |status| {
        status.paused_count as u64
    }),
    ("backstop_outbox_blocked_keys", "Keys whose first row cannot be sent.", |status| {
        status.blocked_count as u64
    }),
];

/// What was counted in the database, by any relay of the outbox.
const BACKLOG: [(&str, &str, Read<OutboxStatus>); 3] = [
    ("backstop_outbox_pending", "Rows that wait.", |status| status.pending),
    ("backstop_outbox_scheduled", "Rows whose time has not come.", |status| status.scheduled),
    ("backstop_outbox_dead_rows", "Rows that can never be sent.", |status| status.dead),
];

/// What consumers said.
const RECEIPTS: [(&str, &str, Read<ReceiptCounts>); 3] = [
    (
        "backstop_receipts",
        "Receipts of redriven messages that the ledger has, repeated ones included.",
        ReceiptCounts::receipts,
    ),
    ("backstop_consumer_reports", "Reports of consumers that the ledger has.", ReceiptCounts::reports),
    (
        "backstop_receipts_unreadable",
        "Messages among the receipts that are none, and were passed over.",
        ReceiptCounts::unreadable,
    ),
];

/// The metrics of one process.
pub struct Metrics {
    jobs: Jobs,
    registry: Registry,
    /// Keeps the callbacks alive.
    _provider: SdkMeterProvider,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Metrics of these jobs.
    ///
    /// # Errors
    /// When the exporter refuses its settings, which none of them do.
    pub fn new(jobs: Jobs) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Failed, format!("cannot set up metrics: {error}"), "report this")
        };
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| failed(&error))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        TrafficCollector::new(jobs.clone())
            .and_then(|collector| registry.register(Box::new(collector)))
            .map_err(|error| failed(&error))?;
        instruments(&provider.meter("backstop-relay"), &jobs);
        Ok(Self { jobs, registry, _provider: provider })
    }

    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    /// When two metrics have one name, which none have.
    pub async fn render(&self) -> Result<String, prometheus::Error> {
        self.jobs.count().await;
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn instruments(meter: &Meter, jobs: &Jobs) {
    for (name, description, read) in COUNTERS {
        let jobs = jobs.clone();
        meter
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |observer| {
                for (job, status) in with(&jobs, OutboxJob::status) {
                    observer.observe(read(&status), &label(job));
                }
            })
            .build();
    }
    for (name, description, read) in RECEIPTS {
        let receipts = jobs.receipts().clone();
        meter
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |observer| observer.observe(read(&receipts), &[]))
            .build();
    }
    for (name, description, read) in GAUGES {
        let jobs = jobs.clone();
        gauge(meter, name, description, move |job| job.status().map(|status| read(&status) as f64), jobs);
    }
    for (name, description, read) in BACKLOG {
        let jobs = jobs.clone();
        gauge(meter, name, description, move |job| job.backlog().map(|status| read(&status) as f64), jobs);
    }
    let oldest =
        |job: &OutboxJob| job.backlog().map(|status| status.oldest.unwrap_or_default().as_secs_f64());
    gauge(
        meter,
        "backstop_outbox_oldest_age_seconds",
        "Age of the oldest row that waits; 0 when none does.",
        oldest,
        jobs.clone(),
    );
}

fn gauge(
    meter: &Meter,
    name: &'static str,
    description: &'static str,
    read: impl Fn(&OutboxJob) -> Option<f64> + Send + Sync + 'static,
    jobs: Jobs,
) {
    meter
        .f64_observable_gauge(name)
        .with_description(description)
        .with_callback(move |observer| {
            for (job, value) in with(&jobs, &read) {
                observer.observe(value, &label(job));
            }
        })
        .build();
}

/// The jobs of which there is something to tell.
fn with<T>(jobs: &Jobs, read: impl Fn(&OutboxJob) -> Option<T>) -> impl Iterator<Item = (&OutboxJob, T)> {
    jobs.outboxes().iter().filter_map(move |job| Some((job, read(job)?)))
}

fn label(job: &OutboxJob) -> [KeyValue; 1] {
    [KeyValue::new("outbox", job.name().to_owned())]
}

#[cfg(test)]
mod page;
