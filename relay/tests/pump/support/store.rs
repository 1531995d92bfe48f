//! An outbox in memory.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backstop_core::dead_rows::{BuriedRow, DeadGroup, DeadRowFilter, DeadRows};
use backstop_core::lease::{Holder, Lease, Leases};
use backstop_core::outbox::{
    Claimed, DeadRow, OutboxReader, OutboxRow, OutboxStatus, OutboxStore, Reread, RowId,
};
use backstop_core::scheduled::ScheduledRows;
use backstop_core::{AdapterError, Destination, FaultKind, Message};
use futures_core::future::BoxFuture;
use tokio::time::{Instant, sleep};

use super::Record;

/// Destination and key of a row.
pub(crate) type Address = (String, Option<Vec<u8>>);

#[derive(Default)]
struct Data {
    rows: BTreeMap<i64, OutboxRow>,
    unreadable: BTreeSet<i64>,
    scheduled: BTreeMap<(Instant, u64), Address>,
    promotions: u32,
    promotion_fault: Option<FaultKind>,
    committed: BTreeMap<i64, Address>,
    next: i64,
    dead: Vec<DeadRow>,
    deleted: Vec<i64>,
    lease: Option<(Lease, Instant)>,
    token: i64,
    read_faults: VecDeque<FaultKind>,
    write_faults: VecDeque<FaultKind>,
    burial_fault: Option<FaultKind>,
    unburiable: BTreeSet<i64>,
    burial_delay: Duration,
    burial_delay_each: Duration,
    largest_burial: usize,
    lease_down: bool,
    refused_burials: u32,
    delete_delay: Duration,
}

impl Data {
    fn put(&mut self, seq: i64, destination: &str, key: Option<Vec<u8>>) {
        let mut message = Message::new("test").id(seq.to_string()).body("text/plain", vec![0_u8; 100]);
        message.key = key.clone().map(Into::into);
        self.rows.insert(seq, OutboxRow { seq, destination: Destination::new(destination), message });
        self.committed.insert(seq, (destination.to_owned(), key));
    }
}

/// The outbox; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Store {
    data: Arc<Mutex<Data>>,
}

impl Store {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().expect("no panic while locked")
    }

    /// Takes a number without committing a row under it yet.
    pub(crate) fn take_number(&self) -> i64 {
        let mut data = self.data();
        data.next += 1;
        data.next
    }

    /// Commits a row under a number that was taken.
    pub(crate) fn commit(&self, seq: i64, destination: &str, key: Option<&str>) {
        self.data().put(seq, destination, key.map(|key| key.as_bytes().to_vec()));
    }

    pub(crate) fn insert(&self, destination: &str, key: Option<&str>) -> i64 {
        let seq = self.take_number();
        self.commit(seq, destination, key);
        seq
    }

    /// Commits a row that falls due so much later.
    pub(crate) fn schedule(&self, destination: &str, key: Option<&str>, after: Duration) {
        let mut data = self.data();
        let number = data.scheduled.len() as u64;
        let address = (destination.to_owned(), key.map(|key| key.as_bytes().to_vec()));
        data.scheduled.insert((Instant::now() + after, number), address);
    }

    pub(crate) fn scheduled(&self) -> usize {
        self.data().scheduled.len()
    }

    /// How often the pump has asked for what is due.
    pub(crate) fn promotions(&self) -> u32 {
        self.data().promotions
    }

    /// Lets every promotion fail, or no longer.
    pub(crate) fn fail_promotions(&self, fault: Option<FaultKind>) {
        self.data().promotion_fault = fault;
    }

    /// Commits a row that is no message.
    pub(crate) fn insert_unreadable(&self) -> i64 {
        let seq = self.insert("orders", Some("unreadable"));
        self.data().unreadable.insert(seq);
        seq
    }

    pub(crate) fn committed(&self) -> BTreeMap<i64, Address> {
        self.data().committed.clone()
    }

    pub(crate) fn pending(&self) -> usize {
        self.data().rows.len()
    }

    pub(crate) fn is_pending(&self, seq: i64) -> bool {
        self.data().rows.contains_key(&seq)
    }

    pub(crate) fn dead(&self) -> Vec<DeadRow> {
        self.data().dead.clone()
    }

    pub(crate) fn deleted_unpublished(&self, log: &[Record]) -> Vec<i64> {
        let published: BTreeSet<i64> = log.iter().map(|record| record.seq).collect();
        self.data().deleted.iter().copied().filter(|seq| !published.contains(seq)).collect()
    }

    pub(crate) fn fail_reads(&self, faults: &[FaultKind]) {
        self.data().read_faults.extend(faults);
    }

    pub(crate) fn fail_writes(&self, faults: &[FaultKind]) {
        self.data().write_faults.extend(faults);
    }

    /// Lets every burial fail, or no longer.
    pub(crate) fn fail_burials(&self, fault: Option<FaultKind>) {
        self.data().burial_fault = fault;
    }

    /// Lets every burial fail in which this row is.
    pub(crate) fn refuse_to_bury(&self, seq: i64) {
        self.data().unburiable.insert(seq);
    }

    /// Lets a burial take so long for each of its rows.
    pub(crate) fn slow_burials_each(&self, delay: Duration) {
        self.data().burial_delay_each = delay;
    }

    /// Rows of the largest burial.
    pub(crate) fn largest_burial(&self) -> usize {
        self.data().largest_burial
    }

    pub(crate) fn slow_burials(&self, delay: Duration) {
        self.data().burial_delay = delay;
    }

    /// Lets every request for a lease fail, or no longer.
    pub(crate) fn lease_down(&self, down: bool) {
        self.data().lease_down = down;
    }

    pub(crate) fn slow_deletes(&self, delay: Duration) {
        self.data().delete_delay = delay;
    }

    /// Gives the lease to somebody else for a while.
    pub(crate) fn steal_lease(&self, ttl: Duration) {
        let mut data = self.data();
        data.token += 1;
        let lease = Lease { name: "outbox".into(), owner: "thief".into(), token: data.token };
        data.lease = Some((lease, Instant::now() + ttl));
    }

    /// Loses the lease and all that was known of it, as a fail-over may.
    pub(crate) fn forget_leases(&self) {
        let mut data = self.data();
        (data.lease, data.token) = (None, 0);
    }

    pub(crate) fn holder(&self) -> Option<String> {
        let data = self.data();
        let (lease, until) = data.lease.as_ref()?;
        (*until > Instant::now()).then(|| lease.owner.clone())
    }

    pub(crate) fn refused_burials(&self) -> u32 {
        self.data().refused_burials
    }
}

fn fault(kind: Option<FaultKind>) -> Result<(), AdapterError> {
    match kind {
        Some(kind) => Err(AdapterError::new(kind, "injected")),
        None => Ok(()),
    }
}

impl Leases for Store {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>> {
        Box::pin(async move {
            let mut data = self.data();
            fault(data.lease_down.then_some(FaultKind::Unreachable))?;
            let now = Instant::now();
            let held = data.lease.clone().filter(|(_, until)| *until > now);
            let token = match held {
                Some((lease, _)) if lease.owner != owner => return Ok(None),
                Some((lease, _)) => lease.token,
                None => data.token + 1,
            };
            data.token = token;
            let lease = Lease { name: name.to_owned(), owner: owner.to_owned(), token };
            data.lease = Some((lease.clone(), now + ttl));
            Ok(Some(lease))
        })
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            self.data().lease.take_if(|(held, _)| held == lease);
            Ok(())
        })
    }

    fn holder<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>> {
        Box::pin(async { unreachable!("the pump asks for the lease, not for its holder") })
    }
}

impl OutboxStore for Store {
    fn reader(&self) -> Box<dyn OutboxReader> {
        Box::new(Reader { store: self.clone(), returned: HashSet::new(), broken: false })
    }

    fn delete<'a>(&'a self, rows: &'a [RowId]) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async move {
            let delay = self.data().delete_delay;
            sleep(delay).await;
            let mut data = self.data();
            fault(data.write_faults.pop_front())?;
            for RowId { seq, id } in rows {
                assert_eq!(**id, seq.to_string(), "the id that the row came with");
                data.rows.remove(seq);
                data.deleted.push(*seq);
            }
            Ok(())
        })
    }

    fn bury<'a>(
        &'a self,
        lease: &'a Lease,
        rows: &'a [DeadRow],
    ) -> BoxFuture<'a, Result<bool, AdapterError>> {
        Box::pin(async move {
            let delay = {
                let data = self.data();
                data.burial_delay + data.burial_delay_each * rows.len() as u32
            };
            sleep(delay + Duration::from_millis(1)).await;
            let mut data = self.data();
            data.largest_burial = data.largest_burial.max(rows.len());
            let refused = rows.iter().any(|row| data.unburiable.contains(&row.seq));
            fault(data.burial_fault.or(refused.then_some(FaultKind::Invalid)))?;
            fault(data.write_faults.pop_front())?;
            if data.lease.as_ref().is_none_or(|(held, _)| held != lease) {
                data.refused_burials += 1;
                return Ok(false);
            }
            for row in rows {
                assert_eq!(*row.id, row.seq.to_string(), "the id that the row came with");
                if data.rows.remove(&row.seq).is_some() {
                    data.dead.push(row.clone());
                }
            }
            Ok(true)
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, AdapterError>> {
        Box::pin(async { Ok(OutboxStatus::default()) })
    }
}

impl ScheduledRows for Store {
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        _bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>> {
        Box::pin(async move {
            sleep(Duration::from_millis(1)).await;
            let mut data = self.data();
            data.promotions += 1;
            fault(data.promotion_fault)?;
            let is_due = |data: &Data| {
                data.scheduled.first_key_value().is_some_and(|((due, _), _)| *due <= Instant::now())
            };
            let owned = data.lease.as_ref().is_some_and(|(held, _)| held == lease);
            if is_due(&data) && !owned {
                return Ok(None);
            }
            let mut moved = 0;
            while moved < u64::from(rows) && is_due(&data) {
                let Some((_, (destination, key))) = data.scheduled.pop_first() else { break };
                data.next += 1;
                let seq = data.next;
                data.put(seq, &destination, key);
                moved += 1;
            }
            Ok(Some(moved))
        })
    }
}

/// What operators do is none of the pump's business.
impl DeadRows for Store {
    fn buried<'a>(
        &'a self,
        _filter: &'a DeadRowFilter,
        _limit: u32,
    ) -> BoxFuture<'a, Result<Vec<BuriedRow>, AdapterError>> {
        Box::pin(async { unreachable!("the pump lists no dead rows") })
    }

    fn buried_groups<'a>(
        &'a self,
        _filter: &'a DeadRowFilter,
    ) -> BoxFuture<'a, Result<Vec<DeadGroup>, AdapterError>> {
        Box::pin(async { unreachable!("the pump counts no dead rows") })
    }

    fn retry_buried<'a>(
        &'a self,
        _filter: &'a DeadRowFilter,
        _limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(async { unreachable!("the pump retries no dead rows") })
    }

    fn discard_buried<'a>(
        &'a self,
        _filter: &'a DeadRowFilter,
        _limit: u32,
    ) -> BoxFuture<'a, Result<u64, AdapterError>> {
        Box::pin(async { unreachable!("the pump discards no dead rows") })
    }
}

struct Reader {
    store: Store,
    returned: HashSet<i64>,
    broken: bool,
}

impl Reader {
    fn take(
        &mut self,
        limit: usize,
        wanted: impl Fn(&HashSet<i64>, &OutboxRow) -> bool,
    ) -> Result<Claimed, AdapterError> {
        assert!(!self.broken, "reset before reading on after an error");
        let mut data = self.store.data();
        if let Some(kind) = data.read_faults.pop_front() {
            self.broken = true;
            return Err(AdapterError::new(kind, "injected"));
        }
        let mut claimed = Claimed::default();
        for (seq, row) in data.rows.iter().filter(|(_, row)| wanted(&self.returned, row)) {
            if claimed.rows.len() + claimed.unreadable.len() == limit {
                claimed.more = true;
                break;
            }
            if data.unreadable.contains(seq) {
                let (reason, error) = ("invalid-row".to_owned(), "no message".to_owned());
                claimed.unreadable.push(DeadRow {
                    seq: *seq,
                    id: row.message.id.as_str().into(),
                    reason,
                    error,
                });
            } else {
                claimed.rows.push(row.clone());
            }
        }
        self.returned.extend(claimed.rows.iter().map(|row| row.seq));
        self.returned.extend(claimed.unreadable.iter().map(|row| row.seq));
        Ok(claimed)
    }
}

impl OutboxReader for Reader {
    fn read(&mut self, rows: usize, _bytes: usize) -> BoxFuture<'_, Result<Claimed, AdapterError>> {
        Box::pin(async move {
            sleep(Duration::from_micros(500)).await;
            self.take(rows, |returned, row| !returned.contains(&row.seq))
        })
    }

    fn reread<'a>(
        &'a mut self,
        what: &'a Reread,
        rows: usize,
        _bytes: usize,
    ) -> BoxFuture<'a, Result<Claimed, AdapterError>> {
        Box::pin(async move {
            sleep(Duration::from_micros(500)).await;
            self.take(rows, |returned, row| {
                returned.contains(&row.seq)
                    && row.seq >= what.from
                    && row.destination == what.destination
                    && what.key.as_ref().is_none_or(|key| row.message.key.as_ref() == Some(key))
            })
        })
    }

    fn reset(&mut self) {
        self.broken = false;
        self.returned.clear();
    }
}
