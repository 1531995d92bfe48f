//! Redrives: made, watched and steered.

use backstop_core::ledger::{NewRedrive, Redrive, Standing};
use backstop_core::report::{cut, escaped};
use uuid::Uuid;

use super::filter::FilterQuery;
use super::letters::{no_reason, reason};
use super::plan::{Order, Plan};
use super::trail::Deed;
use super::{Caller, Desk, Kind, Trouble, in_time, in_time_or_unknown};

/// Namespace of the ids of redrives that were made under a key of the caller's own choice; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x9c2b_7d10_6b1e_4a57_8f0d_3a64_c1f2_55e9);

/// What shows whether a redrive was steered.
const LOOK: &str = "the redrive";

/// What somebody wants of a redrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Steer<'a> {
    Pause,
    Resume,
    /// With the reason.
    Cancel(&'a str),
    /// Letters a second.
    Rate(f64),
}

impl Steer<'_> {
    const fn action(&self) -> &'static str {
        match self {
            Self::Pause => "redrive.pause",
            Self::Resume => "redrive.resume",
            Self::Cancel(_) => "redrive.cancel",
            Self::Rate(_) => "redrive.rate",
        }
    }
}

/// How a redrive was started.
#[derive(Debug)]
pub(crate) enum Started {
    /// It runs; or it was started before, under the same id.
    Redrive(Box<Redrive>),
    /// The count is not what the caller saw: nothing was started, and this is what would be sent now.
    Differs(Box<Plan>),
}

/// The id of the redrive that goes with a caller's key.
pub(crate) fn id_of_key(key: &str) -> Uuid {
    Uuid::try_parse(key).unwrap_or_else(|_| Uuid::new_v5(&NAMESPACE, key.as_bytes()))
}

impl Desk {
    /// Makes a redrive, whose letters are frozen now. With `expected`, only if so many would be sent.
    pub(crate) async fn start(
        &self,
        who: &Caller,
        id: Uuid,
        filter: &FilterQuery,
        order: &Order,
        expected: Option<u64>,
    ) -> Result<Started, Trouble> {
        let because = reason(order.because.as_deref());
        let redrive = id.to_string();
        let deed = Deed::new(who, "redrive.start", filter.audited(), because.as_deref()).about(&redrive);
        let mut other = None;
        let work = async {
            match self.make(who, id, filter, order, expected).await? {
                Started::Redrive(redrive) => Ok(redrive),
                Started::Differs(plan) => {
                    other = Some(plan);
                    Err(differs())
                }
            }
        };
        let started = self.recorded(&deed, work, |redrive| Some(redrive.letters().sum())).await;
        match other {
            Some(plan) => Ok(Started::Differs(plan)),
            None => started.map(Started::Redrive),
        }
    }

    async fn make(
        &self,
        who: &Caller,
        id: Uuid,
        filter: &FilterQuery,
        order: &Order,
        expected: Option<u64>,
    ) -> Result<Started, Trouble> {
        let ledger = self.ledger().await?;
        let known = in_time(ledger.redrive(&id.to_string())).await?;
        let plan = self.plan(filter, order).await?;
        let new = plan.redrive(id, who, order.because.as_deref(), self.bounds.silent_after);
        if let Some(known) = known {
            return same(&known, &new).map(|()| Started::Redrive(Box::new(known)));
        }
        if expected.is_some_and(|expected| expected != plan.to_send()) {
            return Ok(Started::Differs(Box::new(plan)));
        }
        if plan.to_send() == 0 {
            return Err(Trouble::new(Kind::Conflict, "no letter would be sent", "look at the dry run"));
        }
        let redrive = in_time_or_unknown("the redrives", ledger.create_redrive(&new)).await?;
        Ok(Started::Redrive(Box::new(redrive)))
    }

    /// Redrives, newest first, and the id after which the next page begins.
    pub(crate) async fn redrives(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Redrive>, Option<String>), Trouble> {
        let mut redrives = in_time(self.ledger().await?.redrives(after, limit + 1)).await?;
        let more = redrives.len() > limit as usize;
        redrives.truncate(limit as usize);
        let next = redrives.last().filter(|_| more).map(|redrive| redrive.plan.id.clone());
        Ok((redrives, next))
    }

    pub(crate) async fn redrive(&self, id: &str) -> Result<Redrive, Trouble> {
        let known = Uuid::try_parse(id).is_ok();
        let found = if known { in_time(self.ledger().await?.redrive(id)).await? } else { None };
        found.ok_or_else(|| Trouble::missing(format!("there is no redrive {:?}", escaped(&cut(id, 64)))))
    }

    /// Pauses, resumes, cancels, or changes the rate.
    pub(crate) async fn steer(&self, who: &Caller, id: &str, steer: Steer<'_>) -> Result<Redrive, Trouble> {
        let because = match steer {
            Steer::Cancel(because) => reason(Some(because)),
            _ => None,
        };
        let redrive = escaped(&cut(id, 64));
        let object = match steer {
            Steer::Rate(rate) => format!("rate={rate}"),
            _ => String::new(),
        };
        let deed = Deed::new(who, steer.action(), object, because.as_deref()).about(&redrive);
        self.recorded(&deed, self.steer_now(who, id, steer), |_| None).await
    }

    async fn steer_now(&self, who: &Caller, id: &str, steer: Steer<'_>) -> Result<Redrive, Trouble> {
        let redrive = self.redrive(id).await?;
        let to = match steer {
            Steer::Rate(rate) => return self.set_rate(redrive, rate).await,
            Steer::Pause => redrive.paused(format!("by {}", who.name)),
            Steer::Resume => redrive.resumed(),
            Steer::Cancel(because) => {
                let because = reason(Some(because)).ok_or_else(no_reason)?;
                redrive.cancelled(Some(format!("{because} (by {})", who.name)))
            }
        };
        let to = to.map_err(|not_now| {
            Trouble::new(Kind::Conflict, not_now.to_string(), "look at where it stands now")
        })?;
        self.set_standing(redrive, to).await
    }

    /// Once it is steered, a look at it that fails is no failure: what is known of it is told.
    async fn set_standing(&self, mut redrive: Redrive, to: Standing) -> Result<Redrive, Trouble> {
        let id = redrive.plan.id.clone();
        let steered = self.ledger().await?.steer_redrive(&id, &redrive.standing, &to);
        if !in_time_or_unknown(LOOK, steered).await? {
            return Err(Trouble::new(Kind::Conflict, "the redrive has moved on meanwhile", "look again"));
        }
        redrive.standing = to;
        Ok(self.redrive(&id).await.unwrap_or(redrive))
    }

    async fn set_rate(&self, mut redrive: Redrive, rate: f64) -> Result<Redrive, Trouble> {
        if !(0.01..=1_000_000.0).contains(&rate) {
            return Err(Trouble::invalid("rate is no number from 0.01 to 1000000", "write another number"));
        }
        let id = redrive.plan.id.clone();
        let set = self.ledger().await?.set_redrive_rate(&id, Some(rate));
        if !in_time_or_unknown(LOOK, set).await? {
            return Err(Trouble::new(Kind::Conflict, "the redrive is over", "start another one"));
        }
        redrive.plan.rate = Some(rate);
        Ok(self.redrive(&id).await.unwrap_or(redrive))
    }
}

fn differs() -> Trouble {
    Trouble::new(Kind::Conflict, "other letters match than the dry run showed", "look at the dry run again")
}

/// A key stands for one request.
fn same(known: &Redrive, new: &NewRedrive) -> Result<(), Trouble> {
    // One of very many letters has the limit of those that were judged.
    let limit = new.limit.or(known.plan.limit);
    let fits =
        known.plan.filter == new.filter && known.plan.limit == limit && known.plan.canary == new.canary;
    if fits {
        return Ok(());
    }
    let what = "another redrive was started under this key";
    Err(Trouble::new(Kind::Conflict, what, "use a new key for another redrive"))
}
