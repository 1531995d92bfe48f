use backstop_core::ledger::{Letter, LetterFilter, LetterStatus};
use backstop_core::report_in::ConsumerState;
use backstop_core::{Envelope, Headers, MessageKey, ReceiptOutcome, names};
use backstop_testkit::memory::{Broker, MemorySource, Store};
use chrono::TimeDelta;

use super::*;
use crate::gated::Gated;

const GROUP: &str = "readers";

/// A ledger with one letter that was redriven, a topic of receipts, and a reader of it.
struct Scene {
    broker: Broker,
    ledger: Arc<Store>,
    counts: Arc<ReceiptCounts>,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self { broker: Broker::new(), ledger: Arc::new(Store::new()), counts: Arc::default() };
        scene.broker.create("receipts", 1);
        let mut letter = Letter::new("letter-1", "orders.stock.dlq", Envelope::default());
        letter.message_key = Some("/orders|7".into());
        letter.consumer = Some("stock".into());
        letter.status = LetterStatus::Redriving;
        scene.ledger.record(&[letter]).await.expect("recorded");
        scene
    }

    async fn status(&self) -> LetterStatus {
        let letters = self.ledger.list(&LetterFilter::default(), None, 10).await.expect("listed");
        letters[0].status
    }

    /// Reads until `done`, and stops the reader.
    async fn read_until(&self, done: impl AsyncFn(&Self) -> bool) {
        self.read_into(self.ledger.clone(), done).await;
    }

    async fn read_into(&self, ledger: Arc<dyn Ledger>, done: impl AsyncFn(&Self) -> bool) {
        let broker = self.broker.clone();
        let open: Opener<MemorySource> = Box::new(move || {
            let source = broker.source(GROUP, ["receipts"]);
            Box::pin(async move { Ok(source) })
        });
        let stop = CancellationToken::new();
        let reader = Receipts::new(ledger, vec![open], self.counts.clone());
        let run = tokio::spawn(reader.run(stop.clone()));
        tokio::time::timeout(Duration::from_secs(3_600), async {
            while !done(self).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("within an hour of the test's clock");
        stop.cancel();
        run.await.expect("no panic");
    }

    fn settled(&self) -> bool {
        self.broker.unsettled(GROUP) == 0
    }
}

fn receipt(outcome: ReceiptOutcome) -> Receipt {
    let headers: Headers =
        [(names::DEAD_LETTER_ID, Some("letter-1")), (names::REDRIVE_GENERATION, Some("1"))]
            .into_iter()
            .collect();
    Receipt::new(MessageKey::new("/orders", b"7"), &headers, "stock", "host-1", outcome)
}

#[tokio::test(start_paused = true)]
async fn a_receipt_resolves_its_letter_and_is_settled() {
    let scene = Scene::new().await;
    scene.broker.publish("receipts", receipt(ReceiptOutcome::Handled).to_message());
    scene.broker.publish("receipts", receipt(ReceiptOutcome::AlreadyHandled).to_message());
    scene.read_until(async |scene| scene.settled() && scene.counts.receipts() == 2).await;
    assert_eq!(scene.status().await, LetterStatus::Resolved);
}

#[tokio::test(start_paused = true)]
async fn receipts_that_come_one_by_one_are_written_together() {
    let scene = Scene::new().await;
    let writes = Arc::new(AtomicU64::new(0));
    let seen = writes.clone();
    let ledger = Gated::new(scene.ledger.clone(), move |call| {
        seen.fetch_add(u64::from(call == "record_outcomes"), Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    });
    let broker = scene.broker.clone();
    let told = tokio::spawn(async move {
        for _ in 0..30 {
            broker.publish("receipts", receipt(ReceiptOutcome::Handled).to_message());
            sleep(Duration::from_millis(10)).await;
        }
    });
    scene.read_into(ledger, async |scene| scene.settled() && scene.counts.receipts() == 30).await;
    told.await.expect("no panic");
    assert!(writes.load(Ordering::SeqCst) <= 5, "{writes:?} writes");
}

#[tokio::test(start_paused = true)]
async fn the_latest_report_of_an_instance_stays() {
    let scene = Scene::new().await;
    let running = ConsumerReport::new("stock", "host-1", ConsumerState::Running);
    let mut stopped = ConsumerReport::new("stock", "host-1", ConsumerState::Stopped);
    stopped.at = running.at + TimeDelta::seconds(60);
    for report in [&stopped, &running] {
        scene.broker.publish("receipts", report.to_message());
    }
    scene.read_until(async |scene| scene.settled() && scene.counts.reports() > 0).await;
    let known = scene.ledger.consumers().await.expect("listed");
    assert_eq!(known, [stopped]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_receipt_is_passed_over_and_holds_nobody_up() {
    let scene = Scene::new().await;
    scene.broker.publish("receipts", Message::new("order.placed").body("text/plain", "hello"));
    let forged = receipt(ReceiptOutcome::Handled).to_message().body("application/json", "{\"outcome\":1}");
    scene.broker.publish("receipts", forged);
    scene.broker.publish("receipts", receipt(ReceiptOutcome::Handled).to_message());
    scene.read_until(async |scene| scene.settled() && scene.counts.receipts() == 1).await;
    assert_eq!(scene.counts.unreadable(), 2);
    assert_eq!(scene.status().await, LetterStatus::Resolved);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_settled_before_the_ledger_has_it() {
    let scene = Scene::new().await;
    scene.ledger.set_unreachable(true);
    scene.broker.publish("receipts", receipt(ReceiptOutcome::Handled).to_message());
    let began = tokio::time::Instant::now();
    scene.read_until(async |_| began.elapsed() > Duration::from_secs(60)).await;
    assert_eq!(scene.broker.unsettled(GROUP), 1, "it stays with the broker");
    scene.ledger.set_unreachable(false);
    scene.read_until(async |scene| scene.settled() && scene.counts.receipts() == 1).await;
    assert_eq!(scene.status().await, LetterStatus::Resolved);
}
