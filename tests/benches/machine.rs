//! What the figures were read on.

use std::process::Command;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Outcome;
use crate::database::Database;

/// Machine, servers and commit.
pub(crate) async fn describe(database: &Database) -> Outcome<Vec<(&'static str, String)>> {
    let postgres: String = sqlx::query_scalar("SHOW server_version").fetch_one(&database.pool).await?;
    let durable: String = sqlx::query_scalar(
        "SELECT 'fsync ' || current_setting('fsync') || ', synchronous_commit ' || current_setting('synchronous_commit')",
    )
    .fetch_one(&database.pool)
    .await?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(vec![
        ("processor", format!("{cores} x {}", field_of("/proc/cpuinfo", "model name"))),
        ("memory", field_of("/proc/meminfo", "MemTotal")),
        (
            "kernel",
            std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        ),
        ("load before", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()),
        ("PostgreSQL", format!("{postgres}, {durable}")),
        ("RabbitMQ", format!("{}, quorum queues on one node", or_unknown(rabbitmq_version().await))),
        ("Kafka", format!("{}, one broker, replication factor 1", or_unknown(kafka_version()))),
        ("librdkafka", rdkafka::util::get_rdkafka_version().1),
        ("commit", commit()),
    ])
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "unknown version".to_owned())
}

fn field_of(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    line.map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
}

/// Asks the management plugin in plain HTTP.
async fn rabbitmq_version() -> Option<String> {
    let api = std::env::var("BACKSTOP_TEST_RABBITMQ_API").ok()?;
    let mut stream = TcpStream::connect(api.strip_prefix("http://")?).await.ok()?;
    let request = "GET /api/overview HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let overview: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    Some(overview.get("rabbitmq_version")?.as_str()?.to_owned())
}

/// The broker does not tell its version to clients; the script that starts it knows.
fn kafka_version() -> Option<String> {
    let script = std::fs::read_to_string(std::env::var("BACKSTOP_TEST_SERVERS").ok()?).ok()?;
    script.lines().find_map(|line| line.strip_prefix("KAFKA_VERSION=")).map(str::to_owned)
}

/// The commit, with a mark when the tree differs from it.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
