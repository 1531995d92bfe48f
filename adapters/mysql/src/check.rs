//! Looks at tables, settings and permissions, and says what to do about them.
//!
//! Permissions are tried out, by statements that cannot match a row: what a user may do by way of roles is in no table
//! that it may always read.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use chrono::{NaiveDateTime, Utc};
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::failure::{errors, failed, number};
use crate::held_sql::GATES;
use crate::schema::MIGRATIONS;
use crate::scoped::Scoped;
use crate::tables::MySqlTables;

/// What a table must have, and what whoever uses it does with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// A number or name that no row has.
    key: &'static str,
    columns: &'static str,
    permissions: &'static [&'static str],
}

const OUTBOX_COLUMNS: &str = "seq, id, source, destination, routing_key, `key`, kind, subject, event_time, \
     content_type, headers, payload, created_at";

pub(crate) const INBOX: Use = Use {
    key: "consumer",
    columns: "consumer, message_key, handled_at",
    permissions: &["SELECT", "INSERT", "DELETE"],
};

pub(crate) const HELD: Use = Use {
    key: "n",
    columns: "n, consumer, place, ordering_key, digest, message_key, state, due_at, attempts, throttled, condemned, \
              class, error, held_since, msg_key, headers, body, origin, via, crashes",
    permissions: &["SELECT", "INSERT", "UPDATE", "DELETE"],
};

pub(crate) const CHARGE: Use = Use {
    key: "consumer",
    columns: "consumer, message_key, crashes, charged_at",
    permissions: &["SELECT", "INSERT", "UPDATE", "DELETE"],
};

pub(crate) const RECEIPT: Use = Use {
    key: "n",
    columns: "n, consumer, instance, receipt, owed_since",
    permissions: &["SELECT", "INSERT", "DELETE"],
};

const TABLES: [(&str, Use); 9] = [
    ("outbox", Use { key: "seq", columns: OUTBOX_COLUMNS, permissions: &["SELECT", "INSERT", "DELETE"] }),
    (
        "outbox_dead",
        Use {
            key: "n",
            columns: "n, seq, id, headers, payload, created_at, reason, error, attempts, died_at",
            permissions: &["SELECT", "INSERT", "DELETE"],
        },
    ),
    (
        "outbox_scheduled",
        Use {
            key: "n",
            columns: "n, publish_after, id, destination, payload, created_at",
            permissions: &["SELECT", "INSERT", "DELETE"],
        },
    ),
    ("inbox", INBOX),
    ("held", HELD),
    ("charge", CHARGE),
    ("receipt", RECEIPT),
    ("held_gate", Use { key: "n", columns: "n", permissions: &["SELECT", "UPDATE"] }),
    (
        "lease",
        Use {
            key: "name",
            columns: "name, owner, token, expires_at, report, reported_at",
            permissions: &["SELECT", "INSERT", "UPDATE"],
        },
    ),
];

pub(crate) async fn check(
    pool: &MySqlPool,
    tables: &MySqlTables,
    applied: &[i64],
) -> Result<Vec<Finding>, AdapterError> {
    let mut findings = vec![server(pool).await?, clock(pool).await?, versions(applied)];
    for (table, needs) in TABLES {
        findings.push(check_table(pool, tables, table, needs).await?);
    }
    findings.extend(gates(pool, tables).await?);
    findings.push(binary_log(pool).await?);
    findings.push(mode(pool).await?);
    findings.push(locks(pool).await);
    Ok(findings)
}

async fn server(pool: &MySqlPool) -> Result<Finding, AdapterError> {
    let (version, read_only): (String, i64) =
        sqlx::query_as("SELECT CAST(VERSION() AS CHAR), CAST(@@GLOBAL.read_only AS SIGNED)")
            .fetch_one(pool)
            .await
            .map_err(failed("ask for the version of the server"))?;
    let maria = version.contains("MariaDB");
    let numbers: Vec<u32> = version.split(['.', '-']).map_while(|part| part.parse().ok()).take(3).collect();
    let (name, oldest) = if maria { ("MariaDB", [10, 6, 0]) } else { ("MySQL", [8, 0, 16]) };
    let detail = if maria { version.clone() } else { format!("{name} {version}") };
    Ok(if numbers < oldest.to_vec() {
        Finding::error("server", detail, "upgrade to MariaDB 10.6 or MySQL 8.0.16, or later")
    } else if read_only != 0 {
        // Accounts with a special right write all the same, so this is no error yet.
        Finding::warning("server", format!("{detail}, read-only"), "connect to the primary")
    } else {
        Finding::fine("server", detail)
    })
}

async fn clock(pool: &MySqlPool) -> Result<Finding, AdapterError> {
    let mut connection = pool.acquire().await.map_err(failed("connect"))?;
    let asked = Utc::now();
    let theirs: NaiveDateTime = sqlx::query_scalar("SELECT UTC_TIMESTAMP(6)")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("ask for the server's time"))?;
    Ok(Finding::clock(asked, theirs.and_utc(), Utc::now()))
}

fn versions(applied: &[i64]) -> Finding {
    let missing: Vec<String> = MIGRATIONS
        .iter()
        .filter(|step| !applied.contains(&step.version))
        .map(|step| format!("{} ({})", step.version, step.name))
        .collect();
    let newest = MIGRATIONS.last().map_or(0, |step| step.version);
    let newer: Vec<String> =
        applied.iter().filter(|version| **version > newest).map(i64::to_string).collect();
    if !missing.is_empty() {
        let detail = format!("not applied: {}", missing.join(", "));
        Finding::error("migrations", detail, "run `backstop-relay migrate`")
    } else if !newer.is_empty() {
        let detail = format!("applied by a newer version of Backstop: {}", newer.join(", "));
        Finding::warning("migrations", detail, "upgrade this program")
    } else {
        Finding::fine("migrations", format!("all {} applied", MIGRATIONS.len()))
    }
}

async fn check_table(
    pool: &MySqlPool,
    tables: &MySqlTables,
    table: &str,
    needs: Use,
) -> Result<Finding, AdapterError> {
    let name = tables.quoted(table);
    let subject = format!("table {}", name.replace('`', ""));
    let look = format!("SELECT {} FROM {name} LIMIT 0", needs.columns);
    match sqlx::query(AssertSqlSafe(look)).execute(pool).await {
        Ok(_) => {}
        Err(error) => match number(&error) {
            Some(errors::NO_TABLE | errors::NO_DATABASE) => {
                return Ok(Finding::error(subject, "does not exist", "run `backstop-relay migrate`"));
            }
            Some(errors::NO_COLUMN) => {
                let remedy = "rename that table or choose another prefix, and run `backstop-relay migrate`";
                return Ok(Finding::error(subject, "is another table: it lacks columns", remedy));
            }
            Some(errors::TABLE_DENIED | errors::COLUMN_DENIED) => {}
            _ => return Err(failed("look for a table")(error)),
        },
    }
    let lacking = lacking(pool, tables, table, needs).await?;
    if lacking.is_empty() {
        return Ok(Finding::fine(subject, "usable"));
    }
    let lacking = lacking.join(", ");
    let user: String = sqlx::query_scalar("SELECT CAST(CURRENT_USER() AS CHAR)")
        .fetch_one(pool)
        .await
        .map_err(failed("ask for the user"))?;
    let user = user.replace('\'', "''").replace('@', "'@'");
    Ok(Finding::warning(
        subject,
        format!("the user lacks {lacking}"),
        format!("GRANT {lacking} ON {name} TO '{user}'"),
    ))
}

/// Which of its permissions the user lacks on a table.
pub(crate) async fn lacking(
    pool: &MySqlPool,
    tables: &MySqlTables,
    table: &str,
    needs: Use,
) -> Result<Vec<&'static str>, AdapterError> {
    let doing = || failed("try out the permissions on a table");
    let (name, key) = (tables.quoted(table), needs.key);
    let never = format!("WHERE {key} = 0 AND {key} = 1 LIMIT 1");
    let mut lacking = Vec::new();
    for permission in needs.permissions {
        let sql = match *permission {
            "INSERT" => format!("INSERT INTO {name} ({key}) SELECT 0 FROM DUAL WHERE FALSE"),
            "UPDATE" => format!("UPDATE {name} SET {key} = {key} {never}"),
            "DELETE" => format!("DELETE FROM {name} {never}"),
            _ => format!("SELECT {key} FROM {name} {never}"),
        };
        let mut scoped = Scoped::begin(pool).await.map_err(doing())?;
        let tried = scoped.run(sql).await;
        scoped.rollback().await;
        match tried.map_err(|stopped| stopped.error) {
            Ok(_) => {}
            Err(error) => match number(&error) {
                Some(errors::TABLE_DENIED | errors::COLUMN_DENIED) => lacking.push(*permission),
                // Whoever may not insert does not get as far as that.
                Some(errors::NO_DEFAULT) => {}
                _ => return Err(doing()(error)),
            },
        }
    }
    Ok(lacking)
}

/// Without its gate a key can neither be held nor released.
async fn gates(pool: &MySqlPool, tables: &MySqlTables) -> Result<Option<Finding>, AdapterError> {
    let name = tables.quoted("held_gate");
    let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("SELECT COUNT(*) FROM {name}")));
    let Ok(count) = count.fetch_one(pool).await else { return Ok(None) };
    let subject = format!("rows of {}", name.replace('`', ""));
    Ok(Some(if count < i64::from(GATES) {
        let remedy = "write the numbers 0 to 63 into it, as migration 2 does";
        Finding::error(subject, format!("{count} of {GATES} are there"), remedy)
    } else {
        Finding::fine(subject, format!("all {GATES} are there"))
    }))
}

/// InnoDB refuses to write at READ COMMITTED where the log keeps statements.
async fn binary_log(pool: &MySqlPool) -> Result<Finding, AdapterError> {
    let (on, format): (i64, String) =
        sqlx::query_as("SELECT CAST(@@GLOBAL.log_bin AS SIGNED), CAST(@@SESSION.binlog_format AS CHAR)")
            .fetch_one(pool)
            .await
            .map_err(failed("ask for the settings of the binary log"))?;
    Ok(if on != 0 && format == "STATEMENT" {
        let remedy = "set binlog_format to ROW or MIXED";
        Finding::error("binary log", "keeps statements, which forbids READ COMMITTED", remedy)
    } else {
        Finding::fine("binary log", if on != 0 { format } else { "off".to_owned() })
    })
}

/// Outside of a strict mode, what does not fit is cut off without an error.
async fn mode(pool: &MySqlPool) -> Result<Finding, AdapterError> {
    let mode: String = sqlx::query_scalar("SELECT CAST(@@SESSION.sql_mode AS CHAR)")
        .fetch_one(pool)
        .await
        .map_err(failed("ask for the sql_mode"))?;
    Ok(if mode.contains("STRICT_") {
        Finding::fine("sql_mode", "strict")
    } else {
        let remedy = "add STRICT_TRANS_TABLES to sql_mode";
        Finding::warning("sql_mode", "not strict: values that do not fit are cut off silently", remedy)
    })
}

/// Whether the reader of the outbox can tell numbers that were rolled back from those that are late.
async fn locks(pool: &MySqlPool) -> Finding {
    let subject = "metadata locks";
    let remedy = "turn on performance_schema with its instrument wait/lock/metadata/sql/mdl, and grant the relay's user \
                  SELECT ON performance_schema.*";
    let recorded = sqlx::query_scalar::<_, i64>(
        "SELECT COUNT(*) FROM performance_schema.setup_instruments \
         WHERE NAME = 'wait/lock/metadata/sql/mdl' AND ENABLED = 'YES' \
         AND (SELECT COUNT(*) FROM performance_schema.metadata_locks) >= 0",
    );
    match recorded.fetch_one(pool).await {
        Ok(recorded) if recorded > 0 => Finding::fine(subject, "can be seen"),
        _ => {
            let detail = "cannot be seen, so that numbers of the outbox that were rolled back are looked for again and \
                          again";
            Finding::warning(subject, detail, remedy)
        }
    }
}
