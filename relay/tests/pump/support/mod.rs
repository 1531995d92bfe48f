//! An outbox and a broker in memory that do what a test tells them, and that notice broken promises.

mod broker;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::sink::Publisher;
use backstop_relay::owner::OwnerSettings;
use backstop_relay::pump::{Pump, PumpError, PumpReport, PumpSettings, PumpStatus};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use broker::{Broker, Record};
pub(crate) use store::Store;

/// A settings that suits tests: small batches, so that all the ways are gone.
pub(crate) fn settings(owner: &str) -> PumpSettings {
    PumpSettings {
        owner: OwnerSettings { owner: owner.to_owned(), ..OwnerSettings::default() },
        read_rows: 20,
        buffer_rows: 60,
        delete_rows: 10,
        idle_poll: Duration::from_millis(42),
        ..PumpSettings::default()
    }
}

/// A pump at work.
pub(crate) struct Running {
    pub(crate) status: watch::Receiver<PumpStatus>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<PumpReport, PumpError>>,
}

impl Running {
    pub(crate) fn start(store: &Store, broker: &Broker, settings: PumpSettings) -> Self {
        Self::publishing(store, Box::new(broker.publisher()), settings)
    }

    pub(crate) fn publishing(store: &Store, publisher: Box<dyn Publisher>, settings: PumpSettings) -> Self {
        let pump = Pump::new(Arc::new(store.clone()), publisher, settings);
        let status = pump.status();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pump.run(shutdown.clone()));
        Self { status, shutdown, task }
    }

    /// Waits until the status says so.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut says: impl FnMut(&PumpStatus) -> bool,
    ) -> PumpStatus {
        let mut status = self.status.clone();
        let wait = status.wait_for(|status| says(status));
        match tokio::time::timeout(Duration::from_secs(3_600), wait).await {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => panic!("the pump ended before {what}"),
            Err(_) => panic!("an hour without {what}: {:?}", *self.status.borrow()),
        }
    }

    pub(crate) async fn stop(self) -> PumpReport {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("an orderly end")
    }
}

/// What must hold of any run that ended with an empty outbox.
pub(crate) fn check(store: &Store, broker: &Broker, dead: &BTreeSet<i64>) {
    check_log(store, &broker.log(), dead);
}

/// The same of what several brokers have stored, one after another.
pub(crate) fn check_log(store: &Store, log: &[Record], dead: &BTreeSet<i64>) {
    let committed = store.committed();
    let first: BTreeMap<i64, usize> =
        log.iter().enumerate().rev().map(|(place, record)| (record.seq, place)).collect();
    let buried: Vec<i64> = store.dead().iter().map(|row| row.seq).collect();
    assert_eq!(buried.iter().copied().collect::<BTreeSet<_>>(), *dead, "dead rows are the injected ones");
    assert_eq!(buried.len(), dead.len(), "none dies twice");
    for seq in committed.keys() {
        assert!(
            first.contains_key(seq) != dead.contains(seq),
            "row {seq} is published or dead, and not both"
        );
    }
    let mut last: HashMap<(String, Vec<u8>), (i64, usize)> = HashMap::new();
    for (seq, (destination, key)) in &committed {
        let (Some(key), Some(place)) = (key, first.get(seq)) else { continue };
        if let Some((before, earlier)) = last.insert((destination.clone(), key.clone()), (*seq, *place)) {
            assert!(earlier < *place, "row {seq} was first published before row {before} of its key");
        }
    }
    assert_eq!(store.deleted_unpublished(log), Vec::<i64>::new(), "deleted only after confirmation");
    assert_eq!(store.pending(), 0, "nothing is left");
}

/// Kinds of database faults that tests inject.
pub(crate) const FAULTS: [FaultKind; 3] = [FaultKind::Unreachable, FaultKind::Conflict, FaultKind::Denied];
