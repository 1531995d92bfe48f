//! Letters of messages that were done with, and died again under the same id.

use backstop_core::AdapterError;
use backstop_core::ledger::{CLOSINGS, DIED_AGAIN, Letter, LetterStatus};
use sqlx::PgConnection;

use super::{PgLedger, stored_id};
use crate::failure::failed;

/// Closed letters, in their order, as everybody locks who locks several.
const LOCK: &str = "SELECT n FROM {letter} WHERE id = ANY ($1) AND status NOT IN ('open', 'redriving') ORDER BY n FOR UPDATE";

/// The places in the batch of letters that died after the one of their id was closed. Asked once they are locked: how each
/// was closed is seen then. Where a consumer's clock is ahead, a copy of the death that is closed died after that as well:
/// it has the moment of that. No other letter may stand for the message: none of its generation or a later one is open
/// or being redriven.
const PICK: &str = "
    SELECT DISTINCT ON (l.n) u.nth
    FROM unnest($1::text[], $2::timestamptz[]) WITH ORDINALITY AS u (id, dead_at, nth) JOIN {letter} AS l ON l.id = u.id
    WHERE l.n = ANY ($3)
    AND u.dead_at > coalesce((SELECT max(e.at) FROM {event} AS e WHERE e.letter = l.n AND e.what = ANY ($4)), l.collected_at)
    AND date_trunc('milliseconds', u.dead_at) IS DISTINCT FROM date_trunc('milliseconds', l.dead_at)
    AND NOT EXISTS (SELECT FROM {letter} AS o WHERE o.message_key = l.message_key
                    AND o.consumer IS NOT DISTINCT FROM l.consumer AND o.generation >= l.generation AND o.n <> l.n
                    AND o.status IN ('open', 'redriving'))
    ORDER BY l.n, u.nth";

/// Writes letters over those of their ids; the time when the ledger took them stays, and so does all that one on hold says
/// but when it died last: it is evidence. Redrives that have not
/// sent one were made for the death that is over: as it was closed, they would have dropped it. Returns their numbers.
const REOPEN: &str = "
    WITH again AS (
        SELECT u.* FROM {batch}
    ), was AS (
        SELECT l.n, l.status, l.hold IS NOT NULL AS on_hold, u.error FROM {letter} AS l JOIN again AS u ON u.id = l.id
    ), renewed AS (
        UPDATE {letter} AS l SET
            message_key = u.message_key, consumer = u.consumer, place = u.place, found_in = u.found_in, door = u.door,
            reason = u.reason, class = u.class, error_type = u.error_type, error = u.error, fingerprint = u.fingerprint,
            attempts = u.attempts, generation = u.generation, first_failed_at = u.first_failed_at, dead_at = u.dead_at,
            status = u.status, msg_key = u.msg_key, headers = u.headers, body = u.body, outcome = NULL, redrive = NULL,
            hold = u.hold, terms = u.terms::text[], seen_at = u.dead_at, grp = u.grp
        FROM again AS u WHERE l.id = u.id AND l.hold IS NULL RETURNING l.n
    ), kept AS (
        UPDATE {letter} AS l SET status = u.status, outcome = NULL, redrive = NULL, dead_at = u.dead_at, seen_at = u.dead_at
        FROM again AS u WHERE l.id = u.id AND l.hold IS NOT NULL RETURNING l.n
    ), opened AS (
        SELECT n FROM renewed UNION ALL SELECT n FROM kept
    ), dropped AS (
        UPDATE {cohort} AS c SET step = 'dropped' FROM opened, {redrive} AS r
        WHERE c.letter = opened.n AND c.step = 'pending' AND r.n = c.redrive AND r.run IN ('running', 'paused')
    ), told AS (
        INSERT INTO {event} (letter, what, detail)
        SELECT was.n, '{died_again}', 'it was ' || was.status || CASE WHEN on_hold
            THEN '; on hold, so that it stays as it was' || coalesce(': ' || left(was.error, 1000), '') ELSE '' END
        FROM was JOIN opened ON opened.n = was.n
    )
    SELECT n FROM opened ORDER BY n";

/// Counts deaths by the minute, as the trigger does for letters that are new; those of letters on hold in the group of the
/// later error, too.
const MINUTES: &str = "
    INSERT INTO {minute} AS m (grp, minute, letters)
    SELECT u.grp, date_trunc('minute', u.at), count(*) FROM unnest($1::bigint[], $2::timestamptz[]) AS u (grp, at)
    WHERE u.at > now() - interval '1 hour' AND u.at < now() + interval '5 minutes'
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (grp, minute) DO UPDATE SET letters = m.letters + excluded.letters";

impl PgLedger {
    /// Opens closed letters again of which the batch tells another death; returns their numbers.
    pub(super) async fn reopen_some(
        &self,
        tx: &mut PgConnection,
        letters: &[Letter],
        groups: &[i64],
    ) -> Result<Vec<i64>, AdapterError> {
        let places = self.died_again(tx, letters).await?;
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let groups: Vec<i64> = places.iter().map(|place| groups[*place]).collect();
        let again = places.iter().map(|place| &letters[*place]);
        let statement = REOPEN.replace("{died_again}", DIED_AGAIN);
        let deaths: Vec<_> = again.clone().map(|letter| letter.dead_at).collect();
        let numbers = self.write_batch(tx, &statement, again, &groups).await?;
        let counted = sqlx::query(self.sql(MINUTES)).bind(&groups).bind(deaths).execute(tx).await;
        counted.map_err(failed("count dead letters by the minute"))?;
        Ok(numbers)
    }

    /// The places in the batch of letters that tell another death than the one of their id, which is locked then.
    async fn died_again(
        &self,
        tx: &mut PgConnection,
        letters: &[Letter],
    ) -> Result<Vec<usize>, AdapterError> {
        let doing = || failed("look for dead letters that died again");
        let dated = |letter: &Letter| letter.dead_at.filter(|_| letter.status == LetterStatus::Open);
        let ids: Vec<String> = letters.iter().map(|letter| stored_id(&letter.id)).collect();
        let locked: Vec<i64> =
            sqlx::query_scalar(self.sql(LOCK)).bind(&ids).fetch_all(&mut *tx).await.map_err(doing())?;
        if locked.is_empty() {
            return Ok(Vec::new());
        }
        let places: Vec<i64> = sqlx::query_scalar(self.sql(PICK))
            .bind(ids)
            .bind(letters.iter().map(dated).collect::<Vec<_>>())
            .bind(locked)
            .bind(CLOSINGS)
            .fetch_all(tx)
            .await
            .map_err(doing())?;
        Ok(places.into_iter().filter_map(|nth| usize::try_from(nth - 1).ok()).collect())
    }
}
