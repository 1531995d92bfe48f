//! `held …` on a database with a quarantined head, its follower, and a message of another key that is tried again.

use std::time::Duration;

use backstop_core::held::{Failure, HeldMessages, NewHeld};
use backstop_core::inbox::Unit;
use backstop_core::{DeadReason, Envelope, ErrorClass, MessageKey, Origin, Via};
use backstop_postgres::{PgInbox, PgTables};
use backstop_sqlite::SqliteInbox;

use crate::relay::{Relay, postgres, unique};

const DUE_IN: Duration = Duration::from_secs(5 * 60 * 60);

async fn fill(inbox: &impl HeldMessages) {
    for (key, id, condemned) in
        [("tea", "1", Some(DeadReason::Permanent)), ("tea", "2", None), ("milk", "3", None)]
    {
        let message_key = MessageKey::new("/shop", id.as_bytes());
        let (consumer, place) = ("stock", "orders");
        let unit = Unit { consumer, place, ordering_key: key.as_bytes(), message_key: &message_key };
        let envelope =
            Envelope { key: Some(key.into()), body: Some("card 4111".into()), ..Envelope::default() };
        let origin = Origin::Kafka { topic: place.into(), partition: 0, offset: 1, timestamp: None };
        let new = NewHeld { unit, envelope: &envelope, origin: &origin, via: Via::Live };
        let error = "no such \u{1b}[2Jarticle".to_owned();
        let class = ErrorClass::Permanent;
        let failure =
            Failure { attempts: 1, throttled: 0, class, error, due_in: DUE_IN, condemned, crashes: 0 };
        if id == "2" {
            inbox.append(new).await.expect("appended");
        } else {
            inbox.hold(new, &failure).await.expect("held");
        }
        if condemned.is_some() {
            inbox.park(consumer, &message_key, 1, &envelope.headers).await.expect("quarantined");
        }
    }
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(future)
}

/// A directory with such a file.
pub(crate) fn with_held_messages() -> Relay {
    let relay = Relay::new("[database]\nurl = \"sqlite:x.db?mode=rwc\"\n");
    assert_eq!(relay.run("migrate").code, 0);
    wait_for(async {
        let pool = backstop_sqlite::open(relay.path("x.db").to_str().expect("UTF-8")).await.expect("opened");
        fill(&SqliteInbox::new(pool)).await;
    });
    relay
}

/// The same on PostgreSQL.
fn on_postgres() -> Relay {
    let prefix = unique();
    let relay = Relay::new(&format!("[database]\nurl = \"{}\"\nprefix = \"{prefix}\"\n", postgres()));
    assert_eq!(relay.run("migrate").code, 0);
    wait_for(async {
        let pool = backstop_postgres::open(&postgres()).await.expect("opened");
        let tables = PgTables::default().with_prefix(&prefix).expect("a name of ours");
        fill(&PgInbox::with_tables(pool, tables)).await;
    });
    relay
}

/// Message, state and followers of each head, with their numbers.
#[track_caller]
fn held(relay: &Relay, args: &str) -> Vec<(i64, String, String, u64)> {
    let keys = relay.run(&format!("held list --output json {args}")).json();
    let key = |key: &serde_json::Value| {
        let text = |name: &str| key[name].as_str().expect("a text").to_owned();
        let n = key["n"].as_i64().expect("a number");
        (n, text("message"), text("state"), key["behind"].as_u64().expect("a number"))
    };
    keys.as_array().expect("a list").iter().map(key).collect()
}

fn shown(keys: &[(i64, String, String, u64)]) -> Vec<(&str, &str, u64)> {
    keys.iter().map(|(_, message, state, behind)| (message.as_str(), state.as_str(), *behind)).collect()
}

fn lists_releases_and_skips(relay: &Relay) {
    let keys = held(relay, "");
    assert_eq!(shown(&keys), [("/shop|1", "quarantined", 1), ("/shop|3", "retry", 0)]);
    assert_eq!(held(relay, "--quarantined"), keys[..1]);
    assert_eq!(held(relay, "--consumer other"), []);
    assert_eq!(held(relay, "--place orders --limit 1"), keys[..1]);
    let (quarantined, tried) = (keys[0].0, keys[1].0);
    assert_eq!(held(relay, &format!("--after {quarantined}")), keys[1..]);

    let unasked = relay.run(&format!("held release {quarantined}"));
    assert_eq!(unasked.code, 10, "{}", unasked.stderr);
    assert_eq!(relay.run(&format!("held release {quarantined} --dry-run")).code, 0);
    assert_eq!(held(relay, "").len(), 2, "nothing is changed yet");
    let lost = relay.run(&format!("held release {tried} --yes"));
    assert!(lost.code == 1 && lost.stdout.ends_with("released, it would be lost\n"), "{}", lost.stdout);
    let released = relay.run(&format!("held release {quarantined} {} --yes", tried + 1_000));
    assert_eq!(released.code, 1, "one of them is not there");
    assert!(released.stdout.contains(&format!("{quarantined} done\n")), "{}", released.stdout);
    assert!(!released.stdout.contains('\u{1b}') && !released.stdout.contains("4111"));

    let keys = held(relay, "");
    assert_eq!(shown(&keys), [("/shop|2", "retry", 0), ("/shop|3", "retry", 0)]);
    assert_eq!(relay.run(&format!("held skip {} --yes", keys[0].0)).code, 2, "it wants a cause");
    let skipped = relay.run(&format!("held skip {} --because tested --yes --output json", keys[0].0));
    assert_eq!((&skipped.json()["keys"][0]["outcome"], skipped.code), (&"done".into(), 0));
    assert_eq!(skipped.json()["because"], "tested");
    assert_eq!(shown(&held(relay, "")), [("/shop|3", "retry", 0)]);
}

#[test]
fn held_keys_on_sqlite() {
    lists_releases_and_skips(&with_held_messages());
}

#[test]
fn held_keys_on_postgres() {
    let relay = on_postgres();
    lists_releases_and_skips(&relay);
    assert_eq!(relay.run("migrate down --to 0").code, 0);
}

#[test]
fn who_released_what_is_logged_whatever_the_filter() {
    let relay = with_held_messages();
    let ran = relay.run("held release 1 --because mended --yes --log off --log-format json");
    let lines = ran.stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let steps: Vec<_> =
        lines.map(|line| (line["what"].clone(), line["step"].clone(), line["because"].clone())).collect();
    let told = |step: &str| ("held release".into(), step.into(), "mended".into());
    assert_eq!(steps, [told("begins"), told("ended")]);
}
