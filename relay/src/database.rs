//! The databases, as the configuration chooses them.

use std::sync::Arc;

use backstop_core::held_keys::HeldKeys;
use backstop_core::ledger::Ledger;
use backstop_core::outbox::OutboxStore;
use backstop_core::schema::Schema;
use backstop_core::{AdapterError, FaultKind};
use backstop_mysql::{MySqlInbox, MySqlOutboxStore, MySqlSchema, MySqlTables};
use backstop_postgres::{DebeziumSchema, PgInbox, PgLedger, PgOutboxStore, PgSchema, PgTables};
use backstop_sqlite::{SqliteInbox, SqliteLedger, SqliteOutboxStore, SqliteSchema, SqliteTables};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{PgPool, SqlitePool};
use url::Url;

use crate::config::{DatabaseConfig, OutboxConfig, is_local, url_is_local};

/// What the relay needs of one database.
#[derive(Clone)]
pub struct Database {
    /// The outbox.
    pub outbox: Arc<dyn OutboxStore>,
    /// What consumers hold here.
    pub held: Arc<dyn HeldKeys>,
    /// `None` on MySQL.
    ledger: Option<Arc<dyn Ledger>>,
    /// The tables.
    pub schema: Arc<dyn Schema>,
    postgres: Option<(PgPool, PgTables)>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl Database {
    /// Connects to the database.
    ///
    /// # Errors
    /// When it cannot be reached, refuses, or the configuration can never work.
    pub async fn open(config: &DatabaseConfig) -> Result<Self, AdapterError> {
        match config.url.expose() {
            url if url.starts_with("sqlite:") => sqlite(config, url).await,
            url if url.starts_with("mysql:") || url.starts_with("mariadb:") => mysql(config, url).await,
            url => postgres(config, url).await,
        }
    }

    /// The ledger of dead letters.
    ///
    /// # Errors
    /// On MySQL, which has none.
    pub fn ledger(&self) -> Result<Arc<dyn Ledger>, AdapterError> {
        self.ledger.clone().ok_or_else(|| {
            let what = "the ledger of dead letters cannot be in MySQL";
            AdapterError::new(FaultKind::Invalid, what)
                .with_hint("name a PostgreSQL or SQLite database in [dead_letters.ledger]")
        })
    }

    /// The outbox of that configuration in this database, whatever its table looks like.
    ///
    /// # Errors
    /// When the table or a column of another layout is missing, or the database cannot be asked.
    pub async fn outbox_of(&self, config: &OutboxConfig) -> Result<Arc<dyn OutboxStore>, AdapterError> {
        match (&self.postgres, &config.debezium) {
            (Some((pool, tables)), Some(names)) => {
                let store = PgOutboxStore::debezium(pool.clone(), tables.clone(), &names.outbox()?).await?;
                Ok(Arc::new(store))
            }
            _ => Ok(self.outbox.clone()),
        }
    }

    /// What is added to the table of that outbox, where it is not ours.
    ///
    /// # Errors
    /// When a name cannot be one.
    pub fn layout_of(&self, config: &OutboxConfig) -> Result<Option<Arc<dyn Schema>>, AdapterError> {
        let (Some((pool, tables)), Some(names)) = (&self.postgres, &config.debezium) else { return Ok(None) };
        Ok(Some(Arc::new(DebeziumSchema::new(pool.clone(), tables.clone(), &names.outbox()?)?)))
    }

    /// Connects to the database to look only; an SQLite file that does not exist counts as an empty one.
    ///
    /// # Errors
    /// As [`open`](Database::open).
    pub async fn look(config: &DatabaseConfig) -> Result<Self, AdapterError> {
        let url = config.url.expose();
        let file = url.strip_prefix("sqlite:").map(|_| url.parse::<SqliteConnectOptions>());
        match file {
            Some(Ok(options)) if !options.get_filename().exists() => {
                let nothing = SqliteConnectOptions::new().in_memory(true);
                on_sqlite(config, SqlitePoolOptions::new().max_connections(1).connect_lazy_with(nothing))
            }
            _ => Self::open(config).await,
        }
    }

    /// Connects to the database; an SQLite file that does not exist is created.
    ///
    /// # Errors
    /// As [`open`](Database::open).
    pub async fn create(config: &DatabaseConfig) -> Result<Self, AdapterError> {
        match config.url.expose() {
            url if url.starts_with("sqlite:") && !url.contains("mode=") => {
                let separator = if url.contains('?') { '&' } else { '?' };
                sqlite(config, &format!("{url}{separator}mode=rwc")).await
            }
            _ => Self::open(config).await,
        }
    }
}

async fn postgres(config: &DatabaseConfig, url: &str) -> Result<Database, AdapterError> {
    let tables = match &config.schema {
        Some(schema) => PgTables::in_schema(schema)?,
        None => PgTables::default(),
    };
    let tables = tables.with_prefix(&config.prefix)?;
    let pool = backstop_postgres::open(&with_tls(url)).await?;
    Ok(Database {
        outbox: Arc::new(PgOutboxStore::new(pool.clone(), tables.clone())),
        held: Arc::new(PgInbox::with_tables(pool.clone(), tables.clone())),
        ledger: Some(Arc::new(PgLedger::new(pool.clone(), tables.clone()))),
        schema: Arc::new(PgSchema::new(pool.clone(), tables.clone())),
        postgres: Some((pool, tables)),
    })
}

async fn mysql(config: &DatabaseConfig, url: &str) -> Result<Database, AdapterError> {
    let tables = match &config.schema {
        Some(schema) => MySqlTables::in_schema(schema)?,
        None => MySqlTables::default(),
    };
    let tables = tables.with_prefix(&config.prefix)?;
    let pool = backstop_mysql::open(&with_tls(url)).await?;
    Ok(Database {
        outbox: Arc::new(MySqlOutboxStore::new(pool.clone(), tables.clone())),
        held: Arc::new(MySqlInbox::with_tables(pool.clone(), tables.clone())),
        ledger: None,
        schema: Arc::new(MySqlSchema::new(pool, tables)),
        postgres: None,
    })
}

async fn sqlite(config: &DatabaseConfig, url: &str) -> Result<Database, AdapterError> {
    on_sqlite(config, backstop_sqlite::open(url).await?)
}

fn on_sqlite(config: &DatabaseConfig, pool: SqlitePool) -> Result<Database, AdapterError> {
    let tables = SqliteTables::default().with_prefix(&config.prefix)?;
    Ok(Database {
        outbox: Arc::new(SqliteOutboxStore::new(pool.clone(), tables.clone())),
        held: Arc::new(SqliteInbox::with_tables(pool.clone(), tables.clone())),
        ledger: Some(Arc::new(SqliteLedger::new(pool.clone(), tables.clone()))),
        schema: Arc::new(SqliteSchema::new(pool, tables)),
        postgres: None,
    })
}

/// The URL with verified TLS when it names another host and does not say otherwise.
fn with_tls(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return url.to_owned() };
    let names = |wanted: &str| parsed.query_pairs().any(|(name, _)| name == wanted);
    let local = is_on_this_machine(&parsed);
    if !local && !names("sslmode") && !names("ssl-mode") {
        let (name, verified) = match parsed.scheme() {
            "mysql" | "mariadb" => ("ssl-mode", "VERIFY_IDENTITY"),
            _ => ("sslmode", "verify-full"),
        };
        parsed.query_pairs_mut().append_pair(name, verified);
        return parsed.into();
    }
    url.to_owned()
}

/// Whether the drivers connect to this machine: a socket wins over every host, and the last host over those before it.
pub(crate) fn is_on_this_machine(url: &Url) -> bool {
    let mut host = None;
    for (name, value) in url.query_pairs() {
        match &*name {
            "socket" => return true,
            "host" | "hostaddr" if value.starts_with('/') => return true,
            "host" | "hostaddr" => host = Some(value),
            _ => {}
        }
    }
    host.map_or_else(|| url_is_local(url), |host| is_local(&host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s32_another_host_is_asked_for_verified_tls_unless_the_url_says_otherwise() {
        let verified = |url: &str| with_tls(url) == format!("{url}?sslmode=verify-full");
        assert!(verified("postgres://u:p%40@db.internal/d"));
        assert!(verified("postgres://u:p@10.0.0.7:5432/d"));
        for url in [
            "postgres://u:p@db/d?host=127.evil.example",
            "postgres://u:p@localhost/d?host=localhost&host=db",
            "postgres:///d?hostaddr=10.0.0.7",
        ] {
            assert_eq!(with_tls(url), format!("{url}&sslmode=verify-full"));
        }
        assert_eq!(with_tls("mysql://u:p@db/d"), "mysql://u:p@db/d?ssl-mode=VERIFY_IDENTITY");
        for url in [
            "postgres://u:p@localhost/d",
            "postgres://u:p@127.0.0.1/d",
            "postgres://u:p@[::1]/d",
            "postgres:///d?host=/var/run/postgresql",
            "postgres://u:p@db/d?host=%2Fvar%2Frun&host=db",
            "mysql://u:p@db/d?socket=/run/mysqld.sock",
            "postgres://u:p@db/d?sslmode=disable",
            "mysql://u:p@localhost/d",
            "mysql://u:p@db/d?ssl-mode=PREFERRED",
        ] {
            assert_eq!(with_tls(url), url);
        }
    }
}
