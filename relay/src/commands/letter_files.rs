//! `dead-letters export`, `dead-letters archive` and `dead-letters import`

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use backstop_core::ledger::Letter;
use flate2::bufread::MultiGzDecoder;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::archive::{Manifest, Objects, verify};
use crate::audit::Action;
use crate::cli::Filter;
use crate::commands::{Context, database};
use crate::config::{ArchiveConfig, Unusable};
use crate::encryption::Locked;
use crate::exit::{Exit, Failure};
use crate::letter_file::{Line, NoLetter};
use crate::output::{self, counted};
use crate::portion::Portion;
use crate::redact::Redaction;
use crate::retention::Retention;

/// Letters that are read or written together.
const PAGE: u32 = 200;

pub(super) async fn export(context: &Context, filter: &Filter, to: Option<&Path>) -> Result<(), Failure> {
    let ledger = context.ledger().await?;
    let choice = filter.to_string();
    let filter = filter.in_ledger();
    let mut out = open(to)?;
    let meant = ledger.count(&filter).await.map_err(database)?;
    let action = Action::on_letters(&ledger, "dead-letters export", &choice, None);
    action.begins(meant).await?;
    let keys = context.keys();
    let (mut after, mut written, mut locked) = (None, 0, Vec::new());
    let mut portion = Portion::of(PAGE);
    loop {
        let page = ledger.list(&filter, after.as_deref(), portion.next()).await.map_err(database)?;
        let Some(last) = page.last() else { break };
        portion.came(page.iter());
        after = Some(last.id.clone());
        written += page.len() as u64;
        for mut letter in page {
            let opened = keys.open(&mut letter);
            let line = if opened.is_ok() { Line::of(letter) } else { Line::of_stored(letter) };
            locked.extend(opened.err());
            serde_json::to_writer(&mut out, &line).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    action.ended(written).await;
    if let Some(path) = to {
        let path = path.display().to_string();
        if context.is_json() {
            output::json(&json!({ "written": written, "file": path }))?;
        } else {
            output::line(format!("{} written to {path}", counted(written, "letter")))?;
        }
    }
    match locked.first() {
        Some(first) => Err(as_stored(locked.len(), first)),
        None => Ok(()),
    }
}

/// Some letters could not be opened: whoever reads the file needs their keys.
fn as_stored(letters: usize, first: &Locked) -> Failure {
    let letters = counted(letters as u64, "letter");
    Failure::new(
        Exit::Failed,
        format!("{letters} written as stored, the first because {first}"),
        first.hint(),
    )
}

/// Only its owner may read the file: it holds what messages carried.
fn open(to: Option<&Path>) -> Result<Box<dyn Write + Send>, Failure> {
    let Some(path) = to else { return Ok(Box::new(BufWriter::new(io::stdout()))) };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|error| {
        let what = format!("cannot create {}: {error}", path.display());
        Failure::new(
            Exit::Failed,
            what,
            "name a file that is not there yet, in a folder that may be written to",
        )
    })?;
    Ok(Box::new(BufWriter::new(file)))
}

pub(super) async fn archive(context: &Context) -> Result<(), Failure> {
    let letters = &context.config.dead_letters;
    let config = letters.retention.clone().ok_or_else(|| {
        Failure::new(
            Exit::Configuration,
            format!("{}: [dead_letters.retention] is missing", context.global.config.display()),
            "add it with archive = \"/path/of/a/folder\" or \"s3://bucket/prefix\"",
        )
    })?;
    let retention = Retention::new(context.ledger().await?, &letters.name, config)?;
    let passed = retention.pass(&CancellationToken::new()).await?;
    if context.is_json() {
        return Ok(output::json(&json!({ "passed": passed }))?);
    }
    for archive in passed.iter().flat_map(|passed| &passed.archives) {
        output::line(format!("{} written to {}", counted(archive.letters, "letter"), archive.file))?;
    }
    let deleted = passed.iter().map(|passed| passed.deleted).sum();
    Ok(output::line(format!("{} deleted from the ledger", counted(deleted, "letter")))?)
}

/// The lines of a file, which may be compressed.
fn lines(file: File) -> io::Result<Box<dyn BufRead + Send>> {
    let mut file = BufReader::new(file);
    let is_compressed = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_compressed { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) })
}

/// The file, and the manifest that it was compared with, where there is one.
async fn opened(context: &Context, path: &Path) -> Result<(File, Option<Manifest>), Failure> {
    let text = path.to_str().filter(|text| text.contains("://"));
    let place = match text.map(ArchiveConfig::parse) {
        Some(Ok(ArchiveConfig::Bucket(place))) => place,
        Some(Err(Unusable { what, .. })) => {
            let hint = "write s3://bucket/prefix/name.jsonl.gz, or the path of a file";
            return Err(Failure::new(Exit::Usage, format!("the address {what}"), hint));
        }
        Some(Ok(ArchiveConfig::Folder(_))) | None => {
            let manifest = verify(path).map_err(|error| unreadable(path, &error.to_string()))?;
            let file = File::open(path).map_err(|error| unreadable(path, &error.to_string()))?;
            return Ok((file, manifest));
        }
    };
    let Some((folder, name)) = place.split() else {
        return Err(unreadable(path, "no object is named, only a bucket"));
    };
    Objects::open(&folder, context.s3())?.fetch(name).await
}

fn unreadable(path: &Path, what: &str) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("{}: {what}", path.display()),
        "use a file that `dead-letters export` or `dead-letters archive` wrote",
    )
}

pub(super) async fn import(context: &Context, path: &Path) -> Result<(), Failure> {
    let unreadable = |what: String| unreadable(path, &what);
    let failed = |error: io::Error| unreadable(error.to_string());
    let (file, manifest) = opened(context, path).await?;
    let file = lines(file).map_err(failed)?;
    let redaction = Redaction::new(&context.config.dead_letters.redact)
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string(), "mend the pattern"))?;
    let (ledger, keys) = (context.ledger().await?, context.keys());
    let choice = path.display().to_string();
    let action = Action::on_letters(&ledger, "dead-letters import", &choice, None);
    action.begins(0).await?;
    let (mut page, mut read, mut new) = (Vec::<Letter>::new(), 0_u64, 0);
    for (at, line) in file.lines().enumerate() {
        let line = line.map_err(failed)?;
        let none = || unreadable(format!("line {} is no letter", at + 1));
        let line = serde_json::from_str::<Line>(&line).map_err(|_| none())?;
        let mut letter = line.letter(&keys).map_err(|why| match why {
            NoLetter::Bytes => none(),
            NoLetter::Locked(locked) => {
                let what = format!("{}: line {}: {locked}", path.display(), at + 1);
                Failure::new(Exit::Failed, what, locked.hint())
            }
        })?;
        redaction.apply(&mut letter);
        keys.seal(&mut letter);
        page.push(letter);
        read += 1;
        if page.len() == PAGE as usize {
            new += ledger.record(&page).await.map_err(database)?;
            page.clear();
        }
    }
    new += ledger.record(&page).await.map_err(database)?;
    action.ended(new).await;
    if context.is_json() {
        return Ok(output::json(&json!({ "read": read, "new": new, "verified": manifest.is_some() }))?);
    }
    let verified = if manifest.is_some() { "; the file is as its manifest says" } else { "" };
    Ok(output::line(format!("{} read, {new} of them new{verified}", counted(read, "letter")))?)
}
