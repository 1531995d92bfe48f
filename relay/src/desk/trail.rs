//! Who did what by hand: written into the audit log before it begins and when it has ended.

use backstop_core::ledger::{AuditEntry, AuditFilter, AuditStep, NewAuditEntry};
use tracing::{info, warn};
use uuid::Uuid;

use super::caller::Caller;
use super::trouble::{Done, Kind, Trouble};
use super::{Desk, in_time};
use crate::audit;

/// Something that somebody wants to do.
#[derive(Debug, Clone)]
pub(super) struct Deed<'a> {
    who: &'a Caller,
    action: &'static str,
    /// To what: an id, or a filter as it stands in an address.
    object: String,
    because: Option<&'a str>,
    redrive: Option<String>,
    id: String,
}

impl<'a> Deed<'a> {
    pub(super) fn new(
        who: &'a Caller,
        action: &'static str,
        object: String,
        because: Option<&'a str>,
    ) -> Self {
        Self { who, action, object, because, redrive: None, id: Uuid::now_v7().to_string() }
    }

    /// The same, about this redrive.
    pub(super) fn about(mut self, redrive: &str) -> Self {
        self.redrive = Some(redrive.to_owned());
        self
    }

    fn entry(&self, step: AuditStep, letters: Option<u64>, error: Option<String>) -> NewAuditEntry {
        NewAuditEntry {
            deed: self.id.clone(),
            step,
            who: self.who.name.clone(),
            role: self.who.role.as_str().to_owned(),
            origin: self.who.origin.clone(),
            action: self.action.to_owned(),
            object: self.object.clone(),
            redrive: self.redrive.clone(),
            letters,
            because: self.because.map(str::to_owned),
            error,
        }
    }
}

impl Desk {
    /// Does what needs the operator role, if the caller has it and the audit log can keep that it begins. `letters` says
    /// how many it was about.
    pub(super) async fn recorded<T>(
        &self,
        deed: &Deed<'_>,
        work: impl Future<Output = Result<T, Trouble>>,
        letters: impl FnOnce(&T) -> Option<u64>,
    ) -> Result<T, Trouble> {
        let done = match deed.who.must_operate() {
            Err(trouble) => Err(trouble),
            Ok(()) => {
                self.keep(&deed.entry(AuditStep::Begun, None, None)).await?;
                work.await
            }
        };
        let entry = match &done {
            Ok(done) => deed.entry(AuditStep::Done, letters(done), None),
            Err(trouble) => deed.entry(step_of(trouble), trouble.done.letters(), Some(trouble.what.clone())),
        };
        // Its beginning is kept: without an end it shows as one of which nobody knows how it ended.
        if let Err(trouble) = self.keep(&entry).await {
            warn!(why = trouble.what, action = entry.action, "the audit log does not have the end of this");
        }
        done
    }

    async fn keep(&self, entry: &NewAuditEntry) -> Result<(), Trouble> {
        let NewAuditEntry { who, role, origin, action, object, letters, because, error, .. } = entry;
        let step = entry.step.as_str();
        info!(target: audit::TARGET, what = action, step, object, letters, because, who, role, origin, error);
        in_time(self.ledger().await?.write_audit(entry)).await
    }

    /// Entries of the audit log, newest first, and the number before which the next page ends.
    pub(crate) async fn entries(
        &self,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<(Vec<AuditEntry>, Option<i64>), Trouble> {
        let mut entries = in_time(self.ledger().await?.read_audit(filter, limit + 1)).await?;
        let more = entries.len() > limit as usize;
        entries.truncate(limit as usize);
        let next = entries.last().filter(|_| more).map(|entry| entry.n);
        Ok((entries, next))
    }
}

/// Whether nothing was done, or nobody knows how much.
fn step_of(trouble: &Trouble) -> AuditStep {
    match (trouble.kind, trouble.done) {
        (Kind::Invalid | Kind::Forbidden | Kind::Missing | Kind::Conflict, Done::Nothing) => {
            AuditStep::Refused
        }
        _ => AuditStep::Failed,
    }
}
