//! Looks at tables, settings and permissions, and says what to do about them.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::PgPool;

use crate::failure::failed;
use crate::schema::MIGRATIONS;
use crate::tables::PgTables;

/// Each table with the permissions that whoever uses it needs.
const TABLES: [(&str, &[&str]); 8] = [
    ("outbox", &["SELECT", "INSERT", "DELETE"]),
    ("outbox_dead", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("outbox_scheduled", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("inbox", &["SELECT", "INSERT", "DELETE"]),
    ("held", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("lease", &["SELECT", "INSERT", "UPDATE"]),
    ("letter", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("letter_event", &["SELECT", "INSERT", "DELETE"]),
];

const OLDEST_SERVER: i32 = 130_000;

pub(crate) async fn check(
    pool: &PgPool,
    tables: &PgTables,
    applied: &[i64],
) -> Result<Vec<Finding>, AdapterError> {
    let mut findings = vec![server(pool).await?, versions(applied)];
    for (table, permissions) in TABLES {
        findings.push(check_table(pool, tables, table, permissions).await?);
    }
    findings.extend(sequence(pool, tables).await?);
    findings.push(prepared(pool).await?);
    Ok(findings)
}

async fn server(pool: &PgPool) -> Result<Finding, AdapterError> {
    let (number, version, standby): (i32, String, bool) = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("ask for the version of the server"))?;
    let detail = format!("PostgreSQL {version}");
    Ok(if number < OLDEST_SERVER {
        Finding::error("server", detail, "upgrade to PostgreSQL 13 or later")
    } else if standby {
        Finding::error("server", format!("{detail}, a read-only standby"), "connect to the primary")
    } else {
        Finding::fine("server", detail)
    })
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
    pool: &PgPool,
    tables: &PgTables,
    table: &str,
    permissions: &[&str],
) -> Result<Finding, AdapterError> {
    let name = tables.quoted(table);
    let subject = format!("table {}", name.replace('"', ""));
    let found: Option<(String, Vec<String>)> = sqlx::query_as(
        "SELECT current_user::text, ARRAY(SELECT right_ FROM unnest($2::text[]) AS right_ \
         WHERE NOT has_table_privilege(id, right_)) FROM to_regclass($1) AS id WHERE id IS NOT NULL",
    )
    .bind(&name)
    .bind(permissions)
    .fetch_optional(pool)
    .await
    .map_err(failed("look for a table"))?;
    Ok(match found {
        None => Finding::error(subject, "does not exist", "run `backstop-relay migrate`"),
        Some((_, lacking)) if lacking.is_empty() => Finding::fine(subject, "usable"),
        Some((user, lacking)) => {
            let cannot_bury = table == "outbox_dead"
                && lacking.iter().any(|right| right == "INSERT")
                && is_the_relays(pool, tables).await?;
            let lacking = lacking.join(", ");
            let grant = format!("GRANT {lacking} ON {name} TO \"{}\"", user.replace('"', "\"\""));
            if cannot_bury {
                let detail = format!("the user lacks {lacking}, so that rows that can never be sent stay");
                Finding::error(subject, detail, grant)
            } else {
                Finding::warning(subject, format!("the user lacks {lacking}"), grant)
            }
        }
    })
}

/// Whether the user may empty the outbox, as only the relay does. Applications and collectors of dead letters have no
/// business with dead rows.
async fn is_the_relays(pool: &PgPool, tables: &PgTables) -> Result<bool, AdapterError> {
    let sql = "SELECT coalesce(has_table_privilege(to_regclass($1), 'DELETE'), false)";
    sqlx::query_scalar(sql)
        .bind(tables.outbox())
        .fetch_one(pool)
        .await
        .map_err(failed("read the permissions on the outbox"))
}

/// Numbers must be given one by one: a session that reserves some ahead would commit them after later ones.
async fn sequence(pool: &PgPool, tables: &PgTables) -> Result<Option<Finding>, AdapterError> {
    let outbox = tables.outbox();
    let found: Option<(String, i64, bool)> = sqlx::query_as(
        "SELECT name, seqcache, has_sequence_privilege(name, 'SELECT') \
         FROM pg_get_serial_sequence($1, 'seq') AS name JOIN pg_sequence ON seqrelid = name::regclass \
         WHERE to_regclass($1) IS NOT NULL",
    )
    .bind(&outbox)
    .fetch_optional(pool)
    .await
    .or_else(|error| match crate::failure::code(&error) {
        Some("42P01" | "3F000") => Ok(None),
        _ => Err(failed("look at the sequence of the outbox")(error)),
    })?;
    let Some((name, cache, readable)) = found else { return Ok(None) };
    let subject = format!("sequence {}", name.replace('"', ""));
    Ok(Some(if cache != 1 {
        let remedy = format!("ALTER SEQUENCE {name} CACHE 1");
        Finding::error(
            subject,
            format!("hands out {cache} numbers at once, so that rows lose their order"),
            remedy,
        )
    } else if readable {
        Finding::fine(subject, "hands out numbers one by one")
    } else {
        let detail =
            "the user may not read it, so that a sequence that was set back goes unnoticed for a minute";
        Finding::warning(subject, detail, format!("GRANT SELECT ON SEQUENCE {name} TO the relay's user"))
    }))
}

/// A prepared transaction that was forgotten keeps gaps open and dead rows in place for ever.
async fn prepared(pool: &PgPool) -> Result<Finding, AdapterError> {
    let (old, limit): (i64, String) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_prepared_xacts \
         WHERE database = current_database() AND prepared < now() - interval '5 minutes'), \
         current_setting('max_prepared_transactions')",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look for prepared transactions"))?;
    Ok(if old > 0 {
        Finding::warning(
            "prepared transactions",
            format!("{old} older than 5 minutes"),
            "commit or roll back what pg_prepared_xacts shows",
        )
    } else {
        Finding::fine("prepared transactions", format!("none is old (max_prepared_transactions = {limit})"))
    })
}
