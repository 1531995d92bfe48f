//! Outboxes that this relay drains or stands by for, and consumers that report in.

use backstop_core::ConsumerReport;
use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter};
use backstop_core::lease::Holder;
use backstop_core::outbox::OutboxStatus;
use backstop_core::report::{cut, escaped};
use futures_util::future::join_all;

use super::{Desk, Trouble, glance, in_time};
use crate::jobs::OutboxJob;
use crate::standing::Standing;

/// An outbox as the database knows it, and as its owner tells.
#[derive(Debug)]
pub(crate) struct OutboxLook {
    pub(crate) name: String,
    /// Why it cannot be looked at; the rest is unknown then.
    pub(crate) trouble: Option<Trouble>,
    pub(crate) status: Option<OutboxStatus>,
    pub(crate) holder: Option<Holder>,
    pub(crate) standing: Option<Standing>,
    pub(crate) dead: Vec<DeadGroup>,
}

impl Desk {
    /// Every outbox. One that cannot be asked says so and keeps none of the others from being shown.
    pub(crate) async fn outboxes(&self) -> Vec<OutboxLook> {
        join_all(self.jobs.outboxes().iter().map(look_at)).await
    }

    /// Dead rows of an outbox, the oldest first, and how many there are.
    pub(crate) async fn dead_rows(
        &self,
        outbox: &str,
        filter: &DeadRowFilter,
        limit: u32,
    ) -> Result<(Vec<BuriedRow>, u64), Trouble> {
        let job = self.jobs.outboxes().iter().find(|job| job.name() == outbox);
        let none = || Trouble::missing(format!("there is no outbox {:?} here", escaped(&cut(outbox, 64))));
        let store = job.ok_or_else(none)?.store().ok_or_else(not_started)?;
        let groups = in_time(store.buried_groups(filter)).await?;
        let rows = in_time(store.buried(filter, limit)).await?;
        Ok((rows, groups.iter().map(|group| group.rows).sum()))
    }

    /// The latest report of each instance of each consumer.
    pub(crate) async fn consumers(&self) -> Result<Vec<ConsumerReport>, Trouble> {
        in_time(self.ledger().await?.consumers()).await
    }
}

async fn look_at(job: &OutboxJob) -> OutboxLook {
    let mut look = OutboxLook {
        name: job.name().to_owned(),
        trouble: None,
        status: None,
        holder: None,
        standing: None,
        dead: Vec::new(),
    };
    look.trouble = glance(fill(&mut look, job)).await.err();
    look
}

async fn fill(look: &mut OutboxLook, job: &OutboxJob) -> Result<(), Trouble> {
    let store = job.store().ok_or_else(not_started)?;
    look.status = Some(in_time(store.status()).await?);
    look.holder = in_time(store.holder(job.name())).await?;
    look.standing = look.holder.as_ref().and_then(Standing::told_by);
    look.dead = in_time(store.buried_groups(&DeadRowFilter::default())).await?;
    Ok(())
}

fn not_started() -> Trouble {
    Trouble::new(super::Kind::Unreachable, "this outbox has not been reached yet", "look at the relay's log")
}
