//! `dead-letters list` and `dead-letters show`

use backstop_core::Envelope;
use backstop_core::ledger::{Letter, LetterEvent, LetterFilter};
use backstop_core::report::escaped;
use serde_json::{Value, json};

use crate::cli::{DeadLettersCommand, Filter};
use crate::commands::outbox::time;
use crate::commands::{Context, database};
use crate::exit::{Exit, Failure};
use crate::output::{self, or_dash};

pub(super) async fn run(context: &Context, command: DeadLettersCommand) -> Result<Exit, Failure> {
    match command {
        DeadLettersCommand::List { filter, limit, after } => {
            list(context, &filter, limit, after.as_deref()).await?
        }
        DeadLettersCommand::Show { id, reveal } => show(context, &id, reveal).await?,
        DeadLettersCommand::Redrive(redrive) => return super::redrive::run(context, redrive).await,
    }
    Ok(Exit::Ok)
}

async fn list(context: &Context, filter: &Filter, limit: u32, after: Option<&str>) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let filter = filter.in_ledger();
    let letters = ledger.list(&filter, after, limit).await.map_err(database)?;
    let all = ledger.count(&filter).await.map_err(database)?;
    if context.is_json() {
        return Ok(output::json(&json!({ "letters": letters, "matching": all }))?);
    }
    if letters.is_empty() {
        return Ok(output::line("no letters")?);
    }
    output::table(
        &["ID", "STATUS", "CONSUMER", "PLACE", "REASON", "ATTEMPTS", "DEAD AT", "ERROR"],
        letters.iter().map(row),
    )?;
    Ok(output::line(format!("\n{} of {all} letters", letters.len()))?)
}

fn row(letter: &Letter) -> Vec<String> {
    vec![
        letter.id.clone(),
        letter.status.to_string(),
        or_dash(letter.consumer.as_deref()),
        letter.place.clone().unwrap_or_else(|| letter.found_in.clone()),
        or_dash(letter.reason.as_deref()),
        or_dash(letter.attempts.map(|attempts| attempts.to_string()).as_deref()),
        or_dash(letter.dead_at.map(time).as_deref()),
        or_dash(letter.error.as_deref()),
    ]
}

async fn show(context: &Context, id: &str, reveal: bool) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let filter = LetterFilter { ids: vec![id.to_owned()], ..LetterFilter::default() };
    let found = ledger.list(&filter, None, 1).await.map_err(database)?;
    let Some(letter) = found.into_iter().next() else {
        let what = format!("the ledger has no letter {id}");
        return Err(Failure::new(Exit::Failed, what, "look for it with dead-letters list --status all"));
    };
    let history = ledger.history(id).await.map_err(database)?;
    if context.is_json() {
        return print_json(&letter, &history, reveal);
    }
    for (name, value) in fields(&letter) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            output::line(format!("{name:<16}{}", escaped(&value)))?;
        }
    }
    output::line("\nhistory")?;
    let event = |event: &LetterEvent| {
        vec![format!("  {}", time(event.at)), event.what.clone(), or_dash(event.detail.as_deref())]
    };
    output::table(&["  AT", "WHAT", "DETAIL"], history.iter().map(event))?;
    print_content(&letter.envelope, reveal)
}

fn fields(letter: &Letter) -> [(&'static str, Option<String>); 16] {
    [
        ("id", Some(letter.id.clone())),
        ("status", Some(letter.status.to_string())),
        ("consumer", letter.consumer.clone()),
        ("place", letter.place.clone()),
        ("found in", Some(letter.found_in.clone())),
        ("door", Some(letter.door.clone().unwrap_or_else(|| "none: it cannot be redriven".to_owned()))),
        ("reason", letter.reason.clone()),
        ("class", letter.class.clone()),
        ("error type", letter.error_type.clone()),
        ("error", letter.error.clone()),
        ("fingerprint", letter.fingerprint.clone()),
        ("attempts", letter.attempts.map(|attempts| attempts.to_string())),
        ("redriven", Some(format!("{} times before", letter.generation))),
        ("first failed", letter.first_failed_at.map(time)),
        ("dead since", letter.dead_at.map(time)),
        ("collected", Some(time(letter.collected_at))),
    ]
}

fn print_content(envelope: &Envelope, reveal: bool) -> Result<(), Failure> {
    let bytes = envelope.body.as_ref().map_or(0, |body| body.len());
    if !reveal {
        let headers = envelope.headers.len();
        let line =
            format!("\ncontent         {headers} headers and {bytes} bytes, hidden; --reveal shows them");
        return Ok(output::line(line)?);
    }
    if let Some(key) = &envelope.key {
        output::line(format!("\nkey             {}", shown(key)))?;
    }
    output::line("\nheaders")?;
    for (name, value) in envelope.headers.iter() {
        let value = value.map_or_else(|| "(null)".to_owned(), |value| shown(value));
        output::line(format!("  {}: {value}", escaped(name)))?;
    }
    match &envelope.body {
        None => output::line("\nbody            none (a tombstone)")?,
        Some(body) => output::line(format!("\nbody            {bytes} bytes\n{}", shown(body)))?,
    }
    Ok(())
}

/// Bytes as text: control characters escaped, and all of it where it is not UTF-8.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn print_json(letter: &Letter, history: &[LetterEvent], reveal: bool) -> Result<(), Failure> {
    let envelope = &letter.envelope;
    let content = if reveal {
        let pair =
            |(name, value): (&str, Option<&bytes::Bytes>)| json!([name, value.map(|value| exact(value))]);
        json!({
            "key": envelope.key.as_deref().map(exact),
            "headers": envelope.headers.iter().map(pair).collect::<Vec<Value>>(),
            "body": envelope.body.as_deref().map(exact),
        })
    } else {
        json!({
            "hidden": true,
            "headers": envelope.headers.len(),
            "bytes": envelope.body.as_ref().map(|body| body.len()),
        })
    };
    Ok(output::json(&json!({ "letter": letter, "history": history, "content": content }))?)
}

/// Bytes in JSON: a text where they are one, else `{"escaped": …}`.
fn exact(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "escaped": bytes.escape_ascii().to_string() }),
    }
}
