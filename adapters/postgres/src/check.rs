//! Looks at tables, settings and permissions, and says what to do about them.

mod clock;
mod pooler;
mod sequence;
mod transactions;
mod vacuum;

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::PgPool;

use crate::failure::failed;
use crate::schema::MIGRATIONS;
use crate::tables::PgTables;

/// Each table with the permissions that whoever uses it needs.
const TABLES: [(&str, &[&str]); 18] = [
    ("outbox", &["SELECT", "INSERT", "DELETE"]),
    ("outbox_dead", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("outbox_scheduled", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("inbox", &["SELECT", "INSERT", "DELETE"]),
    ("held", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("receipt", &["SELECT", "INSERT", "DELETE"]),
    ("charge", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("lease", &["SELECT", "INSERT", "UPDATE"]),
    ("letter", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("letter_event", &["SELECT", "INSERT", "DELETE"]),
    ("letter_group", &["SELECT", "INSERT", "UPDATE"]),
    ("letter_count", &["SELECT", "INSERT", "UPDATE"]),
    ("letter_minute", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("redrive", &["SELECT", "INSERT", "UPDATE"]),
    ("redrive_letter", &["SELECT", "INSERT", "UPDATE"]),
    ("redrive_count", &["SELECT", "INSERT", "UPDATE"]),
    ("consumer", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("audit", &["SELECT", "INSERT"]),
];

const OLDEST_SERVER: i32 = 130_000;

/// Looks at the way to the server. What is asked after an error here fails at random.
pub(crate) async fn way(pool: &PgPool) -> Result<Finding, AdapterError> {
    pooler::check(pool).await
}

/// Looks at everything behind it.
pub(crate) async fn check(
    pool: &PgPool,
    tables: &PgTables,
    applied: &[i64],
) -> Result<Vec<Finding>, AdapterError> {
    let mut findings = vec![server(pool).await?, clock::check(pool).await?, versions(applied)];
    for (table, permissions) in TABLES {
        findings.push(check_table(pool, tables, table, permissions).await?);
    }
    findings.extend(sequence::check(pool, tables).await?);
    findings.extend(vacuum::check(pool, tables).await?);
    findings.push(transactions::oldest(pool).await?);
    findings.push(transactions::prepared(pool).await?);
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
