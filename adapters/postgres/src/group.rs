//! Messages that share a transaction.

use std::collections::HashSet;
use std::sync::Arc;

use backstop_core::inbox::{GroupAdmission, Limits, Standing, Unit};
use backstop_core::{AdapterError, MessageKey};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use crate::failure::failed;
use crate::inbox::{PgInbox, is_busy};
use crate::limits::milliseconds;
use crate::of_key::elder;
use crate::patience::answer_within;
use crate::proof::Proof;
use crate::scoped::Scoped;
use crate::tables::PgTables;
use crate::transaction::PgTx;

/// Writes the inbox rows of all messages that are neither handled nor of a held key.
///
/// Rows are written in the order of their keys, so that two instances with the same messages wait for each other in
/// one direction only. The limits are set before the first row, by a subquery that runs once, and the short lock
/// timeout is given back after the last, by a row that exists only then.
const ADMIT: &str = concat!(
    "
    WITH unit AS MATERIALIZED (
        SELECT message_key, ",
    elder!("$1", "u.place", "u.ordering_key"),
    " IS NOT NULL AS held
        FROM unnest($2::text[], $3::text[], $4::bytea[]) AS u (message_key, place, ordering_key)
        WHERE (SELECT set_config('statement_timeout', $6, true) || set_config('lock_timeout', $5, true)
                   || set_config('idle_in_transaction_session_timeout', $6, true)) IS NOT NULL
    ), fresh AS (
        INSERT INTO {inbox} (consumer, message_key)
        SELECT $1, message_key FROM unit WHERE NOT held ORDER BY message_key
        ON CONFLICT DO NOTHING
        RETURNING message_key
    )
    SELECT coalesce(fresh, ARRAY[]::text[]), ARRAY(SELECT message_key FROM unit WHERE held),
           set_config('lock_timeout', current_setting('backstop.lock_timeout'), true)
    FROM (SELECT array_agg(message_key) AS fresh FROM fresh) AS answer"
);

const WITHDRAW: &str = "DELETE FROM {inbox} WHERE consumer = $1 AND message_key = ANY($2)";

/// The statements with the names of the tables filled in.
#[derive(Debug)]
pub(crate) struct GroupSql {
    admit: Arc<str>,
    withdraw: Arc<str>,
}

impl GroupSql {
    pub(crate) fn new(tables: &PgTables) -> Self {
        Self { admit: tables.fill(ADMIT).into(), withdraw: tables.fill(WITHDRAW).into() }
    }
}

impl PgInbox {
    /// Writes the inbox rows of a group in a transaction that has just begun.
    pub(crate) async fn admit_group(
        &self,
        mut scoped: Scoped,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<PgTx>, AdapterError> {
        let consumer = units.first().map_or("", |unit| unit.consumer);
        let keys: Vec<&str> = units.iter().map(|unit| unit.message_key.as_str()).collect();
        let places: Vec<&str> = units.iter().map(|unit| unit.place).collect();
        let ordering_keys: Vec<&[u8]> = units.iter().map(|unit| unit.ordering_key).collect();
        let answer = sqlx::query(AssertSqlSafe(Arc::clone(&self.group.admit)))
            .bind(consumer)
            .bind(keys)
            .bind(places)
            .bind(ordering_keys)
            .bind(milliseconds(limits.lock).to_string())
            .bind(milliseconds(limits.handler).to_string())
            .fetch_one(&mut *scoped)
            .await;
        let (fresh, held) = match answer.and_then(|row| read(&row)) {
            Ok(answer) => answer,
            Err(error) if is_busy(&error) => {
                scoped.release();
                return Ok(GroupAdmission::Apart);
            }
            Err(error) => return Err(failed("write the inbox rows of a group")(error)),
        };
        let standings = standings(units, &fresh, &held);
        Ok(GroupAdmission::Shared { tx: PgTx { scoped, proof: Proof::Cursor(limits) }, standings })
    }

    pub(crate) async fn withdraw_from(
        &self,
        tx: &mut PgTx,
        consumer: &str,
        message_keys: &[&MessageKey],
    ) -> Result<(), AdapterError> {
        let keys: Vec<&str> = message_keys.iter().map(|key| key.as_str()).collect();
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.group.withdraw))).bind(consumer).bind(keys);
        answer_within("take messages out of a group", query.execute(&mut *tx.scoped)).await?;
        Ok(())
    }
}

fn read(row: &PgRow) -> Result<(Vec<String>, Vec<String>), sqlx::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Of messages with one identity the first is the fresh one.
fn standings(units: &[Unit<'_>], fresh: &[String], held: &[String]) -> Vec<Standing> {
    let mut fresh: HashSet<&str> = fresh.iter().map(String::as_str).collect();
    let held: HashSet<&str> = held.iter().map(String::as_str).collect();
    let standing = |unit: &Unit<'_>| {
        let key = unit.message_key.as_str();
        match fresh.remove(key) {
            true => Standing::Fresh,
            false if held.contains(key) => Standing::Held,
            false => Standing::Duplicate,
        }
    };
    units.iter().map(standing).collect()
}
