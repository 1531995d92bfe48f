//! `outbox dead list`, `show`, `retry` and `discard`

use backstop_core::AdapterError;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use backstop_core::outbox::OutboxStore;
use backstop_core::report::escaped;
use serde_json::{Value, json};

use crate::audit::Action;
use crate::cli::{DeadRowChange, OutboxDeadCommand};
use crate::commands::outbox::{named, time};
use crate::commands::{Context, confirm, content, database};
use crate::config::OutboxConfig;
use crate::exit::{Exit, Failure};
use crate::output::{self, counted};

/// Rows that one statement moves or deletes.
const AT_ONCE: u32 = 5_000;

pub(super) async fn run(context: &Context, command: OutboxDeadCommand) -> Result<Exit, Failure> {
    let outbox = named(context, command.outbox())?;
    let store = context.outbox(outbox).await?.outbox;
    match command {
        OutboxDeadCommand::List { choice, limit, .. } => {
            list(context, &store.buried(&choice.filter(), limit).await.map_err(database)?)
        }
        OutboxDeadCommand::Show { seq, reveal, .. } => {
            if reveal {
                let choice = format!("seq={seq}");
                let what = "outbox dead show --reveal";
                Action::on_rows(context, what, &outbox.name, &choice, None).await.begins(1).await?;
            }
            show(context, &*store, seq, reveal).await
        }
        OutboxDeadCommand::Retry { change, because } => {
            change_rows(context, outbox, &*store, What::Retry, &change, because.as_deref()).await
        }
        OutboxDeadCommand::Discard { change, because } => {
            change_rows(context, outbox, &*store, What::Discard, &change, Some(&because)).await
        }
    }
}

async fn change_rows(
    context: &Context,
    outbox: &OutboxConfig,
    store: &dyn OutboxStore,
    what: What,
    change: &DeadRowChange,
    because: Option<&str>,
) -> Result<Exit, Failure> {
    let choice = change.choice.to_string();
    let action = Action::on_rows(context, what.command(), &outbox.name, &choice, because).await;
    let altered = alter(context, store, change, what, &action).await?;
    report(context, &altered, what, because)
}

fn list(context: &Context, rows: &[BuriedRow]) -> Result<Exit, Failure> {
    if context.is_json() {
        output::json(&rows.iter().map(document).collect::<Vec<Value>>())?;
    } else if rows.is_empty() {
        output::line("no dead rows")?;
    } else {
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
        output::table(&["SEQ", "ID", "DESTINATION", "REASON", "ERROR", "DIED AT"], rows.iter().map(row))?;
    }
    Ok(Exit::Ok)
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

/// A number names one row, unless the outbox's numbers began anew: then all that had it are shown.
async fn show(context: &Context, store: &dyn OutboxStore, seq: i64, reveal: bool) -> Result<Exit, Failure> {
    let filter = DeadRowFilter { seqs: vec![seq], ..DeadRowFilter::default() };
    let rows = store.buried(&filter, AT_ONCE).await.map_err(database)?;
    if rows.is_empty() {
        let what = format!("no row with the number {seq} is dead");
        return Err(Failure::new(Exit::Failed, what, "look for it with outbox dead list"));
    }
    if context.is_json() {
        let row = |dead: &BuriedRow| json!({ "row": document(dead), "content": content::document(&dead.row.message.envelope(), reveal) });
        output::json(&rows.iter().map(row).collect::<Vec<Value>>())?;
        return Ok(Exit::Ok);
    }
    for (place, dead) in rows.iter().enumerate() {
        if place > 0 {
            output::line("")?;
        }
        for (name, value) in fields(dead) {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                output::line(format!("{name:<16}{}", escaped(&value)))?;
            }
        }
        content::print(&dead.row.message.envelope(), reveal)?;
    }
    Ok(Exit::Ok)
}

fn fields(dead: &BuriedRow) -> [(&'static str, Option<String>); 11] {
    let message = &dead.row.message;
    [
        ("seq", Some(dead.row.seq.to_string())),
        ("id", Some(message.id.clone())),
        ("source", Some(message.source.clone())),
        ("kind", Some(message.kind.clone())),
        ("subject", message.subject.clone()),
        ("destination", Some(dead.row.destination.to_string())),
        ("event time", message.time.map(time)),
        ("content type", message.content_type.clone()),
        ("reason", Some(dead.reason.clone())),
        ("error", Some(dead.error.clone())),
        ("dead since", Some(time(dead.died_at))),
    ]
}

/// What becomes of dead rows.
#[derive(Debug, Clone, Copy)]
enum What {
    Retry,
    Discard,
}

impl What {
    fn command(self) -> &'static str {
        match self {
            Self::Retry => "outbox dead retry",
            Self::Discard => "outbox dead discard",
        }
    }

    fn question(self) -> &'static str {
        match self {
            Self::Retry => "move back into the outbox:",
            Self::Discard => "delete for good:",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Retry => "moved back into the outbox",
            Self::Discard => "deleted for good",
        }
    }

    /// Does it to some of them.
    async fn step(self, store: &dyn OutboxStore, filter: &DeadRowFilter) -> Result<u64, AdapterError> {
        match self {
            Self::Retry => store.retry_buried(filter, AT_ONCE).await,
            Self::Discard => store.discard_buried(filter, AT_ONCE).await,
        }
    }
}

/// What was planned, and how many rows it was in the end; `None` when nothing was to be done.
struct Altered {
    plan: Vec<DeadGroup>,
    rows: Option<u64>,
}

/// Plans, asks, and goes on until nothing of what was planned is left.
async fn alter(
    context: &Context,
    store: &dyn OutboxStore,
    change: &DeadRowChange,
    what: What,
    action: &Action<'_>,
) -> Result<Altered, Failure> {
    let filter = change.choice.filter();
    let plan = store.buried_groups(&filter).await.map_err(database)?;
    if !context.is_json() {
        print_plan(&plan)?;
    }
    let planned: u64 = plan.iter().map(|group| group.rows).sum();
    if planned == 0 || change.dry_run {
        return Ok(Altered { plan, rows: None });
    }
    if !change.yes {
        confirm(&format!("{} {}?", what.question(), counted(planned, "row")), "nothing was changed")?;
    }
    // What dies from now on, a row that was moved back included, is not part of the plan.
    let filter = DeadRowFilter { up_to: plan.iter().map(|group| group.last).max(), ..filter };
    let mut rows = 0;
    action.begins(planned).await?;
    loop {
        match what.step(store, &filter).await {
            Ok(0) => {
                action.ended(rows).await;
                return Ok(Altered { plan, rows: Some(rows) });
            }
            Ok(more) => rows += more,
            Err(error) => {
                action.failed(rows, &error.to_string()).await;
                let mut failure = Failure::database(&error);
                if rows > 0 {
                    failure.add(
                        format!("{rows} rows were {} before that", what.done()),
                        "run the command again for the rest",
                    );
                }
                return Err(failure);
            }
        }
    }
}

fn print_plan(plan: &[DeadGroup]) -> std::io::Result<()> {
    if plan.is_empty() {
        return output::line("no dead rows");
    }
    let row =
        |group: &DeadGroup| vec![group.rows.to_string(), group.destination.clone(), group.reason.clone()];
    output::table(&["ROWS", "DESTINATION", "REASON"], plan.iter().map(row))
}

fn report(
    context: &Context,
    Altered { plan, rows }: &Altered,
    what: What,
    because: Option<&str>,
) -> Result<Exit, Failure> {
    if context.is_json() {
        let group = |group: &DeadGroup| json!({ "rows": group.rows, "destination": group.destination, "reason": group.reason });
        let plan: Vec<Value> = plan.iter().map(group).collect();
        let mut document = json!({ "plan": plan, "rows": rows });
        if let Some(because) = because {
            document["because"] = because.into();
        }
        output::json(&document)?;
    } else if let Some(rows) = rows {
        output::line(format!("{} {}", counted(*rows, "row"), what.done()))?;
    }
    Ok(Exit::Ok)
}
