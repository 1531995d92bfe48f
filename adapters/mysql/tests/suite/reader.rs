//! The reader: no committed row is skipped, whatever the order of commits, and each comes once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstop_core::Destination;
use backstop_core::outbox::{OutboxReader, OutboxRow, OutboxStore, Reread, RowId};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, MySqlConnection};

use crate::common::{Db, until, url};
use crate::outbox::{MEGA, insert, read, store};

async fn seqs(reader: &mut Box<dyn OutboxReader>) -> Vec<i64> {
    read(reader).await.rows.iter().map(|row| row.seq).collect()
}

#[tokio::test]
async fn reads_are_bounded_and_never_repeat() {
    let db = Db::new().await;
    db.run(
        "INSERT INTO backstop_outbox (destination, payload) WITH RECURSIVE c AS (SELECT 1 AS n UNION ALL \
         SELECT n + 1 FROM c WHERE n < 100) SELECT 'orders', REPEAT('x', 1000) FROM c",
    )
    .await;
    let mut reader = store(&db).reader();
    let mut all = Vec::new();
    loop {
        let claimed = reader.read(30, 10_500).await.expect("read");
        assert!(claimed.rows.len() <= 10, "{}", claimed.rows.len());
        all.extend(claimed.rows.iter().map(|row| row.seq));
        if !claimed.more {
            break;
        }
    }
    assert_eq!(all, (1..=100).collect::<Vec<i64>>());
    assert!(reader.read(30, 1).await.expect("read").rows.is_empty());
    reader.reset();
    assert_eq!(reader.read(30, 1).await.expect("read").rows.len(), 1, "one row may exceed the bound alone");
    assert_eq!(reader.read(7, MEGA).await.expect("read").rows.len(), 7);
    db.drop().await;
}

/// F13: a lower number that commits later is read.
#[tokio::test]
async fn a_late_commit_comes_whenever_it_comes() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    assert!(seqs(&mut reader).await.is_empty());
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("a"))).await.expect("written");
    let mut lost = db.pool.begin().await.expect("begun");
    lost.execute(AssertSqlSafe(insert("b"))).await.expect("written");
    db.run(&insert("c")).await;
    assert_eq!(seqs(&mut reader).await, [3]);
    for _ in 0..10 {
        assert!(seqs(&mut reader).await.is_empty());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    lost.rollback().await.expect("rolled back");
    assert!(seqs(&mut reader).await.is_empty());
    late.commit().await.expect("committed");
    assert_eq!(seqs(&mut reader).await, [1]);
    assert!(seqs(&mut reader).await.is_empty());
    db.drop().await;
}

/// A statement may have its numbers long before its rows, and before the transaction is one that the server lists.
#[tokio::test]
async fn numbers_that_were_taken_and_not_written_yet_are_waited_for() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    db.run("CREATE TABLE slow (n int)").await;
    let trigger = "CREATE TRIGGER slowly BEFORE INSERT ON backstop_outbox FOR EACH ROW \
                   SET @slept = IF(NEW.destination = 'slow', SLEEP(0.4), 0)";
    db.run(trigger).await;
    let writing = tokio::spawn({
        let pool = db.pool.clone();
        async move {
            let insert =
                "INSERT INTO backstop_outbox (destination) VALUES ('first'), ('slow'), ('slow'), ('slow')";
            pool.execute(insert).await.expect("written");
        }
    });
    // The counter shows that all four numbers are taken.
    let counter = "SELECT CAST(AUTO_INCREMENT AS SIGNED) FROM information_schema.TABLES \
                   WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'backstop_outbox'";
    until("the numbers are taken", || async { db.number(counter).await >= 5 }).await;
    db.run(&insert("other")).await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let rows = seqs(&mut reader).await;
        if seen.is_empty() && !rows.is_empty() {
            assert_eq!(rows, [5], "the other one comes first");
        }
        seen.extend(rows);
        assert!(seen.len() < 6);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    writing.await.expect("joined");
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    db.drop().await;
}

/// A statement that waits with its number, and has no row yet that could be found: only its metadata lock tells of it.
#[tokio::test]
async fn a_number_whose_row_waits_to_be_written_is_waited_for() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    db.run("INSERT INTO backstop_outbox (seq, destination) VALUES (5, 'a'), (10, 'a')").await;
    let mut operator = db.pool.acquire().await.expect("a connection");
    // A lock on the gap, and on no row.
    let lock = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; BEGIN; \
                SELECT seq FROM backstop_outbox WHERE seq = 7 FOR UPDATE";
    operator.execute(sqlx::raw_sql(lock)).await.expect("locked");
    let writing = tokio::spawn({
        let pool = db.pool.clone();
        async move {
            let insert = "INSERT INTO backstop_outbox (seq, destination) VALUES (7, 'late')";
            pool.execute(insert).await.expect("written");
        }
    });
    db.until_waiting(1).await;
    assert_eq!(seqs(&mut reader).await, [5, 10]);
    for _ in 0..10 {
        assert!(seqs(&mut reader).await.is_empty());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    operator.execute("ROLLBACK").await.expect("rolled back");
    drop(operator);
    writing.await.expect("joined");
    assert_eq!(seqs(&mut reader).await, [7]);
    db.drop().await;
}

/// A prepared transaction outlives its connection, and its metadata lock may not.
#[tokio::test]
async fn a_prepared_transaction_is_waited_for() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let mut writer = MySqlConnection::connect_with(&options.database(&db.schema)).await.expect("connected");
    let xid = format!("'{}'", db.schema);
    for statement in
        [format!("XA START {xid}"), insert("prepared"), format!("XA END {xid}"), format!("XA PREPARE {xid}")]
    {
        writer.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.expect("done");
    }
    writer.close().await.expect("closed");
    db.run(&insert("other")).await;
    assert_eq!(seqs(&mut reader).await, [2]);
    for _ in 0..20 {
        assert!(seqs(&mut reader).await.is_empty());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    db.run(&format!("XA COMMIT {xid}")).await;
    assert_eq!(seqs(&mut reader).await, [1]);
    db.drop().await;
}

/// F17, F26: after a restore nothing is taken for read.
#[tokio::test]
async fn a_counter_that_goes_backwards_starts_over() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    for _ in 0..10 {
        db.run(&insert("a")).await;
    }
    assert_eq!(seqs(&mut reader).await.len(), 10);
    db.run("TRUNCATE backstop_outbox").await;
    db.run(&insert("a")).await;
    let mut came = Vec::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while came.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "in vain");
        came = seqs(&mut reader).await;
    }
    assert_eq!(came, [1]);
    db.drop().await;
}

#[tokio::test]
async fn numbers_chosen_by_hand_are_found_in_gaps() {
    let db = Db::new().await;
    let mut reader = store(&db).reader();
    db.run(&insert("a")).await;
    db.run("INSERT INTO backstop_outbox (seq, destination) VALUES (1000, 'far')").await;
    assert_eq!(seqs(&mut reader).await, [1, 1_000]);
    db.run("INSERT INTO backstop_outbox (seq, destination) VALUES (-5, 'low'), (500, 'between')").await;
    db.run(&insert("a")).await;
    assert_eq!(seqs(&mut reader).await, [-5, 500, 1_001], "gaps first, in order");
    assert!(seqs(&mut reader).await.is_empty());
    db.drop().await;
}

#[tokio::test]
async fn rows_are_read_again_by_destination_and_key() {
    let db = Db::new().await;
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("a"))).await.expect("written");
    for key in ["a", "b", "a"] {
        db.run(&insert(key)).await;
    }
    db.run("INSERT INTO backstop_outbox (destination, routing_key, `key`) VALUES ('orders', 'r', 'a')").await;
    db.run("INSERT INTO backstop_outbox (destination, `key`) VALUES ('orders ', 'a')").await;
    let mut reader = store(&db).reader();
    assert_eq!(seqs(&mut reader).await, [2, 3, 4, 5, 6]);
    late.commit().await.expect("committed");
    db.run(&insert("a")).await;
    let mut again = async |key: Option<&'static str>, from: i64, rows: usize| {
        let destination = Destination::new("orders");
        let what = Reread { destination, key: key.map(Into::into), from };
        let claimed = reader.reread(&what, rows, MEGA).await.expect("read");
        (claimed.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), claimed.more)
    };
    assert_eq!(again(None, 0, 10).await, (vec![2, 3, 4], false), "only what was returned before");
    assert_eq!(again(Some("a"), 0, 10).await, (vec![2, 4], false));
    assert_eq!(again(Some("a"), 3, 10).await, (vec![4], false));
    assert_eq!(again(None, 0, 2).await, (vec![2], true), "the row that was not returned yet counts");
    assert_eq!(again(None, 0, 1).await, (vec![2], true), "and is stepped over");
    assert_eq!(seqs(&mut reader).await, [1, 7]);
    db.drop().await;
}

#[tokio::test]
async fn the_full_scan_finds_a_number_that_is_given_again() {
    let db = Db::new().await;
    let store = store(&db).full_scan(Some(Duration::from_millis(1)));
    let mut reader = store.reader();
    for key in ["a", "b", "c"] {
        db.run(&insert(key)).await;
    }
    let rows = read(&mut reader).await.rows;
    store.delete(&[rows[1].row_id()]).await.expect("deleted");
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(read(&mut reader).await.rows.len(), 0);
    db.run("INSERT INTO backstop_outbox (seq, destination) VALUES (2, 'again')").await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let claimed = read(&mut reader).await;
    assert_eq!((claimed.stragglers, claimed.rows[0].seq), (1, 2));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(read(&mut reader).await.stragglers, 0);
    db.drop().await;
}

/// A user who may not look at metadata locks: nothing is ever taken for rolled back.
async fn blind(db: &Db) -> sqlx::MySqlPool {
    let user = format!("u_{}", &db.schema[2..20]);
    db.run(&format!(
        "CREATE USER {user}@'%' IDENTIFIED BY 'x'; GRANT ALL ON `{}`.* TO {user}@'%'",
        db.schema
    ))
    .await;
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let options = options.username(&user).password("x").database(&db.schema);
    sqlx::mysql::MySqlPoolOptions::new().max_connections(4).connect_with(options).await.expect("connected")
}

/// F14: any number of rollbacks.
#[tokio::test]
async fn many_gaps_lose_nothing_with_and_without_a_view_of_locks() {
    let db = Db::new().await;
    let sighted = backstop_mysql::MySqlOutboxStore::new(db.pool.clone(), db.tables.clone()).full_scan(None);
    let blind = blind(&db).await;
    let blind_store = backstop_mysql::MySqlOutboxStore::new(blind.clone(), db.tables.clone()).full_scan(None);
    let mut readers = [sighted.reader(), blind_store.reader()];
    let mut late = db.pool.begin().await.expect("begun");
    late.execute(AssertSqlSafe(insert("late"))).await.expect("written");
    // Every other number is nobody's.
    db.run(
        "SET SESSION auto_increment_increment = 2; INSERT INTO backstop_outbox (destination) WITH RECURSIVE c AS \
         (SELECT 1 AS n UNION ALL SELECT n + 1 FROM c WHERE n < 900) SELECT 'orders' FROM c; \
         INSERT INTO backstop_outbox (destination) WITH RECURSIVE c AS \
         (SELECT 1 AS n UNION ALL SELECT n + 1 FROM c WHERE n < 900) SELECT 'orders' FROM c; \
         SET SESSION auto_increment_increment = 1",
    )
    .await;
    let mut came = [Vec::new(), Vec::new()];
    for (reader, came) in readers.iter_mut().zip(&mut came) {
        for _ in 0..20 {
            came.extend(read(reader).await.rows.iter().map(OutboxRow::row_id));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(came.len(), 1_800, "each row once");
    }
    // Of what is deleted, the gaps around it become one.
    let deleted: Vec<RowId> = came[0].iter().filter(|row| row.seq % 100 > 20).cloned().collect();
    sighted.delete(&deleted).await.expect("deleted");
    let left = db.number("SELECT COUNT(*) FROM backstop_outbox").await;
    late.commit().await.expect("committed");
    for reader in &mut readers {
        assert_eq!(seqs(reader).await, [1]);
        let all = Reread { destination: Destination::new("orders"), key: None, from: 2 };
        let again = reader.reread(&all, 5_000, MEGA).await.expect("read").rows;
        assert_eq!(i64::try_from(again.len()).expect("few"), left, "what was returned can be read again");
        assert!(seqs(reader).await.is_empty());
    }
    blind.close().await;
    db.run(&format!("DROP USER u_{}@'%'", &db.schema[2..20])).await;
    db.drop().await;
}

/// Writes in several ways until told to stop; returns the ids that were committed.
async fn write(db: Arc<(Db, AtomicBool)>, writer: usize) -> Vec<String> {
    let (db, stop) = &*db;
    let mut committed = Vec::new();
    let mut n = 0;
    let mut connection = db.pool.acquire().await.expect("a connection");
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let id = format!("{writer}-{n}");
        let key = format!("k{}", n % 5);
        let columns = "INSERT INTO backstop_outbox (id, destination, `key`)";
        let insert = match n % 3 {
            0 => format!("{columns} SELECT '{id}', 'orders', '{key}' FROM DUAL"),
            _ => format!("{columns} VALUES ('{id}', 'orders', '{key}')"),
        };
        let mut tx = connection.begin().await.expect("begun");
        let lock = format!("SELECT 1 FROM aggregate WHERE k = '{key}' FOR UPDATE");
        tx.execute(AssertSqlSafe(lock)).await.expect("locked");
        if n % 7 == 0 {
            let undone = format!("SAVEPOINT s; {insert}; ROLLBACK TO SAVEPOINT s");
            tx.execute(sqlx::raw_sql(AssertSqlSafe(undone))).await.expect("undone");
        }
        tx.execute(AssertSqlSafe(insert)).await.expect("written");
        if n % 3 == 0 {
            let wait = format!("SELECT SLEEP(0.00{})", n % 10);
            tx.execute(AssertSqlSafe(wait)).await.expect("slept");
        }
        if n % 10 == 9 {
            tx.rollback().await.expect("rolled back");
            continue;
        }
        tx.commit().await.expect("committed");
        committed.push(id);
    }
    committed
}

/// F13, F14: with the full scan off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_committed_row_is_missed_while_writers_come_and_go() {
    let db = Db::new().await;
    db.run(
        "CREATE TABLE aggregate (k varchar(8) PRIMARY KEY); \
         INSERT INTO aggregate VALUES ('k0'), ('k1'), ('k2'), ('k3'), ('k4')",
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
    assert_eq!(db.number("SELECT COUNT(*) FROM backstop_outbox").await, 0);
    db.drop().await;
}

/// Reads, on one connection, of which the server counts how many rows they touch.
#[tokio::test]
async fn a_backlog_is_not_read_again_and_again() {
    let db = Db::new().await;
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let one = sqlx::mysql::MySqlPoolOptions::new().max_connections(1);
    let one = one.connect_with(options.database(&db.schema)).await.expect("connected");
    let store = backstop_mysql::MySqlOutboxStore::new(one.clone(), db.tables.clone()).full_scan(None);
    let fill = "INSERT INTO backstop_outbox (destination) WITH RECURSIVE c AS (SELECT 1 AS n UNION ALL \
                SELECT n + 1 FROM c WHERE n < 10000) SELECT 'orders' FROM c";
    db.run(&format!("SET SESSION max_recursive_iterations = 20000; {fill}; {fill}")).await;
    let mut lost = db.pool.begin().await.expect("begun");
    lost.execute(AssertSqlSafe(insert("lost"))).await.expect("written");
    let mut reader = store.reader();
    let mut came = 0;
    while came < 20_000 {
        came += reader.read(5_000, 64 << 20).await.expect("read").rows.len();
    }
    lost.rollback().await.expect("rolled back");
    let touched = async || {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SHOW SESSION STATUS LIKE 'Handler_read%'").fetch_all(&one).await.expect("asked");
        rows.iter().map(|(_, count)| count.parse::<i64>().expect("a number")).sum::<i64>()
    };
    let before = touched().await;
    for _ in 0..10 {
        assert!(read(&mut reader).await.rows.is_empty());
    }
    let (once, twice) = (touched().await, touched().await);
    let per_read = (once - before - (twice - once)) / 10;
    assert!(per_read < 200, "{per_read} rows for each read");
    one.close().await;
    db.drop().await;
}
