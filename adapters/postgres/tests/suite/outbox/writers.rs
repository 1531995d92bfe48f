//! Many writers at once: no committed row is missed, and none waits for the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::outbox::{OutboxRow, OutboxStore};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::{MEGA, insert, read, seqs, store};
use crate::support::Db;

/// F15: the cost of a read does not grow with what has been sent since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_stays_open_costs_nothing_while_others_write() {
    const ROWS: i64 = 20_000;
    let db = Arc::new(Db::new().await);
    let store = store(&db);
    let mut reader = store.reader();
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("late"))).await.expect("written");
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                // Single rows and rollbacks, so that numbers interleave and gaps come with almost every read.
                let one = "BEGIN; INSERT INTO backstop_outbox (destination) VALUES ('lost'); ROLLBACK; \
                           INSERT INTO backstop_outbox (destination) SELECT 'orders' FROM generate_series(1, 20);";
                for _ in 0..ROWS / 80 {
                    db.run(one).await;
                }
            })
        })
        .collect();
    let (mut came, mut slowest) = (0, Duration::ZERO);
    while came < ROWS {
        let begun = std::time::Instant::now();
        let claimed = read(&mut reader).await;
        slowest = slowest.max(begun.elapsed());
        came += i64::try_from(claimed.rows.len()).expect("few");
        store.delete(&claimed.rows.iter().map(OutboxRow::row_id).collect::<Vec<_>>()).await.expect("deleted");
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    assert!(seqs(&mut reader).await.is_empty(), "each row once");
    late.commit().await.expect("committed");
    assert_eq!(seqs(&mut reader).await, [1]);
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    Arc::into_inner(db).expect("the writers have ended").drop().await;
}

/// Writes the row in one of several ways.
async fn insert_somehow(tx: &mut PgConnection, n: usize, id: &str, key: &str, insert: &str) {
    match n % 4 {
        0 => {
            let statement = "COPY backstop_outbox (id, destination, key) FROM STDIN";
            let mut copy = tx.copy_in_raw(statement).await.expect("copying");
            copy.send(format!("{id}\torders\t{key}\n").into_bytes()).await.expect("sent");
            copy.finish().await.expect("copied");
        }
        1 => {
            let select = format!(
                "INSERT INTO backstop_outbox (id, destination, key) \
                 SELECT * FROM (VALUES ('{id}', 'orders', '{key}')) v (id, destination, key)"
            );
            tx.execute(AssertSqlSafe(select)).await.expect("written");
        }
        _ => {
            tx.execute(AssertSqlSafe(insert.to_owned())).await.expect("written");
        }
    }
}

/// Writes in every way there is until told to stop; returns the ids that were committed.
async fn write(db: Arc<(Db, AtomicBool)>, writer: usize) -> Vec<String> {
    let (db, stop) = &*db;
    let mut committed = Vec::new();
    let mut n = 0;
    let mut connection = db.pool.acquire().await.expect("a connection");
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let id = format!("{writer}-{n}");
        let key = format!("k{}", n % 5);
        let values = format!("('{id}', 'orders', '{key}')");
        let insert = format!("INSERT INTO backstop_outbox (id, destination, key) VALUES {values}");
        let mut tx = connection.begin().await.expect("begun");
        let lock = format!("SELECT 1 FROM aggregate WHERE key = '{key}' FOR UPDATE");
        tx.execute(AssertSqlSafe(lock)).await.expect("locked");
        if n % 7 == 0 {
            tx.execute(sqlx::raw_sql(AssertSqlSafe(format!(
                "SAVEPOINT s; {insert}; ROLLBACK TO SAVEPOINT s"
            ))))
            .await
            .expect("undone");
        }
        insert_somehow(&mut tx, n, &id, &key, &insert).await;
        if n % 3 == 0 {
            let wait = format!("SELECT pg_sleep(0.00{})", n % 10);
            tx.execute(AssertSqlSafe(wait)).await.expect("slept");
        }
        if n % 10 == 9 {
            tx.rollback().await.expect("rolled back");
            continue;
        }
        if writer == 0 && n % 5 == 1 {
            let gid = format!("{}-{id}", db.schema);
            tx.execute(AssertSqlSafe(format!("PREPARE TRANSACTION '{gid}'"))).await.expect("prepared");
            // sqlx still believes in its transaction: a statement that ends none keeps both in step.
            tx.rollback().await.expect("nothing to roll back");
            connection.execute("SELECT pg_sleep(0.005)").await.expect("slept");
            connection.execute(AssertSqlSafe(format!("COMMIT PREPARED '{gid}'"))).await.expect("committed");
        } else {
            tx.commit().await.expect("committed");
        }
        committed.push(id);
    }
    committed
}

/// F13, F14: with the full scan off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_committed_row_is_missed_while_writers_come_and_go() {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE aggregate (key text PRIMARY KEY); \
            INSERT INTO aggregate SELECT 'k' || n FROM generate_series(0, 4) n",
    )
    .await;
    let store = store(&db).full_scan(Some(Duration::from_millis(100)));
    let mut reader = store.reader();
    let shared = Arc::new((db, AtomicBool::new(false)));
    let writers: Vec<_> = (0..10).map(|writer| tokio::spawn(write(Arc::clone(&shared), writer))).collect();
    let end = tokio::time::Instant::now() + Duration::from_secs(6);
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut last_of_key: HashMap<Vec<u8>, i64> = HashMap::new();
    let (mut stragglers, mut disorder, mut quiet) = (0, 0, 0);
    while quiet < 20 {
        let claimed = reader.read(200, MEGA).await.expect("read");
        stragglers += claimed.stragglers;
        let mut published = Vec::new();
        for row in &claimed.rows {
            *seen.entry(row.message.id.clone()).or_default() += 1;
            let key = row.message.key.as_ref().expect("a key").to_vec();
            let before = last_of_key.insert(key, row.seq);
            disorder += usize::from(before.is_some_and(|before| before > row.seq));
            published.push(row.row_id());
        }
        store.delete(&published).await.expect("deleted");
        if tokio::time::Instant::now() > end {
            shared.1.store(true, Ordering::SeqCst);
            let done = writers.iter().all(tokio::task::JoinHandle::is_finished);
            quiet = if done && claimed.rows.is_empty() { quiet + 1 } else { 0 };
        }
    }
    let mut committed = 0;
    for writer in writers {
        for id in writer.await.expect("no panic") {
            committed += 1;
            assert_eq!(seen.get(&id), Some(&1), "{id}");
        }
    }
    assert!(committed > 100, "{committed}");
    assert_eq!(seen.len(), committed, "nothing but what was committed");
    assert_eq!((stragglers, disorder), (0, 0), "stragglers, out of order");
    let (db, _) = Arc::into_inner(shared).expect("the writers have ended");
    assert_eq!(db.number("SELECT count(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}
