//! The choice of having no dead-letter destination.

use backstop_core::pipeline::{LetterOutput, Output};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::source::SourceInfo;
use backstop_core::{AdapterError, DeadLetter, DeadLetters, FaultKind};

/// In place of a dead-letter destination: what would be given up stays where it is, and its key waits until the cause
/// is mended.
///
/// A transactional consumer keeps such messages in its held table and tries them again every minute; a plain one
/// and a pipeline stop at them.
#[derive(Debug, Clone, Copy, Default)]
pub struct StopPartition;

impl DeadLetters for StopPartition {
    async fn prepare(&self, _: &SourceInfo) -> Result<(), AdapterError> {
        Ok(())
    }

    async fn quarantine(&self, _: &DeadLetter) -> Result<(), PublishError> {
        let error = AdapterError::new(FaultKind::Missing, "the consumer has no dead-letter destination")
            .with_hint("mend the cause, or give the consumer one with `.dead_letter(…)`");
        Err(PublishError::new(Scope::Destination, error))
    }

    fn keeps(&self) -> bool {
        true
    }
}

impl LetterOutput for StopPartition {
    fn output(&self, _: &DeadLetter, _: bool) -> Option<Output> {
        None
    }
}
