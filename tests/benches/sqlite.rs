//! An SQLite file with an outbox.

use std::sync::Arc;

use backstop::schema::Schema as _;
use backstop_core::outbox::OutboxStore;
use backstop_sqlite::{SqliteOutboxStore, SqliteSchema, SqliteTables};
use sqlx::{QueryBuilder, Sqlite, SqlitePool};
use tempfile::TempDir;

use crate::outbox::{Backlog, INSERT, Outbox, in_chunks};
use crate::{Outcome, event};

/// A file in a folder of its own, which ends with this.
#[derive(Debug)]
pub(crate) struct File {
    pool: SqlitePool,
    _folder: TempDir,
}

impl File {
    /// Makes a file with Backstop's tables, on the disk where cargo builds: the usual place of temporary files may be
    /// in memory, where nothing has to reach a disk.
    pub(crate) async fn fresh() -> Outcome<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let path = folder.path().join("outbox.db");
        let pool = backstop_sqlite::open(path.to_str().ok_or("the path is not UTF-8")?).await?;
        SqliteSchema::new(pool.clone(), SqliteTables::default()).migrate().await?;
        Ok(Self { pool, _folder: folder })
    }

    /// Closes and deletes it.
    pub(crate) async fn drop(self) {
        self.pool.close().await;
    }
}

impl Outbox for File {
    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(SqliteOutboxStore::new(self.pool.clone(), SqliteTables::default()))
    }

    async fn fill(&self, backlog: &Backlog) -> Outcome<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for chunk in in_chunks(backlog) {
            let mut insert = QueryBuilder::<Sqlite>::new(INSERT);
            insert.push_values(chunk, |mut row, (n, place)| {
                row.push_bind(event::id(n)).push("'/bench'").push_bind(place).push_bind(event::key(n));
                row.push("'bench.event'").push("'2026-01-01T00:00:00.123456Z'").push("'application/json'");
                row.push_bind(event::payload(n));
            });
            insert.build().execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}
