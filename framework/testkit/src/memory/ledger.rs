//! The database in memory as a ledger of dead letters.

use std::collections::BTreeMap;

use backstop_core::ledger::{
    COUNT_LIMIT, Change, DIED_AGAIN, Edit, Expired, Expiry, Ledger, Letter, LetterEvent, LetterFilter,
    LetterGone, LetterGroup, LetterMinute, LetterStatus, NewBody, Outcome, Step, died_again,
};
use backstop_core::{AdapterError, ConsumerReport, Receipt, ReceiptOutcome, report_in};
use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use futures_core::future::BoxFuture;

use super::data::Data;
use super::outbox::now;
use super::store::Store;

impl Data {
    fn record(&mut self, letters: &[Letter]) -> Result<u64, AdapterError> {
        self.reachable()?;
        let mut new = 0;
        for letter in letters {
            let is_known = self.letters.iter().any(|known| known.id == letter.id);
            if is_known && !self.has_died_again(letter) {
                continue;
            }
            self.supersede(letter);
            self.deaths.push(Death::of(letter, self.date()));
            if is_known {
                self.reopen(letter)
            } else {
                self.take(letter)
            }
            new += 1;
        }
        Ok(new)
    }

    fn take(&mut self, letter: &Letter) {
        let mut taken = letter.clone();
        taken.collected_at = self.date();
        self.letters.push(taken);
        self.tell(&letter.id, "collected", None);
    }

    /// Whether a letter that is there already tells of another death, which no other letter stands for.
    fn has_died_again(&self, letter: &Letter) -> bool {
        let Some(known) = self.letters.iter().find(|known| known.id == letter.id) else { return false };
        letter.died_after(known, self.history_of(&letter.id))
            && !self.letters.iter().any(|other| other.stands_for(known))
    }

    fn history_of(&self, id: &str) -> &[LetterEvent] {
        self.events.get(id).map_or(&[], Vec::as_slice)
    }

    /// Opens a closed letter again, with what the new one says; one on hold keeps what it says, as evidence.
    fn reopen(&mut self, letter: &Letter) {
        let Some(known) = self.letter_mut(&letter.id) else { return };
        let (was, on_hold) = (known.status, known.hold.is_some());
        if !on_hold {
            let collected_at = known.collected_at;
            *known = letter.clone();
            known.collected_at = collected_at;
        }
        (known.status, known.dead_at) = (letter.status, letter.dead_at);
        (known.outcome, known.redrive) = (None, None);
        self.leave_out_of_redrives(&letter.id);
        self.tell(&letter.id, DIED_AGAIN, Some(&died_again(was, on_hold, letter.error.as_deref())));
    }

    /// Closes the letters whose message was redriven and failed again: the new letter stands for it from now on.
    fn supersede(&mut self, letter: &Letter) {
        let same = |older: &&mut Letter| {
            matches!(older.status, LetterStatus::Open | LetterStatus::Redriving)
                && older.message_key.is_some()
                && older.message_key == letter.message_key
                && older.consumer == letter.consumer
                && older.generation < letter.generation
        };
        let older: Vec<String> = self
            .letters
            .iter_mut()
            .filter(same)
            .map(|older| {
                older.status = LetterStatus::Superseded;
                older.outcome = older.redrive.is_some().then_some(Outcome::FailedAgain);
                older.id.clone()
            })
            .collect();
        for id in older {
            self.settle_in_redrives(&id, Step::FailedAgain);
            self.tell(&id, "failed-again", Some(&letter.id));
        }
    }

    fn mark(
        &mut self,
        ids: &[String],
        from: LetterStatus,
        to: LetterStatus,
        what: &str,
        detail: Option<&str>,
    ) -> Result<Vec<String>, AdapterError> {
        self.reachable()?;
        let meant =
            self.letters.iter_mut().filter(|letter| letter.status == from && ids.contains(&letter.id));
        let moved: Vec<String> = meant
            .map(|letter| {
                letter.status = to;
                letter.id.clone()
            })
            .collect();
        for id in &moved {
            self.tell(id, what, detail);
        }
        Ok(moved)
    }

    fn tell_all(
        &mut self,
        filter: &LetterFilter,
        what: &str,
        detail: Option<&str>,
    ) -> Result<u64, AdapterError> {
        self.reachable()?;
        let ids: Vec<String> = self.meant(filter).into_iter().map(|letter| letter.id.clone()).collect();
        for id in &ids {
            self.tell(id, what, detail);
        }
        Ok(ids.len() as u64)
    }

    fn edit(&mut self, edit: &Edit) -> Result<bool, AdapterError> {
        self.reachable()?;
        let Edit { id, copy, because } = edit;
        let is_meant = |letter: &&mut Letter| {
            letter.id == *id && letter.status == LetterStatus::Open && letter.hold.is_none()
        };
        if self.letters.iter().any(|known| known.id == copy.id) {
            return Ok(false);
        }
        let Some(letter) = self.letters.iter_mut().find(is_meant) else { return Ok(false) };
        letter.status = LetterStatus::Superseded;
        self.record(std::slice::from_ref(copy))?;
        self.tell(id, "edited", Some(&format!("{}: {because}", copy.id)));
        self.tell(&copy.id, "edit-of", Some(&format!("{id}: {because}")));
        Ok(true)
    }

    fn replace_bodies(&mut self, bodies: &[NewBody]) -> Result<u64, AdapterError> {
        self.reachable()?;
        let mut changed = 0;
        for NewBody { id, from, to } in bodies {
            let is_meant =
                |letter: &&mut Letter| letter.id == *id && letter.envelope.body.as_ref() == Some(from);
            if let Some(letter) = self.letters.iter_mut().find(is_meant) {
                letter.envelope.body = Some(to.clone());
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Letters that are meant, in the ledger's order.
    pub(super) fn meant(&self, filter: &LetterFilter) -> Vec<&Letter> {
        let mut meant: Vec<&Letter> = self.letters.iter().filter(|letter| filter.matches(letter)).collect();
        // Stable: letters of one time stay in the order in which they came.
        meant.sort_by_key(|letter| letter.seen_at());
        meant
    }

    /// The same, as far as they are counted.
    fn counted(&self, filter: &LetterFilter) -> Vec<&Letter> {
        let mut meant = self.meant(filter);
        if !filter.is_by_group() {
            meant.truncate(COUNT_LIMIT as usize + 1);
        }
        meant
    }

    fn groups(&self, filter: &LetterFilter, limit: u32) -> Vec<LetterGroup> {
        let mut counts = BTreeMap::<_, LetterGroup>::new();
        for letter in self.counted(filter) {
            let group = counts.entry(dimensions(letter)).or_default();
            group.letters += 1;
            group.by_status.add(letter.status, 1);
        }
        let groups = counts.into_iter().map(|(of, counts)| self.describe(&of, counts));
        let mut groups: Vec<LetterGroup> = groups.collect();
        groups.sort_by_key(|group| std::cmp::Reverse((group.letters, group.last_seen)));
        groups.truncate(limit as usize);
        groups
    }

    fn minutes(&self, fingerprint: Option<&str>) -> Vec<LetterMinute> {
        let since = Utc::now() - TimeDelta::hours(2);
        let is_meant = |death: &&Death| {
            death.at > since
                && death.is_of_late
                && fingerprint.is_none_or(|fingerprint| death.of[0].as_deref() == Some(fingerprint))
        };
        let mut minutes = BTreeMap::new();
        for death in self.deaths.iter().filter(is_meant) {
            let at = death.at.duration_trunc(TimeDelta::minutes(1)).unwrap_or_default();
            *minutes.entry(at).or_insert(0) += 1;
        }
        minutes.into_iter().map(|(at, letters)| LetterMinute { at, letters }).collect()
    }

    fn describe(&self, of: &Dimensions, counts: LetterGroup) -> LetterGroup {
        let recent = Utc::now() - TimeDelta::hours(1);
        let first = self.letters.iter().find(|letter| dimensions(letter) == *of);
        let seen = || self.deaths.iter().filter(|death| death.of == *of).map(|death| death.at);
        let [fingerprint, consumer, place, class, reason] = of.clone();
        LetterGroup {
            fingerprint,
            consumer,
            place,
            class,
            reason,
            error_type: first.and_then(|letter| letter.error_type.clone()),
            error: first.and_then(|letter| letter.error.clone()),
            first_seen: seen().min().unwrap_or_default(),
            last_seen: seen().max().unwrap_or_default(),
            last_hour: seen().filter(|at| *at > recent).count() as u64,
            ..counts
        }
    }

    fn change(&mut self, filter: &LetterFilter, change: &Change, limit: u32) -> Result<u64, AdapterError> {
        self.reachable()?;
        let meant = self.meant(filter);
        let applies = meant.into_iter().filter(|letter| change.applies_to(letter)).take(limit as usize);
        let ids: Vec<String> = applies.map(|letter| letter.id.clone()).collect();
        for id in &ids {
            let letter = self.letter_mut(id).expect("it was found just now");
            match change {
                Change::Discard { .. } => letter.status = LetterStatus::Discarded,
                Change::Hold { because } => letter.hold = Some(because.clone()),
                Change::Release { .. } => letter.hold = None,
            }
            if matches!(change, Change::Discard { .. }) {
                self.settle_in_redrives(id, Step::Dropped);
            }
            self.tell(id, change.event(), Some(change.because()));
        }
        Ok(ids.len() as u64)
    }

    fn is_over(&self, expiry: &Expiry, letter: &Letter) -> bool {
        expiry.applies_to(letter, self.history_of(&letter.id)) && !self.is_in_a_redrive(&letter.id)
    }

    pub(super) fn letter_mut(&mut self, id: &str) -> Option<&mut Letter> {
        self.letters.iter_mut().find(|letter| letter.id == id)
    }

    fn take_receipts(&mut self, receipts: &[Receipt]) -> Result<u64, AdapterError> {
        self.reachable()?;
        let mut changed = 0;
        for receipt in receipts {
            changed += u64::from(self.take_receipt(receipt));
        }
        Ok(changed)
    }

    /// Whether a letter changed.
    fn take_receipt(&mut self, receipt: &Receipt) -> bool {
        let Some(id) = self.addressee(receipt) else { return false };
        let was_skipped = self.has_told(&id, "skipped");
        let letter = self.letter_mut(&id).expect("it was found just now");
        let is_discarded = letter.status == LetterStatus::Discarded;
        let (step, what) = match receipt.outcome {
            // Its consumer knows it from the skip.
            ReceiptOutcome::AlreadyHandled if is_discarded && was_skipped => return false,
            ReceiptOutcome::Handled | ReceiptOutcome::AlreadyHandled => {
                (letter.status, letter.outcome) = (LetterStatus::Resolved, Some(Outcome::Resolved));
                (Step::Resolved, "resolved")
            }
            ReceiptOutcome::Skipped if letter.hold.is_none() && !is_discarded => {
                letter.status = LetterStatus::Discarded;
                (Step::Dropped, "skipped")
            }
            ReceiptOutcome::Skipped => {
                self.tell_once(&id, "skipped", receipt.outcome.as_str());
                return false;
            }
            _ => {
                self.tell_once(&id, "key-released", &receipt.instance);
                return false;
            }
        };
        self.settle_in_redrives(&id, step);
        self.tell(&id, what, Some(receipt.outcome.as_str()));
        true
    }

    /// The letter that a receipt belongs to; one that waits for an outcome rather than one that was discarded.
    fn addressee(&self, receipt: &Receipt) -> Option<String> {
        let fits = |letter: &&Letter| match &receipt.letter {
            Some(id) => letter.id == *id,
            None => {
                letter.message_key.as_deref() == Some(receipt.message_key.as_str())
                    && letter.consumer.as_deref() == Some(&receipt.consumer)
                    && letter.generation + 1 == i64::from(receipt.generation)
            }
        };
        let takes = |letter: &&Letter| !letter.status.is_closed() || letter.status == LetterStatus::Discarded;
        let is_current = |letter: &&Letter| !letter.died_since(receipt, self.history_of(&letter.id));
        let found = self.letters.iter().filter(fits).filter(takes).filter(is_current);
        found.min_by_key(|letter| letter.status.is_closed()).map(|letter| letter.id.clone())
    }

    /// Whether the history has that, since the letter died last.
    fn has_told(&self, id: &str, what: &str) -> bool {
        let events = self.events.get(id).into_iter().flatten();
        events.rev().take_while(|event| event.what != DIED_AGAIN).any(|event| event.what == what)
    }

    fn tell_once(&mut self, id: &str, what: &str, detail: &str) {
        if !self.has_told(id, what) {
            self.tell(id, what, Some(detail));
        }
    }

    fn take_reports(&mut self, reports: &[ConsumerReport]) -> Result<(), AdapterError> {
        self.reachable()?;
        for report in reports {
            let kept = self
                .consumers
                .entry((report.consumer.clone(), report.instance.clone()))
                .or_insert_with(|| report.clone());
            if kept.at <= report.at {
                *kept = report.clone();
            }
        }
        let now = self.date();
        self.consumers.retain(|_, report| (now - report.at).abs() <= report_in::KEPT);
        Ok(())
    }
}

/// What letters of a group have in common: fingerprint, consumer, place, class and reason.
type Dimensions = [Option<String>; 5];

/// That a letter of a group died.
#[derive(Debug)]
pub(super) struct Death {
    of: Dimensions,
    at: DateTime<Utc>,
    /// Whether it was taken soon enough to be counted by the minute.
    is_of_late: bool,
}

impl Death {
    fn of(letter: &Letter, taken_at: DateTime<Utc>) -> Self {
        let at = letter.dead_at.unwrap_or(taken_at);
        let is_of_late = taken_at - at < TimeDelta::hours(1) && at - taken_at < TimeDelta::minutes(5);
        Self { of: dimensions(letter), at, is_of_late }
    }
}

fn dimensions(letter: &Letter) -> Dimensions {
    [&letter.fingerprint, &letter.consumer, &letter.place, &letter.class, &letter.reason].map(Clone::clone)
}

/// The letters behind the one with that id; all of them where none is named.
fn behind<'a>(
    mut letters: impl Iterator<Item = &'a Letter>,
    id: Option<&str>,
) -> Result<impl Iterator<Item = &'a Letter>, AdapterError> {
    match id {
        Some(id) if !letters.any(|letter| letter.id == id) => Err(LetterGone::error(id)),
        _ => Ok(letters),
    }
}

impl Ledger for Store {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.record(letters)))
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let all = data.meant(&LetterFilter::default());
            let meant = behind(all.into_iter(), after)?.filter(|letter| filter.matches(letter));
            Ok(meant.take(limit as usize).cloned().collect())
        }))
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.counted(filter).len() as u64)
        }))
    }

    fn groups<'a>(
        &'a self,
        filter: &'a LetterFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<LetterGroup>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.groups(filter, limit))
        }))
    }

    fn minutes<'a>(
        &'a self,
        fingerprint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LetterMinute>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.minutes(fingerprint))
        }))
    }

    fn history<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<LetterEvent>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.events.get(id).cloned().unwrap_or_default())
        }))
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<String>, AdapterError>> {
        now(self.shared.change(|data| data.mark(ids, from, to, what, detail)))
    }

    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.tell_all(filter, what, detail)))
    }

    fn change<'a>(
        &'a self,
        filter: &'a LetterFilter,
        change: &'a Change,
        limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.change(filter, change, limit)))
    }

    fn edit<'a>(&'a self, edit: &'a Edit) -> BoxFuture<'a, Result<bool, AdapterError>> {
        now(self.shared.change(|data| data.edit(edit)))
    }

    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.replace_bodies(bodies)))
    }

    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Expired>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let expired = behind(data.letters.iter(), after)?.filter(|letter| data.is_over(expiry, letter));
            let with_history = |letter: &Letter| Expired {
                letter: letter.clone(),
                history: data.events.get(&letter.id).cloned().unwrap_or_default(),
            };
            Ok(expired.take(limit as usize).map(with_history).collect())
        }))
    }

    fn time(&self) -> BoxFuture<'_, Result<DateTime<Utc>, AdapterError>> {
        now(self.shared.look(|data| data.reachable().map(|()| data.date())))
    }

    fn purge<'a>(
        &'a self,
        expiry: &'a Expiry,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| {
            data.reachable()?;
            let over = data.letters.iter().filter(|letter| data.is_over(expiry, letter));
            let over: Vec<String> =
                over.map(|letter| letter.id.clone()).filter(|id| ids.contains(id)).collect();
            data.letters.retain(|letter| !over.contains(&letter.id));
            data.events.retain(|id, _| !over.contains(id));
            Ok(over.len() as u64)
        }))
    }

    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> BoxFuture<'a, Result<u64, AdapterError>> {
        now(self.shared.change(|data| data.take_receipts(receipts)))
    }

    fn record_reports<'a>(
        &'a self,
        reports: &'a [ConsumerReport],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.change(|data| data.take_reports(reports)))
    }

    fn consumers(&self) -> BoxFuture<'_, Result<Vec<ConsumerReport>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.consumers.values().cloned().collect())
        }))
    }
}
