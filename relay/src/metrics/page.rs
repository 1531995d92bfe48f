//! `docs/reference/metrics.md` lists what a relay tells; `BACKSTOP_RECORD=1 cargo test -p backstop-relay --lib page`
//! makes it anew.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::Destination;
use backstop_core::cloudevents::Binding;
use backstop_core::sink::Scope;
use backstop_testkit::page::section;
use tokio::sync::watch;

use super::Metrics;
use crate::config::{Config, Environment};
use crate::database::Database;
use crate::jobs::Jobs;
use crate::pump::{PumpStatus, Traffic};

/// The metrics of a relay that has met everything once.
async fn rendered() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite:{}?mode=rwc", folder.path().join("x.db").display());
    let config =
        Config::parse(&format!("[database]\nurl = \"{url}\"\n"), &Environment::default()).expect("sound");
    let database = Database::open(&config.database).await.expect("a database");
    database.schema.migrate().await.expect("tables");
    let traffic = Traffic::default();
    let orders = Arc::new(Destination::new("orders"));
    traffic.open().published(&orders, Binding::Kafka, Duration::from_millis(4));
    for scope in [Scope::Broker, Scope::Destination, Scope::Message, Scope::Message] {
        traffic.open().failed(&orders, Binding::Kafka, scope);
    }
    let jobs = Jobs::new(["outbox".to_owned()]);
    let (_sender, status) = watch::channel(PumpStatus::default());
    jobs.started("outbox", database.outbox.clone(), status, Arc::new(traffic));
    Metrics::new(jobs).expect("metrics").render().await.expect("text")
}

#[tokio::test]
async fn destinations_are_told_apart_by_outcome() {
    let text = rendered().await;
    let labels = "messaging_destination_name=\"orders\",messaging_operation_name=\"send\",\
                  messaging_system=\"kafka\",outbox=\"outbox\"";
    for line in [
        format!("messaging_client_sent_messages_total{{{labels}}} 1"),
        format!("messaging_client_sent_messages_total{{{labels},error_type=\"message\"}} 2"),
        format!("messaging_client_operation_duration_seconds_bucket{{{labels},le=\"0.0025\"}} 0"),
        format!("messaging_client_operation_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
        format!("messaging_client_operation_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 1"),
        format!("messaging_client_operation_duration_seconds_sum{{{labels}}} 0.004"),
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn the_page_lists_every_metric() {
    let text = rendered().await;
    let mut rows = vec!["| metric | type | labels | meaning |".to_owned(), "|---|---|---|---|".to_owned()];
    let mut families: Vec<&str> = text.split("# HELP ").skip(1).collect();
    families.sort_unstable();
    for family in families {
        let (name, rest) = family.split_once(' ').expect("a name");
        let (help, rest) = rest.split_once("\n# TYPE ").expect("a type");
        let kind = rest.lines().next().and_then(|line| line.split(' ').nth(1)).expect("a type");
        let labels = labels(rest);
        rows.push(format!("| `{name}` | {kind} | {labels} | {help} |"));
    }
    section("docs/reference/metrics.md", "metrics", &rows.join("\n"));
}

/// The names of the labels of any sample, but those of buckets.
fn labels(samples: &str) -> String {
    let mut names: Vec<&str> = samples
        .lines()
        .filter_map(|line| line.split_once('{')?.1.split_once('}'))
        .flat_map(|(labels, _)| labels.split(','))
        .filter_map(|label| label.split_once('=').map(|(name, _)| name))
        .filter(|name| *name != "le")
        .collect();
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ")
}
