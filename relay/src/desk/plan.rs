//! A redrive before it is made: what it would send, and how.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::ledger::{Guard, Letter, LetterFilter, LetterStatus, NewRedrive, PlanGroup, Verdict};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::filter::FilterQuery;
use super::letters::reason;
use super::{Caller, Desk, Page, Trouble, in_time};
use crate::first_letters::{FirstLetters, Refused};
use crate::portion::Portion;

/// Letters that are read at once while those of a verdict are looked for.
const SCAN: u32 = 200;
/// Reads for one page of those of a verdict: some 5,000 letters, fewer where they are large.
const SCANS: u32 = 27;
/// The highest generation that any guard lets pass.
const ANY_GENERATION: i64 = i64::MAX;

/// How a redrive is to go.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Order {
    /// Letters that are sent first; the rest goes once all of these are resolved. 10 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) canary: Option<String>,
    /// Most letters a second. 50 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<String>,
    /// The share of letters, in percent, above which the redrive pauses when they fail again. 5 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) brake: Option<String>,
    /// At most so many letters, the oldest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<String>,
    /// `true`: letters that their consumer may have forgotten are sent, too, at the risk of a double effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) with_old: Option<String>,
    /// `true`: letters over the loop guard are sent, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) with_looped: Option<String>,
    /// `true`: letters without a door go back to where they came from, if the relay's configuration allows that place;
    /// every consumer there sees them again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accept_fanout: Option<String>,
    /// Why, for the audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
}

/// An order in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Terms {
    pub(crate) canary: u64,
    pub(crate) rate: f64,
    /// In percent.
    pub(crate) brake: f64,
    pub(crate) limit: Option<u64>,
    pub(crate) with_old: bool,
    pub(crate) with_looped: bool,
    pub(crate) accept_fanout: bool,
}

impl Order {
    /// # Errors
    /// Names the field that makes no sense.
    pub(crate) fn terms(&self) -> Result<Terms, Trouble> {
        Ok(Terms {
            canary: number("canary", &self.canary, 10, 0, 1_000_000)?,
            rate: share("rate", &self.rate, 50.0, 0.01, 1_000_000.0)?,
            brake: share("brake", &self.brake, 5.0, 0.0, 100.0)?,
            limit: match given(&self.limit) {
                Some(_) => Some(number("limit", &self.limit, 0, 1, u64::MAX >> 1)?),
                None => None,
            },
            with_old: switch("with_old", &self.with_old)?,
            with_looped: switch("with_looped", &self.with_looped)?,
            accept_fanout: switch("accept_fanout", &self.accept_fanout)?,
        })
    }

    /// Name and value of each field that is given.
    pub(crate) fn pairs(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("canary", &self.canary),
            ("rate", &self.rate),
            ("brake", &self.brake),
            ("limit", &self.limit),
            ("with_old", &self.with_old),
            ("with_looped", &self.with_looped),
            ("accept_fanout", &self.accept_fanout),
            ("because", &self.because),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, given(value)?))).collect()
    }
}

fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|value| !value.is_empty())
}

fn number(name: &str, value: &Option<String>, usual: u64, least: u64, most: u64) -> Result<u64, Trouble> {
    let Some(text) = given(value) else { return Ok(usual) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| {
        Trouble::invalid(format!("{name} is no whole number from {least} to {most}"), "write another number")
    })
}

fn share(name: &str, value: &Option<String>, usual: f64, least: f64, most: f64) -> Result<f64, Trouble> {
    let Some(text) = given(value) else { return Ok(usual) };
    let number = text.parse().ok().filter(|number: &f64| (least..=most).contains(number));
    number.ok_or_else(|| {
        Trouble::invalid(format!("{name} is no number from {least} to {most}"), "write another number")
    })
}

fn switch(name: &str, value: &Option<String>) -> Result<bool, Trouble> {
    match given(value) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => {
            Err(Trouble::invalid(format!("{name} is neither true nor false"), "write true or leave it out"))
        }
    }
}

/// What a redrive would do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Which letters are meant; always open ones.
    pub(crate) filter: LetterFilter,
    pub(crate) guard: Guard,
    pub(crate) terms: Terms,
    /// All letters that match, by what would become of them; where they are more than are judged, the first.
    pub(crate) groups: Vec<PlanGroup>,
    /// Whether more letters match than were judged: they are left alone.
    pub(crate) more: bool,
    /// Those of the first letters that would be refused, because they cannot be opened.
    pub(crate) refused: Option<Refused>,
}

impl Plan {
    /// All letters that match, or the first of them.
    pub(crate) fn matched(&self) -> u64 {
        self.groups.iter().map(|group| group.letters).sum()
    }

    pub(crate) fn of(&self, verdict: Verdict) -> u64 {
        self.groups.iter().filter(|group| group.verdict == verdict).map(|group| group.letters).sum()
    }

    /// Letters that would be sent but are over the limit.
    pub(crate) fn over_limit(&self) -> u64 {
        self.of(Verdict::Send).saturating_sub(self.terms.limit.unwrap_or(u64::MAX))
    }

    /// Letters that would be sent.
    pub(crate) fn to_send(&self) -> u64 {
        self.of(Verdict::Send) - self.over_limit()
    }

    /// Letters of the canary.
    pub(crate) fn canary(&self) -> u64 {
        self.terms.canary.min(self.to_send())
    }

    /// Where letters would go, with how many, before the limit; whether every consumer there would see them.
    pub(crate) fn targets(&self) -> BTreeMap<(&str, bool), u64> {
        let mut targets = BTreeMap::new();
        for group in self.groups.iter().filter(|group| group.verdict == Verdict::Send) {
            let target = group.target.as_deref().unwrap_or("unknown");
            *targets.entry((target, group.foreign)).or_default() += group.letters;
        }
        targets
    }

    /// The redrive that this plan is for.
    pub(super) fn redrive(
        &self,
        id: Uuid,
        who: &Caller,
        because: Option<&str>,
        silent: Duration,
    ) -> NewRedrive {
        NewRedrive {
            id: id.to_string(),
            filter: self.filter.clone(),
            guard: self.guard.clone(),
            // Of those that were judged the redrive takes all that can be sent, and no other.
            limit: if self.more { Some(self.to_send()) } else { self.terms.limit },
            canary: self.terms.canary,
            rate: Some(self.terms.rate),
            brake: self.terms.brake / 100.0,
            silent_after: silent,
            created_by: who.name.clone(),
            because: reason(because),
        }
    }
}

impl Desk {
    fn guard(&self, terms: &Terms) -> Guard {
        Guard {
            max_generation: if terms.with_looped { ANY_GENERATION } else { self.bounds.max_generation },
            not_before: if terms.with_old { None } else { self.bounds.horizon(Utc::now()) },
            foreign: if terms.accept_fanout { self.bounds.targets.clone() } else { Vec::new() },
        }
    }

    /// The dry run: nothing is sent or changed.
    pub(crate) async fn plan(&self, filter: &FilterQuery, order: &Order) -> Result<Plan, Trouble> {
        let mut filter = filter.filter()?;
        if filter.status.is_some_and(|status| status != LetterStatus::Open) {
            return Err(Trouble::invalid("only open letters can be redriven", "leave status out"));
        }
        filter.status = Some(LetterStatus::Open);
        let terms = order.terms()?;
        let guard = self.guard(&terms);
        let ledger = self.ledger().await?;
        let groups = in_time(ledger.plan_redrive(&filter, &guard, self.bounds.judged)).await?;
        let judged: u64 = groups.iter().map(|group| group.letters).sum();
        let more = judged == self.bounds.judged && self.count(&filter).await? != judged;
        let refused = match groups.iter().any(|group| group.verdict == Verdict::Send) {
            true => in_time(FirstLetters::of(ledger, &filter, &guard, &self.keys)).await?.refused,
            false => None,
        };
        Ok(Plan { filter, guard, terms, groups, more, refused })
    }

    /// Letters of a plan with this verdict: of those that match, by what its guard says. A page looks at some 5,000
    /// letters, so that it may be short and yet not the last.
    pub(crate) async fn letters_of_plan(
        &self,
        filter: &LetterFilter,
        guard: &Guard,
        verdict: Verdict,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Trouble> {
        let mut letters: Vec<Letter> = Vec::new();
        let mut at = after.map(str::to_owned);
        let mut portion = Portion::of(SCAN);
        for _ in 0..SCANS {
            let most = portion.next();
            let read = in_time(self.ledger().await?.list(filter, at.as_deref(), most)).await?;
            let last = read.len() < most as usize;
            portion.came(read.iter());
            for letter in read {
                if letters.len() == limit {
                    return Ok(Page { letters, next: at });
                }
                at = Some(letter.id.clone());
                if guard.verdict(&letter) == verdict {
                    letters.push(letter);
                }
            }
            if last {
                return Ok(Page { letters, next: None });
            }
        }
        Ok(Page { letters, next: at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(verdict: Verdict, letters: u64) -> PlanGroup {
        let target = (verdict == Verdict::Send).then(|| "orders.stock.redrive".to_owned());
        PlanGroup { verdict, consumer: None, reason: None, target, foreign: false, letters }
    }

    #[test]
    fn the_terms_of_a_plan_add_up() {
        let groups = vec![
            group(Verdict::Send, 40),
            group(Verdict::TooOld, 3),
            group(Verdict::Looped, 2),
            group(Verdict::NoTarget, 1),
            group(Verdict::Send, 4),
        ];
        let order = Order { limit: Some("30".into()), canary: Some("100".into()), ..Order::default() };
        let plan = Plan {
            filter: LetterFilter::default(),
            guard: Guard::default(),
            terms: order.terms().expect("sound"),
            groups,
            more: false,
            refused: None,
        };
        let left_out = plan.of(Verdict::TooOld) + plan.of(Verdict::Looped) + plan.of(Verdict::NoTarget);
        assert_eq!(plan.matched(), 50);
        assert_eq!(plan.matched() - left_out - plan.over_limit(), plan.to_send());
        assert_eq!((plan.to_send(), plan.canary()), (30, 30));
        assert_eq!(plan.targets().values().sum::<u64>(), plan.of(Verdict::Send));
    }

    #[test]
    fn s25_odd_numbers_are_refused_by_name() {
        let with = |rate: &str, canary: &str| Order {
            rate: Some(rate.into()),
            canary: Some(canary.into()),
            ..Order::default()
        };
        for (order, name) in [
            (with("NaN", ""), "rate"),
            (with("-1", ""), "rate"),
            (with("inf", ""), "rate"),
            (with("", "1e9"), "canary"),
        ] {
            assert!(order.terms().expect_err(name).what.starts_with(name));
        }
        assert_eq!(with(" 5 ", "0").terms().map(|terms| (terms.rate, terms.canary)), Ok((5.0, 0)));
    }
}
