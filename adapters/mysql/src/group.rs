//! Messages that share a transaction.

use backstop_core::AdapterError;
use backstop_core::inbox::{GroupAdmission, Limits, Standing, Unit};
use sqlx::{AssertSqlSafe, Row};

use crate::failure::{failed, is_busy};
use crate::inbox::MySqlInbox;
use crate::scoped::{Scoped, Stopped};
use crate::session;
use crate::transaction::{MySqlTx, Savepoint};

const DOING: &str = "write the inbox rows of a group";

impl MySqlInbox {
    /// Writes the inbox rows of those that are neither handled nor of a held key.
    ///
    /// One string holds a statement for each message, because an INSERT of many rows does not tell which it has
    /// written. They are in the order of their keys, so that two instances with the same messages wait for each other
    /// in one direction only.
    pub(crate) async fn admit_group(
        &self,
        units: &[Unit<'_>],
        limits: Limits,
    ) -> Result<GroupAdmission<MySqlTx>, AdapterError> {
        let mut scoped = self.enter(limits).await?;
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|at| units[*at].message_key.as_str());
        let savepoint = Savepoint::new();
        let inserts = order.iter().map(|at| self.sql.insert_if_fresh(units[*at]) + "; ");
        let sql =
            format!("{}SAVEPOINT {savepoint}; {}", inserts.collect::<String>(), session::admitted(limits));
        let written = match scoped.run(sql).await {
            Ok(written) => written,
            Err(Stopped { error, .. }) if is_busy(&error) => {
                scoped.rollback().await;
                return Ok(GroupAdmission::Apart);
            }
            Err(stopped) => return Err(failed(DOING)(stopped.error)),
        };
        let mut standings = vec![Standing::Duplicate; units.len()];
        for (at, _) in order.into_iter().zip(written).filter(|(_, rows)| *rows == 1) {
            standings[at] = Standing::Fresh;
        }
        self.tell_held(&mut scoped, units, &mut standings).await.map_err(failed(DOING))?;
        let proof = standings.iter().position(|standing| *standing == Standing::Fresh).unwrap_or(0);
        let message = (units[proof].consumer.to_owned(), units[proof].message_key.clone());
        Ok(GroupAdmission::Shared { tx: MySqlTx { scoped, savepoint, message }, standings })
    }

    /// Tells messages of held keys from duplicates.
    async fn tell_held(
        &self,
        scoped: &mut Scoped,
        units: &[Unit<'_>],
        standings: &mut [Standing],
    ) -> Result<(), sqlx::Error> {
        let refused: Vec<usize> = (0..units.len()).filter(|at| standings[*at] != Standing::Fresh).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let questions: Vec<String> =
            refused.iter().map(|at| format!("SELECT {at}, {}", self.sql.key_is_held(units[*at]))).collect();
        let sql = questions.join(" UNION ALL ");
        let answers = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut **scoped).await?;
        for answer in answers {
            let (at, held): (i64, i64) = (answer.try_get(0)?, answer.try_get(1)?);
            if let Some(standing) = usize::try_from(at).ok().and_then(|at| standings.get_mut(at))
                && held != 0
            {
                *standing = Standing::Held;
            }
        }
        Ok(())
    }
}
