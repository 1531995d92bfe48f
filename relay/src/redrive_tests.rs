use std::sync::Mutex;

use backstop_core::cloudevents::Binding;
use backstop_core::sink::Scope;
use backstop_core::{Envelope, FaultKind, names};
use backstop_sqlite::{SqliteLedger, SqliteSchema, SqliteTables};
use tempfile::TempDir;

use super::*;

/// A sink that remembers, and refuses from the message with a certain body on.
#[derive(Default)]
struct Recorder {
    sent: Mutex<Vec<(String, Envelope)>>,
    refuses: Option<&'static str>,
    /// With which scope; by default the destination's.
    scope: Option<Scope>,
}

impl Sink for Recorder {
    fn binding(&self) -> Binding {
        Binding::Kafka
    }

    async fn publish(&self, destination: &Destination, envelope: Envelope) -> Result<(), PublishError> {
        tokio::task::yield_now().await;
        if self.refuses.is_some_and(|body| envelope.body.as_deref() == Some(body.as_bytes())) {
            let error = AdapterError::new(FaultKind::Missing, "no such topic").with_hint("create it");
            return Err(PublishError::new(self.scope.unwrap_or(Scope::Destination), error));
        }
        self.sent.lock().expect("not poisoned").push((destination.name.clone(), envelope));
        Ok(())
    }
}

impl Recorder {
    fn bodies_of(&self, key: &str) -> Vec<String> {
        let sent = self.sent.lock().expect("not poisoned");
        let of_key = sent.iter().filter(|(_, envelope)| envelope.key.as_deref() == Some(key.as_bytes()));
        of_key
            .map(|(_, envelope)| String::from_utf8_lossy(envelope.body.as_ref().expect("a body")).into())
            .collect()
    }
}

async fn ledger(letters: &[Letter]) -> (TempDir, SqliteLedger) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ledger.db");
    let pool = backstop_sqlite::open(file.to_str().expect("UTF-8")).await.expect("opened");
    use backstop_core::schema::Schema;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
    let ledger = SqliteLedger::new(pool, SqliteTables::default());
    ledger.record(letters).await.expect("recorded");
    (directory, ledger)
}

fn letter(n: usize, key: &str) -> Letter {
    let headers =
        [(names::MESSAGE_KEY, Some(format!("/orders|{n}"))), (names::REASON, Some("exhausted".into()))];
    let envelope = Envelope {
        key: Some(key.to_owned().into()),
        headers: headers.into_iter().collect(),
        body: Some(format!("{key}{n}").into()),
    };
    let mut letter = Letter::new(format!("id-{n:04}"), "orders.stock.dlq", envelope);
    letter.message_key = Some(format!("/orders|{n}"));
    letter.consumer = Some("stock".into());
    letter.reason = Some("exhausted".into());
    letter.door = Some("orders.stock.redrive".into());
    letter
}

fn open() -> LetterFilter {
    LetterFilter { status: Some(LetterStatus::Open), ..LetterFilter::default() }
}

async fn count(ledger: &dyn Ledger, status: LetterStatus) -> u64 {
    let filter = LetterFilter { status: Some(status), ..LetterFilter::default() };
    ledger.count(&filter).await.expect("counted")
}

async fn run(ledger: &dyn Ledger, sink: &Recorder, plan: &Plan) -> (Summary, Result<(), RedriveError>) {
    redrive(ledger, sink, plan, LetterStatus::Open, &CancellationToken::new()).await
}

#[tokio::test]
async fn letters_reach_their_door_in_key_order_and_keep_their_identity() {
    let letters: Vec<Letter> = (0..250).map(|n| letter(n, ["a", "b", "c"][n % 3])).collect();
    let (_directory, ledger) = ledger(&letters).await;
    let sink = Recorder::default();
    let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    let (summary, result) = run(&ledger, &sink, &plan).await;
    result.expect("redriven");
    assert_eq!((plan.len(), summary.sent, summary.left), (250, 250, 0));
    for key in ["a", "b", "c"] {
        let expected: Vec<String> =
            (0..250).filter(|n| ["a", "b", "c"][n % 3] == key).map(|n| format!("{key}{n}")).collect();
        assert_eq!(sink.bodies_of(key), expected);
    }
    let (door, envelope) = sink.sent.lock().expect("not poisoned").remove(0);
    assert_eq!(door, "orders.stock.redrive");
    assert_eq!(envelope.headers.get_str(names::MESSAGE_KEY), Some("/orders|0"));
    assert_eq!(envelope.headers.get_str(names::REDRIVE_GENERATION), Some("1"));
    assert_eq!(envelope.headers.get_str(names::REASON), None);
    assert_eq!(count(&ledger, LetterStatus::Redriving).await, 250);
    let history = ledger.history("id-0000").await.expect("a history");
    let what: Vec<&str> = history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(what, ["collected", "redriving", "redriven"]);
}

#[tokio::test]
async fn a_failure_stops_its_key_and_puts_back_what_was_not_confirmed() {
    let letters: Vec<Letter> = (0..150).map(|n| letter(n, "a")).collect();
    let (_directory, ledger) = ledger(&letters).await;
    let sink = Recorder { refuses: Some("a7"), ..Recorder::default() };
    let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    let (summary, result) = run(&ledger, &sink, &plan).await;
    assert!(matches!(result, Err(RedriveError::Refused(_))));
    assert_eq!(summary, Summary { sent: 7, taken: 0, put_back: 143, left: 0 });
    assert_eq!(sink.bodies_of("a").len(), 7);
    assert_eq!(count(&ledger, LetterStatus::Open).await, 143);
    let history = ledger.history("id-0007").await.expect("a history");
    let last = history.last().expect("an event");
    assert_eq!((last.what.as_str(), last.detail.as_deref()), ("redrive-failed", Some("no such topic")));
}

#[tokio::test]
async fn what_is_refused_stops_neither_other_doors_nor_other_keys() {
    for (scope, put_back) in [(Scope::Message, 100), (Scope::Destination, 149), (Scope::Broker, 0)] {
        let mut letters: Vec<Letter> = (0..300).map(|n| letter(n, ["a", "b", "c"][n % 3])).collect();
        for letter in letters.iter_mut().skip(2).step_by(3) {
            letter.found_in = "payments.stock.dlq".into();
            letter.door = Some("payments.stock.redrive".into());
        }
        let (_directory, ledger) = ledger(&letters).await;
        let sink = Recorder { refuses: Some("a0"), scope: Some(scope), ..Recorder::default() };
        let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
        let (summary, result) = run(&ledger, &sink, &plan).await;
        if scope == Scope::Broker {
            assert!(matches!(result, Err(RedriveError::Publish(_))));
            assert_eq!(summary.left, 200, "the broker takes nothing: nothing more is tried");
            continue;
        }
        assert!(matches!(result, Err(RedriveError::Refused(_))));
        assert!(summary.put_back >= put_back && summary.left == 0, "{summary:?}");
        assert_eq!(summary.sent + summary.put_back, 300);
        assert_eq!(sink.bodies_of("c").len(), 100, "another door");
        assert_eq!(sink.bodies_of("a").len(), 0, "nothing overtakes the refused one");
        assert_eq!(sink.bodies_of("b").len() == 100, scope == Scope::Message, "another key");
        assert_eq!(count(&ledger, LetterStatus::Open).await, summary.put_back);
    }
}

#[tokio::test]
async fn a_letter_that_lost_its_door_after_the_plan_is_put_back_and_counted() {
    let (_directory, ledger) = ledger(&[letter(0, "a"), letter(1, "b")]).await;
    let mut plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    let mut doorless = letter(2, "c");
    doorless.door = None;
    ledger.record(&[doorless]).await.expect("recorded");
    plan.ids.push("id-0002".into());
    let (summary, result) = run(&ledger, &Recorder::default(), &plan).await;
    result.expect("redriven");
    assert_eq!(summary, Summary { sent: 2, taken: 0, put_back: 1, left: 0 });
    assert_eq!(count(&ledger, LetterStatus::Open).await, 1);
}

#[tokio::test]
async fn two_operators_do_not_send_a_letter_twice() {
    let letters: Vec<Letter> = (0..120).map(|n| letter(n, "a")).collect();
    let (_directory, ledger) = ledger(&letters).await;
    let sink = Recorder::default();
    let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    let ((one, first), (two, second)) = tokio::join!(run(&ledger, &sink, &plan), run(&ledger, &sink, &plan));
    first.expect("redriven");
    second.expect("redriven");
    assert_eq!((one.sent + two.sent, one.taken + two.taken), (120, 120));
    assert_eq!(sink.bodies_of("a").len(), 120);
}

#[tokio::test]
async fn what_fails_after_the_plan_is_not_swept_along() {
    let (_directory, ledger) = ledger(&[letter(0, "a")]).await;
    let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    ledger.record(&[letter(1, "a")]).await.expect("recorded");
    let (summary, _) = run(&ledger, &Recorder::default(), &plan).await;
    assert_eq!(summary.sent, 1);
    assert_eq!(count(&ledger, LetterStatus::Open).await, 1);
}

#[tokio::test]
async fn letters_without_a_door_or_with_a_forged_one_are_left_alone() {
    let mut stranger = letter(0, "a");
    stranger.door = None;
    let mut forged = letter(1, "a");
    forged.door = Some("payments".into());
    let (_directory, ledger) = ledger(&[stranger, forged, letter(2, "a")]).await;
    let plan = Plan::make(&ledger, &open(), Some(5)).await.expect("a plan");
    assert_eq!((plan.len(), plan.without_door), (1, 2));
    assert_eq!(plan.groups.len(), 1);
}

#[tokio::test]
async fn a_limit_takes_the_oldest_and_a_stop_leaves_the_rest_open() {
    let letters: Vec<Letter> = (0..9).map(|n| letter(n, "a")).collect();
    let (_directory, ledger) = ledger(&letters).await;
    let plan = Plan::make(&ledger, &open(), Some(4)).await.expect("a plan");
    assert_eq!((plan.len(), plan.groups[0].letters), (4, 4));
    let stop = CancellationToken::new();
    stop.cancel();
    let (summary, result) = redrive(&ledger, &Recorder::default(), &plan, LetterStatus::Open, &stop).await;
    result.expect("stopped");
    assert_eq!(summary, Summary { left: 4, ..Summary::default() });
    assert_eq!(count(&ledger, LetterStatus::Open).await, 9);
}

#[tokio::test]
async fn what_a_crash_left_in_redriving_can_be_sent_again() {
    let (_directory, ledger) = ledger(&[letter(0, "a")]).await;
    let redriving = LetterStatus::Redriving;
    ledger.mark(&["id-0000".into()], LetterStatus::Open, redriving, "redriving", None).await.expect("marked");
    let filter = LetterFilter { status: Some(redriving), ..LetterFilter::default() };
    let plan = Plan::make(&ledger, &filter, None).await.expect("a plan");
    let sink = Recorder::default();
    let (summary, result) = redrive(&ledger, &sink, &plan, redriving, &CancellationToken::new()).await;
    result.expect("redriven");
    assert_eq!((summary.sent, sink.bodies_of("a").len()), (1, 1));
}

#[tokio::test]
async fn letters_that_somebody_else_has_taken_are_not_sent() {
    let letters: Vec<Letter> = (0..6).map(|n| letter(n, "a")).collect();
    let (_directory, ledger) = ledger(&letters).await;
    let plan = Plan::make(&ledger, &open(), None).await.expect("a plan");
    let taken = ["id-0001".to_owned(), "id-0004".to_owned()];
    ledger
        .mark(&taken, LetterStatus::Open, LetterStatus::Redriving, "redriving", None)
        .await
        .expect("marked");
    let sink = Recorder::default();
    let (summary, result) = run(&ledger, &sink, &plan).await;
    result.expect("redriven");
    assert_eq!(summary, Summary { sent: 4, taken: 2, put_back: 0, left: 0 });
    assert_eq!(sink.bodies_of("a"), ["a0", "a2", "a3", "a5"]);
}
