//! The end of the demo: the ledger, and whether it balances.

use std::time::Duration;

use serde::Serialize;

use crate::demo::balance::Balance;
use crate::demo::folder::Folder;
use crate::demo::story::Story;
use crate::exit::{Exit, Failure};

/// The ledger for a program.
#[derive(Debug, Serialize)]
struct Document<'a> {
    balanced: bool,
    #[serde(flatten)]
    ledger: &'a Balance,
    faults: Vec<String>,
    /// `None` when it is removed.
    database: Option<String>,
    seconds: f64,
}

/// Shows the ledger and says how it ends.
pub(super) fn tell(
    story: &Story,
    folder: &Folder,
    balance: &Balance,
    took: Duration,
) -> Result<Exit, Failure> {
    let verdict = verdict(balance, folder);
    if story.is_silent() {
        let kept = !folder.is_temporary() || verdict.is_err();
        story.document(&Document {
            balanced: verdict.is_ok(),
            ledger: balance,
            faults: balance.faults(),
            database: kept.then(|| folder.database().to_string_lossy().into_owned()),
            seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        })?;
        return verdict;
    }
    story.line(format!("   {}", balance.line()))?;
    if verdict.is_ok() {
        story.line(format!("\nThe ledger balances, after {:.1} s.", took.as_secs_f64()))?;
        what_next(story, folder)?;
    }
    verdict
}

/// Whether the ledger balances, as the exit status says it.
fn verdict(balance: &Balance, folder: &Folder) -> Result<Exit, Failure> {
    let faults = balance.faults();
    if faults.is_empty() {
        return Ok(Exit::Ok);
    }
    let hint = format!("the database is kept: {}", folder.database().display());
    Err(Failure::new(Exit::Unbalanced, format!("the ledger does not balance: {}", faults.join("; ")), hint))
}

fn what_next(story: &Story, folder: &Folder) -> Result<(), Failure> {
    if folder.is_temporary() {
        story
            .line("Look inside: run it again with --folder demo, which keeps its database and tells how.")?;
    } else {
        let query = "SELECT * FROM payments WHERE customer = 'eve'";
        story.line(format!("Look inside: sqlite3 '{}' \"{query}\"", folder.database().display()))?;
        let list = "cargo run -p backstop-relay -- dead-letters list --status all";
        story.line(format!("             {list} --config '{}'", folder.config().display()))?;
    }
    story.line("Next: a consumer of your own, examples/01-first-consumer; then README.md.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_says_whether_the_ledger_balances() {
        let outer = tempfile::tempdir().expect("a directory");
        let folder = Folder::make(Some(outer.path())).expect("made");
        let balanced = Balance::balanced_for_tests();
        assert_eq!(verdict(&balanced, &folder), Ok(Exit::Ok));
        let failure = verdict(&Balance { lost: 1, ..balanced }, &folder).expect_err("unbalanced");
        assert_eq!(failure.exit().code(), 11);
        assert_eq!(failure.to_string(), "the ledger does not balance: 1 orders were lost");
    }
}
