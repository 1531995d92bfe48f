//! `dead-letters edit`

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use serde_json::json;

use crate::audit::Action;
use crate::cli::LetterEdit;
use crate::commands::dead_letters::one;
use crate::commands::{Context, confirm, database};
use crate::edit::{Editing, TOO_LATE, notes};
use crate::encryption::size_of;
use crate::exit::{Exit, Failure};
use crate::output;

/// Largest body, in bytes: more than brokers take.
const MOST: u64 = 64 << 20;

pub(super) async fn run(context: &Context, args: &LetterEdit) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let letter = one(&*ledger, &args.id).await?;
    let history = ledger.history(&args.id).await.map_err(database)?;
    let body = read(&args.body)?;
    let (was, is) = (size_of(&letter).unwrap_or(0), body.len());
    let edit = Editing::of(&context.config.dead_letters)
        .edit(&context.keys(), (&letter, &history), body, args.because.clone())
        .map_err(|why| Failure::new(Exit::Failed, why.to_string(), why.hint()))?;
    let notes = notes(&letter);
    if !context.is_json() {
        notes.iter().try_for_each(|note| output::line(format!("note: {note}")))?;
    }
    if !args.yes {
        let question = format!("put a copy with {is} bytes in place of {}, which has {was} bytes?", args.id);
        confirm(&question, "nothing was changed")?;
    }
    let action = Action::on_letters(&ledger, "dead-letters edit", &args.id, Some(&args.because));
    action.begins(1).await?;
    match ledger.edit(&edit).await {
        Ok(true) => action.ended(1).await,
        Ok(false) => {
            action.failed(0, TOO_LATE).await;
            return Err(Failure::new(Exit::Failed, TOO_LATE, "look at its history with dead-letters show"));
        }
        Err(error) => {
            action.failed(0, &error.to_string()).await;
            return Err(database(error));
        }
    }
    let copy = &edit.copy.id;
    if context.is_json() {
        return Ok(output::json(&json!({ "id": copy, "edit_of": args.id, "notes": notes }))?);
    }
    Ok(output::line(format!("{copy} stands for {} now: dead-letters redrive --id {copy}", args.id))?)
}

/// What the file holds.
fn read(path: &Path) -> Result<Bytes, Failure> {
    let failed = |what: String| {
        let what = format!("{}: {what}", path.display());
        Failure::new(Exit::Failed, what, "name a file that holds the new body, or - for standard input")
    };
    let mut body = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().take(MOST + 1).read_to_end(&mut body),
        false => File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut body)),
    };
    read.map_err(|error| failed(error.to_string()))?;
    if body.len() as u64 > MOST {
        return Err(failed(format!("more than {MOST} bytes")));
    }
    Ok(body.into())
}
