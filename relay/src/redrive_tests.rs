use std::collections::HashSet;
use std::sync::Mutex;

use backstop_core::cloudevents::Binding;
use backstop_core::ledger::{BEHIND_REFUSED, LetterStatus, Outcome, Tally};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::{Destination, Envelope, FaultKind, MessageKey, Receipt, ReceiptOutcome, names};
use backstop_sqlite::{SqliteLedger, SqliteSchema, SqliteTables};
use backstop_testkit::memory::Store;
use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::config::EncryptionConfig;
use crate::encryption::Key;

/// A sink that remembers, and refuses messages with a certain body.
#[derive(Clone, Default)]
pub(super) struct Recorder {
    sent: Arc<Mutex<Vec<(String, Envelope)>>>,
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
    fn refusing(body: &'static str, scope: Scope) -> Self {
        Self { refuses: Some(body), scope: Some(scope), ..Self::default() }
    }

    fn bodies_of(&self, key: &str) -> Vec<String> {
        let sent = self.sent.lock().expect("not poisoned");
        let of_key = sent.iter().filter(|(_, envelope)| envelope.key.as_deref() == Some(key.as_bytes()));
        of_key
            .map(|(_, envelope)| String::from_utf8_lossy(envelope.body.as_ref().expect("a body")).into())
            .collect()
    }

    pub(super) fn count(&self) -> usize {
        self.sent.lock().expect("not poisoned").len()
    }
}

async fn ledger(letters: &[Letter]) -> (TempDir, Arc<dyn Ledger>) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ledger.db");
    let pool = backstop_sqlite::open(file.to_str().expect("UTF-8")).await.expect("opened");
    use backstop_core::schema::Schema;
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
    let ledger = SqliteLedger::new(pool, SqliteTables::default());
    ledger.record(letters).await.expect("recorded");
    (directory, Arc::new(ledger))
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

pub(super) fn letters(many: usize, keys: &[&str]) -> Vec<Letter> {
    (0..many).map(|n| letter(n, keys[n % keys.len()])).collect()
}

fn open() -> LetterFilter {
    LetterFilter::of_status(LetterStatus::Open)
}

pub(super) fn wanted() -> NewRedrive {
    new_redrive(open(), Guard::default())
}

async fn count(ledger: &Arc<dyn Ledger>, status: LetterStatus) -> u64 {
    ledger.count(&LetterFilter::of_status(status)).await.expect("counted")
}

pub(super) fn owner() -> OwnerSettings {
    OwnerSettings { lease: "redrive".into(), ttl: Duration::from_secs(2), ..OwnerSettings::default() }
}

async fn run(ledger: &Arc<dyn Ledger>, sink: &Recorder, new: &NewRedrive) -> Result<Redrive, Arc<Trouble>> {
    send_all(ledger.clone(), sink.clone(), new, owner()).await
}

/// What a consumer says that handled the letter.
fn handled(letter: &Letter) -> Receipt {
    Receipt {
        message_key: letter.message_key.as_deref().and_then(MessageKey::parse).expect("a key"),
        letter: Some(letter.id.clone()),
        consumer: "stock".into(),
        instance: "stock-1".into(),
        generation: 1,
        redrive: None,
        outcome: ReceiptOutcome::Handled,
        at: chrono::Utc::now(),
    }
}

/// The letter of a message that was redriven and failed again.
fn again(letter: &Letter) -> Letter {
    let mut again = letter.clone();
    again.id = format!("{}-again", letter.id);
    again.generation = letter.generation + 1;
    again
}

/// Asks until `done` says so, for at most 30 s.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn letters_reach_their_door_in_key_order_and_keep_their_identity() {
    let (_directory, ledger) = ledger(&letters(650, &["a", "b", "c"])).await;
    let (sink, new) = (Recorder::default(), wanted());
    let redrive = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!(redrive.letters(), Tally { waiting: 650, ..Tally::default() });
    for (at, key) in ["a", "b", "c"].iter().enumerate() {
        let expected: Vec<String> = (at..650).step_by(3).map(|n| format!("{key}{n}")).collect();
        assert_eq!(sink.bodies_of(key), expected);
    }
    let (door, envelope) = sink.sent.lock().expect("not poisoned").remove(0);
    assert_eq!(door, "orders.stock.redrive");
    assert_eq!(envelope.headers.get_str(names::MESSAGE_KEY), Some("/orders|0"));
    assert_eq!(envelope.headers.get_str(names::REDRIVE_GENERATION), Some("1"));
    assert_eq!(envelope.headers.get_str(names::REDRIVE_ID), Some(new.id.as_str()));
    assert_eq!(envelope.headers.get_str(names::REASON), None);
    assert_eq!(count(&ledger, LetterStatus::Redriving).await, 650);
    let history = ledger.history("id-0000").await.expect("a history");
    let what: Vec<&str> = history.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(what, ["collected", "redriving", "redriven"]);
}

#[tokio::test]
async fn a_refused_letter_holds_its_key_back_and_nothing_else() {
    let (_directory, ledger) = ledger(&letters(450, &["a", "b"])).await;
    let sink = Recorder::refusing("a14", Scope::Message);
    let redrive = run(&ledger, &sink, &wanted()).await.expect("sent");
    assert_eq!(redrive.letters(), Tally { waiting: 225 + 7, refused: 225 - 7, ..Tally::default() });
    assert_eq!(sink.bodies_of("a").len(), 7, "nothing overtakes the refused one");
    assert_eq!(sink.bodies_of("b").len(), 225);
    assert_eq!(count(&ledger, LetterStatus::Open).await, 218);
    let history = ledger.history("id-0014").await.expect("a history");
    let last = history.last().expect("an event");
    assert_eq!((last.what.as_str(), last.detail.as_deref()), ("redrive-failed", Some("no such topic")));
}

#[tokio::test]
async fn a_redacted_letter_holds_its_key_back_and_nothing_else() {
    let mut letters = letters(450, &["a", "b"]);
    letters[14].envelope.headers.set(names::REDACTED, "/card");
    let (_directory, ledger) = ledger(&letters).await;
    let sink = Recorder::default();
    let redrive = run(&ledger, &sink, &wanted()).await.expect("sent");
    assert_eq!(redrive.letters(), Tally { waiting: 225 + 7, refused: 225 - 7, ..Tally::default() });
    assert_eq!(
        (sink.bodies_of("a").len(), sink.bodies_of("b").len()),
        (7, 225),
        "in whatever chunk they come"
    );
    for behind in ["id-0016", "id-0440"] {
        let history = ledger.history(behind).await.expect("a history");
        assert_eq!(history.last().and_then(|last| last.detail.as_deref()), Some(BEHIND_REFUSED), "{behind}");
    }
}

#[tokio::test]
async fn a_target_that_takes_nothing_pauses_the_redrive() {
    let (_directory, ledger) = ledger(&letters(6, &["a"])).await;
    let (sink, new) = (Recorder::refusing("a2", Scope::Destination), wanted());
    let trouble = run(&ledger, &sink, &new).await.expect_err("the door is not there");
    assert!(matches!(&*trouble, Trouble::Target(door, _) if door == "orders.stock.redrive"));
    let paused = ledger.redrive(&new.id).await.expect("read").expect("there");
    assert_eq!(paused.standing.run, Run::Paused);
    assert_eq!(paused.letters(), Tally { waiting: 2, pending: 4, ..Tally::default() });
    assert_eq!(count(&ledger, LetterStatus::Open).await, 4);
    let to = paused.resumed().expect("it is paused");
    assert!(ledger.steer_redrive(&new.id, &paused.standing, &to).await.expect("steered"));
    let sink = Recorder { refuses: None, ..sink };
    let resumed = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!(resumed.letters(), Tally { waiting: 6, ..Tally::default() });
    assert_eq!(sink.bodies_of("a"), ["a0", "a1", "a2", "a3", "a4", "a5"]);
}

#[tokio::test]
async fn a_broker_that_is_away_costs_no_letter_and_no_order() {
    let (_directory, ledger) = ledger(&letters(9, &["a"])).await;
    let (sink, new) = (Recorder::refusing("a4", Scope::Broker), wanted());
    let trouble = run(&ledger, &sink, &new).await.expect_err("the broker is away");
    assert!(matches!(&*trouble, Trouble::Broker(_)));
    let sink = Recorder { refuses: None, ..sink };
    let redrive = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!(redrive.letters(), Tally { waiting: 9, ..Tally::default() });
    assert_eq!(sink.bodies_of("a"), ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"]);
}

#[tokio::test]
async fn two_redrives_and_two_engines_send_a_letter_once() {
    let (_directory, ledger) = ledger(&letters(300, &["a", "b"])).await;
    let sink = Recorder::default();
    let (one, two) = (wanted(), wanted());
    let (first, second) = tokio::join!(run(&ledger, &sink, &one), run(&ledger, &sink, &two));
    let letters = first.expect("sent").letters().plus(second.expect("sent").letters());
    assert_eq!((letters.waiting, letters.dropped), (300, 300));
    assert_eq!(sink.count(), 300);
}

fn ring(byte: u8, previous: &[u8]) -> Keyring {
    let key = |byte: u8| Key::parse(&format!("{byte:02x}").repeat(32)).expect("32 bytes");
    let previous_keys = previous.iter().map(|byte| key(*byte)).collect();
    Keyring::of(Some(&EncryptionConfig { key: key(byte), previous_keys }))
}

/// The letters, each body of which is encrypted with the key that `of` names; in clear where it names none.
fn sealed(mut letters: Vec<Letter>, of: impl Fn(usize) -> Option<u8>) -> Vec<Letter> {
    for (n, letter) in letters.iter_mut().enumerate() {
        of(n).map_or_else(Keyring::default, |byte| ring(byte, &[])).seal(letter);
    }
    letters
}

async fn run_with(ledger: &Arc<dyn Ledger>, sink: &Recorder, new: &NewRedrive, keys: Keyring) -> Redrive {
    let made = ledger.create_redrive(new).await.expect("made");
    let engine = Engine::new(ledger.clone(), sink.clone(), owner()).opening(keys);
    carry_out(engine, made, |_| {}, is_sent, &CancellationToken::new()).await.expect("sent")
}

/// Consumers get what they once got, whatever key it was kept with.
#[tokio::test]
async fn encrypted_letters_are_sent_as_they_were_byte_for_byte() {
    let mut letters = letters(9, &["a"]);
    letters[4].envelope.body = Some(Bytes::from_static(&[0xff, 0, 0x80]));
    letters[5].envelope.body = None;
    letters[6].envelope.body = Some(Bytes::new());
    let (_directory, ledger) = ledger(&sealed(letters.clone(), |n| [None, Some(1), Some(2)][n % 3])).await;
    let sink = Recorder::default();
    let redrive = run_with(&ledger, &sink, &wanted(), ring(2, &[1])).await;
    assert_eq!(redrive.letters(), Tally { waiting: 9, ..Tally::default() });
    let sent = sink.sent.lock().expect("not poisoned");
    let sent: Vec<_> = sent.iter().map(|(_, envelope)| envelope.body.clone()).collect();
    assert_eq!(sent, letters.iter().map(|letter| letter.envelope.body.clone()).collect::<Vec<_>>());
}

/// What nobody can open is not sent, nor is what comes after it under its key; it is open as before, and says why.
#[tokio::test]
async fn a_letter_without_its_key_is_refused_and_stays() {
    let all = letters(8, &["a", "b"]);
    let (_directory, ledger) = ledger(&sealed(all, |n| Some(if n == 2 { 7 } else { 1 }))).await;
    let (sink, keys) = (Recorder::default(), ring(1, &[]));
    let plan = Plan::make(&*ledger, &open(), &Guard::default(), &keys).await.expect("a plan");
    let warned = plan.warnings.iter().find(|warning| warning.contains("would be refused"));
    let (lost, warned) = (ring(7, &[]).newest().expect("a key"), warned.expect("a warning"));
    assert!(
        warned.starts_with("1 of the first 50 letters") && warned.contains(&lost.to_string()),
        "{warned}"
    );
    let redrive = run_with(&ledger, &sink, &wanted(), keys).await;
    assert_eq!(redrive.letters(), Tally { waiting: 5, refused: 3, ..Tally::default() });
    assert_eq!(sink.bodies_of("a"), ["a0"], "nothing overtakes the refused one");
    assert_eq!(sink.bodies_of("b"), ["b1", "b3", "b5", "b7"]);
    let history = ledger.history("id-0002").await.expect("a history");
    let last = history.last().expect("an event");
    let why = last.detail.as_deref().unwrap_or_default();
    assert_eq!(last.what, "redrive-failed");
    assert!(why.contains(&format!("key {lost}, which is not configured")), "{why}");
    assert!(why.contains("previous_key_files"), "{why}");
    assert_eq!(count(&ledger, LetterStatus::Open).await, 3);

    let redrive = run_with(&ledger, &sink, &wanted(), ring(1, &[7])).await;
    assert_eq!(redrive.letters(), Tally { waiting: 3, ..Tally::default() });
    assert_eq!(
        sink.bodies_of("a"),
        ["a0", "a2", "a4", "a6"],
        "with its key it goes, in the order of its key"
    );
}

/// A row that somebody changed, to have another consumer's messages, is sent nowhere.
#[tokio::test]
async fn a_body_that_was_moved_to_another_letter_is_not_sent() {
    let mut letters = sealed(letters(2, &["a", "b"]), |_| Some(1));
    letters[1].envelope.body = letters[0].envelope.body.clone();
    let (_directory, ledger) = ledger(&letters).await;
    let sink = Recorder::default();
    let redrive = run_with(&ledger, &sink, &wanted(), ring(1, &[])).await;
    assert_eq!(redrive.letters(), Tally { waiting: 1, refused: 1, ..Tally::default() });
    assert_eq!((sink.bodies_of("a"), sink.bodies_of("b").len()), (vec!["a0".to_owned()], 0));
}

/// An engine that was told no keys sends no ciphertext.
#[tokio::test]
async fn without_keys_nothing_encrypted_is_sent() {
    let (_directory, ledger) = ledger(&sealed(letters(3, &["a"]), |_| Some(1))).await;
    let sink = Recorder::default();
    let redrive = run(&ledger, &sink, &wanted()).await.expect("ended");
    assert_eq!((redrive.letters().refused, sink.count()), (3, 0));
}

/// Promise 4.
#[tokio::test]
async fn what_fails_after_the_redrive_was_made_is_not_in_it() {
    let (_directory, ledger) = ledger(&letters(1, &["a"])).await;
    let (sink, new) = (Recorder::default(), wanted());
    ledger.create_redrive(&new).await.expect("made");
    ledger.record(&[letter(1, "a")]).await.expect("recorded");
    let redrive = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!((redrive.letters().sum(), sink.count()), (1, 1));
    assert_eq!(count(&ledger, LetterStatus::Open).await, 1);
}

#[tokio::test]
async fn letters_with_a_forged_door_and_those_in_a_loop_are_left_alone() {
    let mut odd = letters(4, &["a"]);
    odd[0].door = None;
    odd[1].door = Some("payments".into());
    odd[2].generation = 5;
    let (_directory, ledger) = ledger(&odd).await;
    let plan = Plan::make(&*ledger, &open(), &Guard::default(), &Keyring::default()).await.expect("a plan");
    assert_eq!((plan.matching, plan.to_send, plan.without_target, plan.looped), (4, 1, 2, 1));
    assert_eq!(plan.sample.len(), 1);
    let sink = Recorder::default();
    run(&ledger, &sink, &wanted()).await.expect("sent");
    assert_eq!(sink.bodies_of("a"), ["a3"]);
}

#[tokio::test]
async fn a_strangers_letter_goes_back_only_where_it_may_and_its_outcome_stays_unknown() {
    let mut stranger = letter(0, "a");
    (stranger.door, stranger.place) = (None, Some("orders".into()));
    let (_directory, ledger) = ledger(&[stranger]).await;
    let guard = Guard { foreign: vec!["orders".into()], ..Guard::default() };
    let plan = Plan::make(&*ledger, &open(), &guard, &Keyring::default()).await.expect("a plan");
    assert!(plan.warnings.iter().any(|warning| warning.contains("every consumer of orders")), "{plan:?}");
    let sink = Recorder::default();
    let new = NewRedrive { guard, canary: 1, ..wanted() };
    let redrive = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!(sink.sent.lock().expect("not poisoned")[0].0, "orders");
    assert_eq!(redrive.letters(), Tally { unknown: 1, ..Tally::default() });
    assert_eq!(redrive.standing.run, Run::Paused, "somebody must look at the canary");
}

/// Promise 5.
#[tokio::test]
async fn a_canary_that_fails_stops_the_redrive_by_itself() {
    let all = letters(50, &["a", "b"]);
    let (_directory, ledger) = ledger(&all).await;
    let (sink, new) = (Recorder::default(), NewRedrive { canary: 10, ..wanted() });
    let consumer = async {
        until("the canary", async || sink.count() == 10).await;
        let receipts: Vec<Receipt> = all[..9].iter().map(handled).collect();
        for some in receipts.chunks(200) {
            ledger.record_outcomes(some).await.expect("recorded");
        }
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(sink.count(), 10, "nothing more is sent before the last one is known");
        ledger.record(&[again(&all[9])]).await.expect("recorded");
    };
    let (redrive, ()) = tokio::join!(run(&ledger, &sink, &new), consumer);
    let redrive = redrive.expect("it ended itself");
    assert_eq!(redrive.standing.run, Run::Stopped);
    assert_eq!(redrive.standing.why.as_deref(), Some("canary failed: 1 failed again"));
    assert_eq!(redrive.canary_letters, Tally { resolved: 9, failed_again: 1, ..Tally::default() });
    assert_eq!(sink.count(), 10, "nothing more is sent");
    assert_eq!(count(&ledger, LetterStatus::Open).await, 41);
}

#[tokio::test]
async fn a_canary_that_is_handled_lets_the_rest_go() {
    let all = letters(50, &["a", "b"]);
    let (_directory, ledger) = ledger(&all).await;
    let (sink, new) = (Recorder::default(), NewRedrive { canary: 3, ..wanted() });
    let consumer = async {
        until("the canary", async || sink.count() == 3).await;
        let receipts: Vec<Receipt> = all[..3].iter().map(handled).collect();
        for some in receipts.chunks(200) {
            ledger.record_outcomes(some).await.expect("recorded");
        }
    };
    let (redrive, ()) = tokio::join!(run(&ledger, &sink, &new), consumer);
    assert_eq!(redrive.expect("sent").letters(), Tally { resolved: 3, waiting: 47, ..Tally::default() });
    assert_eq!(sink.count(), 50);
}

#[tokio::test]
async fn a_pause_holds_and_a_rate_can_be_changed_while_it_runs() {
    let (_directory, ledger) = ledger(&letters(400, &["a", "b", "c"])).await;
    let (sink, new) = (Recorder::default(), NewRedrive { rate: Some(40.0), ..wanted() });
    let operator = async {
        until("the first letters", async || sink.count() >= 5).await;
        let seen = ledger.redrive(&new.id).await.expect("read").expect("there");
        let to = seen.paused("lunch").expect("it runs");
        assert!(ledger.steer_redrive(&new.id, &seen.standing, &to).await.expect("steered"));
        // What was claimed before is still sent.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let paused = sink.count();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(sink.count(), paused, "it is paused");
        assert!(paused < 100, "the rate was kept: {paused}");
        assert!(ledger.set_redrive_rate(&new.id, Some(100_000.0)).await.expect("set"));
        let seen = ledger.redrive(&new.id).await.expect("read").expect("there");
        let to = seen.resumed().expect("it is paused");
        assert!(ledger.steer_redrive(&new.id, &seen.standing, &to).await.expect("steered"));
    };
    let (first, ()) = tokio::join!(run(&ledger, &sink, &new), operator);
    assert_eq!(first.expect("it was paused").standing.run, Run::Paused);
    let redrive = run(&ledger, &sink, &new).await.expect("sent");
    assert_eq!(redrive.letters().sent(), 400);
    assert_eq!(sink.count(), 400);
}

/// A rate that would let the next letter go in hours is no reason not to hear of another one.
#[tokio::test]
async fn a_rate_that_all_but_stops_can_be_changed() {
    let (_directory, ledger) = ledger(&letters(20, &["a"])).await;
    let (sink, new) = (Recorder::default(), NewRedrive { rate: Some(0.000_1), ..wanted() });
    let operator = async {
        until("the first letter", async || sink.count() == 1).await;
        assert!(ledger.set_redrive_rate(&new.id, Some(1_000.0)).await.expect("set"));
        until("all letters", async || sink.count() == 20).await;
    };
    let (sent, ()) = tokio::join!(run(&ledger, &sink, &new), operator);
    assert_eq!(sent.expect("sent").letters().sent(), 20);
}

/// Promise 3, in small: engines are killed wherever they are, one letter in a hundred fails again by construction, and the
/// consumer answers beside the engine. Nothing is lost, and every outcome is known.
#[tokio::test(flavor = "multi_thread")]
async fn engines_that_die_lose_nothing_in_memory() {
    let store = Store::new();
    engines_that_die_lose_nothing(Arc::new(store.clone()), || store.advance(Duration::from_secs(3))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_die_lose_nothing_on_postgresql() {
    use backstop_core::schema::Schema;
    use backstop_postgres::{PgLedger, PgSchema, PgTables};
    let variable = "BACKSTOP_TEST_POSTGRES_URL";
    let url = std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set; run: eval \"$(tests/servers env)\""));
    let schema = format!("t_{}", uuid::Uuid::new_v4().simple());
    let pool = sqlx::PgPool::connect(&url).await.expect("PostgreSQL");
    let tables = PgTables::in_schema(&schema).expect("a name");
    PgSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
    engines_that_die_lose_nothing(Arc::new(PgLedger::new(pool.clone(), tables)), || {}).await;
    let drop = sqlx::AssertSqlSafe(format!("DROP SCHEMA \"{schema}\" CASCADE"));
    sqlx::query(drop).execute(&pool).await.expect("dropped");
}

/// `pass` makes the lease of a dead engine run out, where that does not happen by itself.
async fn engines_that_die_lose_nothing(ledger: Arc<dyn Ledger>, pass: impl Fn()) {
    const LETTERS: usize = 2_000;
    let all: Vec<Letter> = letters(LETTERS, &["a", "b", "c", "d", "e", "f", "g"]);
    ledger.record(&all).await.expect("recorded");
    let (sink, new) =
        (Recorder::default(), NewRedrive { canary: 10, rate: Some(1_500.0), brake: 0.5, ..wanted() });
    ledger.create_redrive(&new).await.expect("made");
    let answered = CancellationToken::new();
    let consumer = tokio::spawn(consume(ledger.clone(), sink.clone(), all.clone(), answered.clone()));
    for life in 1..=5_usize {
        let running =
            tokio::spawn(Engine::new(ledger.clone(), sink.clone(), owner()).run(CancellationToken::new()));
        until("letters to be sent", async || sink.count() > LETTERS * life / 6).await;
        // Killed wherever it is; nobody gives its lease back.
        running.abort();
        drop(running.await);
        pass();
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(Engine::new(ledger.clone(), sink.clone(), owner()).run(stop.clone()));
    let read = async || ledger.redrive(&new.id).await.expect("read").expect("there");
    until("the end", async || read().await.standing.run == Run::Done).await;
    stop.cancel();
    running.await.expect("no panic");
    answered.cancel();
    let applied = consumer.await.expect("no panic");
    let failed = LETTERS as u64 / 100;
    let expected = Tally { resolved: LETTERS as u64 - failed, failed_again: failed, ..Tally::default() };
    assert_eq!(read().await.letters(), expected);
    assert_eq!(applied.len(), LETTERS - failed as usize, "each is applied");
    assert_eq!(
        count(&ledger, LetterStatus::Open).await,
        failed,
        "the new letters of those that failed again"
    );
    let of = |outcome| LetterFilter { outcome: Some(outcome), ..LetterFilter::default() };
    assert_eq!(ledger.count(&of(Outcome::FailedAgain)).await.expect("counted"), failed);
    assert!(
        sink.count() <= LETTERS + 5 * 200,
        "a crash repeats what was being sent, not more: {}",
        sink.count()
    );
}

/// Handles what the sink got, each message once, and says so; every hundredth fails again.
async fn consume(
    ledger: Arc<dyn Ledger>,
    sink: Recorder,
    all: Vec<Letter>,
    stop: CancellationToken,
) -> HashSet<String> {
    let (mut read, mut applied) = (0, HashSet::new());
    while !stop.is_cancelled() {
        let fresh: Vec<String> = {
            let sent = sink.sent.lock().expect("not poisoned");
            let keys = sent[read..].iter().map(|(_, envelope)| envelope.headers.get_str(names::MESSAGE_KEY));
            let keys = keys.map(|key| key.expect("an identity").to_owned()).collect();
            read = sent.len();
            keys
        };
        let (mut failed, mut receipts) = (Vec::new(), Vec::new());
        for key in fresh {
            let n: usize = key.rsplit('|').next().and_then(|n| n.parse().ok()).expect("a number");
            if n % 100 == 50 {
                failed.push(again(&all[n]));
            } else {
                applied.insert(key);
                receipts.push(handled(&all[n]));
            }
        }
        ledger.record(&failed).await.expect("recorded");
        for some in receipts.chunks(200) {
            ledger.record_outcomes(some).await.expect("recorded");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    applied
}
