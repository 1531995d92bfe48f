//! Held messages: failures that wait in the consumer's own database.

use std::sync::Arc;

use backstop_core::held::{
    ClaimError, ClaimedHead, Failure, HeadCharge, Heads, HeldMessage, HeldMessages, HeldSummary, Holding,
    NewHeld,
};
use backstop_core::held_keys::{Ended, Ending, HeldFilter, HeldKey};
use backstop_core::inbox::{CommitError, Limits};
use backstop_core::{AdapterError, DeadReason, FaultKind, Headers, MessageKey, header_column};
use sqlx::{AssertSqlSafe, Row};

use crate::commit::commit;
use crate::contest::contested;
use crate::failure::{errors, failed, is_busy, number};
use crate::held_row::{read, via_name};
use crate::held_sql::{gate, integer};
use crate::inbox::MySqlInbox;
use crate::patience::within;
use crate::scoped::Scoped;
use crate::session;
use crate::time::{from_micros, micros};
use crate::transaction::{MySqlTx, Savepoint};

/// How often a redriven message is taken in anew because what is held of it changes.
const MAX_CHANGES: usize = 5;

/// How many heads one call puts off because another instance is at their message.
const MAX_BUSY: usize = 16;

/// How a message is to be held.
#[derive(Clone, Copy)]
enum As<'a> {
    /// It failed first.
    Failed(&'a Failure),
    /// Behind others; not at all if there are none.
    Follower,
    /// Behind others, or at once.
    Redriven,
}

/// What a look for a head came to.
enum Found {
    Head(Box<ClaimedHead<MySqlTx>>),
    /// This one is not to be had now; another may be.
    Other,
    Nothing,
}

impl HeldMessages for MySqlInbox {
    async fn hold(&self, message: NewHeld<'_>, failure: &Failure) -> Result<Holding, AdapterError> {
        self.store(&message, As::Failed(failure), "hold the message").await
    }

    async fn append(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        self.store(&message, As::Follower, "append the message to its held key").await
    }

    async fn import(&self, message: NewHeld<'_>) -> Result<Holding, AdapterError> {
        for _ in 0..MAX_CHANGES {
            let (holding, is_new) =
                self.write(&message, As::Redriven, "take in the redriven message").await?;
            // A new row may run and end before anybody looks at it again: only what was there before is revived.
            if is_new || holding != Holding::Stored || self.revive(&message).await? {
                return Ok(holding);
            }
        }
        Err(AdapterError::new(FaultKind::Conflict, "the held message changes all the time"))
    }

    async fn claim(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
    ) -> Result<Option<ClaimedHead<MySqlTx>>, ClaimError> {
        for _ in 0..MAX_BUSY {
            let mut charged = None;
            let claim = Box::pin(self.claim_one(consumer, limits, heads, &mut charged));
            let found = within("claim a held message", claim).await;
            match found.map_err(|error| ClaimError { error, charged: charged.into_iter().collect() })? {
                Found::Head(head) => return Ok(Some(*head)),
                Found::Nothing => return Ok(None),
                Found::Other => {}
            }
        }
        Ok(None)
    }

    async fn acquit_heads(&self, consumer: &str, charges: &[HeadCharge]) -> Result<(), AdapterError> {
        for charge in charges {
            self.acquit_held(consumer, *charge).await?;
        }
        Ok(())
    }

    async fn finish(&self, consumer: &str, tx: MySqlTx, head: &HeldMessage) -> Result<(), CommitError> {
        let mut before = vec![session::at_gate()];
        before.extend(self.held.delete(consumer, head));
        commit(tx, &before, &self.sql).await
    }

    async fn undo(&self, tx: &mut MySqlTx) -> Result<(), AdapterError> {
        let sql = format!("ROLLBACK TO SAVEPOINT {}", tx.savepoint);
        let done = within("undo the attempt", async {
            tx.scoped.run(sql).await.map_err(|stopped| failed("undo the attempt")(stopped.error))
        });
        done.await.map(drop)
    }

    async fn reschedule(
        &self,
        _consumer: &str,
        tx: Option<MySqlTx>,
        head: &HeldMessage,
        failure: &Failure,
    ) -> Result<(), AdapterError> {
        const DOING: &str = "reschedule the held message";
        if let Some(tx) = tx {
            let before = [self.held.update_head(head.n, failure)];
            return commit(tx, &before, &self.sql).await.map_err(into_adapter_error);
        }
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            sqlx::query(AssertSqlSafe(Arc::clone(&self.held.reschedule)))
                .bind(integer(failure.throttled))
                .bind(failure.condemned.map(DeadReason::as_str))
                .bind(failure.class.as_str())
                .bind(&failure.error)
                .bind(micros(failure.due_in))
                .bind(integer(failure.crashes))
                .bind(integer(failure.attempts))
                .bind(head.n)
                .bind(integer(head.attempts))
                .execute(&mut *scoped)
                .await
                .map_err(failed(DOING))?;
            scoped.commit().await.map_err(failed(DOING))
        })
        .await
    }

    async fn give_up(&self, consumer: &str, head: &HeldMessage) -> Result<(), AdapterError> {
        const DOING: &str = "delete a held message that is given up";
        let headers = header_column::encode(&head.envelope.headers)?;
        contested(DOING, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(DOING))?;
            // The head first, and then its gate: another instance may have it claimed.
            let found = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.given_up)))
                .bind(head.n)
                .bind(integer(head.attempts))
                .bind(&headers)
                .fetch_optional(&mut *scoped)
                .await
                .map_err(failed(DOING))?;
            if found.is_none() {
                scoped.rollback().await;
                return Ok(());
            }
            let delete = self.held.delete(consumer, head).join("; ");
            scoped.run(delete).await.map_err(|stopped| failed(DOING)(stopped.error))?;
            scoped.commit().await.map_err(failed(DOING))
        })
        .await
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
        let query = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.held.summary))).bind(consumer.as_bytes());
        let doing = "count the held messages";
        let (messages, quarantined, oldest): (i64, i64, Option<i64>) =
            within(doing, async { query.fetch_one(&self.pool).await.map_err(failed(doing)) }).await?;
        Ok(HeldSummary {
            messages: messages.unsigned_abs(),
            quarantined: quarantined.unsigned_abs(),
            oldest: oldest.map(from_micros),
        })
    }
}

/// What becomes of a message that is to be held.
enum Verdict {
    /// Nothing is written.
    Known(Holding),
    /// A row of that state.
    Write(&'static str),
}

impl MySqlInbox {
    async fn store(&self, message: &NewHeld<'_>, how: As<'_>, doing: &str) -> Result<Holding, AdapterError> {
        self.write(message, how, doing).await.map(|(holding, _)| holding)
    }

    /// What became of the message, and whether its row was written now.
    async fn write(
        &self,
        message: &NewHeld<'_>,
        how: As<'_>,
        doing: &str,
    ) -> Result<(Holding, bool), AdapterError> {
        let origin = serde_json::to_string(message.origin).map_err(|error| {
            AdapterError::new(FaultKind::Invalid, "cannot write the origin").with_source(error)
        })?;
        let headers = header_column::encode(&message.envelope.headers)?;
        contested(doing, async || {
            let mut scoped = Scoped::begin(&self.pool).await.map_err(failed(doing))?;
            self.lock_gate(&mut scoped, message, doing).await?;
            match self.look(&mut scoped, message, how).await.map_err(failed(doing))? {
                Verdict::Known(holding) => {
                    scoped.rollback().await;
                    Ok((holding, false))
                }
                Verdict::Write(state) => {
                    let inserted = self.insert(&mut scoped, message, &origin, &headers, state, how).await;
                    let is_new = inserted.is_ok();
                    match inserted {
                        Ok(()) => scoped.commit().await.map_err(failed(doing))?,
                        // Under another key, and so behind another gate, it was stored meanwhile.
                        Err(error) if number(&error) == Some(errors::DUPLICATE) => scoped.rollback().await,
                        Err(error) => return Err(failed(doing)(error)),
                    }
                    Ok((Holding::Stored, is_new))
                }
            }
        })
        .await
    }

    async fn lock_gate(
        &self,
        scoped: &mut Scoped,
        message: &NewHeld<'_>,
        doing: &str,
    ) -> Result<(), AdapterError> {
        let unit = message.unit;
        let number = gate(unit.consumer, unit.place, unit.ordering_key);
        let gate = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.gate))).bind(number);
        let found = gate.fetch_optional(&mut **scoped).await.map_err(failed(doing))?;
        found.map(drop).ok_or_else(|| {
            AdapterError::new(
                FaultKind::Missing,
                format!("cannot {doing}: gate {number} is not in its table"),
            )
            .with_hint("write the numbers 0 to 63 into the table of gates, as migration 2 does")
        })
    }

    /// Behind the gate: what is seen here stays so until the end of the transaction.
    async fn look(
        &self,
        scoped: &mut Scoped,
        message: &NewHeld<'_>,
        how: As<'_>,
    ) -> Result<Verdict, sqlx::Error> {
        let unit = message.unit;
        let (consumer, message_key) = (unit.consumer.as_bytes(), unit.message_key.as_str().as_bytes());
        let row = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.look)))
            .bind(consumer)
            .bind(message_key)
            .bind(consumer)
            .bind(message_key)
            .bind(consumer)
            .bind(unit.place.as_bytes())
            .bind(unit.ordering_key)
            .fetch_one(&mut **scoped)
            .await?;
        let is = |column: usize| row.try_get::<i64, _>(column).map(|found| found != 0);
        let (handled, stored, followed) = (is(0)?, is(1)?, is(2)?);
        Ok(match how {
            _ if handled => Verdict::Known(Holding::AlreadyHandled),
            _ if stored => Verdict::Known(Holding::Stored),
            As::Failed(_) => Verdict::Write("retry"),
            As::Follower if !followed => Verdict::Known(Holding::KeyFree),
            As::Redriven if !followed => Verdict::Write("retry"),
            As::Follower | As::Redriven => Verdict::Write("waiting"),
        })
    }

    async fn insert(
        &self,
        scoped: &mut Scoped,
        message: &NewHeld<'_>,
        origin: &str,
        headers: &[u8],
        state: &str,
        how: As<'_>,
    ) -> Result<(), sqlx::Error> {
        let NewHeld { unit, envelope, via, .. } = message;
        let failure = if let As::Failed(failure) = how { Some(failure) } else { None };
        sqlx::query(AssertSqlSafe(Arc::clone(&self.held.insert)))
            .bind(unit.consumer.as_bytes())
            .bind(unit.place.as_bytes())
            .bind(unit.ordering_key)
            .bind(unit.message_key.as_str().as_bytes())
            .bind(envelope.key.as_deref())
            .bind(headers)
            .bind(envelope.body.as_deref())
            .bind(origin)
            .bind(via_name(*via))
            .bind(state)
            .bind(failure.map_or(0, |failure| integer(failure.attempts)))
            .bind(failure.map_or(0, |failure| integer(failure.throttled)))
            .bind(failure.and_then(|failure| failure.condemned).map(DeadReason::as_str))
            .bind(failure.map(|failure| failure.class.as_str()))
            .bind(failure.map(|failure| failure.error.as_str()))
            .bind(failure.map_or(0, |failure| micros(failure.due_in)))
            .bind(failure.map_or(0, |failure| integer(failure.crashes)))
            .execute(&mut **scoped)
            .await?;
        Ok(())
    }

    /// Tells `charged` of the head that it is about to charge.
    async fn claim_one(
        &self,
        consumer: &str,
        limits: Limits,
        heads: Heads,
        charged: &mut Option<HeadCharge>,
    ) -> Result<Found, AdapterError> {
        let doing = || failed("claim a held message");
        let mut scoped = self.enter(limits).await?;
        let claim = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.held.claim)))
            .bind(consumer.as_bytes())
            .bind(heads.are_doubtful());
        let n: i64 = match claim.fetch_optional(&mut *scoped).await {
            Ok(Some(n)) => n,
            Ok(None) => {
                scoped.rollback().await;
                return Ok(Found::Nothing);
            }
            Err(error) if is_busy(&error) => {
                scoped.rollback().await;
                return Ok(Found::Other);
            }
            Err(error) => return Err(doing()(error)),
        };
        let head = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.head))).bind(n);
        let row = head.fetch_one(&mut *scoped).await.map_err(doing())?;
        if row.try_get::<i64, _>(17).map_err(doing())? == 0 {
            scoped.rollback().await;
            return Ok(Found::Other);
        }
        match read(&row, n) {
            Ok(head) => {
                *charged = head.condemned.is_none().then(|| head.unused_charge());
                self.take_head(consumer, scoped, head, limits).await
            }
            Err(error) => {
                tracing::error!(consumer, n, %error, hint = error.hint(), "a held message is put off for a minute");
                self.put_off(scoped, self.held.put_off(n, 60)).await
            }
        }
    }

    /// Charges a claimed head, unless it is given up, and writes its inbox row.
    async fn take_head(
        &self,
        consumer: &str,
        mut scoped: Scoped,
        head: HeldMessage,
        limits: Limits,
    ) -> Result<Found, AdapterError> {
        if head.condemned.is_none() && !self.charge_head(&mut scoped, &head).await? {
            scoped.rollback().await;
            // It is charged and does not run.
            self.acquit_held(consumer, head.unused_charge()).await?;
            return Ok(Found::Other);
        }
        self.admit_head(consumer, scoped, head, limits).await
    }

    /// Commits the charge of a claimed head, and claims it again in a transaction that follows on its connection;
    /// whether that was to be had.
    async fn charge_head(&self, scoped: &mut Scoped, head: &HeldMessage) -> Result<bool, AdapterError> {
        let doing = || failed("charge a held message");
        let charge = self.held.charge_head(head.n);
        let charge = format!("{charge}; COMMIT AND NO CHAIN NO RELEASE; {}", session::BEGIN);
        scoped.run(charge).await.map_err(|stopped| doing()(stopped.error))?;
        let again = sqlx::query(AssertSqlSafe(Arc::clone(&self.held.claim_charged)))
            .bind(head.n)
            .bind(integer(head.attempts))
            .bind(integer(head.unused_charge().stands));
        again.fetch_optional(&mut **scoped).await.map(|row| row.is_some()).map_err(doing())
    }

    async fn put_off(&self, mut scoped: Scoped, sql: String) -> Result<Found, AdapterError> {
        let doing = || failed("put a held message off");
        scoped.run(sql).await.map_err(|stopped| doing()(stopped.error))?;
        scoped.commit().await.map_err(doing())?;
        Ok(Found::Other)
    }

    /// Writes the head's inbox row behind a savepoint, which comes after the claim, so that going back to it keeps the
    /// claim.
    async fn admit_head(
        &self,
        consumer: &str,
        mut scoped: Scoped,
        head: HeldMessage,
        limits: Limits,
    ) -> Result<Found, AdapterError> {
        let savepoint = Savepoint::new();
        let (insert, admitted) = (self.sql.insert(consumer, &head.message_key), session::admitted(limits));
        let handled = match scoped.run(format!("SAVEPOINT {savepoint}; {insert}; {admitted}")).await {
            Ok(_) => false,
            Err(stopped) => match number(&stopped.error) {
                Some(errors::DUPLICATE) => {
                    let done = scoped.run(admitted).await;
                    done.map_err(|stopped| failed("claim a held message")(stopped.error))?;
                    true
                }
                // The claim is lost with everything else, and the charge stands.
                Some(errors::DEADLOCK) => {
                    scoped.rollback().await;
                    self.acquit_held(consumer, head.unused_charge()).await?;
                    return Ok(Found::Other);
                }
                // Another instance is at the message.
                _ if is_busy(&stopped.error) => {
                    return self.put_off(scoped, self.held.put_off_uncharged(&head, 1)).await;
                }
                _ => return Err(failed("write the inbox row of a held message")(stopped.error)),
            },
        };
        let tx = MySqlTx { scoped, savepoint, message: (consumer.to_owned(), head.message_key.clone()) };
        Ok(Found::Head(Box::new(ClaimedHead { tx, head, handled })))
    }
}

fn into_adapter_error(error: CommitError) -> AdapterError {
    match error {
        CommitError::RolledBack(error) | CommitError::EndedByHandler(error) | CommitError::Unknown(error) => {
            error
        }
    }
}
