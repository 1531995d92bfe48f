//! Letters given up or put under legal hold by hand: those that somebody saw, and as many.

use std::time::{Duration, Instant};

use backstop_core::ledger::{COUNT_LIMIT, Change, LetterFilter, LetterStatus};
use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;

use super::filter::FilterQuery;
use super::letters::{no_reason, reason};
use super::trail::Deed;
use super::{Caller, Desk, Kind, Trouble, in_time_or_unknown};

/// Letters that are changed in one statement.
const CHUNK: u32 = 1_000;
/// How long a change of many letters may take before it says how far it is.
const CHANGES: Duration = Duration::from_secs(8);
/// What shows which letters were changed.
const LOOK: &str = "the history of these letters";

/// Which letters somebody means, as they saw them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) filter: LetterFilter,
    /// Letters that died at this time or later are not meant, whatever the filter says; `None` where none is left out.
    pub(crate) as_of: Option<DateTime<Utc>>,
    /// How many they saw; `None` where they did not count.
    pub(crate) expected: Option<u64>,
}

impl Choice {
    /// All of it as a filter.
    fn within(&self) -> LetterFilter {
        let until = [self.filter.until, self.as_of].into_iter().flatten().min();
        LetterFilter { until, ..self.filter.clone() }
    }
}

/// How many letters a change would be done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meant {
    pub(crate) letters: u64,
    /// Whether that is exact; otherwise they are too many to be counted.
    pub(crate) exact: bool,
}

/// How far a change of letters came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) letters: u64,
    /// Letters of the filter that stay, because they are under legal hold.
    pub(crate) held: u64,
    /// Whether all was done; otherwise asking again goes on.
    pub(crate) complete: bool,
}

impl Desk {
    /// To how many letters of a choice a change [applies](Change::applies_to).
    pub(crate) async fn applies(&self, choice: &Choice, change: &Change) -> Result<Meant, Trouble> {
        let held = matches!(change, Change::Release { .. });
        let mut sum = Meant { letters: 0, exact: true };
        if choice.filter.on_hold.is_some_and(|asked| asked != held) {
            return Ok(sum);
        }
        let parts = statuses(change, choice.filter.status).into_iter().map(async |status| {
            let filter = LetterFilter { status, on_hold: None, ..choice.filter.clone() };
            self.count_held(&Choice { filter, ..choice.clone() }, held).await
        });
        for part in try_join_all(parts).await? {
            sum = Meant { letters: sum.letters + part.letters, exact: sum.exact && part.exact };
        }
        Ok(sum)
    }

    /// Letters of a choice that are under legal hold, or that are not.
    async fn count_held(&self, choice: &Choice, held: bool) -> Result<Meant, Trouble> {
        let within = choice.within();
        let of = |held| LetterFilter { on_hold: Some(held), ..within.clone() };
        // All letters of a group are counted at once whatever their number. Where they are too many to be counted one by
        // one, those which are not meant are taken off.
        let all = if !held && choice.filter.is_by_group() { self.count(&choice.filter).await? } else { 0 };
        if all > COUNT_LIMIT {
            let late = LetterFilter { since: choice.as_of, ..choice.filter.clone() };
            let late = if choice.as_of.is_some() { self.count(&late).await? } else { 0 };
            let kept = self.count(&of(true)).await?;
            if late <= COUNT_LIMIT && kept <= COUNT_LIMIT {
                return Ok(Meant { letters: all.saturating_sub(late).saturating_sub(kept), exact: true });
            }
        }
        let letters = self.count(&of(held)).await?;
        Ok(Meant { letters, exact: letters <= COUNT_LIMIT })
    }

    /// Gives letters up, or puts them under legal hold, or ends that.
    pub(crate) async fn change(
        &self,
        who: &Caller,
        choice: &Choice,
        make: fn(String) -> Change,
        because: &str,
    ) -> Result<Changed, Trouble> {
        let because = reason(Some(because));
        let object = FilterQuery::from(&choice.within()).audited();
        let deed = Deed::new(who, action(&make(String::new())), object, because.as_deref());
        let work = async {
            let because = because.as_ref().ok_or_else(no_reason)?;
            self.change_all(choice, &make(format!("{because} (by {})", who.name))).await
        };
        self.recorded(&deed, work, |changed| Some(changed.letters)).await
    }

    /// Changes no more letters than were counted: they go in the order in which the ledger took them, so that those
    /// which come in meanwhile are left.
    async fn change_all(&self, choice: &Choice, change: &Change) -> Result<Changed, Trouble> {
        let meant = self.applies(choice, change).await?;
        agreed(change, meant, choice.expected)?;
        let (ledger, filter) = (self.ledger().await?, choice.within());
        // Counted before anything is changed: afterwards, a failure to count would hide what was done.
        let held = match change {
            Change::Discard { .. } => {
                self.count(&LetterFilter { on_hold: Some(true), ..filter.clone() }).await?
            }
            Change::Hold { .. } | Change::Release { .. } => 0,
        };
        let begun = Instant::now();
        let (mut letters, mut left) = (0, if meant.exact { meant.letters } else { u64::MAX });
        while left > 0 && begun.elapsed() < CHANGES {
            let chunk = u32::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let changed = in_time_or_unknown(LOOK, ledger.change(&filter, change, chunk)).await;
            let changed = changed.map_err(|trouble| trouble.after(letters, LOOK))?;
            letters += changed;
            left = if changed == 0 { 0 } else { left - changed };
        }
        Ok(Changed { letters, held, complete: left == 0 })
    }
}

/// The statuses of letters to which a change applies, of those that are asked for; each is counted by itself.
fn statuses(change: &Change, asked: Option<LetterStatus>) -> Vec<Option<LetterStatus>> {
    const LIVE: [LetterStatus; 2] = [LetterStatus::Open, LetterStatus::Redriving];
    match change {
        Change::Hold { .. } | Change::Release { .. } => vec![asked],
        Change::Discard { .. } => {
            LIVE.into_iter().filter(|status| asked.is_none_or(|asked| asked == *status)).map(Some).collect()
        }
    }
}

/// A discard is final: how many letters it means is always known. What somebody saw must still be so.
fn agreed(change: &Change, meant: Meant, expected: Option<u64>) -> Result<(), Trouble> {
    let Meant { letters, exact } = meant;
    if !exact && (expected.is_some() || matches!(change, Change::Discard { .. })) {
        let what = format!("more than {COUNT_LIMIT} letters match, too many to be counted");
        let hint = "narrow it by since and until, or take whole groups: letters are counted without a limit where only \
                    fingerprint, consumer, place, class, reason and status are asked for";
        return Err(Trouble::new(Kind::Conflict, what, hint));
    }
    match expected {
        Some(expected) if expected != letters => {
            let done = match change {
                Change::Discard { .. } => "discarded",
                Change::Hold { .. } => "put under legal hold",
                Change::Release { .. } => "released from legal hold",
            };
            let what = format!("{letters} letters would be {done} now, not {expected}");
            Err(Trouble::new(Kind::Conflict, what, "look at these letters again, and at their number"))
        }
        _ => Ok(()),
    }
}

fn action(change: &Change) -> &'static str {
    match change {
        Change::Discard { .. } => "letters.discard",
        Change::Hold { .. } => "letters.hold",
        Change::Release { .. } => "letters.release",
    }
}
