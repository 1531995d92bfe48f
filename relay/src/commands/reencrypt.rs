//! `dead-letters reencrypt`

use std::collections::BTreeMap;

use backstop_core::ledger::{Ledger, Letter, LetterFilter, NewBody};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::audit::Action;
use crate::commands::{Context, database};
use crate::encryption::{KeyId, Keyring, Locked, key_of};
use crate::exit::{Exit, Failure};
use crate::output::{self, counted};
use crate::portion::Portion;

/// Letters that are read, and whose bodies are replaced, together: few, because whole bodies are in memory several times.
const PAGE: u32 = 50;

/// What was found, and done.
#[derive(Default)]
struct Found {
    /// Letters by how their body is stored.
    stored: BTreeMap<String, u64>,
    /// Letters whose body is not encrypted with the newest key, and can be.
    due: u64,
    /// Those that were.
    changed: u64,
    /// Letters whose body cannot be had.
    locked: u64,
    /// Why, of the first of them.
    first: Option<Locked>,
}

pub(super) async fn run(context: &Context, dry_run: bool) -> Result<(), Failure> {
    let keys = context.keys();
    let newest = keys.newest().ok_or_else(|| {
        Failure::new(
            Exit::Configuration,
            format!("{}: [dead_letters.encryption] is missing", context.global.config.display()),
            "add it with key_file = \"/run/secrets/ledger-key\"",
        )
    })?;
    let ledger = context.ledger().await?;
    let all = ledger.count(&LetterFilter::default()).await.map_err(database)?;
    let (mut found, bar) = (Found::default(), bar(context, all));
    if dry_run {
        look(&*ledger, &keys, false, &mut found, &bar).await?;
    } else {
        let choice = format!("to key {newest}");
        let action = Action::on_letters(&ledger, "dead-letters reencrypt", &choice, None);
        action.begins(all).await?;
        match look(&*ledger, &keys, true, &mut found, &bar).await {
            Ok(()) => action.ended(found.changed).await,
            Err(failure) => {
                action.failed(found.changed, &failure.to_string()).await;
                return Err(failure);
            }
        }
    }
    bar.finish_and_clear();
    print(context, &found, newest, dry_run)?;
    match &found.first {
        None => Ok(()),
        Some(first) => {
            let letters = counted(found.locked, "letter");
            let what = format!("{letters} cannot be opened, the first because {first}");
            Err(Failure::new(Exit::Failed, what, first.hint()))
        }
    }
}

/// A bar on a terminal, with the time that is left; nothing elsewhere.
fn bar(context: &Context, letters: u64) -> ProgressBar {
    if context.is_json() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} letters, {per_sec:.0}, {eta} left");
    ProgressBar::new(letters).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Goes through all letters, and gives those a new body that are to have one. Begun again, it finds less to do.
async fn look(
    ledger: &dyn Ledger,
    keys: &Keyring,
    change: bool,
    found: &mut Found,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut after = None;
    let mut portion = Portion::of(PAGE);
    loop {
        let page = ledger
            .list(&LetterFilter::default(), after.as_deref(), portion.next())
            .await
            .map_err(database)?;
        let Some(last) = page.last() else { return Ok(()) };
        portion.came(page.iter());
        after = Some(last.id.clone());
        let (mut bodies, letters) = (Vec::new(), page.len() as u64);
        for letter in page {
            *found.stored.entry(stored(&letter, keys)).or_default() += 1;
            match keys.renewed(&letter) {
                Ok(to) => bodies.extend(new_body(letter, to)),
                Err(locked) => {
                    found.locked += 1;
                    found.first.get_or_insert(locked);
                }
            }
        }
        found.due += bodies.len() as u64;
        if change && !bodies.is_empty() {
            found.changed += ledger.replace_bodies(&bodies).await.map_err(database)?;
        }
        bar.inc(letters);
    }
}

fn new_body(letter: Letter, to: Option<Bytes>) -> Option<NewBody> {
    Some(NewBody { id: letter.id, from: letter.envelope.body?, to: to? })
}

/// How the body of a letter is stored.
fn stored(letter: &Letter, keys: &Keyring) -> String {
    match (key_of(letter), keys.locked(letter)) {
        (Some(key), Some(_)) => format!("with key {key}, which is not configured"),
        (Some(key), None) if Some(key) == keys.newest() => format!("with key {key}, the newest"),
        (Some(key), None) => format!("with key {key}"),
        (None, Some(_)) => "unreadable".to_owned(),
        (None, None) if letter.envelope.body.is_none() => "no body".to_owned(),
        (None, None) => "in clear".to_owned(),
    }
}

fn print(context: &Context, found: &Found, newest: KeyId, dry_run: bool) -> Result<(), Failure> {
    if context.is_json() {
        let (due, changed, locked) = (found.due, found.changed, found.locked);
        return Ok(output::json(&json!({
            "newest": newest, "stored": found.stored, "due": due, "changed": changed, "unreadable": locked,
        }))?);
    }
    if !found.stored.is_empty() {
        let rows = found.stored.iter().map(|(how, letters)| vec![letters.to_string(), how.clone()]);
        output::table(&["LETTERS", "STORED"], rows)?;
        output::line("")?;
    }
    let line = match dry_run {
        true => format!("{} would be encrypted with key {newest}", counted(found.due, "letter")),
        false => format!("{} encrypted with key {newest}", counted(found.changed, "letter")),
    };
    Ok(output::line(line)?)
}
