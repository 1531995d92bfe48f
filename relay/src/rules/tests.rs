use backstop_core::ledger::course::Next;
use backstop_core::ledger::{
    AuditLog as _, Change, Letter, LetterFilter, LetterStatus, NewAuditEntry, Phase, Redrive, Redrives as _,
    Sent, Standing as Course,
};
use backstop_core::report_in::{BreakerState, ConsumerState};
use backstop_core::{ConsumerReport, Envelope};
use backstop_testkit::memory::Store;

use super::watch::Event;
use super::*;
use crate::config::{Config, Environment};

const CLOSED: &str = "after = \"breaker-closed\"\n";
const VERSION: &str = "after = \"new-version\"\n";

/// What a configuration with one rule says of dead letters.
fn rule(more: &str) -> DeadLettersConfig {
    let text = format!(
        "[database]\nurl = \"sqlite:x.db\"\n[broker]\nkind = \"rabbitmq\"\nurl = \"amqp://localhost/\"\n[dead_letters]\n\
         enabled = true\nsources = [\"orders.stock.dlq\"]\nreceipts = [\"receipts\"]\n[[dead_letters.rules]]\n\
         name = \"r\"\nconsumer = \"stock\"\n{more}"
    );
    Config::parse(&text, &Environment::default()).expect("sound").dead_letters
}

/// A ledger, a consumer that reports to it, and a relay that attends to rules.
struct Scenery {
    store: Arc<Store>,
    letters: DeadLettersConfig,
    relay: String,
    consumer: ConsumerReport,
}

impl Scenery {
    /// The rule has begun, and this many letters are open.
    async fn of(letters: DeadLettersConfig, open: usize) -> Self {
        let mut consumer = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
        consumer.version = Some("1".to_owned());
        (consumer.breaker, consumer.breaker_closings) = (Some(BreakerState::Closed), Some(0));
        let store = Arc::new(Store::default());
        store.record(&(0..open).map(letter).collect::<Vec<_>>()).await.expect("recorded");
        let scenery = Self { store, letters, relay: "relay-1".to_owned(), consumer };
        scenery.pass(1).await;
        scenery
    }

    async fn lease(&self) -> Lease {
        let name = lease_name(&self.letters);
        let ttl = Duration::from_secs(600);
        self.store.acquire(&name, &self.relay, ttl).await.expect("it answers").expect("nobody else has it")
    }

    fn keeper(&self) -> Keeper {
        Keeper::new(self.store.clone(), self.letters.clone())
    }

    /// The consumer reports, and the relay looks.
    async fn look(&self) {
        let mut report = self.consumer.clone();
        report.at = self.store.time().await.expect("it answers");
        self.store.record_reports(&[report]).await.expect("recorded");
        self.keeper().round(&self.lease().await, &CancellationToken::new()).await.expect("it answers");
    }

    /// So many seconds later.
    async fn pass(&self, seconds: u64) {
        self.store.advance(Duration::from_secs(seconds));
        self.look().await;
    }

    /// Something has happened, is noticed, and stands for a minute.
    async fn stand(&self) {
        self.pass(1).await;
        self.pass(60).await;
    }

    async fn outage(&mut self) {
        self.consumer.breaker = Some(BreakerState::Open);
        self.pass(1).await;
        self.close().await;
    }

    async fn close(&mut self) {
        let now = self.store.time().await.expect("it answers");
        self.consumer.breaker = Some(BreakerState::Closed);
        self.consumer.breaker_closed_at = Some(now);
        self.consumer.breaker_closings = self.consumer.breaker_closings.map(|number| number + 1);
    }

    fn deploy(&mut self, version: &str) {
        self.consumer.version = Some(version.to_owned());
    }

    /// Redrives, oldest first.
    async fn redrives(&self) -> Vec<Redrive> {
        let mut redrives = self.store.redrives(None, 100).await.expect("it answers");
        redrives.reverse();
        redrives
    }

    async fn only_redrive(&self) -> Redrive {
        let mut redrives = self.redrives().await;
        assert_eq!(redrives.len(), 1, "{redrives:#?}");
        redrives.remove(0)
    }

    async fn standing(&self) -> Standing {
        let look = Look::at(&*self.store, &self.letters).await.expect("it answers");
        let mut views = look.views(u64::MAX).await.expect("it answers");
        views.remove(0).standing
    }

    /// Sends the canary of a redrive, of which the first letter fails again, and lets the redrive see it.
    async fn fail_canary(&self, id: &str) {
        let claimed = self.send(id).await;
        let mut again = claimed[0].clone();
        again.id = format!("{}-again", again.id);
        again.generation += 1;
        again.status = LetterStatus::Open;
        (again.redrive, again.outcome) = (None, None);
        self.store.record(&[again]).await.expect("recorded");
        let redrive = self.store.redrive(id).await.expect("it answers").expect("it is there");
        let Next::Change(to) = redrive.next() else { panic!("it goes on: {redrive:#?}") };
        assert_eq!(to.run, Run::Stopped);
        self.steer(&redrive, to).await;
    }

    async fn send(&self, id: &str) -> Vec<Letter> {
        let lease =
            self.store.acquire("engine", "tests", Duration::from_secs(600)).await.expect("it answers");
        let claimed = self.store.claim_letters(&lease.expect("free"), id, 100).await;
        let claimed = claimed.expect("it answers").expect("the lease is ours");
        let sent: Vec<_> = claimed.iter().map(|letter| (letter.id.clone(), Sent::Confirmed)).collect();
        self.store.settle_letters(id, &sent).await.expect("it answers");
        claimed
    }

    async fn end(&self, redrive: &Redrive, run: Run) {
        let to = Course { run, phase: Phase::Settling, ..redrive.standing.clone() };
        self.steer(redrive, to).await;
    }

    async fn steer(&self, redrive: &Redrive, to: Course) {
        let done = self.store.steer_redrive(&redrive.plan.id, &redrive.standing, &to).await;
        assert!(done.expect("it answers"));
    }

    async fn audited(&self) -> Vec<NewAuditEntry> {
        let entries = self.store.read_audit(&AuditFilter::default(), 100).await.expect("it answers");
        entries.into_iter().map(|entry| entry.entry).collect()
    }
}

fn letter(n: usize) -> Letter {
    let mut letter = Letter::new(format!("letter-{n:03}"), "orders.stock.dlq", Envelope::default());
    letter.message_key = Some(format!("/orders|{n}"));
    letter.consumer = Some("stock".into());
    letter.class = Some("transient".into());
    letter.door = Some("orders.stock.redrive".into());
    letter
}

#[tokio::test]
async fn a_new_version_that_stands_makes_one_ordinary_redrive() {
    let mut scenery =
        Scenery::of(rule(&format!("{VERSION}canary = 3\nrate = 7\nlimit = 15\nbrake = 4\n")), 20).await;
    scenery.deploy("2");
    scenery.pass(1).await;
    scenery.pass(59).await;
    assert_eq!(scenery.redrives().await, [], "it has not stood for long enough");
    assert!(matches!(scenery.standing().await, Standing::Waiting { .. }));
    scenery.pass(1).await;
    let made = scenery.only_redrive().await;
    assert_eq!((made.canary_letters.pending, made.other_letters.pending), (3, 12));
    assert_eq!((made.plan.canary, made.plan.rate, made.plan.brake), (3, Some(7.0), 0.04));
    assert_eq!(made.plan.created_by, "rule r");
    assert_eq!(made.plan.because.as_deref(), Some("after new-version: version 2 reported in"));
    for _ in 0..5 {
        scenery.stand().await;
    }
    scenery.only_redrive().await;
    let audited = scenery.audited().await;
    assert_eq!(audited.len(), 1, "{audited:#?}");
    let NewAuditEntry { who, role, action, letters, redrive, step, .. } = &audited[0];
    assert_eq!((who.as_str(), role.as_str(), action.as_str()), ("rule r", "relay", "redrive.start"));
    assert_eq!((*letters, redrive.as_ref(), *step), (Some(15), Some(&made.plan.id), AuditStep::Done));
    assert!(audited[0].object.contains("consumer=stock"), "{}", audited[0].object);
}

#[tokio::test]
async fn versions_that_go_back_and_forth_fire_once_each() {
    let mut scenery = Scenery::of(rule(VERSION), 3).await;
    for version in ["2", "1", "2", "1", "2"] {
        scenery.deploy(version);
        scenery.stand().await;
    }
    let first = scenery.only_redrive().await;
    scenery.end(&first, Run::Done).await;
    scenery.deploy("3");
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 2);
    for version in ["2", "3", "1"] {
        scenery.deploy(version);
        scenery.stand().await;
    }
    assert_eq!(scenery.redrives().await.len(), 2);
}

#[tokio::test]
async fn a_version_that_does_not_stay_fires_nothing() {
    let mut scenery = Scenery::of(rule(VERSION), 3).await;
    for version in ["2", "1", "2", "1"] {
        scenery.deploy(version);
        scenery.pass(30).await;
        scenery.pass(29).await;
    }
    assert_eq!(scenery.redrives().await, []);
}

#[tokio::test]
async fn each_outage_that_is_over_fires_once_whatever_instances_there_are() {
    let mut scenery = Scenery::of(rule(CLOSED), 3).await;
    scenery.outage().await;
    scenery.stand().await;
    let first = scenery.only_redrive().await;
    assert!(
        first.plan.because.expect("a reason").starts_with("after breaker-closed: its breaker closed at ")
    );
    scenery.consumer.instance = "stock-2".to_owned();
    (scenery.consumer.breaker_closings, scenery.consumer.breaker_closed_at) = (Some(0), None);
    for _ in 0..3 {
        scenery.stand().await;
    }
    let first = scenery.only_redrive().await;
    scenery.end(&first, Run::Done).await;
    scenery.outage().await;
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 2);
}

#[tokio::test]
async fn a_breaker_that_opens_again_begins_the_wait_anew() {
    let mut scenery = Scenery::of(rule(CLOSED), 3).await;
    for _ in 0..5 {
        scenery.outage().await;
        scenery.pass(1).await;
        scenery.pass(58).await;
    }
    assert_eq!(scenery.redrives().await, []);
    scenery.pass(2).await;
    scenery.only_redrive().await;
}

/// Off unless written, and then for what comes after.
#[tokio::test]
async fn what_was_there_before_the_rule_is_no_news() {
    let mut scenery = Scenery::of(DeadLettersConfig { rules: Vec::new(), ..rule(VERSION) }, 3).await;
    scenery.deploy("2");
    scenery.outage().await;
    scenery.stand().await;
    assert_eq!(scenery.redrives().await, [], "nobody wrote a rule");
    for written in [VERSION, CLOSED] {
        scenery.letters = rule(written);
        assert_eq!(scenery.standing().await, Standing::Unattended);
        scenery.stand().await;
        scenery.stand().await;
        assert_eq!(scenery.redrives().await, [], "{written}");
        assert_eq!(scenery.standing().await, Standing::Watching);
    }
    scenery.letters = rule(VERSION);
    scenery.stand().await;
    scenery.letters.rules.clear();
    scenery.deploy("3");
    scenery.stand().await;
    scenery.letters = rule(VERSION);
    scenery.stand().await;
    assert_eq!(scenery.redrives().await, [], "it was not written when the version came");
}

#[tokio::test]
async fn only_what_the_rule_says_is_sent_and_nothing_under_legal_hold() {
    let mut scenery = Scenery::of(rule(&format!("{CLOSED}class = \"transient\"\nsince = \"1h\"\n")), 3).await;
    let mut others: Vec<Letter> = (10..16).map(letter).collect();
    others[0].consumer = Some("mail".into());
    others[1].class = Some("permanent".into());
    others[2].dead_at = Some(chrono::Utc::now() - TimeDelta::hours(2));
    others[3].door = None;
    others[4].generation = 1;
    scenery.store.record(&others).await.expect("recorded");
    for id in ["letter-000", "letter-015"] {
        let change = Change::Hold { because: "case 7".into() };
        scenery.store.change(&LetterFilter::of_ids(&[id.to_owned()]), &change, 1).await.expect("changed");
    }
    scenery.outage().await;
    scenery.stand().await;
    let id = scenery.only_redrive().await.plan.id;
    let sent: Vec<String> = scenery.send(&id).await.into_iter().map(|letter| letter.id).collect();
    assert_eq!(sent, ["letter-001", "letter-002"]);
}

/// The loop guard: what failed again waits for a new version, or for somebody.
#[tokio::test]
async fn what_was_redriven_before_is_sent_after_a_new_version_alone() {
    for (written, expected) in [(CLOSED, 2), (VERSION, 3)] {
        let mut scenery = Scenery::of(rule(written), 2).await;
        let mut again = letter(7);
        again.generation = 1;
        scenery.store.record(&[again]).await.expect("recorded");
        scenery.deploy("2");
        scenery.outage().await;
        scenery.stand().await;
        assert_eq!(scenery.only_redrive().await.letters().sum(), expected, "{written}");
    }
}

#[tokio::test]
async fn what_the_consumer_has_forgotten_is_left_alone() {
    let mut scenery = Scenery::of(rule(VERSION), 1).await;
    let mut old = letter(1);
    old.first_failed_at = Some(chrono::Utc::now() - TimeDelta::hours(3));
    scenery.store.record(&[old]).await.expect("recorded");
    scenery.consumer.inbox_retention_seconds = Some(3_600);
    scenery.deploy("2");
    scenery.stand().await;
    assert_eq!(scenery.only_redrive().await.letters().sum(), 1);
}

/// Issue 6, promise 5, by itself: nothing more is sent, and nothing is tried once more at the next closing.
#[tokio::test]
async fn after_a_canary_that_failed_a_rule_rests_until_a_new_version_or_somebody() {
    let mut scenery = Scenery::of(rule(&format!("{CLOSED}canary = 2\n")), 8).await;
    scenery.outage().await;
    scenery.stand().await;
    let first = scenery.only_redrive().await.plan.id;
    scenery.fail_canary(&first).await;
    for _ in 0..3 {
        scenery.outage().await;
        scenery.stand().await;
    }
    scenery.only_redrive().await;
    let standing = scenery.standing().await;
    assert!(matches!(&standing, Standing::Resting { why } if why.contains("canary failed")), "{standing:?}");
    scenery.deploy("2");
    scenery.stand().await;
    scenery.only_redrive().await;
    scenery.outage().await;
    scenery.stand().await;
    let redrives = scenery.redrives().await;
    assert_eq!(redrives.len(), 2, "a new version may try");
    assert_eq!(redrives[1].letters().sum(), 6, "what failed again is not among them");
    scenery.fail_canary(&redrives[1].plan.id).await;
    scenery.outage().await;
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 2);
    let resumed = NewAuditEntry { action: RESUME.to_owned(), deed: "d".to_owned(), ..entry(&redrives[1]) };
    scenery.store.write_audit(&resumed).await.expect("written");
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 2, "nothing has closed since");
    scenery.outage().await;
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 3);
}

fn entry(redrive: &Redrive) -> NewAuditEntry {
    NewAuditEntry {
        deed: redrive.plan.id.clone(),
        step: AuditStep::Done,
        who: "ann".to_owned(),
        role: "operator".to_owned(),
        origin: "tests".to_owned(),
        action: "redrive.start".to_owned(),
        object: "r".to_owned(),
        redrive: Some(redrive.plan.id.clone()),
        letters: None,
        because: None,
        error: None,
    }
}

#[tokio::test]
async fn a_rule_waits_for_its_last_redrive_and_rests_after_one_that_was_cancelled() {
    let mut scenery = Scenery::of(rule(CLOSED), 3).await;
    scenery.outage().await;
    scenery.stand().await;
    let first = scenery.only_redrive().await;
    scenery.outage().await;
    scenery.stand().await;
    scenery.only_redrive().await;
    scenery.end(&first, Run::Done).await;
    scenery.look().await;
    let redrives = scenery.redrives().await;
    assert_eq!(redrives.len(), 2, "what had closed meanwhile");
    scenery.outage().await;
    scenery.stand().await;
    scenery.end(&redrives[1], Run::Cancelled).await;
    scenery.stand().await;
    assert_eq!(scenery.redrives().await.len(), 2, "somebody wants it to stop");
}

#[tokio::test]
async fn without_letters_there_is_no_redrive_then_or_later() {
    let mut scenery = Scenery::of(rule(VERSION), 0).await;
    scenery.deploy("2");
    scenery.stand().await;
    scenery.store.record(&[letter(0)]).await.expect("recorded");
    scenery.stand().await;
    assert_eq!(scenery.redrives().await, []);
    assert_eq!(scenery.audited().await, []);
}

/// What the relay had remembered is there once more, as after a crash that came before it could write.
async fn forget_since(scenery: &Scenery, remembered: &str) {
    scenery.store.report(&scenery.lease().await, remembered).await.expect("it answers");
}

async fn remembered(scenery: &Scenery) -> String {
    let lease = scenery.lease().await;
    let holder = scenery.store.holder(&lease.name).await.expect("it answers");
    holder.and_then(|holder| holder.report).expect("it remembers something").text
}

#[tokio::test]
async fn a_crash_after_the_redrive_was_made_makes_no_second_one() {
    for (written, event) in [(CLOSED, true), (VERSION, false)] {
        let mut scenery = Scenery::of(rule(written), 3).await;
        if event {
            scenery.outage().await;
        } else {
            scenery.deploy("2");
        }
        scenery.pass(1).await;
        let before = remembered(&scenery).await;
        scenery.pass(60).await;
        let made = scenery.only_redrive().await;
        forget_since(&scenery, &before).await;
        scenery.store.record(&[letter(9)]).await.expect("recorded");
        scenery.relay = "relay-2".to_owned();
        scenery.store.advance(Duration::from_secs(601));
        scenery.pass(1).await;
        assert!(remembered(&scenery).await.contains(&made.plan.id), "{written}");
        scenery.stand().await;
        assert_eq!(scenery.only_redrive().await.plan, made.plan, "{written}");
        assert_eq!(scenery.audited().await.len(), 1, "{written}");
    }
}

#[tokio::test]
async fn a_crash_between_noticing_and_making_loses_nothing() {
    let mut scenery = Scenery::of(rule(CLOSED), 3).await;
    scenery.outage().await;
    scenery.pass(1).await;
    scenery.relay = "relay-2".to_owned();
    scenery.store.advance(Duration::from_secs(601));
    scenery.pass(1).await;
    scenery.only_redrive().await;
}

#[tokio::test]
async fn a_crash_between_the_audit_log_and_the_redrive_leaves_one_deed() {
    let mut ids = Vec::new();
    for begun in [false, true] {
        let mut scenery = Scenery::of(rule(VERSION), 3).await;
        if begun {
            let id: &String = &ids[0];
            let entry = NewAuditEntry {
                deed: id.clone(),
                redrive: Some(id.clone()),
                step: AuditStep::Begun,
                ..entry(&other_redrive(&scenery).await)
            };
            scenery.store.write_audit(&entry).await.expect("written");
        }
        scenery.deploy("2");
        scenery.stand().await;
        let made = scenery.redrives().await.pop().expect("made");
        let audited = scenery.audited().await;
        assert_eq!(audited.len(), 1, "{audited:#?}");
        assert_eq!((audited[0].step, &audited[0].deed), (AuditStep::Done, &made.plan.id));
        ids.push(made.plan.id);
    }
    assert_eq!(ids[0], ids[1], "the id is made of rule and version");
}

async fn redrive_by_hand(scenery: &Scenery, consumer: &str) -> Redrive {
    let open = LetterFilter::of_status(LetterStatus::Open);
    let filter = LetterFilter { consumer: Some(consumer.to_owned()), ..open };
    let new = crate::redrive::new_redrive(filter, backstop_core::ledger::Guard::default());
    scenery.store.create_redrive(&new).await.expect("made")
}

/// Whoever has paused a redrive wants its letters left alone.
#[tokio::test]
async fn a_rule_waits_for_what_somebody_redrives_of_the_same_consumer() {
    let mut scenery = Scenery::of(rule(VERSION), 3).await;
    let mut made = redrive_by_hand(&scenery, "stock").await;
    let paused = made.paused("lunch").expect("it runs");
    scenery.steer(&made, paused).await;
    scenery.deploy("2");
    scenery.stand().await;
    scenery.only_redrive().await;
    let standing = scenery.standing().await;
    let behind = Some(made.plan.id.clone());
    assert!(matches!(&standing, Standing::Waiting { behind: id, .. } if *id == behind), "{standing:?}");
    made = scenery.only_redrive().await;
    scenery.end(&made, Run::Cancelled).await;
    redrive_by_hand(&scenery, "mail").await;
    scenery.look().await;
    assert_eq!(scenery.redrives().await.len(), 3);
}

#[tokio::test]
async fn a_rule_waits_for_a_redrive_however_many_were_made_since() {
    let mut scenery = Scenery::of(rule(VERSION), 3).await;
    let made = redrive_by_hand(&scenery, "stock").await;
    let paused = made.paused("lunch").expect("it runs");
    scenery.steer(&made, paused).await;
    for _ in 0..PAGE {
        let other = redrive_by_hand(&scenery, "mail").await;
        scenery.end(&other, Run::Done).await;
    }
    scenery.deploy("2");
    scenery.stand().await;
    let standing = scenery.standing().await;
    assert!(
        matches!(&standing, Standing::Waiting { behind: Some(id), .. } if *id == made.plan.id),
        "{standing:?}"
    );
}

/// A redrive of nothing that somebody has made.
async fn other_redrive(scenery: &Scenery) -> Redrive {
    redrive_by_hand(scenery, "mail").await
}

#[tokio::test]
async fn a_relay_that_has_lost_the_lease_does_nothing_and_two_that_fire_make_one() {
    let mut scenery = Scenery::of(rule(VERSION), 3).await;
    let stale = scenery.lease().await;
    scenery.relay = "relay-2".to_owned();
    scenery.store.advance(Duration::from_secs(601));
    scenery.deploy("2");
    scenery.pass(1).await;
    let before = remembered(&scenery).await;
    scenery.store.advance(Duration::from_secs(60));
    scenery.keeper().round(&stale, &CancellationToken::new()).await.expect("it answers");
    assert_eq!(scenery.redrives().await, []);
    assert_eq!(remembered(&scenery).await, before);
    let reports = scenery.store.consumers().await.expect("it answers");
    let now = scenery.store.time().await.expect("it answers");
    let rule = &scenery.letters.rules[0];
    let (scene, event) = (Scene::of(rule, &reports, now), Event::Version("2".to_owned()));
    let fired = || fire::fire(&*scenery.store, &scenery.letters, rule, &event, &scene);
    let (one, two) = tokio::join!(fired(), fired());
    let id = |made: Result<Option<Redrive>, AdapterError>| made.expect("it answers").expect("made").plan.id;
    assert_eq!(id(one), id(two));
    scenery.look().await;
    scenery.only_redrive().await;
}

/// Consumers of earlier versions, and such that cannot report, fire nothing, and that is told.
#[tokio::test]
async fn who_does_not_tell_fires_nothing_and_is_named() {
    let mut scenery = Scenery::of(rule(CLOSED), 3).await;
    (scenery.consumer.breaker_closings, scenery.consumer.breaker_closed_at) = (None, None);
    for breaker in [BreakerState::Open, BreakerState::Closed] {
        scenery.consumer.breaker = Some(breaker);
        scenery.stand().await;
    }
    let blocked = |standing| match standing {
        Standing::Blocked { why, remedy } => (why, remedy),
        other => panic!("it could fire: {other:?}"),
    };
    let (why, remedy) = blocked(scenery.standing().await);
    assert_eq!(why, "stock does not tell when its breaker closes");
    assert_eq!(remedy, "build it with a version of Backstop that does");
    scenery.letters = rule(VERSION);
    scenery.consumer.version = None;
    scenery.stand().await;
    assert_eq!(blocked(scenery.standing().await).0, "stock does not tell its version");
    scenery.store.advance(Duration::from_secs(91));
    assert_eq!(blocked(scenery.standing().await).0, "no instance of stock is there");
    scenery.letters.rules[0].consumer = "mail".to_owned();
    assert_eq!(blocked(scenery.standing().await).0, "mail does not report in");
    scenery.letters.receipts.clear();
    assert_eq!(blocked(scenery.standing().await).0, "this relay does not read what consumers report");
    scenery.letters.enabled = false;
    assert_eq!(blocked(scenery.standing().await).0, "this relay does not attend to dead letters");
    assert_eq!(scenery.redrives().await, []);
}

/// Two relays on a real database, one of which is killed without a word, make one redrive.
#[tokio::test]
async fn two_relays_make_one_redrive() {
    use backstop_core::schema::Schema;
    use backstop_sqlite::{SqliteLedger, SqliteSchema, SqliteTables};
    let folder = tempfile::tempdir().expect("a folder");
    let pool =
        backstop_sqlite::open(folder.path().join("l.db").to_str().expect("UTF-8")).await.expect("opened");
    SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await.expect("migrated");
    let ledger: Arc<dyn Ledger> = Arc::new(SqliteLedger::new(pool, SqliteTables::default()));
    ledger.record(&[letter(0), letter(1)]).await.expect("recorded");
    let stop = CancellationToken::new();
    let start = || {
        let mut letters = rule(&format!("{VERSION}wait = \"0s\"\n"));
        letters.lease_ttl = Duration::from_secs(1);
        let mut keeper = Keeper::new(ledger.clone(), letters);
        keeper.look_every = Duration::from_millis(20);
        tokio::spawn(keeper.run(stop.clone()))
    };
    let (one, two) = (start(), start());
    let report = async |version: &str| {
        let mut report = ConsumerReport::new("stock", "stock-1", ConsumerState::Running);
        report.version = Some(version.to_owned());
        ledger.record_reports(&[report]).await.expect("recorded");
    };
    report("1").await;
    let lease = lease_name(&rule(VERSION));
    let begun =
        async || ledger.holder(&lease).await.expect("it answers").is_some_and(|it| it.report.is_some());
    until("the rule has begun", begun).await;
    one.abort();
    report("2").await;
    let redrives = async || ledger.redrives(None, 10).await.expect("it answers");
    until("a redrive", async || !redrives().await.is_empty()).await;
    let third = start();
    let made = redrives().await.remove(0);
    let done = Course { run: Run::Done, phase: Phase::Settling, ..made.standing.clone() };
    assert!(ledger.steer_redrive(&made.plan.id, &made.standing, &done).await.expect("it answers"));
    report("3").await;
    until("the next redrive", async || redrives().await.len() > 1).await;
    let letters: Vec<u64> = redrives().await.iter().map(|redrive| redrive.letters().sum()).collect();
    assert_eq!(letters, [2, 2], "one for each version");
    stop.cancel();
    two.await.expect("no panic");
    third.await.expect("no panic");
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
