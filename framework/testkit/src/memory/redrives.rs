//! The database in memory as the place of redrives.

use std::collections::BTreeMap;

use backstop_core::lease::Lease;
use backstop_core::ledger::{
    BEHIND_REFUSED, Guard, Letter, LetterFilter, LetterStatus, NewRedrive, Outcome, Phase, PlanGroup,
    Redrive, Redrives, Run, Sent, Standing, Step, Tally, Verdict,
};
use backstop_core::{AdapterError, FaultKind};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;
use tokio::time::Instant;

use super::data::Data;
use super::outbox::now;
use super::store::Store;

/// A redrive and its letters, in order.
#[derive(Debug)]
pub(super) struct RedriveRow {
    plan: NewRedrive,
    created_at: DateTime<Utc>,
    standing: Standing,
    letters: Vec<LetterOfRedrive>,
}

#[derive(Debug)]
struct LetterOfRedrive {
    id: String,
    canary: bool,
    step: Step,
    sent_at: Option<Instant>,
}

impl RedriveRow {
    fn redrive(&self) -> Redrive {
        let tally = |canary: bool| {
            let mut tally = Tally::default();
            for letter in self.letters.iter().filter(|letter| letter.canary == canary) {
                tally.add(letter.step, 1);
            }
            tally
        };
        Redrive {
            plan: self.plan.clone(),
            created_at: self.created_at,
            standing: self.standing.clone(),
            canary_letters: tally(true),
            other_letters: tally(false),
        }
    }
}

impl Data {
    /// Writes an outcome down wherever the letter was sent and none is known yet.
    pub(super) fn settle_in_redrives(&mut self, id: &str, step: Step) {
        let waits = |letter: &&mut LetterOfRedrive| {
            letter.id == id
                && matches!(letter.step, Step::Sending | Step::Waiting | Step::Silent | Step::Unknown)
        };
        for letter in self.redrives.iter_mut().flat_map(|row| row.letters.iter_mut()).filter(waits) {
            letter.step = step;
        }
    }

    /// Letters that died again are others than those that a redrive has not sent yet.
    pub(super) fn leave_out_of_redrives(&mut self, id: &str) {
        let going_on = self.redrives.iter_mut().filter(|row| !row.standing.run.is_over());
        let waits = |letter: &&mut LetterOfRedrive| letter.id == id && letter.step == Step::Pending;
        going_on
            .flat_map(|row| row.letters.iter_mut())
            .filter(waits)
            .for_each(|row| row.step = Step::Dropped);
    }

    /// Whether a redrive that may still send is of this letter.
    pub(super) fn is_in_a_redrive(&self, id: &str) -> bool {
        let mut going_on = self.redrives.iter().filter(|row| !row.standing.run.is_over());
        going_on.any(|row| row.letters.iter().any(|letter| letter.id == id))
    }

    fn plan(&self, filter: &LetterFilter, guard: &Guard, most: u64) -> Vec<PlanGroup> {
        let mut groups = BTreeMap::<_, u64>::new();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for letter in self.letters.iter().filter(|letter| filter.matches(letter)).take(most) {
            let target = guard.target(letter).map(str::to_owned);
            let foreign = target.is_some() && letter.sound_door().is_none();
            let key =
                (guard.verdict(letter), letter.consumer.clone(), letter.reason.clone(), target, foreign);
            *groups.entry(key).or_default() += 1;
        }
        let group = |((verdict, consumer, reason, target, foreign), letters)| PlanGroup {
            verdict,
            consumer,
            reason,
            target,
            foreign,
            letters,
        };
        groups.into_iter().map(group).collect()
    }

    fn create(&mut self, new: &NewRedrive) -> Result<Redrive, AdapterError> {
        self.reachable()?;
        sendable(&new.filter)?;
        if let Some(known) = self.redrives.iter().find(|row| row.plan.id == new.id) {
            return Ok(known.redrive());
        }
        let most = new.limit.map_or(usize::MAX, |limit| limit as usize);
        let meant = self
            .letters
            .iter()
            .filter(|letter| new.filter.matches(letter) && new.guard.verdict(letter) == Verdict::Send);
        let letters = meant.take(most).enumerate().map(|(place, letter)| LetterOfRedrive {
            id: letter.id.clone(),
            canary: (place as u64) < new.canary,
            step: Step::Pending,
            sent_at: None,
        });
        let row = RedriveRow {
            plan: new.clone(),
            created_at: Utc::now(),
            standing: Redrive::beginning(new.canary),
            letters: letters.collect(),
        };
        let redrive = row.redrive();
        self.redrives.push(row);
        Ok(redrive)
    }

    fn row_mut(&mut self, id: &str) -> Option<&mut RedriveRow> {
        self.redrives.iter_mut().find(|row| row.plan.id == id)
    }

    fn claim(&mut self, lease: &Lease, id: &str, limit: u32) -> Result<Option<Vec<Letter>>, AdapterError> {
        self.reachable()?;
        if !self.is_current(lease) {
            return Ok(None);
        }
        let Some(row) = self.row_mut(id).filter(|row| row.standing.run == Run::Running) else {
            return Ok(Some(Vec::new()));
        };
        let (from, canary_only) = (row.plan.filter.status, row.standing.phase == Phase::Canary);
        let next = row
            .letters
            .iter()
            .filter(|letter| letter.step == Step::Pending && (letter.canary || !canary_only))
            .take(limit as usize);
        let ids: Vec<String> = next.map(|letter| letter.id.clone()).collect();
        let mut claimed = Vec::new();
        for letter in ids {
            let free = self.letter_mut(&letter).filter(|found| Some(found.status) == from);
            let step = match free {
                Some(found) => {
                    found.status = LetterStatus::Redriving;
                    found.redrive = Some(id.to_owned());
                    found.outcome = Some(Outcome::Waiting);
                    claimed.push(found.clone());
                    Step::Sending
                }
                None => Step::Dropped,
            };
            self.step(id, &letter, |row| row.step = step);
        }
        for letter in &claimed {
            self.tell(&letter.id, "redriving", Some(id));
        }
        Ok(Some(claimed))
    }

    fn step(&mut self, id: &str, letter: &str, change: impl FnOnce(&mut LetterOfRedrive)) {
        let row = self.row_mut(id).and_then(|row| row.letters.iter_mut().find(|row| row.id == letter));
        if let Some(row) = row {
            change(row);
        }
    }

    fn in_flight(&self, id: &str) -> Vec<Letter> {
        let row = self.redrives.iter().find(|row| row.plan.id == id);
        let sending = row.into_iter().flat_map(|row| &row.letters).filter(|row| row.step == Step::Sending);
        sending.filter_map(|row| self.letters.iter().find(|letter| letter.id == row.id).cloned()).collect()
    }

    fn steer(&mut self, id: &str, from: &Standing, to: &Standing) -> Result<bool, AdapterError> {
        self.reachable()?;
        let row = self.row_mut(id);
        let row = row.filter(|row| (row.standing.run, row.standing.phase) == (from.run, from.phase));
        let Some(row) = row else { return Ok(false) };
        row.standing = to.clone();
        if to.run.is_over() {
            self.let_go(id);
        }
        Ok(true)
    }

    /// Letters that are being sent when their redrive ends: whether they arrived is for their consumer to say.
    fn let_go(&mut self, id: &str) {
        let at = self.now();
        for letter in self.in_flight(id) {
            self.step(id, &letter.id, |row| (row.step, row.sent_at) = (Step::Waiting, Some(at)));
            let redriving = |found: &&mut Letter| found.status == LetterStatus::Redriving;
            if let Some(found) = self.letter_mut(&letter.id).filter(redriving) {
                found.outcome = Some(Outcome::Waiting);
            }
            self.tell(&letter.id, "perhaps-redriven", Some("its redrive ended while it was being sent"));
        }
    }

    fn settle(&mut self, id: &str, sent: &[(String, Sent)]) -> Result<(), AdapterError> {
        self.reachable()?;
        for (letter, what) in sent {
            let Some(row) = self.row_mut(id) else { continue };
            // What a redrive that has ended was sending is perhaps sent.
            let flying = if row.standing.run.is_over() { Step::Waiting } else { Step::Sending };
            if row.letters.iter().any(|row| row.id == *letter && row.step == flying) {
                self.settle_one(id, letter, what);
            }
        }
        Ok(())
    }

    fn settle_one(&mut self, id: &str, letter: &str, what: &Sent) {
        let at = self.now();
        let from = self.row_mut(id).and_then(|row| row.plan.filter.status).unwrap_or(LetterStatus::Open);
        match what {
            Sent::Confirmed | Sent::Unanswered => {
                let (step, outcome) = match what {
                    Sent::Confirmed => (Step::Waiting, Outcome::Waiting),
                    _ => (Step::Unknown, Outcome::Unknown),
                };
                self.step(id, letter, |row| (row.step, row.sent_at) = (step, Some(at)));
                if !self.is_handed_on(id, letter)
                    && let Some(found) = self.letter_mut(letter)
                {
                    found.outcome = Some(outcome);
                }
                self.tell(letter, "redriven", Some("confirmed by the broker"));
            }
            Sent::NotTried => {
                self.step(id, letter, |row| row.step = Step::Pending);
                self.put_back(id, letter, from);
                self.tell(letter, "redrive-failed", Some("not tried"));
            }
            Sent::Refused(reason) => {
                self.step(id, letter, |row| row.step = Step::Refused);
                self.put_back(id, letter, from);
                self.tell(letter, "redrive-failed", Some(reason));
                self.refuse_followers(id, letter);
            }
        }
    }

    /// What was not sent is what it was before: its outcome is the one that an earlier redrive waits for.
    fn put_back(&mut self, id: &str, letter: &str, to: LetterStatus) {
        if self.is_handed_on(id, letter) {
            return;
        }
        let outcome = self.outcome_awaited(letter).filter(|_| to == LetterStatus::Redriving);
        if let Some(found) = self.letter_mut(letter) {
            (found.status, found.outcome) = (to, outcome);
        }
    }

    /// Whether a later redrive is at the letter: then it says how the letter stands.
    fn is_handed_on(&self, id: &str, letter: &str) -> bool {
        let later = self.redrives.iter().skip_while(|row| row.plan.id != id).skip(1);
        let is_at =
            |row: &LetterOfRedrive| row.id == letter && matches!(row.step, Step::Sending | Step::Waiting);
        later.flat_map(|row| &row.letters).any(is_at)
    }

    /// What the last redrive that has sent the letter knows of it.
    fn outcome_awaited(&self, letter: &str) -> Option<Outcome> {
        let rows = self.redrives.iter().rev().flat_map(|row| &row.letters).filter(|row| row.id == letter);
        rows.map(|row| row.step).find_map(|step| match step {
            Step::Waiting => Some(Outcome::Waiting),
            Step::Silent => Some(Outcome::Silent),
            Step::Unknown => Some(Outcome::Unknown),
            _ => None,
        })
    }

    fn refuse_followers(&mut self, id: &str, refused: &str) {
        let target =
            |letter: &Letter| (letter.door.clone(), letter.place.clone(), letter.envelope.key.clone());
        let Some(of) = self.letters.iter().find(|letter| letter.id == refused).map(target) else { return };
        if of.2.is_none() {
            return;
        }
        let same: Vec<String> = self
            .letters
            .iter()
            .filter(|letter| target(letter) == of)
            .map(|letter| letter.id.clone())
            .collect();
        for letter in same {
            let mut is_refused = false;
            self.step(id, &letter, |row| {
                if row.step == Step::Pending {
                    (row.step, is_refused) = (Step::Refused, true);
                }
            });
            if is_refused {
                self.tell(&letter, "redrive-failed", Some(BEHIND_REFUSED));
            }
        }
    }

    fn silence(&mut self) -> Result<u64, AdapterError> {
        self.reachable()?;
        let now = self.now();
        let mut silent = Vec::new();
        for row in &mut self.redrives {
            let late = |letter: &&mut LetterOfRedrive| {
                letter.step == Step::Waiting
                    && letter.sent_at.is_some_and(|at| at + row.plan.silent_after <= now)
            };
            for letter in row.letters.iter_mut().filter(late) {
                letter.step = Step::Silent;
                silent.push((row.plan.id.clone(), letter.id.clone()));
            }
        }
        for (redrive, id) in &silent {
            if !self.is_handed_on(redrive, id)
                && let Some(letter) = self.letter_mut(id)
            {
                letter.outcome = Some(Outcome::Silent);
            }
            self.tell(id, "silent", None);
        }
        Ok(silent.len() as u64)
    }
}

fn sendable(filter: &LetterFilter) -> Result<(), AdapterError> {
    match filter.status {
        Some(LetterStatus::Open | LetterStatus::Redriving) => Ok(()),
        _ => Err(AdapterError::new(FaultKind::Invalid, "only open and redriving letters can be redriven")
            .with_hint("ask for the status open or redriving")),
    }
}

impl Redrives for Store {
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> BoxFuture<'a, Result<Vec<PlanGroup>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.plan(filter, guard, most))
        }))
    }

    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> BoxFuture<'a, Result<Redrive, AdapterError>> {
        now(self.shared.change(|data| data.create(new)))
    }

    fn redrives<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<Redrive>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let newest = data.redrives.iter().rev();
            let begin = after.map_or(0, |id| {
                let found = newest.clone().position(|row| row.plan.id == id);
                found.map_or(data.redrives.len(), |place| place + 1)
            });
            Ok(newest.skip(begin).take(limit as usize).map(RedriveRow::redrive).collect())
        }))
    }

    fn redrive<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Redrive>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.redrives.iter().find(|row| row.plan.id == id).map(RedriveRow::redrive))
        }))
    }

    fn running_redrives(&self) -> BoxFuture<'_, Result<Vec<Redrive>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            let running = data.redrives.iter().filter(|row| row.standing.run == Run::Running);
            Ok(running.map(RedriveRow::redrive).collect())
        }))
    }

    fn steer_redrive<'a>(
        &'a self,
        id: &'a str,
        from: &'a Standing,
        to: &'a Standing,
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        now(self.shared.change(|data| data.steer(id, from, to)))
    }

    fn set_redrive_rate<'a>(
        &'a self,
        id: &'a str,
        rate: Option<f64>,
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        now(self.shared.change(|data| {
            data.reachable()?;
            let row = data.row_mut(id).filter(|row| !row.standing.run.is_over());
            Ok(row.map(|row| row.plan.rate = rate).is_some())
        }))
    }

    fn claim_letters<'a>(
        &'a self,
        lease: &'a Lease,
        id: &'a str,
        limit: u32,
    ) -> BoxFuture<'a, Result<Option<Vec<Letter>>, AdapterError>> {
        now(self.shared.change(|data| data.claim(lease, id, limit)))
    }

    fn letters_in_flight<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Vec<Letter>, AdapterError>> {
        now(self.shared.look(|data| {
            data.reachable()?;
            Ok(data.in_flight(id))
        }))
    }

    fn settle_letters<'a>(
        &'a self,
        id: &'a str,
        sent: &'a [(String, Sent)],
    ) -> BoxFuture<'a, Result<(), AdapterError>> {
        now(self.shared.change(|data| data.settle(id, sent)))
    }

    fn fall_silent(&self) -> BoxFuture<'_, Result<u64, AdapterError>> {
        now(self.shared.change(Data::silence))
    }
}
