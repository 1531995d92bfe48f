//! Held messages: failures that wait in the consumer's own database.

use std::sync::Arc;

use backstop_core::held::{
    ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages, HeldSummary, Holding,
    NewHeld,
};
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey};
use backstop_core::held_run::{RunChoice, RunClaim};
use backstop_core::inbox::{CommitError, Limits};
use backstop_core::{AdapterError, DeadReason, FaultKind, Headers, MessageKey, header_column};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, Postgres, Row};

use crate::commit::commit_and_release;
use crate::held_row::{Unreadable, read, seconds, via_name};
use crate::held_sql::integer;
use crate::inbox::{PgInbox, is_busy, settings};
use crate::patience::answer_within;
use crate::proof::Proof;
use crate::storable::storable;
use crate::transaction::PgTx;

const SAVEPOINT: &str = "SAVEPOINT backstop_claim";
const UNDO: &str = "ROLLBACK TO SAVEPOINT backstop_claim";
/// To be sent before a claimed head is written. A row that its transaction has locked and a savepoint of it writes gets both
/// for its owners, and no index forgets a dead row of several owners before the next vacuum: claims would step over all of them.
const RELEASE: &str = "RELEASE SAVEPOINT backstop_claim; ";

/// How often a redriven message is taken in anew because what is held of it changes.
const MAX_CHANGES: usize = 5;

/// How many heads one call puts off because another instance is at their message.
const MAX_BUSY: usize = 16;

type Bound<'q> = Query<'q, Postgres, PgArguments>;

impl HeldMessages for PgInbox {
    async fn hold(&self, message: NewHeld<'_>, failure: &Failure) -> Result<Holding, AdapterError> {
        let query = bind(&self.held.hold, &message)?
            .bind(integer(failure.attempts))
            .bind(integer(failure.throttled))
            .bind(failure.condemned.map(DeadReason::as_str))
            .bind(failure.class.as_str())
            .bind(storable(&failure.error))
            .bind(failure.due_in.as_secs_f64())
            .bind(integer(failure.crashes));
        self.store(query, "hold the message").await
    }

    async fn append(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.store(bind(&self.held.append, &message)?, "append the message to its held key").await
    }

    async fn import(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        for _ in 0..MAX_CHANGES {
            let query = bind(&self.held.import, &message)?;
            let (holding, is_new) = self.write(query, "take in the redriven message").await?;
            // A new row may run and end before anybody looks at it again: only what was there before is revived.
            if is_new || holding != Holding::Stored || self.revive(&message).await? {
                return Ok(holding);
            }
        }
        Err(AdapterError::new(FaultKind::Conflict, "the held message changes all the time"))
    }

    async fn store_all(&self, messages: &[NewHeld<'_>]) -> Result<Vec<Option<Holding>>, AdapterError> {
        self.store_several(messages).await
    }

    async fn claim(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> Result<Option<ClaimedHead<PgTx>>, ClaimError> {
        for _ in 0..MAX_BUSY {
            let mut scoped = self.begin_scoped(limits).await?;
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.claim)))
                .bind(consumer)
                .bind(heads.are_doubtful());
            let found = answer_within("claim a held message", query.fetch_optional(&mut *scoped)).await?;
            let Some(row) = found else {
                scoped.release();
                return Ok(None);
            };
            let (read, xid) = read(&row)?;
            let tx = PgTx { scoped, proof: Proof::Xid(xid) };
            let head = match read {
                Ok(head) => head,
                Err(Unreadable { n, error }) => {
                    tracing::error!(consumer, n, %error, hint = error.hint(), "a held message is put off for a minute");
                    commit_and_release(tx, &self.held.put_off(n, 60))
                        .await
                        .map_err(CommitError::into_error)?;
                    continue;
                }
            };
            let charged = head.condemned.is_none().then(|| head.unused_charge()).into_iter().collect();
            match self.take_head(consumer, tx, head, limits).await {
                Ok(None) => {}
                Ok(claimed) => return Ok(claimed),
                Err(error) => return Err(ClaimError { error, charged }),
            }
        }
        Ok(None)
    }

    async fn acquit_heads(&self, consumer: &str, charges: &[HeadCharge]) -> Result<(), AdapterError> {
        self.acquit_held(consumer, charges).await
    }

    async fn claim_run(
        &self,
        consumer: &str,
        limits: Limits,
        choice: RunChoice<'_>,
    ) -> Result<RunClaim<PgTx>, ClaimError> {
        self.claim_held_run(consumer, limits, choice).await
    }

    async fn finish_run(
        &self,
        consumer: &str,
        tx: PgTx,
        done: &[HeldMessage],
        left: &[HeldMessage],
    ) -> Result<(), CommitError> {
        commit_and_release(tx, &self.runs.finish(consumer, done, left)).await
    }

    async fn finish(&self, consumer: &str, tx: PgTx, head: &HeldMessage) -> Result<(), CommitError> {
        let before = format!("{RELEASE}{}", self.held.finish(consumer, head));
        commit_and_release(tx, &before).await
    }

    async fn undo(&self, tx: &mut PgTx) -> Result<(), AdapterError> {
        answer_within("undo the attempt", tx.scoped.execute(UNDO)).await?;
        Ok(())
    }

    async fn reschedule(
        &self,
        _consumer: &str,
        tx: Option<PgTx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        let error = storable(&failure.error);
        if let Some(tx) = tx {
            let before = format!("{RELEASE}{}", self.held.update_head(head.n, failure, &error));
            return commit_and_release(tx, &before).await.map_err(CommitError::into_error);
        }
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.reschedule)))
            .bind(head.n)
            .bind(integer(head.attempts))
            .bind(integer(failure.attempts))
            .bind(integer(failure.throttled))
            .bind(failure.condemned.map(DeadReason::as_str))
            .bind(failure.class.as_str())
            .bind(error)
            .bind(failure.due_in.as_secs_f64())
            .bind(integer(failure.crashes));
        answer_within("reschedule the held message", query.execute(&self.pool)).await?;
        Ok(())
    }

    async fn give_up(&self, consumer: &str, head: &HeldMessage) -> Result<(), AdapterError> {
        let mut scoped = self.begin_scoped(Limits::default()).await?;
        let query = sqlx::query_scalar("SELECT pg_current_xact_id()::text");
        let doing = "delete a held message that is given up";
        let xid = answer_within(doing, query.fetch_one(&mut *scoped)).await?;
        let before = self.held.give_up(consumer, head, &header_column::encode(&head.envelope.headers)?);
        commit_and_release(PgTx { scoped, proof: Proof::Xid(xid) }, &before)
            .await
            .map_err(CommitError::into_error)
    }

    async fn park(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        attempts: u32,
        headers: &Headers,
    ) -> Result<(), AdapterError> {
        self.park_condemned(consumer, message_key, attempts, headers).await
    }

    async fn end(
        &self,
        consumer: &str,
        message_key: &MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> Result<Ended, AdapterError> {
        self.end_held(consumer, message_key, ending, generation).await
    }

    async fn keys(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldKey>, AdapterError> {
        self.heads(filter, limit).await
    }

    async fn summary(&self, consumer: &str) -> Result<HeldSummary, AdapterError> {
        let query = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.held.summary))).bind(consumer);
        let (messages, quarantined, oldest): (i64, i64, Option<f64>) =
            answer_within("count the held messages", query.fetch_one(&self.pool)).await?;
        Ok(HeldSummary {
            messages: messages.unsigned_abs(),
            quarantined: quarantined.unsigned_abs(),
            oldest: oldest.map(seconds),
        })
    }
}

impl PgInbox {
    async fn store(&self, query: Bound<'_>, doing: &str) -> Result<Holding, AdapterError> {
        self.write(query, doing).await.map(|(holding, _)| holding)
    }

    /// What became of the message, and whether this statement wrote its row.
    async fn write(&self, query: Bound<'_>, doing: &str) -> Result<(Holding, bool), AdapterError> {
        let read = |row: PgRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get::<i64, _>(2)?));
        let answer = async { query.fetch_one(&self.pool).await.and_then(read) };
        let (known, key_held, written) = answer_within(doing, answer).await?;
        let holding = match (known, key_held) {
            (true, _) => Holding::AlreadyHandled,
            (false, true) => Holding::Stored,
            (false, false) => Holding::KeyFree,
        };
        Ok((holding, written > 0))
    }

    /// Charges a claimed head, unless it is given up, and writes its inbox row; `None` while another instance is at
    /// the head or its message.
    async fn take_head(
        &self,
        consumer: &str,
        mut tx: PgTx,
        head: HeldMessage,
        limits: Limits,
    ) -> Result<Option<ClaimedHead<PgTx>>, AdapterError> {
        if head.condemned.is_none() {
            match self.charge_head(&mut tx, &head, limits).await? {
                Some(xid) => tx.proof = Proof::Xid(xid),
                // It is charged and does not run.
                None => {
                    tx.scoped.release();
                    self.acquit_held(consumer, &[head.unused_charge()]).await?;
                    return Ok(None);
                }
            }
        }
        if let Some(handled) = self.admit_head(consumer, &mut tx, &head).await? {
            return Ok(Some(ClaimedHead { tx, head, handled }));
        }
        let put_off = format!("{RELEASE}{}", self.held.put_off_uncharged(&head, 1));
        commit_and_release(tx, &put_off).await.map_err(CommitError::into_error)?;
        Ok(None)
    }

    /// Commits the charge of a claimed head, and claims it again in the transaction that follows on its connection.
    async fn charge_head(
        &self,
        tx: &mut PgTx,
        head: &HeldMessage,
        limits: Limits,
    ) -> Result<Option<String>, AdapterError> {
        const DOING: &str = "charge a held message";
        let charge = format!("{}COMMIT AND CHAIN; {}", self.held.charge_head(head.n), settings(limits));
        let charged = tx.scoped.execute(sqlx::raw_sql(AssertSqlSafe(charge)));
        answer_within(DOING, async { charged.await.map(drop) }).await?;
        let again = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.held.claim_charged)))
            .bind(head.n)
            .bind(integer(head.attempts))
            .bind(integer(head.unused_charge().stands));
        answer_within(DOING, again.fetch_optional(&mut *tx.scoped)).await
    }

    /// Writes the head's inbox row behind a savepoint; says whether it was there already, or `None` while another
    /// instance is at the message. The savepoint comes after the claim, so that going back to it keeps the claim.
    async fn admit_head(
        &self,
        consumer: &str,
        tx: &mut PgTx,
        head: &HeldMessage,
    ) -> Result<Option<bool>, AdapterError> {
        let insert = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.admit_head)))
            .bind(consumer)
            .bind(head.message_key.as_str());
        answer_within("write the inbox row of a held message", async {
            tx.scoped.execute(SAVEPOINT).await?;
            let answer = insert.fetch_one(&mut *tx.scoped).await;
            match answer.and_then(|row| row.try_get::<bool, _>(0)) {
                Ok(fresh) => Ok(Some(!fresh)),
                Err(error) if is_busy(&error) => {
                    tx.scoped.execute(UNDO).await?;
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// The nine columns that every way of storing a message has.
fn bind<'q>(sql: &Arc<str>, message: &NewHeld<'q>) -> Result<Bound<'q>, AdapterError> {
    let origin = serde_json::to_string(message.origin).map_err(|error| {
        AdapterError::new(FaultKind::Invalid, "cannot write the origin").with_source(error)
    })?;
    Ok(sqlx::query(AssertSqlSafe(Arc::clone(sql)))
        .bind(message.unit.consumer)
        .bind(message.unit.place)
        .bind(message.unit.ordering_key)
        .bind(message.unit.message_key.as_str())
        .bind(message.envelope.key.as_deref())
        .bind(header_column::encode(&message.envelope.headers)?)
        .bind(message.envelope.body.as_deref())
        .bind(origin)
        .bind(via_name(message.via)))
}
