//! `outbox status`

use std::time::Duration;

use backstop_core::lease::Holder;
use backstop_core::outbox::OutboxStatus;
use serde_json::{Value, json};

use crate::commands::outbox::{in_words, time};
use crate::commands::{Context, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};
use crate::standing::{Standing, Stuck};

/// What only the running owner knows, and has not told.
const UNKNOWN: &str = "unknown";

/// An outbox as the database knows it, and as its owner tells.
struct Look<'c> {
    name: &'c str,
    status: OutboxStatus,
    holder: Option<Holder>,
    owner: Option<Standing>,
}

pub(super) async fn run(context: &Context) -> Result<Exit, Failure> {
    let mut all = Vec::new();
    for outbox in &context.config.outbox {
        let store = context.outbox(outbox).await?.outbox;
        let status = store.status().await.map_err(database)?;
        let holder = store.holder(&outbox.name).await.map_err(database)?;
        let owner = holder.as_ref().and_then(Standing::told_by);
        all.push(Look { name: &outbox.name, status, holder, owner });
    }
    if context.is_json() {
        output::json(&all.iter().map(document).collect::<Vec<Value>>())?;
        return Ok(Exit::Ok);
    }
    const HEADER: [&str; 11] = [
        "OUTBOX",
        "PENDING",
        "OLDEST",
        "ROWS/S",
        "BLOCKED",
        "PAUSED",
        "DEAD",
        "SCHEDULED",
        "NEXT DUE",
        "OWNER",
        "LEASE ENDS IN",
    ];
    output::table(&HEADER, all.iter().map(row))?;
    for look in &all {
        explain(look)?;
    }
    Ok(Exit::Ok)
}

fn document(look: &Look<'_>) -> Value {
    let Look { name, status, holder, owner } = look;
    json!({
        "name": name,
        "pending": status.pending,
        "oldest_seconds": status.oldest.map(|age| age.as_secs_f64()),
        "dead": status.dead,
        "scheduled": status.scheduled,
        "next_due": status.next_due.map(time),
        "owner": holder.as_ref().map(|holder| &holder.lease.owner),
        "token": holder.as_ref().map(|holder| holder.lease.token),
        "lease_seconds": holder.as_ref().map(|holder| holder.remaining.as_secs_f64()),
        "running": owner,
    })
}

fn row(look: &Look<'_>) -> Vec<String> {
    let Look { name, status, holder, owner } = look;
    let age = |age: Option<Duration>| age.map_or_else(|| "-".to_owned(), in_words);
    let told = |what: fn(&Standing) -> String| owner.as_ref().map_or_else(|| UNKNOWN.to_owned(), what);
    vec![
        (*name).to_owned(),
        status.pending.to_string(),
        age(status.oldest),
        told(|owner| owner.rate.to_string()),
        told(|owner| owner.blocked_keys.to_string()),
        told(|owner| owner.paused_destinations.to_string()),
        status.dead.to_string(),
        status.scheduled.to_string(),
        or_dash(status.next_due.map(time).as_deref()),
        or_dash(holder.as_ref().map(|holder| holder.lease.owner.as_str())),
        age(holder.as_ref().map(|holder| holder.remaining)),
    ]
}

/// What is stuck, why, and how to mend it.
fn explain(look: &Look<'_>) -> Result<(), Failure> {
    let Some(owner) = &look.owner else { return Ok(()) };
    let whole = owner.error.iter().map(|trouble| (format!("{} waits", look.name), trouble));
    let stuck = |what: &'static str| {
        move |stuck: &'_ Stuck| {
            let from = stuck.seq.map(|seq| format!(" from row {seq}")).unwrap_or_default();
            format!("{what} {}{from}", stuck.destination)
        }
    };
    let paused = owner.paused.iter().map(|it| (stuck("paused:")(it), &it.trouble));
    let blocked = owner.blocked.iter().map(|it| (stuck("blocked key:")(it), &it.trouble));
    for (what, trouble) in whole.chain(paused).chain(blocked) {
        output::line(format!("\n{what}\n  {}", trouble.error))?;
        if let Some(hint) = &trouble.hint {
            output::line(format!("  mend: {hint}"))?;
        }
    }
    Ok(())
}
