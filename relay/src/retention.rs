//! Retention: letters whose time in the ledger is over are archived, and then deleted.
//!
//! A letter is deleted only after the archive that holds it is on the disk or in the bucket, and only if its time is still over: what was put
//! under legal hold meanwhile, or redriven, stays. When the relay dies between the two, the letters are archived once more
//! the next time, into another file; importing both makes one letter of each.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::AdapterError;
use backstop_core::lease::Leases;
use backstop_core::ledger::{Expired, Expiry, Ledger, LetterStatus};
use chrono::TimeDelta;
use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::archive::{Draft, Manifest, Place, blocking};
use crate::audit::Action;
use crate::config::RetentionConfig;
use crate::exit::Failure;
use crate::owner::{Owner, OwnerSettings};
use crate::patience::{answer, is_silence};
use crate::portion::Portion;

/// From one pass to the next.
const EVERY: Duration = Duration::from_secs(600);
/// Letters that are read or deleted together: few, so that nobody waits for long.
const BATCH: u32 = 500;
/// Letters of one archive at most.
const IN_ONE_FILE: usize = 20_000;

/// What whoever archives and deletes the letters of that name leases: behind a full stop, as everything that belongs to
/// them, so that no outbox is given the same.
pub(crate) fn lease(letters: &str) -> String {
    format!("{letters}.retention")
}

/// Archives and deletes.
pub struct Retention {
    ledger: Arc<dyn Ledger>,
    name: String,
    config: RetentionConfig,
    place: Option<Place>,
}

/// What a pass did with letters of one status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The status.
    pub status: LetterStatus,
    /// Letters that were deleted.
    pub deleted: u64,
    /// What was written before.
    pub archives: Vec<Manifest>,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Retention {
    /// Retention of the ledger that is called `name`.
    ///
    /// # Errors
    /// When archives go to a bucket that is configured as it cannot be.
    pub fn new(
        ledger: Arc<dyn Ledger>,
        name: impl Into<String>,
        config: RetentionConfig,
    ) -> Result<Self, Failure> {
        let place = Place::of(&config)?;
        Ok(Self { ledger, name: name.into(), config, place })
    }

    /// One pass after another until `stop`, as long as no other relay does it.
    pub async fn run(self, owner: OwnerSettings, stop: CancellationToken) {
        let leases: Arc<dyn Leases> = self.ledger.clone();
        let owner = Owner::start(leases, owner);
        while let Some(lease) = owner.granted(&stop).await {
            let term = stop.child_token();
            tokio::select! {
                () = self.pass_and_rest(&term) => {}
                never = owner.cancel_when_lost(&lease, &term) => match never {},
            }
        }
        owner.release().await;
    }

    async fn pass_and_rest(&self, term: &CancellationToken) {
        if let Err(failure) = self.pass(term).await {
            warn!(cause = %failure, "dead letters whose time is over stay in the ledger");
        }
        tokio::select! {
            () = term.cancelled() => {}
            () = sleep(EVERY) => {}
        }
    }

    /// Archives and deletes what is over now. `stop` ends it between two batches.
    ///
    /// # Errors
    /// When an archive cannot be written, or the ledger does not answer; what was not deleted by then stays.
    pub async fn pass(&self, stop: &CancellationToken) -> Result<Vec<Passed>, Failure> {
        let now = asked(stop, self.ledger.time()).await?;
        let mut passed = Vec::new();
        for (status, kept) in self.config.by_status() {
            let age = kept.and_then(|kept| TimeDelta::from_std(kept).ok());
            let Some(before) = age.and_then(|age| now.checked_sub_signed(age)) else { continue };
            passed.push(self.pass_status(&Expiry { status, before }, stop).await?);
        }
        Ok(passed)
    }

    async fn pass_status(&self, expiry: &Expiry, stop: &CancellationToken) -> Result<Passed, Failure> {
        let mut passed = Passed { status: expiry.status, deleted: 0, archives: Vec::new() };
        while !stop.is_cancelled() {
            let (ids, manifest) = self.archive(expiry, stop).await?;
            if ids.is_empty() {
                break;
            }
            let whole = ids.len() < IN_ONE_FILE;
            passed.archives.extend(manifest.clone());
            let deleted = self.purge(expiry, &ids, manifest.as_ref(), stop).await?;
            passed.deleted += deleted;
            // Letters that others are at all the time must not keep this going for ever.
            if whole || deleted == 0 {
                break;
            }
        }
        Ok(passed)
    }

    /// The letters of one archive, and its manifest where one is to be written.
    async fn archive(
        &self,
        expiry: &Expiry,
        stop: &CancellationToken,
    ) -> Result<(Vec<String>, Option<Manifest>), Failure> {
        let (mut ids, mut archive, mut most) = (Vec::<String>::new(), None, BATCH);
        let mut portion = Portion::of(BATCH);
        while ids.len() < IN_ONE_FILE {
            let after = ids.last().map(String::as_str);
            let batch = portion.next().min(most);
            let page = match answer(stop, self.ledger.expired(expiry, after, batch)).await {
                // Letters may be so large that as many of them do not come in time.
                Err(error) if is_silence(&error) && batch > 1 && !stop.is_cancelled() => {
                    most = batch / 2;
                    continue;
                }
                page => page.map_err(|error| Failure::database(&error))?,
            };
            let is_last = page.len() < batch as usize;
            portion.came(page.iter().map(|expired| &expired.letter));
            ids.extend(page.iter().map(|expired| expired.letter.id.clone()));
            if !page.is_empty()
                && let Some(place) = &self.place
            {
                archive =
                    Some(written(archive, place.clone(), self.name.clone(), expiry.clone(), page).await?);
            }
            if is_last {
                break;
            }
        }
        let manifest = match archive {
            Some(archive) => Some(archive.finish(stop).await?),
            None => None,
        };
        Ok((ids, manifest))
    }

    async fn purge(
        &self,
        expiry: &Expiry,
        ids: &[String],
        manifest: Option<&Manifest>,
        stop: &CancellationToken,
    ) -> Result<u64, Failure> {
        let file = manifest.map_or("no archive", |manifest| manifest.file.as_str());
        let choice = format!("{} before {}, {file}", expiry.status, expiry.before.to_rfc3339());
        let action = Action::of_the_relay(&self.ledger, "retention", &choice).within(stop);
        action.begins(ids.len() as u64).await?;
        let mut deleted = 0;
        for batch in ids.chunks(BATCH as usize) {
            if stop.is_cancelled() {
                break;
            }
            match answer(stop, self.ledger.purge(expiry, batch)).await {
                Ok(more) => deleted += more,
                Err(error) => {
                    action.failed(deleted, &error.to_string()).await;
                    return Err(Failure::database(&error));
                }
            }
        }
        action.ended(deleted).await;
        info!(status = %expiry.status, deleted, archive = file, "dead letters whose time is over are deleted");
        Ok(deleted)
    }
}

/// The ledger's answer, or why there is none.
async fn asked<T>(
    term: &CancellationToken,
    call: impl Future<Output = Result<T, AdapterError>>,
) -> Result<T, Failure> {
    answer(term, call).await.map_err(|error| Failure::database(&error))
}

/// The archive with a page more; it is begun with the first.
async fn written(
    archive: Option<Draft>,
    place: Place,
    ledger: String,
    expiry: Expiry,
    page: Vec<Expired>,
) -> Result<Draft, Failure> {
    blocking(move || {
        let mut archive = match archive {
            Some(archive) => archive,
            None => place.begin(&ledger, &expiry)?,
        };
        archive.add(page)?;
        Ok(archive)
    })
    .await
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
