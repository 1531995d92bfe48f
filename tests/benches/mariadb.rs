//! A MariaDB database with an outbox.

use std::sync::Arc;
use std::time::Duration;

use backstop::schema::Schema as _;
use backstop_core::outbox::OutboxStore;
use backstop_mysql::{MySqlOutboxStore, MySqlSchema, MySqlTables};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, MySql, MySqlPool, QueryBuilder};

use crate::outbox::{Backlog, INSERT, Outbox, in_chunks};
use crate::servers::{Servers, unique};
use crate::{Outcome, event};

/// A database of its own.
#[derive(Debug)]
pub(crate) struct MariaDb {
    name: String,
    server: MySqlConnectOptions,
    pool: MySqlPool,
}

impl MariaDb {
    /// Makes a database with Backstop's tables.
    pub(crate) async fn fresh(servers: &Servers) -> Outcome<Self> {
        // As PostgreSQL is measured.
        let server = servers.mariadb.parse::<MySqlConnectOptions>()?.ssl_mode(MySqlSslMode::Disabled);
        let name = unique("drained");
        execute(&server, format!("CREATE DATABASE `{name}`")).await?;
        let port = server.get_port();
        let pool = MySqlPoolOptions::new().max_connections(24).acquire_timeout(Duration::from_secs(30));
        let pool = pool.after_connect(move |_, _| {
            backstop_mysql::set_nodelay(port);
            Box::pin(async { Ok(()) })
        });
        let pool = pool.connect_with(server.clone().database(&name)).await?;
        MySqlSchema::new(pool.clone(), MySqlTables::default()).migrate().await?;
        Ok(Self { name, server, pool })
    }

    /// Drops it.
    pub(crate) async fn drop(self) -> Outcome<()> {
        self.pool.close().await;
        execute(&self.server, format!("DROP DATABASE `{}`", self.name)).await
    }
}

async fn execute(server: &MySqlConnectOptions, statement: String) -> Outcome<()> {
    let mut connection = server.connect().await?;
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    Ok(connection.close().await?)
}

impl Outbox for MariaDb {
    fn store(&self) -> Arc<dyn OutboxStore> {
        Arc::new(MySqlOutboxStore::new(self.pool.clone(), MySqlTables::default()))
    }

    async fn fill(&self, backlog: &Backlog) -> Outcome<()> {
        let mut tx = self.pool.begin().await?;
        for chunk in in_chunks(backlog) {
            let mut insert = QueryBuilder::<MySql>::new(INSERT);
            insert.push_values(chunk, |mut row, (n, place)| {
                row.push_bind(event::id(n)).push("'/bench'").push_bind(place).push_bind(event::key(n));
                row.push("'bench.event'").push("'2026-01-01 00:00:00.123456'").push("'application/json'");
                row.push_bind(event::payload(n));
            });
            insert.build().execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}
