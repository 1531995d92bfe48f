//! A service that wrote for Debezium, and another in any language, served by the built program: from their INSERT to
//! Kafka.

#[path = "cli/relay.rs"]
#[allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]
mod relay;

use std::time::Duration;

use backstop_core::Message;
use backstop_core::source::{Settlement, Source};
use backstop_kafka::{KafkaSource, StartFrom};
use relay::{Relay, kafka, postgres, unique};
use sqlx::{AssertSqlSafe, PgPool};

const BOUND: Duration = Duration::from_secs(60);

async fn run(pool: &PgPool, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql.clone()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn configured(schema: &str, outbox: &str) -> Relay {
    Relay::new(&format!(
        "[database]\nurl = \"{}\"\nschema = \"{schema}\"\n[broker]\nkind = \"kafka\"\nbrokers = \"{}\"\n{outbox}",
        postgres(),
        kafka()
    ))
}

/// Reads that many messages while the relay runs.
fn receive(relay: &Relay, topic: &str, count: usize) -> Vec<Message> {
    let mut found = Vec::new();
    let ran = relay.run_while("run", || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let source = KafkaSource::subscribe(kafka(), unique(), &[topic]);
            let mut source = source.start_from(StartFrom::Earliest);
            while found.len() < count {
                let batch = tokio::time::timeout(BOUND, source.next()).await.expect("in time");
                for mut received in batch.expect("readable").expect("not the end") {
                    assert!(received.settlement.begin());
                    received.settlement.settle();
                    found.push(received.message);
                }
            }
            source.close().await.expect("closed");
        });
    });
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    found
}

#[test]
fn a_plain_insert_arrives_with_the_documented_defaults() {
    let (schema, topic) = (unique(), unique());
    let relay = configured(&schema, "");
    assert_eq!(relay.run("migrate").code, 0);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pool = runtime.block_on(async { PgPool::connect(&postgres()).await.expect("PostgreSQL") });
    runtime.block_on(run(
        &pool,
        format!(
            "INSERT INTO {schema}.backstop_outbox (destination, payload) VALUES ('{topic}', 'now'); \
             INSERT INTO {schema}.backstop_outbox_scheduled (publish_after, destination, payload) \
             VALUES (now() + interval '1 second', '{topic}', 'later')"
        ),
    ));
    let found = receive(&relay, &topic, 2);
    for (message, body) in found.iter().zip(["now", "later"]) {
        assert_eq!(message.body.as_deref(), Some(body.as_bytes()));
        assert!(uuid::Uuid::try_parse(&message.id).is_ok(), "{}", message.id);
        assert_eq!((&*message.source, &*message.kind, &message.key), ("", "", &None));
        assert_eq!((&message.subject, &message.time, &message.content_type), (&None, &None, &None));
        let names: Vec<&str> = message.headers.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ce_specversion", "ce_id"]);
    }
    let status = relay.run("outbox status --output json").json();
    assert_eq!((&status[0]["pending"], &status[0]["scheduled"]), (&0.into(), &0.into()));
    runtime.block_on(run(&pool, format!("DROP SCHEMA {schema} CASCADE")));
}

#[test]
fn a_debezium_outbox_is_served_without_a_change_of_the_service() {
    const ID: &str = "406c07f3-26f0-4eea-a50c-109940064b8f";
    let (schema, kind) = (unique(), unique());
    let relay = configured(
        &schema,
        "[[outbox]]\n[[outbox]]\nname = \"debezium\"\nlayout = \"debezium\"\n[outbox.debezium]\n\
         topic = \"outbox.event.${routedByValue}\"\nadditional = \"type:header:eventType\"\n",
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let pool = runtime.block_on(async { PgPool::connect(&postgres()).await.expect("PostgreSQL") });
    runtime.block_on(run(
        &pool,
        format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.outboxevent (id uuid PRIMARY KEY, aggregatetype \
             varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)"
        ),
    ));
    let refused = relay.run("outbox status");
    assert_eq!((refused.code, refused.stdout.as_str()), (6, ""), "{}", refused.stderr);
    let steps = relay.run("migrate --output json").json();
    assert!(
        steps.as_array().expect("a list").iter().any(|step| step["name"] == "numbers for a Debezium outbox")
    );
    assert_eq!(relay.run("migrate").stdout, "nothing to do\n");
    let insert = |id: &str| {
        format!(
            "INSERT INTO {schema}.outboxevent (id, aggregatetype, aggregateid, type, payload) \
             VALUES ('{id}', '{kind}', '1', 'OrderCreated', '{{\"n\": 1}}')"
        )
    };
    runtime.block_on(run(&pool, insert(ID)));
    let status = relay.run("outbox status --output json").json();
    assert_eq!((&status[1]["name"], &status[1]["pending"]), (&"debezium".into(), &1.into()));
    let message = receive(&relay, &format!("outbox.event.{kind}"), 1).remove(0);
    assert_eq!((message.id.as_str(), message.key.as_deref()), (ID, Some(&b"1"[..])));
    assert_eq!(message.body.as_deref(), Some(&b"{\"n\": 1}"[..]));
    let header = |name| message.headers.get_str(name);
    assert_eq!(
        (header("id"), header("eventType"), message.kind.as_str()),
        (Some(ID), Some("OrderCreated"), "OrderCreated")
    );
    let check = relay.run("check").stdout;
    assert!(check.contains(&format!("table {schema}.outboxevent")), "{check}");
    runtime.block_on(run(&pool, format!("DROP SCHEMA {schema} CASCADE")));
}

#[test]
fn what_cannot_be_a_debezium_outbox_is_refused() {
    for (outbox, what, hint) in [
        ("[outbox.debezium]\n", "says nothing without the layout", "set layout = \"debezium\""),
        (
            "[outbox]\nlayout = \"debezium\"\n[outbox.debezium]\nkey = \"a b\"\n",
            "is not a usable SQL name",
            "letters",
        ),
        (
            "[outbox]\nlayout = \"debezium\"\n[outbox.debezium]\ntopic = \"a.${x}\"\n",
            "is no template",
            "${routedByValue}",
        ),
        (
            "[outbox]\nlayout = \"debezium\"\n[outbox.debezium]\nadditional = \"a:partition\"\n",
            "does not place",
            "column:header",
        ),
        (
            "[outbox]\nlayout = \"debezium\"\n[outbox.debezium]\nkeyy = \"a\"\n",
            "unknown key \"keyy\"",
            "\"key\"",
        ),
    ] {
        let ran = configured("x", outbox).run("check");
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{outbox}");
        let [error, remedy] = ran.lines();
        assert!(error.contains(what) && remedy.contains(hint), "{outbox}: {}", ran.stderr);
    }
    let sqlite =
        Relay::new("[database]\nurl = \"sqlite:x.db\"\n[outbox]\nlayout = \"debezium\"\n").run("check");
    assert!(sqlite.code == 3 && sqlite.stderr.contains("needs PostgreSQL"), "{}", sqlite.stderr);
}
