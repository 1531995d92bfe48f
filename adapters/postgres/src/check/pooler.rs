//! What is between this program and the server.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, PgPool, Row};

use crate::failure::{code, failed};

const SUBJECT: &str = "pooler";

/// Two connections tell a pooler that keeps no sessions: one meets another process of the server at its second
/// statement, or both meet the same. Nothing is set that could stay behind in a session of somebody else.
pub(super) async fn check(pool: &PgPool) -> Result<Finding, AdapterError> {
    let options = pool.connect_options();
    let (mut one, mut two) = (connect(&options).await?, connect(&options).await?);
    let ones = [backend(&mut one).await?, backend(&mut one).await?];
    let twos = [backend(&mut two).await?, backend(&mut two).await?];
    let keeps_sessions = ones[0] == ones[1] && twos[0] == twos[1] && ones[0] != twos[0];
    let finding = if keeps_sessions {
        Finding::fine(SUBJECT, "none, or one that keeps sessions")
    } else if prepares(&mut one).await? && prepares(&mut two).await? && prepares(&mut one).await? {
        Finding::fine(SUBJECT, "shares sessions between transactions, which is fine")
    } else {
        let remedy = "set max_prepared_statements = 100 in PgBouncer 1.21 or later, or pool_mode = session";
        Finding::error(SUBJECT, "shares sessions between transactions and loses prepared statements", remedy)
    };
    for connection in [one, two] {
        connection.close().await.map_err(failed("close a connection"))?;
    }
    Ok(finding)
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, AdapterError> {
    PgConnection::connect_with(options).await.map_err(failed("connect once more"))
}

/// The server's process behind this connection; by a statement that is not prepared.
async fn backend(connection: &mut PgConnection) -> Result<i32, AdapterError> {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).map_err(failed("ask for the server's process"))
}

/// Whether a prepared statement is there when it is used, and was not there before.
async fn prepares(connection: &mut PgConnection) -> Result<bool, AdapterError> {
    match sqlx::query("SELECT 1").execute(connection).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(code(&error), Some("26000" | "42P05")) => Ok(false),
        Err(error) => Err(failed("prepare a statement")(error)),
    }
}
