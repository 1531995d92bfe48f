//! The course of a redrive: what comes next, from where it stands and what became of its letters. No I/O.

use super::job::{Phase, Redrive, Run, Standing};

/// So many outcomes must be known before the brake judges.
const FEWEST: u64 = 20;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Send letters.
    Send,
    /// Wait for outcomes.
    Wait,
    /// Stand there from now on.
    Change(Standing),
    /// Nothing: it does not run.
    Rest,
}

/// A wish that does not fit where the redrive stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the redrive is {}", .0.as_str())]
pub struct NotNow(pub Run);

impl Redrive {
    /// What comes next.
    pub fn next(&self) -> Next {
        if self.standing.run != Run::Running {
            return Next::Rest;
        }
        match self.standing.phase {
            Phase::Canary => self.after_canary(),
            Phase::Sending => self.while_sending(),
            Phase::Settling if self.letters().waiting + self.letters().sending > 0 => Next::Wait,
            Phase::Settling => self.change(Run::Done, Phase::Settling, None),
        }
    }

    /// The rest goes out once every letter of the canary is resolved, but for those that somebody else has taken, and never
    /// after one that failed.
    fn after_canary(&self) -> Next {
        let canary = self.canary_letters;
        let failures = [
            (canary.failed_again, "failed again"),
            (canary.refused, "refused, as the history of each says"),
            (canary.silent, "without an outcome in time"),
        ];
        if let Some((letters, what)) = failures.into_iter().find(|(letters, _)| *letters > 0) {
            let why = format!("canary failed: {letters} {what}");
            return self.change(Run::Stopped, Phase::Canary, Some(why));
        }
        if canary.unsent() > 0 {
            Next::Send
        } else if canary.waiting > 0 {
            Next::Wait
        } else if canary.unknown > 0 {
            // Somebody who resumes it has looked.
            let why = "the canary is sent, and nobody tells its outcome: look, then resume".to_owned();
            self.change(Run::Paused, Phase::Sending, Some(why))
        } else if canary.resolved == 0 && canary.dropped > 0 {
            let why = "somebody else took every letter of the canary, which shows nothing: look, then resume";
            self.change(Run::Paused, Phase::Sending, Some(why.to_owned()))
        } else {
            self.change(Run::Running, Phase::Sending, None)
        }
    }

    fn while_sending(&self) -> Next {
        if let Some(why) = self.brake() {
            self.change(Run::Paused, Phase::Sending, Some(why))
        } else if self.letters().unsent() > 0 {
            Next::Send
        } else {
            self.change(Run::Running, Phase::Settling, None)
        }
    }

    /// Why the brake holds; what was known when somebody resumed the redrive does not count.
    fn brake(&self) -> Option<String> {
        let letters = self.letters();
        let failures = letters.failed_again.saturating_sub(self.standing.forgiven_failures);
        let outcomes = known(self).saturating_sub(self.standing.forgiven_outcomes);
        let share = failures as f64 / outcomes as f64;
        (outcomes >= FEWEST && share > self.plan.brake).then(|| {
            let (share, most) = (share * 100.0, self.plan.brake * 100.0);
            format!("brake: {failures} of {outcomes} failed again ({share:.0} %, at most {most:.0} %)")
        })
    }

    fn change(&self, run: Run, phase: Phase, why: Option<String>) -> Next {
        Next::Change(Standing { run, phase, why, ..self.standing.clone() })
    }

    /// Where it stands before its first letter is sent.
    pub fn beginning(canary: u64) -> Standing {
        let phase = if canary > 0 { Phase::Canary } else { Phase::Sending };
        Standing { run: Run::Running, phase, why: None, forgiven_failures: 0, forgiven_outcomes: 0 }
    }

    /// Where it stands once it is paused.
    ///
    /// # Errors
    /// When it does not run.
    pub fn paused(&self, why: impl Into<String>) -> Result<Standing, NotNow> {
        match self.standing.run {
            Run::Running => Ok(Standing { run: Run::Paused, why: Some(why.into()), ..self.standing.clone() }),
            other => Err(NotNow(other)),
        }
    }

    /// Where it stands once it is resumed: the brake judges anew.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn resumed(&self) -> Result<Standing, NotNow> {
        match self.standing.run {
            Run::Paused => Ok(Standing {
                run: Run::Running,
                phase: self.standing.phase,
                why: None,
                forgiven_failures: self.letters().failed_again,
                forgiven_outcomes: known(self),
            }),
            other => Err(NotNow(other)),
        }
    }

    /// Where it stands once it is cancelled: what is not sent stays as it was, and what is being sent waits for its
    /// outcome.
    ///
    /// # Errors
    /// When it is over.
    pub fn cancelled(&self, why: Option<String>) -> Result<Standing, NotNow> {
        if self.standing.run.is_over() {
            return Err(NotNow(self.standing.run));
        }
        Ok(Standing { run: Run::Cancelled, why, ..self.standing.clone() })
    }
}

/// Letters whose outcome is known, silence included.
fn known(redrive: &Redrive) -> u64 {
    let letters = redrive.letters();
    letters.resolved + letters.failed_again + letters.silent
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::Utc;

    use super::super::job::{Guard, NewRedrive, Tally};
    use super::*;
    use crate::ledger::LetterFilter;

    fn redrive(canary: u64, canary_letters: Tally, other_letters: Tally) -> Redrive {
        Redrive {
            plan: NewRedrive {
                id: "r".into(),
                filter: LetterFilter::default(),
                guard: Guard::default(),
                limit: None,
                canary,
                rate: None,
                brake: 0.1,
                silent_after: Duration::from_secs(60),
                created_by: "ann".into(),
                because: None,
            },
            created_at: Utc::now(),
            standing: Redrive::beginning(canary),
            canary_letters,
            other_letters,
        }
    }

    fn tally(change: impl FnOnce(&mut Tally)) -> Tally {
        let mut tally = Tally::default();
        change(&mut tally);
        tally
    }

    fn changed(next: Next) -> (Run, Phase) {
        match next {
            Next::Change(to) => (to.run, to.phase),
            other => panic!("a change expected, not {other:?}"),
        }
    }

    #[test]
    fn the_rest_waits_for_every_letter_of_the_canary() {
        let rest = tally(|tally| tally.pending = 5);
        let of = |canary| redrive(2, canary, rest).next();
        assert_eq!(of(tally(|tally| tally.pending = 2)), Next::Send);
        assert_eq!(of(tally(|tally| (tally.sending, tally.waiting) = (1, 1))), Next::Send);
        assert_eq!(of(tally(|tally| (tally.resolved, tally.waiting) = (1, 1))), Next::Wait);
        assert_eq!(changed(of(tally(|tally| tally.resolved = 2))), (Run::Running, Phase::Sending));
        assert_eq!(
            changed(of(tally(|tally| (tally.resolved, tally.dropped) = (1, 1)))),
            (Run::Running, Phase::Sending)
        );
    }

    #[test]
    fn a_canary_that_fails_stops_it_at_once_and_for_good() {
        let rest = tally(|tally| tally.pending = 5);
        for canary in [
            tally(|tally| (tally.pending, tally.failed_again) = (1, 1)),
            tally(|tally| (tally.resolved, tally.silent) = (1, 1)),
            tally(|tally| (tally.waiting, tally.refused) = (1, 1)),
        ] {
            let mut redrive = redrive(2, canary, rest);
            let Next::Change(to) = redrive.next() else { panic!("it goes on: {canary:?}") };
            assert_eq!(to.run, Run::Stopped);
            redrive.standing = to;
            assert_eq!(redrive.next(), Next::Rest);
            assert_eq!(redrive.resumed(), Err(NotNow(Run::Stopped)));
        }
    }

    #[test]
    fn a_canary_without_receipts_asks_somebody_to_look() {
        let mut redrive = redrive(2, tally(|tally| tally.unknown = 2), tally(|tally| tally.pending = 5));
        assert_eq!(changed(redrive.next()), (Run::Paused, Phase::Sending));
        let Next::Change(to) = redrive.next() else { unreachable!() };
        redrive.standing = to;
        redrive.standing = redrive.resumed().expect("it is paused");
        assert_eq!(redrive.next(), Next::Send);
    }

    #[test]
    fn a_canary_that_others_have_taken_asks_somebody_to_look() {
        let redrive = redrive(2, tally(|tally| tally.dropped = 2), tally(|tally| tally.pending = 5));
        assert_eq!(changed(redrive.next()), (Run::Paused, Phase::Sending));
    }

    #[test]
    fn the_brake_pauses_and_judges_anew_once_resumed() {
        let letters = |failed, resolved| {
            tally(|tally| (tally.pending, tally.failed_again, tally.resolved) = (9, failed, resolved))
        };
        assert_eq!(redrive(0, Tally::default(), letters(19, 0)).next(), Next::Send, "too few to judge");
        assert_eq!(redrive(0, Tally::default(), letters(2, 18)).next(), Next::Send, "a tenth is allowed");
        let mut braked = redrive(0, Tally::default(), letters(3, 17));
        assert_eq!(changed(braked.next()), (Run::Paused, Phase::Sending));
        braked.standing = braked.paused("brake").expect("it runs");
        braked.standing = braked.resumed().expect("it is paused");
        assert_eq!(braked.next(), Next::Send);
        braked.other_letters = letters(23, 17);
        assert_eq!(changed(braked.next()), (Run::Paused, Phase::Sending));
    }

    #[test]
    fn it_is_done_when_nothing_is_sent_or_waited_for() {
        let mut redrive = redrive(0, Tally::default(), tally(|tally| tally.waiting = 1));
        let Next::Change(to) = redrive.next() else { panic!("it must settle") };
        assert_eq!((to.run, to.phase), (Run::Running, Phase::Settling));
        redrive.standing = to;
        assert_eq!(redrive.next(), Next::Wait);
        redrive.other_letters = tally(|tally| (tally.failed_again, tally.silent) = (1, 1));
        assert_eq!(changed(redrive.next()), (Run::Done, Phase::Settling));
    }

    #[test]
    fn who_may_do_what_when() {
        let mut redrive = redrive(0, Tally::default(), tally(|tally| tally.pending = 1));
        assert_eq!(redrive.resumed(), Err(NotNow(Run::Running)));
        redrive.standing = redrive.paused("lunch").expect("it runs");
        assert_eq!(redrive.next(), Next::Rest);
        assert_eq!(redrive.paused("again"), Err(NotNow(Run::Paused)));
        redrive.standing = redrive.cancelled(None).expect("it is not over");
        assert_eq!(redrive.next(), Next::Rest);
        assert_eq!(redrive.cancelled(None), Err(NotNow(Run::Cancelled)));
    }
}
