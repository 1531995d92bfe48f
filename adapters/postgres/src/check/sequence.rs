//! What gives the rows of the outbox their numbers.
//!
//! Numbers must be given one by one, upwards, and never twice: a session that reserves some ahead would commit them
//! after later ones.

use backstop_core::AdapterError;
use backstop_core::schema::Finding;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgPool, Row};

use crate::failure::{code, failed};
use crate::tables::PgTables;

struct Sequence {
    name: String,
    user: String,
    cache: i64,
    cycle: bool,
    increment: i64,
    kind: String,
    max: i64,
    /// The last number given; `None` before the first, and for a user who may not see it.
    last: Option<i64>,
    readable: bool,
    /// The highest number in the table.
    highest: Option<i64>,
}

impl<'r> FromRow<'r, PgRow> for Sequence {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            name: row.try_get("name")?,
            user: row.try_get("user")?,
            cache: row.try_get("cache")?,
            cycle: row.try_get("cycles")?,
            increment: row.try_get("increment")?,
            kind: row.try_get("kind")?,
            max: row.try_get("max")?,
            last: row.try_get("last")?,
            readable: row.try_get("readable")?,
            highest: row.try_get("highest")?,
        })
    }
}

const LOOK: &str = "
    SELECT name, current_user::text AS \"user\", seqcache AS cache, seqcycle AS cycles, seqincrement AS increment,
           format_type(seqtypid, NULL) AS kind, seqmax AS max,
           CASE WHEN readable THEN pg_sequence_last_value(seqrelid) END AS last, readable,
           (SELECT max(seq) FROM {outbox}) AS highest
    FROM pg_get_serial_sequence($1, 'seq') AS name JOIN pg_sequence ON seqrelid = name::regclass,
         has_sequence_privilege(name, 'SELECT') AS readable";

pub(super) async fn check(pool: &PgPool, tables: &PgTables) -> Result<Vec<Finding>, AdapterError> {
    let found: Result<Option<Sequence>, _> =
        sqlx::query_as(AssertSqlSafe(tables.fill(LOOK))).bind(tables.outbox()).fetch_optional(pool).await;
    match found {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(sequence)) => Ok(sequence.findings()),
        // What is missing has been told of the table itself.
        Err(error) if matches!(code(&error), Some("42P01" | "3F000" | "42501")) => Ok(Vec::new()),
        Err(error) => Err(failed("look at the sequence of the outbox")(error)),
    }
}

impl Sequence {
    fn findings(&self) -> Vec<Finding> {
        let subject = format!("sequence {}", self.name.replace('"', ""));
        let alter = |how: &str| format!("ALTER SEQUENCE {} {how}", self.name);
        let error = |detail: String, remedy| Finding::error(subject.as_str(), detail, remedy);
        let mut found = Vec::new();
        if self.cache != 1 {
            let detail = format!("hands out {} numbers at once, so that rows lose their order", self.cache);
            found.push(error(detail, alter("CACHE 1")));
        }
        if self.increment < 1 {
            found.push(error("counts down, so that rows lose their order".to_owned(), alter("INCREMENT 1")));
        }
        if self.cycle {
            found.push(error(
                "begins anew at its end, with numbers below those that wait".to_owned(),
                alter("NO CYCLE"),
            ));
        }
        if let Some(highest) =
            self.highest.filter(|highest| self.readable && self.last.unwrap_or(0) < *highest)
        {
            let detail = format!(
                "was set back: it goes on at {}, and the outbox has row {highest}",
                self.last.unwrap_or(0) + 1
            );
            found.push(error(
                detail,
                format!("SELECT setval('{}', {highest})", self.name.replace('\'', "''")),
            ));
        }
        found.extend(self.warnings(&subject));
        if found.is_empty() {
            found.push(Finding::fine(subject, "hands out numbers one by one"));
        }
        found
    }

    fn warnings(&self, subject: &str) -> Vec<Finding> {
        let Self { name, kind, max, last, .. } = self;
        let mut found = Vec::new();
        if kind != "bigint" {
            let remedy = format!("ALTER SEQUENCE {name} AS bigint");
            found.push(Finding::warning(subject, format!("is of type {kind} and ends at {max}"), remedy));
        } else if last.is_some_and(|last| last > max / 10 * 9) {
            let remedy = format!("ALTER SEQUENCE {name} NO MAXVALUE");
            found.push(Finding::warning(subject, format!("comes to its end at {max}"), remedy));
        }
        if !self.readable {
            let detail =
                "the user may not read it, so that a sequence that was set back goes unnoticed for a minute";
            let user = self.user.replace('"', "\"\"");
            found.push(Finding::warning(
                subject,
                detail,
                format!("GRANT SELECT ON SEQUENCE {name} TO \"{user}\""),
            ));
        }
        found
    }
}
