//! What the demo tells, and where it stands when it takes too long.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use crate::exit::Failure;
use crate::output;

/// How often what is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Tells people what happens; programs only get the ledger at the end.
#[derive(Debug)]
pub(super) struct Story {
    silent: bool,
    stage: RefCell<String>,
}

impl Story {
    pub(super) fn new(silent: bool) -> Self {
        Self { silent, stage: RefCell::new("before its first step".to_owned()) }
    }

    /// Prints a line.
    pub(super) fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        if self.silent {
            return Ok(());
        }
        unless_closed(output::line(text))
    }

    /// Whether a program reads the output.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Prints the ledger for a program.
    pub(super) fn document(&self, document: &impl serde::Serialize) -> Result<(), Failure> {
        unless_closed(output::json(document))
    }

    /// Says what is done just now, in case that it takes too long.
    pub(super) fn stage(&self, what: impl Into<String>) {
        *self.stage.borrow_mut() = what.into();
    }

    /// What was done last.
    pub(super) fn last_stage(&self) -> String {
        self.stage.borrow().clone()
    }

    /// Waits until `count` has come to `goal`; the demo's time limit ends it otherwise.
    pub(super) async fn until(
        &self,
        what: &str,
        goal: u64,
        mut count: impl AsyncFnMut() -> Result<u64, Failure>,
    ) -> Result<(), Failure> {
        loop {
            let counted = count().await?;
            if counted >= goal {
                return Ok(());
            }
            self.stage(format!("waiting for {what}: {counted} of {goal}"));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// A reader who has seen enough does not end the demo: its exit status counts.
fn unless_closed(printed: io::Result<()>) -> Result<(), Failure> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_comes_is_named() {
        let story = Story::new(true);
        let waiting = story.until("dead letters", 2, async || Ok(1));
        assert!(tokio::time::timeout(Duration::from_secs(60), waiting).await.is_err());
        assert_eq!(story.last_stage(), "waiting for dead letters: 1 of 2");
    }
}
