//! Writers of every kind, read without the net of the full scan.

use backstop_core::outbox::{OutboxReader, OutboxRow, OutboxStore};
use backstop_postgres::PgOutboxStore;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::support::Db;

const NEXT: &str = "SELECT nextval(pg_get_serial_sequence('backstop_outbox', 'seq'))";

fn store(db: &Db) -> PgOutboxStore {
    PgOutboxStore::new(db.pool.clone(), db.tables.clone()).full_scan(None)
}

/// The ids that the next read brings.
async fn read(reader: &mut Box<dyn OutboxReader>) -> Vec<String> {
    let claimed = reader.read(1_000, 1 << 20).await.expect("read");
    assert_eq!(claimed.stragglers, 0);
    claimed.rows.into_iter().map(|row: OutboxRow| row.message.id).collect()
}

/// Reads often enough that every gap closes that nobody holds open.
async fn read_on(reader: &mut Box<dyn OutboxReader>) {
    for _ in 0..5 {
        assert!(read(reader).await.is_empty());
    }
}

fn insert(id: &str) -> String {
    format!("INSERT INTO backstop_outbox (id, destination) VALUES ('{id}', 'orders')")
}

async fn run(connection: &mut PgConnection, sql: &str) {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.expect(sql);
}

#[tokio::test]
async fn a_prepared_transaction_is_waited_for_before_and_after_it_is_prepared() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    let mut writer = db.pool.acquire().await.expect("a connection").detach();
    run(&mut writer, &format!("BEGIN; {}", insert("late"))).await;
    db.run(&insert("other")).await;
    assert_eq!(read(&mut reader).await, ["other"]);
    read_on(&mut reader).await;
    let gid = &db.schema;
    run(&mut writer, &format!("PREPARE TRANSACTION '{gid}'")).await;
    drop(writer);
    read_on(&mut reader).await;
    db.run(&insert("another")).await;
    assert_eq!(read(&mut reader).await, ["another"]);
    read_on(&mut reader).await;
    db.run(&format!("COMMIT PREPARED '{gid}'")).await;
    assert_eq!(read(&mut reader).await, ["late"]);
    db.drop().await;
}

#[tokio::test]
async fn what_a_savepoint_undoes_closes_and_what_follows_it_comes() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    let mut writer = db.pool.acquire().await.expect("a connection").detach();
    let undone = insert("undone");
    run(&mut writer, &format!("BEGIN; SAVEPOINT s; {undone}; ROLLBACK TO SAVEPOINT s")).await;
    db.run(&insert("other")).await;
    assert_eq!(read(&mut reader).await, ["other"]);
    read_on(&mut reader).await;
    // The lock went with the savepoint, and comes back with this INSERT.
    run(&mut writer, &insert("kept")).await;
    db.run(&insert("another")).await;
    assert_eq!(read(&mut reader).await, ["another"]);
    read_on(&mut reader).await;
    run(&mut writer, &format!("SAVEPOINT t; {undone}; ROLLBACK TO SAVEPOINT t")).await;
    read_on(&mut reader).await;
    run(&mut writer, "COMMIT").await;
    assert_eq!(read(&mut reader).await, ["kept"]);
    read_on(&mut reader).await;
    db.drop().await;
}

#[tokio::test]
async fn a_number_taken_under_the_lock_may_be_used_long_after() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    let mut writer = db.pool.acquire().await.expect("a connection").detach();
    run(&mut writer, &format!("BEGIN; LOCK TABLE backstop_outbox IN ROW EXCLUSIVE MODE; {NEXT}")).await;
    for id in ["a", "b"] {
        db.run(&insert(id)).await;
        assert_eq!(read(&mut reader).await, [id]);
        read_on(&mut reader).await;
    }
    let chosen = "INSERT INTO backstop_outbox (seq, id, destination) OVERRIDING SYSTEM VALUE \
                  VALUES (1, 'late', 'orders'); COMMIT";
    run(&mut writer, chosen).await;
    assert_eq!(read(&mut reader).await, ["late"]);
    db.drop().await;
}

#[tokio::test]
async fn rows_under_numbers_that_are_given_again_come() {
    let db = Db::new().await;
    let store = store(&db);
    let mut reader = store.reader();
    for id in ["a", "b", "c", "d"] {
        db.run(&insert(id)).await;
    }
    let claimed = reader.read(1_000, 1 << 20).await.expect("read");
    let all: Vec<_> = claimed.rows.iter().map(OutboxRow::row_id).collect();
    store.delete(&all[..3]).await.expect("deleted");
    // As after a fail-over to a server that had seen number 1 alone.
    db.run("DELETE FROM backstop_outbox; SELECT setval(pg_get_serial_sequence('backstop_outbox', 'seq'), 1)")
        .await;
    let mut open = db.pool.begin().await.expect("begun");
    open.execute(AssertSqlSafe(insert("open"))).await.expect("written");
    db.run(&insert("again")).await;
    assert_eq!(read(&mut reader).await, ["again"], "number 3 of 4, read anew");
    store.delete(&all).await.expect("deleted");
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 1, "by number and id");
    read_on(&mut reader).await;
    open.commit().await.expect("committed");
    assert_eq!(read(&mut reader).await, ["open"]);
    db.drop().await;
}

#[tokio::test]
async fn a_writer_stays_open_while_others_commit_and_roll_back() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("late"))).await.expect("written");
    for n in 0..200 {
        let id = format!("{n}");
        db.run(&format!("BEGIN; {}; ROLLBACK; {}", insert("lost"), insert(&id))).await;
        assert_eq!(read(&mut reader).await, [id]);
    }
    late.commit().await.expect("committed");
    assert_eq!(read(&mut reader).await, ["late"]);
    db.drop().await;
}
