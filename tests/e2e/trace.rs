//! One story: from the span around `enqueue` through relay, broker, failure, held row, dead letter and redrive.

use std::time::Duration;

use backstop::{Outgoing, names};
use backstop_postgres::PgOutbox;
use backstop_tests::apply::Fail;
use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::{letters, servers, wait, workload};
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::SubscriberExt as _;

const PATIENCE: Duration = Duration::from_secs(90);

/// The subscriber is that of the whole program: one of a thread's own misses places in the code that another thread
/// came by first. Spans of other tests are told apart by their topic.
#[tokio::test(flavor = "multi_thread")]
async fn the_context_of_the_request_reaches_every_step() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
        .expect("no other test has a subscriber");

    let database = Database::fresh("trace").await;
    let place = servers::unique("trace");
    workload::create_place(Broker::Kafka, &place, 1).await;
    let config = ConsumerConfig::new(Broker::Kafka, &place, &servers::unique("group"), &database.schema);
    let request = tracing::info_span!("request");
    let trace_id = request.context().span().span_context().trace_id();
    enqueue(&database, &place).instrument(request).await;

    let relay = RelayConfig::new(Broker::Kafka, &database.schema, &[letters::place(&config)]);
    let _relay = relay.spawn(None);
    let run = config.start();
    let open = "SELECT count(*) FROM backstop_letter WHERE status = 'open'";
    wait::until("its letter is in the ledger", PATIENCE, || async { database.number(open).await == 1 }).await;
    let letter = letters::read(&config, 1).await.remove(0);
    let parent =
        letter.headers.get_str(names::TRACEPARENT).expect("the letter carries the context").to_owned();
    assert!(parent.contains(&trace_id.to_string()), "{parent} is not of {trace_id}");

    database.mend().await;
    let (code, output) = relay.command(&["dead-letters", "redrive", "--yes"]);
    assert_eq!(code, 0, "{output}");
    wait::until("it is applied", PATIENCE, || async { database.applied(&config.group).await == 1 }).await;
    run.stop().await;

    let handled: Vec<SpanData> = exporter
        .get_finished_spans()
        .expect("spans")
        .into_iter()
        .filter(|span| span.name == format!("process {place}"))
        .collect();
    assert_eq!(handled.len(), 4, "three attempts, and one after the redrive");
    for span in &handled {
        let linked = span.links.iter().any(|link| link.span_context.trace_id() == trace_id);
        assert!(linked, "attempt without a link to the request: {span:?}");
    }
    database.drop().await;
}

async fn enqueue(database: &Database, place: &str) {
    let events = workload::events(1, 1, |_| Some(Fail::Always));
    let outbox = PgOutbox::with_tables(&database.tables());
    let mut tx = database.pool.begin().await.expect("PostgreSQL answers");
    outbox.enqueue(&mut tx, Outgoing::to(place, events[0].message("/tests"))).await.expect("a sound message");
    tx.commit().await.expect("PostgreSQL answers");
}
