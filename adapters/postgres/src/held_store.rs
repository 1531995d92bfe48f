//! Messages that are stored together: redriven ones, and live ones of held keys.

use std::collections::HashSet;
use std::sync::Arc;

use backstop_core::held::{Holding, NewHeld};
use backstop_core::{AdapterError, FaultKind, Via, header_column};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use crate::held_row::via_name;
use crate::inbox::PgInbox;
use crate::patience::answer_within;

/// Tails are locked in the order of their numbers, as those who delete them go: without the lock a follower could wait for
/// ever. A redriven message of a key that seems to have none is a head at once, and so are all behind it: the first may turn
/// out to be held already, by somebody who ends it before this is committed and promotes nobody. Only the lowest of a key
/// runs, whatever the others are.
pub(crate) const STORE_ALL: &str = "
    WITH m AS MATERIALIZED (
        SELECT * FROM unnest($2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::bytea[], $7::bytea[], $8::text[],
                             $9::text[])
            WITH ORDINALITY AS m (place, ordering_key, message_key, msg_key, headers, body, origin, via, ord)
    ), known AS MATERIALIZED (
        SELECT i.message_key FROM {inbox} AS i WHERE i.consumer = $1 AND i.message_key = ANY($4)
    ), tail AS MATERIALIZED (
        SELECT h.n, h.place, h.ordering_key FROM {held} AS h
        WHERE h.n = ANY(ARRAY(
            SELECT (
                SELECT l.n FROM {held} AS l
                WHERE l.consumer = $1 AND l.place = k.place
                  AND sha256(l.ordering_key) BETWEEN sha256(k.ordering_key) AND sha256(k.ordering_key)
                ORDER BY sha256(l.ordering_key) DESC, l.n DESC LIMIT 1
            ) FROM (SELECT DISTINCT place, ordering_key FROM m) AS k
        ))
        ORDER BY h.n FOR KEY SHARE
    ), ins AS (
        INSERT INTO {held} (consumer, place, ordering_key, message_key, msg_key, headers, body, origin, via, state)
        SELECT $1, m.place, m.ordering_key, m.message_key, m.msg_key, m.headers, m.body, m.origin::json, m.via,
               CASE WHEN tail.n IS NULL THEN 'retry' ELSE 'waiting' END
        FROM m LEFT JOIN tail ON tail.place = m.place AND tail.ordering_key = m.ordering_key
        WHERE (tail.n IS NOT NULL OR m.via = 'door') AND m.message_key NOT IN (SELECT message_key FROM known)
        ORDER BY m.ord
        ON CONFLICT (consumer, message_key) DO NOTHING
        RETURNING message_key
    )
    SELECT ARRAY(SELECT message_key FROM known), ARRAY(SELECT message_key FROM ins),
           ARRAY(SELECT m.ord FROM m JOIN tail ON tail.place = m.place AND tail.ordering_key = m.ordering_key)";

impl PgInbox {
    /// Stores messages of one consumer in one statement.
    pub(crate) async fn store_several(
        &self,
        messages: &[NewHeld<'_>],
    ) -> Result<Vec<Option<Holding>>, AdapterError> {
        let Some(first) = messages.first() else { return Ok(Vec::new()) };
        let (mut headers, mut origins) = (Vec::new(), Vec::new());
        for message in messages {
            headers.push(header_column::encode(&message.envelope.headers)?);
            origins.push(serde_json::to_string(message.origin).map_err(|error| {
                AdapterError::new(FaultKind::Invalid, "cannot write the origin").with_source(error)
            })?);
        }
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.store_all)))
            .bind(first.unit.consumer)
            .bind(messages.iter().map(|message| message.unit.place).collect::<Vec<&str>>())
            .bind(messages.iter().map(|message| message.unit.ordering_key).collect::<Vec<&[u8]>>())
            .bind(messages.iter().map(|message| message.unit.message_key.as_str()).collect::<Vec<&str>>())
            .bind(messages.iter().map(|message| message.envelope.key.as_deref()).collect::<Vec<_>>())
            .bind(headers)
            .bind(messages.iter().map(|message| message.envelope.body.as_deref()).collect::<Vec<_>>())
            .bind(origins)
            .bind(messages.iter().map(|message| via_name(message.via)).collect::<Vec<&str>>());
        let answer = async { query.fetch_one(&self.pool).await.and_then(|row| read(&row)) };
        let (known, stored, tailed) = answer_within("store messages of held keys", answer).await?;
        Ok(holdings(messages, &known, &stored, &tailed))
    }
}

type Answer = (Vec<String>, Vec<String>, Vec<i64>);

fn read(row: &PgRow) -> Result<Answer, sqlx::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// A redriven message that was held before may have to take that one's place: that is done by itself.
fn holdings(
    messages: &[NewHeld<'_>],
    known: &[String],
    stored: &[String],
    tailed: &[i64],
) -> Vec<Option<Holding>> {
    let known: HashSet<&str> = known.iter().map(String::as_str).collect();
    let mut stored: HashSet<&str> = stored.iter().map(String::as_str).collect();
    let tailed: HashSet<i64> = tailed.iter().copied().collect();
    let holding = |(ord, message): (i64, &NewHeld<'_>)| {
        let key = message.unit.message_key.as_str();
        match message.via {
            _ if known.contains(key) => Some(Holding::AlreadyHandled),
            _ if stored.remove(key) => Some(Holding::Stored),
            Via::Door => None,
            Via::Live if tailed.contains(&ord) => Some(Holding::Stored),
            Via::Live => Some(Holding::KeyFree),
        }
    };
    (1..).zip(messages).map(holding).collect()
}
