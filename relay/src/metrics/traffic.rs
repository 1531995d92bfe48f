//! Messages by destination, by the names of OpenTelemetry's messaging conventions in their Prometheus form.

use std::time::Duration;

use backstop_core::cloudevents::Binding;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use crate::jobs::{Jobs, OutboxJob};
use crate::pump::{BOUNDS, Tally};

const SENT: &str = "messaging_client_sent_messages_total";
const SENT_HELP: &str = "Messages that a broker confirmed, duplicates included, and those that failed, by the scope of \
                         the error: broker, destination or message.";
const TOOK: &str = "messaging_client_operation_duration_seconds";
const TOOK_HELP: &str = "From a message being submitted to its confirmation.";

/// Shows the tallies of every pump of this process.
pub(super) struct TrafficCollector {
    jobs: Jobs,
    descriptions: [Desc; 2],
}

impl TrafficCollector {
    pub(super) fn new(jobs: Jobs) -> prometheus::Result<Self> {
        let describe = |name: &str, help: &str| {
            Desc::new(name.to_owned(), help.to_owned(), Vec::new(), std::collections::HashMap::new())
        };
        Ok(Self { jobs, descriptions: [describe(SENT, SENT_HELP)?, describe(TOOK, TOOK_HELP)?] })
    }
}

impl Collector for TrafficCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mut sent, mut took) = (Vec::new(), Vec::new());
        for job in self.jobs.outboxes() {
            for tally in job.tallies() {
                sent.extend(counters(job, &tally));
                took.extend((tally.published > 0).then(|| histogram(job, &tally)));
            }
        }
        let families =
            [(SENT, SENT_HELP, MetricType::COUNTER, sent), (TOOK, TOOK_HELP, MetricType::HISTOGRAM, took)];
        families.into_iter().filter(|(.., metrics)| !metrics.is_empty()).map(family).collect()
    }
}

fn family((name, help, kind, metrics): (&str, &str, MetricType, Vec<Metric>)) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counters(job: &OutboxJob, tally: &Tally) -> impl Iterator<Item = Metric> {
    let counts = [
        (None, tally.published),
        (Some("broker"), tally.failed_broker),
        (Some("destination"), tally.failed_destination),
        (Some("message"), tally.failed_message),
    ];
    // A success has no type of error; what never happened is not shown.
    counts.into_iter().filter(|(error, count)| error.is_none() || *count > 0).map(|(error, count)| {
        let mut counter = Counter::default();
        counter.set_value(count as f64);
        let mut labels = labels(job, tally);
        labels.extend(error.map(|error| label("error_type", error)));
        let mut metric = Metric::from_label(labels);
        metric.set_counter(counter);
        metric
    })
}

fn histogram(job: &OutboxJob, tally: &Tally) -> Metric {
    let mut sum = 0;
    let bucket = |(bound, count): (&f64, &u64)| {
        sum += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(sum);
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(BOUNDS.iter().zip(&tally.within).map(bucket).collect());
    histogram.set_sample_count(tally.published);
    histogram.set_sample_sum(Duration::as_secs_f64(&tally.waited));
    let mut metric = Metric::from_label(labels(job, tally));
    metric.set_histogram(histogram);
    metric
}

fn labels(job: &OutboxJob, tally: &Tally) -> Vec<LabelPair> {
    let system = match tally.binding {
        Binding::Kafka => "kafka",
        Binding::Amqp => "rabbitmq",
    };
    vec![
        label("messaging_destination_name", &tally.destination),
        label("messaging_operation_name", "send"),
        label("messaging_system", system),
        label("outbox", job.name()),
    ]
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
