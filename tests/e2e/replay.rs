//! Replays of a topic, by the relay's command.

use std::time::Duration;

use backstop_tests::database::Database;
use backstop_tests::program::{Broker, ConsumerConfig, RelayConfig};
use backstop_tests::workload::{self, Publisher};
use backstop_tests::{letters, servers, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
const COUNT: usize = 300;

struct Scene {
    database: Database,
    place: String,
    relay: RelayConfig,
    folder: tempfile::TempDir,
}

impl Scene {
    /// A topic with events of several keys.
    async fn new() -> Self {
        let database = Database::fresh("replay").await;
        let place = servers::unique("replay");
        workload::create_place(Broker::Kafka, &place, 3).await;
        let events = workload::events(COUNT, 20, |_| None);
        workload::publish(&database, &Publisher::new(Broker::Kafka), &place, &events).await;
        let relay = RelayConfig::new(Broker::Kafka, &database.schema, &[]);
        Self { database, place, relay, folder: tempfile::tempdir().expect("a folder") }
    }

    fn replay(&self, arguments: &[&str]) -> (i32, String) {
        let arguments = [&["replay", &self.place, "--yes", "--output", "json"], arguments].concat();
        tokio::task::block_in_place(|| self.relay.command(&arguments))
    }

    fn state(&self) -> String {
        self.folder.path().join("state.json").to_string_lossy().into_owned()
    }
}

/// A group that has handled all skips it at the door; with `--again` it is applied once more, and once only.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_to_a_door_goes_through_the_inbox_or_beside_it() {
    let scene = Scene::new().await;
    let consumer =
        ConsumerConfig::new(Broker::Kafka, &scene.place, &servers::unique("group"), &scene.database.schema);
    let run = consumer.start();
    let applied = format!("SELECT count(*) FROM applied WHERE consumer = '{}'", consumer.group);
    let applied = async || scene.database.number(&applied).await;
    wait::until("all is applied", PATIENCE, || async { applied().await == COUNT as i64 }).await;

    let (code, output) = scene.replay(&["--from-beginning", "--to-door", &consumer.group]);
    assert_eq!(code, 0, "{output}");
    let again = ["--from-beginning", "--to-door", &consumer.group, "--again", "--state", &scene.state()];
    let (code, output) = scene.replay(&again);
    assert_eq!(code, 0, "{output}");
    wait::until("all is applied twice", PATIENCE, || async { applied().await >= 2 * COUNT as i64 }).await;
    // The same replay, sent again from its beginning: it has the same identities.
    let text = std::fs::read_to_string(scene.state()).expect("the state is there");
    let mut state: Value = serde_json::from_str(&text).expect("JSON");
    for range in state["left"].as_object_mut().expect("partitions").values_mut() {
        range["start"] = 0.into();
    }
    std::fs::write(scene.state(), state.to_string()).expect("written");
    let (code, output) = scene.replay(&again);
    assert_eq!(code, 0, "{output}");
    wait::until("nothing is held", PATIENCE, || async { scene.database.held().await == 0 }).await;
    let report = run.stop().await;
    assert_eq!(
        scene
            .database
            .number(&format!("SELECT count(*) FROM applied WHERE consumer = '{}'", consumer.group))
            .await,
        2 * COUNT as i64,
        "{report:?}"
    );
    scene.database.drop().await;
}

/// A replay that is killed goes on from its state; its messages are copies to the letter, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replay_goes_on_where_it_was() {
    let scene = Scene::new().await;
    let copy = servers::unique("copy");
    workload::create_place(Broker::Kafka, &copy, 3).await;
    let state = scene.state();
    let arguments = ["--from-beginning", "--to", &copy, "--rate", "100", "--state", &state];
    let slow = [&["replay", scene.place.as_str(), "--yes"], &arguments[..]].concat();
    let program = scene.relay.start(&slow);
    let sent = || {
        let text = std::fs::read_to_string(&state).unwrap_or_default();
        serde_json::from_str::<Value>(&text).map_or(0, |state| state["sent"].as_u64().unwrap_or(0))
    };
    wait::until("some are sent", PATIENCE, || std::future::ready(sent() >= 40)).await;
    program.kill();
    let before = sent();
    assert!(before < COUNT as u64, "it was not done");
    // What comes to the topic after the replay began is none of its business.
    let late = workload::events(10, 1, |_| None);
    workload::publish(&scene.database, &Publisher::new(Broker::Kafka), &scene.place, &late).await;
    let (code, output) = scene.replay(&["--to", &copy, "--state", &state]);
    assert_eq!(code, 0, "{output}");
    assert_eq!(sent(), COUNT as u64);

    let copies = letters::messages(Broker::Kafka, &copy, COUNT).await;
    let mut ids: Vec<&str> = copies.iter().map(|message| message.id.as_str()).collect();
    assert!(ids.len() <= COUNT + 10, "{} copies: only those in flight are sent twice", ids.len());
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), COUNT, "all of them, and none that came later");
    let (code, output) = scene.replay(&["--to", &copy, "--state", &state]);
    assert_eq!((code, sent()), (0, COUNT as u64), "nothing is left: {output}");
    scene.database.drop().await;
}

/// What cannot be is said before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_makes_no_sense_is_refused() {
    let scene = Scene::new().await;
    let (place, missing) = (scene.place.clone(), servers::unique("missing"));
    for (arguments, code, what) in [
        (&["--from-beginning", "--to", place.as_str()][..], 2, "every group would see everything twice"),
        (&["--to", "elsewhere"], 2, "where to begin is not said"),
        (&["--from-offset", "7:0", "--to", "elsewhere"], 9, "has no partition 7"),
        (&["--from-offset", "0:99999", "--to", "elsewhere"], 9, "has no offset 99999"),
        (&["--from-offset", "0", "--to", "elsewhere"], 2, "is no offset"),
        (&["--from-beginning", "--to", &missing], 9, "does not exist"),
    ] {
        let (ended, output) = scene.replay(arguments);
        assert!(output.contains(what), "{arguments:?}: {output}");
        assert_eq!(ended, code, "{arguments:?}: {output}");
    }
    let copy = servers::unique("copy");
    workload::create_place(Broker::Kafka, &copy, 1).await;
    let dry = ["--from-time", "2100-01-01T00:00:00Z", "--to", &copy, "--dry-run"];
    let (code, output) = scene.replay(&dry);
    assert_eq!(code, 0, "{output}");
    assert!(output.contains("\"left\": 0"), "{output}");
    scene.database.drop().await;
}
