//! The outbox: written inside a transaction, read without a loss, emptied by its owner.

mod leases;
mod message;
mod reading;
mod removal;
mod scheduled;
mod stranded;
mod writers;

use std::time::Duration;

use backstop_core::lease::{Lease, Leases};
use backstop_core::outbox::{Claimed, DeadRow, OutboxReader, OutboxRow, RowId};
use backstop_postgres::PgOutboxStore;

use crate::support::Db;

const MEGA: usize = 1 << 20;

fn store(db: &Db) -> PgOutboxStore {
    PgOutboxStore::new(db.pool.clone(), db.tables.clone()).full_scan(None)
}

async fn read(reader: &mut Box<dyn OutboxReader>) -> Claimed {
    reader.read(1_000, MEGA).await.expect("read")
}

async fn seqs(reader: &mut Box<dyn OutboxReader>) -> Vec<i64> {
    read(reader).await.rows.iter().map(|row| row.seq).collect()
}

fn insert(key: &str) -> String {
    format!("INSERT INTO backstop_outbox (destination, key, payload) VALUES ('orders', '{key}', 'x')")
}

fn dead_row(row: &OutboxRow) -> [DeadRow; 1] {
    let RowId { seq, id } = row.row_id();
    [DeadRow { seq, id, reason: "too-large".to_owned(), error: "9 MB".to_owned() }]
}

async fn lease(store: &PgOutboxStore, owner: &str) -> Option<Lease> {
    store.acquire("outbox", owner, Duration::from_secs(30)).await.expect("asked")
}
