//! An outbox table of Debezium's layout, as its users have it.

use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::dead_rows::{DeadRowFilter, DeadRows};
use backstop_core::lease::{Lease, Leases};
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxRow, OutboxStore, RowId};
use backstop_core::schema::{Schema, Severity};
use backstop_postgres::{AdditionalField, DebeziumOutbox, DebeziumSchema, PgOutboxStore};

use crate::support::Db;

/// As Debezium's documentation has it.
const TABLE: &str = "CREATE TABLE outboxevent (id uuid NOT NULL PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
                     aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)";
const ID: &str = "406c07f3-26f0-4eea-a50c-109940064b8f";

fn insert(id: &str, aggregate: &str) -> String {
    format!(
        "INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload) \
         VALUES ('{id}', 'Order', '{aggregate}', 'OrderCreated', '{{\"n\": 1}}')"
    )
}

fn schema(db: &Db, outbox: &DebeziumOutbox) -> DebeziumSchema {
    DebeziumSchema::new(db.pool.clone(), db.tables.clone(), outbox).expect("sound names")
}

async fn opened(db: &Db, outbox: &DebeziumOutbox) -> PgOutboxStore {
    let store = PgOutboxStore::debezium(db.pool.clone(), db.tables.clone(), outbox).await;
    store.expect("opened").full_scan(None)
}

/// A numbered table of the default layout.
async fn usual() -> (Db, PgOutboxStore) {
    let db = Db::new().await;
    db.run(TABLE).await;
    let outbox = DebeziumOutbox::default();
    assert_eq!(schema(&db, &outbox).migrate().await.expect("numbered"), [1]);
    let store = opened(&db, &outbox).await;
    (db, store)
}

async fn read(reader: &mut Box<dyn OutboxReader>) -> Claimed {
    reader.read(1_000, 1 << 20).await.expect("read")
}

async fn lease(store: &PgOutboxStore) -> Lease {
    let lease = store.acquire("outbox", "me", Duration::from_secs(60)).await.expect("asked");
    lease.expect("granted")
}

fn header(row: &OutboxRow, name: &str) -> Option<String> {
    row.message.headers.get_str(name).map(str::to_owned)
}

#[tokio::test]
async fn a_row_of_the_default_layout_arrives_as_debezium_documents_it() {
    let (db, store) = usual().await;
    db.run(&insert(ID, "1")).await;
    let mut reader = store.reader();
    let row = read(&mut reader).await.rows.remove(0);
    assert_eq!(
        (row.destination.name.as_str(), row.destination.routing_key.as_deref()),
        ("outbox.event.Order", None)
    );
    assert_eq!((row.message.id.as_str(), row.message.key.as_deref()), (ID, Some(&b"1"[..])));
    assert_eq!((row.message.kind.as_str(), header(&row, "id").as_deref()), ("OrderCreated", Some(ID)));
    assert_eq!((row.message.body.as_deref(), row.message.headers.len()), (Some(&b"{\"n\": 1}"[..]), 1));
    let status = store.status().await.expect("asked");
    assert_eq!((status.pending, status.dead, status.scheduled), (1, 0, 0));
    let other = RowId { seq: row.seq, id: "other".into() };
    store.delete(&[other]).await.expect("nothing to delete");
    assert_eq!(store.status().await.expect("asked").pending, 1);
    store.delete(&[row.row_id()]).await.expect("deleted");
    assert_eq!(store.status().await.expect("asked").pending, 0);
    db.drop().await;
}

#[tokio::test]
async fn numbers_are_added_to_a_table_in_use_and_taken_back() {
    let db = Db::new().await;
    db.run(TABLE).await;
    db.run(&insert(ID, "1")).await;
    let outbox = DebeziumOutbox::default();
    let unnumbered = PgOutboxStore::debezium(db.pool.clone(), db.tables.clone(), &outbox).await;
    let error = unnumbered.expect_err("no numbers yet");
    assert_eq!(error.kind(), FaultKind::Missing);
    assert!(error.hint().is_some_and(|hint| hint.contains("migrate")), "{:?}", error.hint());
    let (one, two) = (schema(&db, &outbox), schema(&db, &outbox));
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    assert_eq!([first.expect("numbered"), second.expect("numbered")].concat(), [1], "once");
    db.run(&insert("506c07f3-26f0-4eea-a50c-109940064b8f", "2")).await;
    let store = opened(&db, &outbox).await;
    let rows = read(&mut store.reader()).await.rows;
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2]);
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'outboxevent'::regclass AND attnum > 0 \
                   AND NOT attisdropped";
    assert_eq!(db.number(columns).await, 6, "seq, and nothing else");
    assert_eq!(one.revert(0).await.expect("taken back"), [1]);
    assert_eq!((db.number(columns).await, one.applied().await.expect("asked")), (5, Vec::new()));
    assert_eq!(db.number("SELECT count(*) FROM outboxevent").await, 2);
    db.drop().await;
}

#[tokio::test]
async fn columns_topics_and_placements_are_configurable() {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE \"Events\" (\"eventId\" bigint GENERATED ALWAYS AS IDENTITY, topic text, k text, t text, body text, \
         at bigint, \"tenant\" text, amount numeric, source text)",
    )
    .await;
    let parse = |text| AdditionalField::parse(text).expect("sound");
    let outbox = DebeziumOutbox {
        table: format!("{}.Events", db.schema),
        id: "eventId".into(),
        key: "k".into(),
        kind: "t".into(),
        payload: "body".into(),
        timestamp: Some("at".into()),
        route_by: "topic".into(),
        topic: "shop.${routedByValue}.v1".into(),
        additional: [
            "tenant:header:x-tenant",
            "amount:envelope",
            "source:header:ce_source",
            "tenant:envelope:who",
        ]
        .map(parse)
        .to_vec(),
    };
    schema(&db, &outbox).migrate().await.expect("numbered");
    let store = opened(&db, &outbox).await;
    db.run(
        "INSERT INTO \"Events\" (topic, k, t, body, at, tenant, amount, source) VALUES \
         ('orders', 'a', 'placed', 'hi', 1556890294484, 'acme', 1.50, '/shop'), \
         ('orders', NULL, 'placed', NULL, 9223372036854775807, NULL, NULL, NULL)",
    )
    .await;
    let rows = read(&mut store.reader()).await.rows;
    let [full, bare] = &rows[..] else { panic!("two rows: {rows:?}") };
    assert_eq!((full.destination.name.as_str(), full.message.id.as_str()), ("shop.orders.v1", "1"));
    assert_eq!((full.message.source.as_str(), header(full, "x-tenant").as_deref()), ("/shop", Some("acme")));
    assert_eq!(full.message.time.map(|time| time.timestamp_millis()), Some(1_556_890_294_484));
    let body = |row: &OutboxRow| -> serde_json::Value {
        serde_json::from_slice(row.message.body.as_deref().expect("a body")).expect("JSON")
    };
    assert_eq!(body(full), serde_json::json!({ "payload": "hi", "amount": 1.5, "who": "acme" }));
    assert_eq!(
        (bare.message.key.as_deref(), bare.message.time, bare.message.source.as_str()),
        (None, None, "")
    );
    assert_eq!(body(bare), serde_json::json!({ "payload": null, "amount": null, "who": null }));
    assert!(bare.message.headers.iter().any(|(name, value)| name == "x-tenant" && value.is_none()));
    db.drop().await;
}

#[tokio::test]
async fn bytes_arrive_as_they_are_and_a_row_without_a_route_is_told() {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE outboxevent (id text, aggregatetype text, aggregateid text, type text, payload bytea)",
    )
    .await;
    let outbox = DebeziumOutbox::default();
    schema(&db, &outbox).migrate().await.expect("numbered");
    let store = opened(&db, &outbox).await;
    db.run(
        "INSERT INTO outboxevent (id, aggregatetype, payload) VALUES ('1', 'a', '\\x00ff'), ('2', NULL, NULL), \
         (NULL, 'a', NULL), ('4', 'a', NULL)",
    )
    .await;
    let claimed = read(&mut store.reader()).await;
    let bodies: Vec<_> = claimed.rows.iter().map(|row| row.message.body.as_deref()).collect();
    assert_eq!(bodies, [Some(&[0, 0xff][..]), None]);
    let errors: Vec<_> = claimed.unreadable.iter().map(|row| row.error.as_str()).collect();
    assert_eq!(errors, ["the destination is empty", "the id is empty"]);
    assert!(store.bury(&lease(&store).await, &claimed.unreadable).await.expect("asked"));
    assert_eq!(store.status().await.expect("asked").dead, 2, "a row without an id can be buried, too");
    db.drop().await;
}

#[tokio::test]
async fn dead_rows_go_back_to_the_letter_and_apart_from_those_of_the_outbox() {
    let (db, store) = usual().await;
    db.run("ALTER TABLE outboxevent ADD COLUMN extra bytea DEFAULT '\\x00ff', ADD COLUMN at timestamptz DEFAULT now()").await;
    let store = {
        drop(store);
        opened(&db, &DebeziumOutbox::default()).await
    };
    db.run(&insert(ID, "1")).await;
    db.run("INSERT INTO backstop_outbox (id, destination) VALUES ('ours', 'orders')").await;
    let ours = PgOutboxStore::new(db.pool.clone(), db.tables.clone());
    let whole = "SELECT hashtext((to_jsonb(o) - 'seq')::text)::bigint FROM outboxevent AS o";
    let before = db.number(whole).await;
    let lease = lease(&store).await;
    for store in [&store, &ours] {
        let row = read(&mut store.reader()).await.rows.remove(0);
        let RowId { seq, id } = row.row_id();
        let dead = DeadRow { seq, id, reason: "too-large".into(), error: "9 MB".into() };
        assert!(store.bury(&lease, &[dead]).await.expect("asked"));
    }
    let filter = DeadRowFilter::default();
    for (store, id) in [(&store, ID), (&ours, "ours")] {
        let dead = store.buried(&filter, 10).await.expect("read");
        assert_eq!(dead.iter().map(|dead| dead.row.message.id.as_str()).collect::<Vec<_>>(), [id]);
        assert_eq!(store.status().await.expect("asked").dead, 1);
    }
    let dead = store.buried(&filter, 10).await.expect("read");
    assert_eq!(dead[0].row.destination.name, "outbox.event.Order");
    assert_eq!(store.retry_buried(&filter, 10).await.expect("moved"), 1);
    assert_eq!(store.retry_buried(&filter, 10).await.expect("moved"), 0);
    assert_eq!(db.number(whole).await, before, "every column is as it was");
    assert_eq!(db.number("SELECT seq FROM outboxevent").await, 2, "under a new number");
    assert_eq!(ours.discard_buried(&filter, 10).await.expect("deleted"), 1);
    db.drop().await;
}

#[tokio::test]
async fn a_row_that_commits_late_is_not_lost() {
    let (db, store) = usual().await;
    let mut reader = store.reader();
    let mut late = db.pool.begin().await.expect("begun");
    sqlx::query(sqlx::AssertSqlSafe(insert(ID, "late"))).execute(&mut *late).await.expect("written");
    db.run(&insert("506c07f3-26f0-4eea-a50c-109940064b8f", "early")).await;
    assert_eq!(read(&mut reader).await.rows.len(), 1);
    assert_eq!(read(&mut reader).await.rows.len(), 0);
    late.commit().await.expect("committed");
    let rows = read(&mut reader).await.rows;
    assert_eq!(rows.iter().map(|row| row.message.key.as_deref()).collect::<Vec<_>>(), [Some(&b"late"[..])]);
    db.drop().await;
}

#[tokio::test]
async fn rows_that_the_service_deletes_itself_are_found_by_the_check() {
    let (db, store) = usual().await;
    let outbox = DebeziumOutbox::default();
    let findings = schema(&db, &outbox).check().await.expect("checked");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
    db.run(&format!("BEGIN; {}; DELETE FROM outboxevent; COMMIT", insert(ID, "1"))).await;
    assert_eq!(read(&mut store.reader()).await.rows, [], "it was never there");
    crate::support::until("the server has counted", || async {
        let findings = schema(&db, &outbox).check().await.expect("checked");
        findings.iter().any(|finding| {
            finding.severity == Severity::Warning
                && finding.remedy.as_deref().is_some_and(|remedy| remedy.contains("remove-after-insert"))
        })
    })
    .await;
    db.drop().await;
}

#[tokio::test]
async fn a_missing_table_and_a_missing_column_are_named() {
    let db = Db::new().await;
    let open = async |outbox: &DebeziumOutbox| {
        PgOutboxStore::debezium(db.pool.clone(), db.tables.clone(), outbox).await.expect_err("missing")
    };
    let outbox = DebeziumOutbox::default();
    let error = open(&outbox).await;
    assert!(
        error.kind() == FaultKind::Missing && error.to_string().contains("outboxevent does not exist"),
        "{error}"
    );
    let findings = schema(&db, &outbox).check().await.expect("checked");
    assert_eq!(findings[0].severity, Severity::Error);
    db.run(TABLE).await;
    let outbox = DebeziumOutbox { key: "aggregate_id".into(), ..outbox };
    assert_eq!(open(&outbox).await.to_string(), "table outboxevent has no column \"aggregate_id\"");
    db.drop().await;
}
