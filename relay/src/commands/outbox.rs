//! `outbox status` and `outbox dead list`

use std::time::Duration;

use backstop_core::lease::Holder;
use backstop_core::outbox::{BuriedRow, OutboxStatus};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::cli::{OutboxCommand, OutboxDeadCommand};
use crate::commands::{Context, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};

pub(super) async fn run(context: &Context, command: OutboxCommand) -> Result<Exit, Failure> {
    let outbox = context.database().await?.outbox;
    match command {
        OutboxCommand::Status => {
            let counts = outbox.status().await.map_err(database)?;
            let holder = outbox.holder(&context.config.outbox.name).await.map_err(database)?;
            status(context, &counts, holder.as_ref())?;
        }
        OutboxCommand::Dead(OutboxDeadCommand::List { limit }) => {
            dead(context, &outbox.buried(limit).await.map_err(database)?)?;
        }
    }
    Ok(Exit::Ok)
}

fn status(context: &Context, status: &OutboxStatus, holder: Option<&Holder>) -> Result<(), Failure> {
    if context.is_json() {
        let document = json!({
            "pending": status.pending,
            "oldest_seconds": status.oldest.map(|age| age.as_secs_f64()),
            "dead": status.dead,
            "owner": holder.map(|holder| &holder.lease.owner),
            "token": holder.map(|holder| holder.lease.token),
            "lease_seconds": holder.map(|holder| holder.remaining.as_secs_f64()),
        });
        return Ok(output::json(&document)?);
    }
    let age = |age: Option<Duration>| age.map_or_else(|| "-".to_owned(), in_words);
    let row = vec![
        status.pending.to_string(),
        age(status.oldest),
        status.dead.to_string(),
        or_dash(holder.map(|holder| holder.lease.owner.as_str())),
        age(holder.map(|holder| holder.remaining)),
    ];
    Ok(output::table(&["PENDING", "OLDEST", "DEAD", "OWNER", "LEASE ENDS IN"], [row])?)
}

fn dead(context: &Context, rows: &[BuriedRow]) -> Result<(), Failure> {
    if context.is_json() {
        let rows: Vec<Value> = rows.iter().map(document).collect();
        return Ok(output::json(&rows)?);
    }
    if rows.is_empty() {
        return Ok(output::line("no dead rows")?);
    }
    let row = |dead: &BuriedRow| {
        vec![
            dead.row.seq.to_string(),
            dead.row.message.id.clone(),
            dead.row.destination.to_string(),
            dead.reason.clone(),
            dead.error.clone(),
            time(dead.died_at),
        ]
    };
    Ok(output::table(&["SEQ", "ID", "DESTINATION", "REASON", "ERROR", "DIED AT"], rows.iter().map(row))?)
}

fn document(dead: &BuriedRow) -> Value {
    json!({
        "seq": dead.row.seq,
        "id": dead.row.message.id,
        "destination": dead.row.destination.name,
        "routing_key": dead.row.destination.routing_key,
        "kind": dead.row.message.kind,
        "bytes": dead.row.size(),
        "reason": dead.reason,
        "error": dead.error,
        "died_at": time(dead.died_at),
    })
}

/// A time as tables and documents show it.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// An age, in whole seconds above one second.
pub(crate) fn in_words(age: Duration) -> String {
    let age = if age.as_secs() > 0 {
        Duration::from_secs(age.as_secs())
    } else {
        Duration::from_millis(age.subsec_millis().into())
    };
    humantime::format_duration(age).to_string()
}
