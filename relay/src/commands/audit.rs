//! `audit`

use backstop_core::ledger::{AuditEntry, AuditFilter};
use serde_json::json;

use crate::cli::Audit;
use crate::commands::outbox::time;
use crate::commands::{Context, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};

pub(super) async fn run(context: &Context, args: Audit) -> Result<Exit, Failure> {
    let filter =
        AuditFilter { before: args.before, action: args.action, who: args.who, redrive: args.redrive };
    let entries = context.ledger().await?.read_audit(&filter, args.limit).await.map_err(database)?;
    if context.is_json() {
        output::json(&json!({ "entries": entries }))?;
    } else if entries.is_empty() {
        output::line("nothing is written down")?;
    } else {
        let header =
            ["N", "AT", "WHO", "FROM", "ACTION", "RESULT", "LETTERS", "REDRIVE", "OF WHAT", "BECAUSE"];
        output::table(&header, entries.iter().map(row))?;
    }
    Ok(Exit::Ok)
}

fn row(AuditEntry { n, at, entry }: &AuditEntry) -> Vec<String> {
    let result = match &entry.error {
        Some(error) => format!("{}: {error}", entry.step.as_str()),
        None => entry.step.as_str().to_owned(),
    };
    vec![
        n.to_string(),
        time(*at),
        entry.who.clone(),
        entry.origin.clone(),
        entry.action.clone(),
        result,
        entry.letters.map_or_else(|| or_dash(None), |letters| letters.to_string()),
        or_dash(entry.redrive.as_deref()),
        or_dash(Some(&entry.object)),
        or_dash(entry.because.as_deref()),
    ]
}
