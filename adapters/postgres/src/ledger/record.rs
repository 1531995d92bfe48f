//! Writing letters.

use std::collections::HashMap;
use std::slice;

use backstop_core::ledger::{Letter, NewBody, Outcome, terms};
use backstop_core::{AdapterError, FaultKind, header_column};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Row};

use super::{PgLedger, stored, stored_id};
use crate::failure::failed;
use crate::literal;
use crate::storable::storable;
use crate::stranded;

/// Identifies a group by what its letters have in common.
const DIGEST: &str = "sha256(convert_to(jsonb_build_array(u.fingerprint, u.consumer, u.place, u.class, u.reason)::text, 'UTF8'))";

/// In the order of the digests, so that two that do the same wait for each other, and do not lock each other up.
const GROUPS: &str = "
    INSERT INTO {group} AS g (digest, fingerprint, consumer, place, class, reason, error_type, error, first_seen, last_seen)
    SELECT {digest}, u.fingerprint, u.consumer, u.place, u.class, u.reason, u.error_type, u.error,
           least(u.first, CASE WHEN u.undated THEN now() END), greatest(u.last, CASE WHEN u.undated THEN now() END)
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
                $9::timestamptz[], $10::bool[])
         AS u (fingerprint, consumer, place, class, reason, error_type, error, first, last, undated)
    ORDER BY 1
    ON CONFLICT (digest) DO UPDATE
    SET first_seen = least(g.first_seen, excluded.first_seen), last_seen = greatest(g.last_seen, excluded.last_seen)
    WHERE excluded.first_seen < g.first_seen OR excluded.last_seen > g.last_seen";

/// A statement of its own, which sees groups that somebody else wrote while the one before waited for them.
const NUMBERS: &str = "
    SELECT g.n FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                    WITH ORDINALITY AS u (fingerprint, consumer, place, class, reason, nth)
    JOIN {group} AS g ON g.digest = {digest} ORDER BY u.nth";

/// Letters as [`bind`] binds them.
const BATCH: &str = "
    unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
           $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::timestamptz[],
           $15::timestamptz[], $16::text[], $17::bytea[], $18::bytea[], $19::bytea[], $20::text[], $21::text[],
           $22::text[], $23::text[], $24::bigint[]) WITH ORDINALITY
    AS u (id, message_key, consumer, place, found_in, door, reason, class, error_type, error, fingerprint,
          attempts, generation, first_failed_at, dead_at, status, msg_key, headers, body, outcome, redrive, hold,
          terms, grp, place_in_batch)";

/// Returns the numbers of the letters that are new.
const LETTERS: &str = "
    INSERT INTO {letter} (id, message_key, consumer, place, found_in, door, reason, class, error_type, error,
        fingerprint, attempts, generation, first_failed_at, dead_at, status, msg_key, headers, body, outcome, redrive,
        hold, terms, seen_at, grp)
    SELECT u.id, u.message_key, u.consumer, u.place, u.found_in, u.door, u.reason, u.class, u.error_type, u.error,
        u.fingerprint, u.attempts, u.generation, u.first_failed_at, u.dead_at, u.status, u.msg_key, u.headers,
        u.body, u.outcome, u.redrive, u.hold, u.terms::text[], coalesce(u.dead_at, now()), u.grp
    FROM {batch}
    ORDER BY u.place_in_batch
    ON CONFLICT (id) DO NOTHING
    RETURNING n";

/// Whether one of them is not there: it was deleted after [`LETTERS`] had met it, which locks nothing.
const GONE: &str = "
    SELECT EXISTS (SELECT FROM unnest($1::text[]) AS u (id) WHERE NOT EXISTS (SELECT FROM {letter} AS l WHERE l.id = u.id))";

/// How often that is tried. Retention deletes a letter once, and one that is written just now is not over.
const ROUNDS: usize = 5;

/// Closes the older letters of messages that were redriven and died again: from now on the new letter stands for them,
/// so that as many letters are open as messages are dead. One may be open again because the confirmation of its redrive
/// was lost; the higher generation proves that the redrive arrived. Of one batch it is older that was written before; what
/// was there before is, whatever its number: a letter that died again may be of an earlier one than an edited copy.
const SUPERSEDE: &str = "
    WITH newer AS (
        SELECT n, id, message_key, consumer, generation FROM {letter} WHERE n = ANY ($1) AND message_key IS NOT NULL
    ), found AS (
        SELECT DISTINCT ON (o.n) o.n, w.id AS by FROM {letter} AS o
        JOIN newer AS w ON o.message_key = w.message_key AND o.consumer IS NOT DISTINCT FROM w.consumer
        WHERE o.generation < w.generation AND (o.n < w.n OR o.n <> ALL ($1)) ORDER BY o.n, w.generation DESC
    ), locked AS (
        SELECT l.n FROM {letter} AS l
        WHERE l.n = ANY (ARRAY (SELECT n FROM found)) AND l.status IN ('open', 'redriving') ORDER BY l.n FOR UPDATE
    ), older AS (
        UPDATE {letter} AS l SET status = 'superseded',
            outcome = CASE WHEN l.redrive IS NULL THEN l.outcome ELSE 'failed-again' END
        FROM locked WHERE l.n = locked.n RETURNING l.n
    ), stepped AS (
        UPDATE {cohort} AS c SET step = 'failed-again' FROM older
        WHERE c.letter = older.n AND c.step IN ('sending', 'waiting', 'silent', 'unknown')
    )
    INSERT INTO {event} (letter, what, detail)
    SELECT older.n, 'failed-again', found.by FROM older JOIN found ON found.n = older.n";

/// In the order of the letters, as everybody who locks several of them.
const BODIES: &str = "
    WITH locked AS (
        SELECT l.n, u.becomes FROM {letter} AS l
        JOIN unnest($1::text[], $2::bytea[], $3::bytea[]) AS u (id, was, becomes) ON u.id = l.id AND u.was = l.body
        ORDER BY l.n FOR UPDATE OF l
    ), done AS (
        UPDATE {letter} AS l SET body = locked.becomes FROM locked WHERE l.n = locked.n RETURNING l.n
    )
    SELECT count(*) FROM done";

type Bound<'q> = Query<'q, sqlx::Postgres, PgArguments>;

impl PgLedger {
    pub(super) async fn record_all(&self, letters: &[Letter]) -> Result<u64, AdapterError> {
        if letters.is_empty() {
            return Ok(0);
        }
        let doing = || failed("record dead letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let groups = self.groups_of(&mut tx, letters).await?;
        let written = self.write_or_reopen(&mut tx, letters, &groups).await?;
        self.supersede(&mut tx, letters, &written).await?;
        tx.commit().await.map_err(doing())?;
        Ok(written.len() as u64)
    }

    /// Writes letters that are new, and opens those again that died again; returns their numbers. A letter that was there
    /// when it was to be written, and is deleted before it can be locked, is new after all.
    async fn write_or_reopen(
        &self,
        tx: &mut PgConnection,
        letters: &[Letter],
        groups: &[i64],
    ) -> Result<Vec<i64>, AdapterError> {
        let mut written = Vec::new();
        for _ in 0..ROUNDS {
            written.extend(self.write_batch(tx, LETTERS, letters.iter(), groups).await?);
            if written.len() == letters.len() {
                return Ok(written);
            }
            written.extend(self.reopen_some(tx, letters, groups).await?);
            if !self.is_one_gone(tx, letters).await? {
                return Ok(written);
            }
        }
        Err(AdapterError::new(FaultKind::Conflict, "dead letters are deleted as fast as they are recorded"))
    }

    async fn is_one_gone(&self, tx: &mut PgConnection, letters: &[Letter]) -> Result<bool, AdapterError> {
        let ids: Vec<String> = letters.iter().map(|letter| stored_id(&letter.id)).collect();
        let gone = sqlx::query_scalar(self.sql(GONE)).bind(ids).fetch_one(tx).await;
        gone.map_err(failed("record dead letters"))
    }

    /// Writes a letter if it is new, inside a transaction; says whether it was.
    pub(super) async fn record_one(
        &self,
        tx: &mut PgConnection,
        letter: &Letter,
    ) -> Result<bool, AdapterError> {
        let letters = slice::from_ref(letter);
        let groups = self.groups_of(tx, letters).await?;
        let written = self.write_batch(tx, LETTERS, letters.iter(), &groups).await?;
        self.supersede(tx, letters, &written).await?;
        Ok(!written.is_empty())
    }

    /// Carries out a statement that reads letters from a [`BATCH`] and returns numbers of letters.
    pub(super) async fn write_batch<'l>(
        &self,
        tx: &mut PgConnection,
        statement: &str,
        letters: impl Iterator<Item = &'l Letter> + Clone,
        groups: &[i64],
    ) -> Result<Vec<i64>, AdapterError> {
        let query = sqlx::query(self.sql(&statement.replace("{batch}", BATCH)));
        let rows = bind(query, letters, groups)?.fetch_all(tx).await;
        let numbers = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
        numbers.map_err(failed("record dead letters"))
    }

    /// Closes what is older than the letters with these numbers, which are among those of the batch.
    async fn supersede(
        &self,
        tx: &mut PgConnection,
        letters: &[Letter],
        written: &[i64],
    ) -> Result<(), AdapterError> {
        // There is nothing older than what was never redriven.
        if letters.iter().all(|letter| letter.generation == 0) {
            return Ok(());
        }
        let done = sqlx::query(self.sql(SUPERSEDE)).bind(written).execute(tx).await;
        done.map(drop).map_err(failed("record dead letters"))
    }

    pub(super) async fn replace_all(&self, bodies: &[NewBody]) -> Result<u64, AdapterError> {
        let doing = || failed("replace bodies of dead letters");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        let row = sqlx::query(self.sql(BODIES))
            .bind(bodies.iter().map(|body| stored_id(&body.id)).collect::<Vec<_>>())
            .bind(bodies.iter().map(|body| body.from.to_vec()).collect::<Vec<_>>())
            .bind(bodies.iter().map(|body| body.to.to_vec()).collect::<Vec<_>>())
            .fetch_one(&mut *tx)
            .await;
        let done: i64 = row.and_then(|row| row.try_get(0)).map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(u64::try_from(done).unwrap_or(0))
    }

    /// For each letter the number of its group.
    async fn groups_of(&self, tx: &mut PgConnection, letters: &[Letter]) -> Result<Vec<i64>, AdapterError> {
        let Kinds { kinds, of } = Kinds::of(letters);
        let numbers = self.record_groups(tx, &kinds).await?;
        Ok(of.into_iter().map(|kind| numbers[kind]).collect())
    }

    /// The numbers of the groups, which are written where they are not there yet.
    async fn record_groups(&self, tx: &mut PgConnection, kinds: &[Kind]) -> Result<Vec<i64>, AdapterError> {
        let doing = || failed("record groups of dead letters");
        let of = |field: fn(&Kind) -> &Option<String>| -> Vec<Option<String>> {
            kinds.iter().map(|kind| field(kind).clone()).collect()
        };
        let dates = |date: fn(&Kind) -> Option<DateTime<Utc>>| kinds.iter().map(date).collect::<Vec<_>>();
        let named: [fn(&Kind) -> &Option<String>; 5] =
            [|k| &k.common[0], |k| &k.common[1], |k| &k.common[2], |k| &k.common[3], |k| &k.common[4]];
        let groups = named
            .into_iter()
            .fold(sqlx::query(self.sql(&GROUPS.replace("{digest}", DIGEST))), |query, field| {
                query.bind(of(field))
            });
        groups
            .bind(of(|kind| &kind.error_type))
            .bind(of(|kind| &kind.error))
            .bind(dates(|kind| kind.first))
            .bind(dates(|kind| kind.last))
            .bind(kinds.iter().map(|kind| kind.undated).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        let numbers = named
            .into_iter()
            .fold(sqlx::query_scalar(self.sql(&NUMBERS.replace("{digest}", DIGEST))), |query, field| {
                query.bind(of(field))
            });
        let numbers: Vec<i64> = numbers.fetch_all(tx).await.map_err(doing())?;
        match numbers.len() == kinds.len() {
            true => Ok(numbers),
            false => {
                Err(AdapterError::new(FaultKind::Conflict, "groups of dead letters were deleted meanwhile"))
            }
        }
    }
}

/// What some letters of a batch have in common, which makes them a group.
struct Kind {
    /// Fingerprint, consumer, place, class and reason.
    common: [Option<String>; 5],
    /// Of the first of them.
    error_type: Option<String>,
    error: Option<String>,
    /// When the first and the last of them died.
    first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
    /// Whether one of them does not say when it died.
    undated: bool,
}

/// The groups of a batch, which are far fewer than its letters, and for each letter the place of its group.
struct Kinds {
    kinds: Vec<Kind>,
    of: Vec<usize>,
}

impl Kinds {
    fn of(letters: &[Letter]) -> Self {
        let (mut kinds, mut known) = (Vec::<Kind>::new(), HashMap::new());
        let of = letters.iter().map(|letter| {
            let Letter { fingerprint, consumer, place, class, reason, .. } = letter;
            // As they are stored: texts that are told apart only before that are one group.
            let common = [fingerprint, consumer, place, class, reason].map(|text| stored(text.as_deref()));
            let at = *known.entry(common.clone()).or_insert_with(|| {
                kinds.push(Kind {
                    common,
                    error_type: stored(letter.error_type.as_deref()),
                    error: stored(letter.error.as_deref()),
                    first: None,
                    last: None,
                    undated: false,
                });
                kinds.len() - 1
            });
            let kind = &mut kinds[at];
            kind.first = kind.first.into_iter().chain(letter.dead_at).min();
            kind.last = kind.last.max(letter.dead_at);
            kind.undated |= letter.dead_at.is_none();
            at
        });
        let of = of.collect();
        Self { kinds, of }
    }
}

/// Binds letters and their groups as [`BATCH`] reads them.
fn bind<'q, 'l>(
    query: Bound<'q>,
    letters: impl Iterator<Item = &'l Letter> + Clone,
    groups: &[i64],
) -> Result<Bound<'q>, AdapterError> {
    let of = |field: fn(&Letter) -> Option<&str>| -> Vec<Option<String>> {
        letters.clone().map(|letter| stored(field(letter))).collect()
    };
    let numbers = |field: fn(&Letter) -> Option<i64>| letters.clone().map(field).collect::<Vec<_>>();
    let times = |field: fn(&Letter) -> Option<DateTime<Utc>>| letters.clone().map(field).collect::<Vec<_>>();
    let bytes = |field: fn(&Letter) -> Option<&[u8]>| -> Vec<Option<Vec<u8>>> {
        letters.clone().map(|letter| field(letter).map(<[u8]>::to_vec)).collect()
    };
    let headers = letters.clone().map(|letter| header_column::encode(&letter.envelope.headers));
    let headers: Vec<Vec<u8>> = headers.collect::<Result<_, _>>()?;
    let terms = letters
        .clone()
        .map(|letter| literal::array(terms::of_letter(letter).iter().map(|term| storable(term))));
    Ok(query
        .bind(letters.clone().map(|letter| stored_id(&letter.id)).collect::<Vec<_>>())
        .bind(of(|letter| letter.message_key.as_deref()))
        .bind(of(|letter| letter.consumer.as_deref()))
        .bind(of(|letter| letter.place.as_deref()))
        .bind(of(|letter| Some(&letter.found_in)))
        .bind(of(|letter| letter.door.as_deref()))
        .bind(of(|letter| letter.reason.as_deref()))
        .bind(of(|letter| letter.class.as_deref()))
        .bind(of(|letter| letter.error_type.as_deref()))
        .bind(of(|letter| letter.error.as_deref()))
        .bind(of(|letter| letter.fingerprint.as_deref()))
        .bind(numbers(|letter| letter.attempts))
        .bind(numbers(|letter| Some(letter.generation)))
        .bind(times(|letter| letter.first_failed_at))
        .bind(times(|letter| letter.dead_at))
        .bind(of(|letter| Some(letter.status.as_str())))
        .bind(bytes(|letter| letter.envelope.key.as_deref()))
        .bind(headers)
        .bind(bytes(|letter| letter.envelope.body.as_deref()))
        .bind(of(|letter| letter.outcome.map(Outcome::as_str)))
        .bind(of(|letter| letter.redrive.as_deref()))
        .bind(of(|letter| letter.hold.as_deref()))
        .bind(terms.collect::<Vec<_>>())
        .bind(groups.to_vec()))
}
