use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use backstop_core::cloudevents::Binding;
use backstop_core::ledger::{LetterFilter, LetterStatus, NewRedrive, Redrives, Tally};
use backstop_core::sink::Scope;
use backstop_core::{Destination, Envelope, FaultKind};
use backstop_testkit::memory::Store;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::tests::{Recorder, letters, owner, wanted};
use super::*;
use crate::gated::Gated;

/// What an engine asks its ledger.
const CALLS: [&str; 8] = [
    "running_redrives",
    "fall_silent",
    "redrive",
    "letters_in_flight",
    "claim_letters",
    "settle_letters",
    "steer_redrive",
    "write_audit",
];

/// A broker that can be away, and counts what it is given.
#[derive(Clone, Default)]
struct Broker {
    away: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
    rest: Recorder,
}

impl Sink for Broker {
    fn binding(&self) -> Binding {
        self.rest.binding()
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            let error = AdapterError::new(FaultKind::Unreachable, "the broker is away");
            return Err(PublishError::new(Scope::Broker, error));
        }
        self.rest.publish(destination, envelope).await
    }
}

/// An engine at work.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(ledger: Arc<dyn Ledger>, sink: impl Sink) -> Self {
        let stop = CancellationToken::new();
        Self { stop: stop.clone(), task: tokio::spawn(Engine::new(ledger, sink, owner()).run(stop)) }
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(60), self.task).await.expect("it ends").expect("no panic");
    }
}

/// A ledger with letters, all of them in a redrive.
async fn made(many: usize) -> (Arc<Store>, NewRedrive) {
    let (store, new) = (Arc::new(Store::new()), wanted());
    store.record(&letters(many, &["a"])).await.expect("recorded");
    store.create_redrive(&new).await.expect("made");
    (store, new)
}

async fn read(store: &Store, new: &NewRedrive) -> Redrive {
    store.redrive(&new.id).await.expect("read").expect("there")
}

async fn steer(store: &Store, new: &NewRedrive, to: impl Fn(&Redrive) -> Standing) {
    let seen = read(store, new).await;
    assert!(store.steer_redrive(&new.id, &seen.standing, &to(&seen)).await.expect("steered"));
}

/// Asks until `done` says so, for some minutes of a clock that runs ahead.
async fn soon(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(300), waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_answered_is_made_again() {
    for call in CALLS {
        let (store, first) = made(4).await;
        let (ledger, asked) = Gated::silent(store.clone(), call, false);
        let sink = Recorder::default();
        let running = Running::start(ledger, sink.clone());
        soon(call, async || asked.load(Ordering::SeqCst)).await;
        store.record(&letters(6, &["a"])[4..]).await.expect("recorded");
        let second = wanted();
        store.create_redrive(&second).await.expect("made");
        soon(call, async || {
            let sent = read(&store, &first).await.letters().plus(read(&store, &second).await.letters());
            sent.waiting == 6 && sent.unsent() == 0
        })
        .await;
        assert_eq!(sink.count(), 6, "{call}: once each");
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_ledger_keeps_no_engine_from_ending() {
    for call in CALLS {
        let (store, _) = made(4).await;
        let (ledger, asked) = Gated::silent(store.clone(), call, true);
        let running = Running::start(ledger, Recorder::default());
        soon(call, async || asked.load(Ordering::SeqCst)).await;
        running.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_sent_again() {
    let (store, new) = made(4).await;
    let (broken, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_broken, count) = (broken.clone(), refused.clone());
    let ledger = Gated::new(store.clone(), move |call| {
        let fails = call == "settle_letters" && is_broken.load(Ordering::SeqCst);
        count.fetch_add(usize::from(fails), Ordering::SeqCst);
        let error = || AdapterError::new(FaultKind::Other, "the disk is full");
        Box::pin(std::future::ready(if fails { Err(error()) } else { Ok(()) }))
    });
    let sink = Recorder::default();
    let running = Running::start(ledger.clone(), sink.clone());
    soon("some tries", async || refused.load(Ordering::SeqCst) > 5).await;
    assert_eq!(sink.count(), 4, "the broker has them");
    running.end().await;
    assert_eq!((sink.count(), read(&store, &new).await.letters().sending), (4, 4));
    let running = Running::start(ledger, sink.clone());
    let before = refused.load(Ordering::SeqCst);
    soon("some more tries", async || refused.load(Ordering::SeqCst) > before + 5).await;
    assert_eq!(sink.count(), 8, "the next engine does not know what the last one knew");
    broken.store(false, Ordering::SeqCst);
    soon("all are written down", async || read(&store, &new).await.letters().waiting == 4).await;
    assert_eq!(sink.count(), 8);
    running.end().await;
}

/// The database did what was asked of it, and the answer was lost.
#[tokio::test(start_paused = true)]
async fn letters_of_a_claim_whose_answer_was_lost_are_sent() {
    let (store, new) = made(4).await;
    let (rest, id) = (store.clone(), new.id.clone());
    let lost = Arc::new(AtomicBool::new(false));
    let ledger = Gated::new(store.clone(), move |call| {
        if call != "claim_letters" || lost.swap(true, Ordering::SeqCst) {
            return Box::pin(std::future::ready(Ok(())));
        }
        let (rest, id) = (rest.clone(), id.clone());
        Box::pin(async move {
            let holder = rest.holder(&owner().lease).await?.expect("the engine has it");
            rest.claim_letters(&holder.lease, &id, 3).await.map(drop)
        })
    });
    let sink = Recorder::default();
    let running = Running::start(ledger, sink.clone());
    soon("all", async || read(&store, &new).await.letters().waiting == 4).await;
    assert_eq!(sink.count(), 4);
    running.end().await;
}

/// A broker that was away while somebody paused the redrive, or ended it, gets nothing when it is back.
#[tokio::test(start_paused = true)]
async fn what_is_in_flight_is_sent_again_only_while_the_redrive_runs() {
    let (store, new) = made(4).await;
    let broker = Broker { away: Arc::new(AtomicBool::new(true)), ..Broker::default() };
    let running = Running::start(store.clone(), broker.clone());
    soon("a try", async || broker.tries.load(Ordering::SeqCst) > 1).await;
    steer(&store, &new, |seen| seen.paused("lunch").expect("it runs")).await;
    broker.away.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    let in_flight = Tally { sending: 4, ..Tally::default() };
    assert_eq!((broker.rest.count(), read(&store, &new).await.letters()), (0, in_flight));
    steer(&store, &new, |seen| seen.resumed().expect("it is paused")).await;
    soon("all", async || read(&store, &new).await.letters().waiting == 4).await;
    assert_eq!(broker.rest.count(), 4);

    broker.away.store(true, Ordering::SeqCst);
    let (new, tries) = (wanted(), broker.tries.load(Ordering::SeqCst));
    store.record(&letters(7, &["a"])[4..]).await.expect("recorded");
    store.create_redrive(&new).await.expect("made");
    soon("a try", async || broker.tries.load(Ordering::SeqCst) > tries + 1).await;
    steer(&store, &new, |seen| seen.cancelled(None).expect("it runs")).await;
    broker.away.store(false, Ordering::SeqCst);
    soon("silence", async || {
        store.advance(Duration::from_secs(60));
        read(&store, &new).await.letters().silent == 3
    })
    .await;
    assert_eq!(broker.rest.count(), 4, "nobody sends them any more");
    let redriving = LetterFilter::of_status(LetterStatus::Redriving);
    assert_eq!(store.count(&redriving).await.expect("counted"), 7);
    running.end().await;
}
