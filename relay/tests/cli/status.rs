//! `outbox status` beside a relay that runs.

use std::time::{Duration, Instant};

use backstop_core::{Message, Outgoing};
use backstop_kafka::MockBroker;
use backstop_sqlite::SqliteOutbox;

use crate::relay::Relay;

/// No text may show it: a key can be personal data.
const KEY: &str = "alice@example.com";

async fn write(relay: &Relay) {
    let pool = backstop_sqlite::open(relay.path("x.db").to_str().expect("UTF-8")).await.expect("opened");
    let outbox = SqliteOutbox::default();
    let large = "x".repeat(2_000_000);
    for (destination, body) in
        [("orders", "small"), ("orders", large.as_str()), ("orders", "later"), ("a b", "x")]
    {
        let message = Message::new("order.placed").key(KEY).body("text/plain", body.to_owned());
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        outbox.enqueue(&mut tx, Outgoing::to(destination, message)).await.expect("written");
        tx.commit().await.expect("committed");
    }
}

/// What only the owner knows is told from another process.
#[test]
fn rate_blocked_keys_and_paused_destinations_are_told_beside_a_running_relay() {
    let broker = MockBroker::start().expect("a broker");
    broker.create_topic("orders", 1).expect("a topic");
    let relay = Relay::new(&format!(
        "[database]\nurl = \"sqlite:x.db?mode=rwc\"\n[outbox]\non_unsendable = \"block-key\"\n\
         [broker]\nkind = \"kafka\"\nbrokers = [\"{}\"]\n",
        broker.bootstrap_servers()
    ));
    assert_eq!(relay.run("migrate").code, 0);
    tokio::runtime::Runtime::new().expect("a runtime").block_on(write(&relay));
    let ended = relay.run_while("run", || {
        let begun = Instant::now();
        let told = loop {
            let status = relay.run("outbox status --output json").json()[0].clone();
            let running = &status["running"];
            if running["blocked_keys"] == 1 && running["paused_destinations"] == 1 {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{status}");
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!((&told["pending"], &told["running"]["state"]), (&3.into(), &"running".into()));
        assert_eq!(told["running"]["token"], told["token"]);
        assert!(told["running"]["rate"].is_f64() && told["running"]["blocked"][0]["seq"] == 2, "{told}");
        let shown = relay.run("outbox status").stdout;
        for part in ["\nblocked key: orders from row 2\n", "\npaused: a b from row 4\n", "  mend: "] {
            assert!(shown.contains(part), "no {part:?} in {shown}");
        }
        assert!(!shown.contains(KEY) && !told.to_string().contains(KEY), "{shown}");
    });
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let after = relay.run("outbox status --output json").json();
    assert_eq!(
        (&after[0]["running"], &after[0]["owner"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
}
