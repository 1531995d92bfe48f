//! Messages that share a transaction.
//!
//! At READ COMMITTED each statement sees what was committed when it began: a key may be held for the row of one message and
//! free for that of the next.

use std::collections::HashSet;

use backstop_core::AdapterError;
use backstop_core::inbox::{GroupAdmission, Limits, Standing, Unit};
use sqlx::{AssertSqlSafe, Row};

use crate::failure::{failed, is_busy};
use crate::inbox::MySqlInbox;
use crate::literal;
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
        let mut standings = vec![Standing::Held; units.len()];
        for (at, _) in order.into_iter().zip(written).filter(|(_, rows)| *rows == 1) {
            standings[at] = Standing::Fresh;
        }
        self.tell_handled(&mut scoped, units, &mut standings).await.map_err(failed(DOING))?;
        if is_overtaken(units, &standings) {
            scoped.rollback().await;
            return Ok(GroupAdmission::Apart);
        }
        let proof = standings.iter().position(|standing| *standing == Standing::Fresh).unwrap_or(0);
        let message = (units[proof].consumer.to_owned(), units[proof].message_key.clone());
        Ok(GroupAdmission::Shared { tx: MySqlTx { scoped, savepoint, message }, standings })
    }

    /// Tells duplicates from messages of held keys, among those whose rows were not written.
    ///
    /// Only a row in the inbox makes a duplicate. That nothing of its key is held does not: what was may have been handled
    /// since, and the message was not. Whoever then appends it is told that its key is free.
    async fn tell_handled(
        &self,
        scoped: &mut Scoped,
        units: &[Unit<'_>],
        standings: &mut [Standing],
    ) -> Result<(), sqlx::Error> {
        let refused = (0..units.len()).filter(|at| standings[*at] != Standing::Fresh);
        let questions: Vec<String> = refused.map(|at| self.find_handled(at, units[at])).collect();
        if questions.is_empty() {
            return Ok(());
        }
        let sql = questions.join(" UNION ALL ");
        for handled in sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut **scoped).await? {
            let at: i64 = handled.try_get(0)?;
            if let Some(standing) = usize::try_from(at).ok().and_then(|at| standings.get_mut(at)) {
                *standing = Standing::Duplicate;
            }
        }
        Ok(())
    }

    /// Answers with `at` if the unit is handled, by this transaction too.
    fn find_handled(&self, at: usize, unit: Unit<'_>) -> String {
        format!(
            "SELECT {at} FROM {} WHERE consumer = {} AND message_key = {}",
            self.tables.inbox(),
            literal::bytes(unit.consumer.as_bytes()),
            literal::bytes(unit.message_key.as_str().as_bytes()),
        )
    }
}

/// Whether a message would be handled before an earlier one of its key, which was refused when the key was still held and
/// comes after the group.
fn is_overtaken(units: &[Unit<'_>], standings: &[Standing]) -> bool {
    let mut left = HashSet::new();
    units.iter().zip(standings).any(|(unit, standing)| {
        let key = (unit.place, unit.ordering_key);
        match standing {
            Standing::Fresh => left.contains(&key),
            Standing::Held => {
                left.insert(key);
                false
            }
            Standing::Duplicate => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use backstop_core::MessageKey;

    use super::*;

    #[test]
    fn only_an_earlier_message_of_the_same_key_is_overtaken() {
        let (fresh, held, duplicate) = (Standing::Fresh, Standing::Held, Standing::Duplicate);
        let message_key = MessageKey::new("/test", b"1");
        let unit = |place: &'static str, ordering_key: &'static str| Unit {
            consumer: "stock",
            place,
            ordering_key: ordering_key.as_bytes(),
            message_key: &message_key,
        };
        let same = [unit("orders", "k"), unit("orders", "x"), unit("orders", "k")];
        assert!(is_overtaken(&same, &[held, fresh, fresh]));
        assert!(!is_overtaken(&same, &[fresh, fresh, held]));
        assert!(!is_overtaken(&same, &[held, fresh, held]));
        assert!(!is_overtaken(&same, &[duplicate, held, fresh]));
        assert!(!is_overtaken(&[unit("orders", "k"), unit("returns", "k")], &[held, fresh]));
    }
}
