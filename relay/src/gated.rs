//! A ledger for tests whose calls pass a gate, which may let them wait, or fail them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::ledger::{
    AuditEntry, AuditFilter, AuditLog, Change, Edit, Expired, Expiry, Guard, Ledger, Letter, LetterEvent,
    LetterFilter, LetterGroup, LetterMinute, LetterStatus, NewAuditEntry, NewBody, NewRedrive, PlanGroup,
    Redrive, Redrives, Sent, Standing,
};
use backstop_core::{AdapterError, ConsumerReport, Receipt};
use chrono::{DateTime, Utc};
use futures_core::future::BoxFuture;

type Answer<'a, T> = BoxFuture<'a, Result<T, AdapterError>>;

/// Asked before each call, with the method's name.
type Gate = Box<dyn Fn(&'static str) -> Answer<'static, ()> + Send + Sync>;

/// The ledger `rest` behind a gate. Leases pass freely: their connection is another one.
pub(crate) struct Gated {
    rest: Arc<dyn Ledger>,
    gate: Gate,
}

impl Gated {
    pub(crate) fn new(
        rest: Arc<dyn Ledger>,
        gate: impl Fn(&'static str) -> Answer<'static, ()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { rest, gate: Box::new(gate) })
    }

    /// A ledger that never answers this call, the first time or each time, and whether it was asked.
    pub(crate) fn silent(
        rest: Arc<dyn Ledger>,
        call: &'static str,
        each_time: bool,
    ) -> (Arc<Self>, Arc<AtomicBool>) {
        let asked = Arc::new(AtomicBool::new(false));
        let seen = asked.clone();
        let ledger = Self::new(rest, move |now| {
            let hangs = now == call && (!seen.swap(true, Ordering::SeqCst) || each_time);
            Box::pin(async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                Ok(())
            })
        });
        (ledger, asked)
    }

    fn pass<'a, T: 'a>(
        &'a self,
        call: &'static str,
        rest: impl FnOnce() -> Answer<'a, T> + Send + 'a,
    ) -> Answer<'a, T> {
        let gate = (self.gate)(call);
        Box::pin(async move {
            gate.await?;
            rest().await
        })
    }
}

impl Leases for Gated {
    fn acquire<'a>(&'a self, name: &'a str, owner: &'a str, ttl: Duration) -> Answer<'a, Option<Lease>> {
        self.rest.acquire(name, owner, ttl)
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        self.rest.release(lease)
    }

    fn holder<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Holder>> {
        self.rest.holder(name)
    }
}

impl Ledger for Gated {
    fn record<'a>(&'a self, letters: &'a [Letter]) -> Answer<'a, u64> {
        self.pass("record", move || self.rest.record(letters))
    }

    fn list<'a>(
        &'a self,
        filter: &'a LetterFilter,
        after: Option<&'a str>,
        limit: u32,
    ) -> Answer<'a, Vec<Letter>> {
        self.pass("list", move || self.rest.list(filter, after, limit))
    }

    fn count<'a>(&'a self, filter: &'a LetterFilter) -> Answer<'a, u64> {
        self.pass("count", move || self.rest.count(filter))
    }

    fn groups<'a>(&'a self, filter: &'a LetterFilter, limit: u32) -> Answer<'a, Vec<LetterGroup>> {
        self.pass("groups", move || self.rest.groups(filter, limit))
    }

    fn minutes<'a>(&'a self, fingerprint: Option<&'a str>) -> Answer<'a, Vec<LetterMinute>> {
        self.pass("minutes", move || self.rest.minutes(fingerprint))
    }

    fn history<'a>(&'a self, id: &'a str) -> Answer<'a, Vec<LetterEvent>> {
        self.pass("history", move || self.rest.history(id))
    }

    fn mark<'a>(
        &'a self,
        ids: &'a [String],
        from: LetterStatus,
        to: LetterStatus,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> Answer<'a, Vec<String>> {
        self.pass("mark", move || self.rest.mark(ids, from, to, what, detail))
    }

    fn change<'a>(&'a self, filter: &'a LetterFilter, change: &'a Change, limit: u32) -> Answer<'a, u64> {
        self.pass("change", move || self.rest.change(filter, change, limit))
    }

    fn tell<'a>(
        &'a self,
        filter: &'a LetterFilter,
        what: &'a str,
        detail: Option<&'a str>,
    ) -> Answer<'a, u64> {
        self.pass("tell", move || self.rest.tell(filter, what, detail))
    }

    fn edit<'a>(&'a self, edit: &'a Edit) -> Answer<'a, bool> {
        self.pass("edit", move || self.rest.edit(edit))
    }

    fn replace_bodies<'a>(&'a self, bodies: &'a [NewBody]) -> Answer<'a, u64> {
        self.pass("replace_bodies", move || self.rest.replace_bodies(bodies))
    }

    fn expired<'a>(
        &'a self,
        expiry: &'a Expiry,
        after: Option<&'a str>,
        limit: u32,
    ) -> Answer<'a, Vec<Expired>> {
        self.pass("expired", move || self.rest.expired(expiry, after, limit))
    }

    fn time(&self) -> Answer<'_, DateTime<Utc>> {
        self.pass("time", move || self.rest.time())
    }

    fn purge<'a>(&'a self, expiry: &'a Expiry, ids: &'a [String]) -> Answer<'a, u64> {
        self.pass("purge", move || self.rest.purge(expiry, ids))
    }

    fn record_outcomes<'a>(&'a self, receipts: &'a [Receipt]) -> Answer<'a, u64> {
        self.pass("record_outcomes", move || self.rest.record_outcomes(receipts))
    }

    fn record_reports<'a>(&'a self, reports: &'a [ConsumerReport]) -> Answer<'a, ()> {
        self.pass("record_reports", move || self.rest.record_reports(reports))
    }

    fn consumers(&self) -> Answer<'_, Vec<ConsumerReport>> {
        self.pass("consumers", move || self.rest.consumers())
    }
}

impl AuditLog for Gated {
    fn write_audit<'a>(&'a self, entry: &'a NewAuditEntry) -> Answer<'a, ()> {
        self.pass("write_audit", move || self.rest.write_audit(entry))
    }

    fn read_audit<'a>(&'a self, filter: &'a AuditFilter, limit: u32) -> Answer<'a, Vec<AuditEntry>> {
        self.pass("read_audit", move || self.rest.read_audit(filter, limit))
    }
}

impl Redrives for Gated {
    fn plan_redrive<'a>(
        &'a self,
        filter: &'a LetterFilter,
        guard: &'a Guard,
        most: u64,
    ) -> Answer<'a, Vec<PlanGroup>> {
        self.pass("plan_redrive", move || self.rest.plan_redrive(filter, guard, most))
    }

    fn create_redrive<'a>(&'a self, new: &'a NewRedrive) -> Answer<'a, Redrive> {
        self.pass("create_redrive", move || self.rest.create_redrive(new))
    }

    fn redrives<'a>(&'a self, after: Option<&'a str>, limit: u32) -> Answer<'a, Vec<Redrive>> {
        self.pass("redrives", move || self.rest.redrives(after, limit))
    }

    fn redrive<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Redrive>> {
        self.pass("redrive", move || self.rest.redrive(id))
    }

    fn running_redrives(&self) -> Answer<'_, Vec<Redrive>> {
        self.pass("running_redrives", move || self.rest.running_redrives())
    }

    fn steer_redrive<'a>(&'a self, id: &'a str, from: &'a Standing, to: &'a Standing) -> Answer<'a, bool> {
        self.pass("steer_redrive", move || self.rest.steer_redrive(id, from, to))
    }

    fn set_redrive_rate<'a>(&'a self, id: &'a str, rate: Option<f64>) -> Answer<'a, bool> {
        self.pass("set_redrive_rate", move || self.rest.set_redrive_rate(id, rate))
    }

    fn claim_letters<'a>(
        &'a self,
        lease: &'a Lease,
        id: &'a str,
        limit: u32,
    ) -> Answer<'a, Option<Vec<Letter>>> {
        self.pass("claim_letters", move || self.rest.claim_letters(lease, id, limit))
    }

    fn letters_in_flight<'a>(&'a self, id: &'a str) -> Answer<'a, Vec<Letter>> {
        self.pass("letters_in_flight", move || self.rest.letters_in_flight(id))
    }

    fn settle_letters<'a>(&'a self, id: &'a str, sent: &'a [(String, Sent)]) -> Answer<'a, ()> {
        self.pass("settle_letters", move || self.rest.settle_letters(id, sent))
    }

    fn fall_silent(&self) -> Answer<'_, u64> {
        self.pass("fall_silent", move || self.rest.fall_silent())
    }
}
