//! Writing letters, and their history.

use backstop_core::AdapterError;
use backstop_core::ledger::{Edit, Letter, NewBody, terms};
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::SqliteLedger;
use crate::commit::commit;
use crate::database::plain;
use crate::error::adapter;
use crate::letter_row::{insert, seen_at};

impl SqliteLedger {
    pub(super) async fn write_letters(&self, letters: &[Letter]) -> Result<u64, AdapterError> {
        let mut new = 0;
        let mut tx = self.database.write("cannot write dead letters").await?;
        for letter in letters {
            let written = self.write_letter(&mut tx, letter).await?.is_some();
            new += u64::from(written || self.reopen(&mut tx, letter).await?);
        }
        commit(tx).await.map_err(plain)?;
        Ok(new)
    }

    /// Writes a letter inside a transaction; its number, or `None` where it is there already.
    async fn write_letter(
        &self,
        tx: &mut SqliteConnection,
        letter: &Letter,
    ) -> Result<Option<i64>, AdapterError> {
        let group = self.group_of(&mut *tx, letter).await?;
        let table = self.database.tables.letter();
        let row = insert(&table, letter, group).fetch_optional(&mut *tx).await;
        let Some(row) = row.map_err(|error| adapter("cannot write dead letters", error))? else {
            return Ok(None);
        };
        let n = sqlx::Row::get(&row, "n");
        self.write_terms(&mut *tx, n, letter).await?;
        self.note(&mut *tx, n, "collected", Some(&letter.found_in)).await?;
        self.supersede(tx, letter).await?;
        Ok(Some(n))
    }

    /// Puts a copy in a letter's place.
    pub(super) async fn put_in_place(&self, edit: &Edit) -> Result<bool, AdapterError> {
        const DOING: &str = "cannot put an edited copy in a letter's place";
        let Edit { id, copy, because } = edit;
        let sql = format!(
            "UPDATE {} SET status = 'superseded' WHERE id = ? AND status = 'open' AND hold IS NULL RETURNING n",
            self.database.tables.letter()
        );
        let mut tx = self.database.write(DOING).await?;
        let closed: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(|error| adapter(DOING, error))?;
        let Some(closed) = closed else { return Ok(false) };
        // What is not committed is rolled back.
        let Some(n) = self.write_letter(&mut tx, copy).await? else { return Ok(false) };
        self.note(&mut tx, closed, "edited", Some(&format!("{}: {because}", copy.id))).await?;
        self.note(&mut tx, n, "edit-of", Some(&format!("{id}: {because}"))).await?;
        commit(tx).await.map_err(plain)?;
        Ok(true)
    }

    pub(super) async fn write_bodies(&self, bodies: &[NewBody]) -> Result<u64, AdapterError> {
        let sql = format!("UPDATE {} SET body = ? WHERE id = ? AND body = ?", self.database.tables.letter());
        let mut changed = 0;
        let mut tx = self.database.write("cannot replace bodies of dead letters").await?;
        for NewBody { id, from, to } in bodies {
            let done = sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(to.to_vec())
                .bind(id)
                .bind(from.to_vec())
                .execute(&mut *tx)
                .await
                .map_err(|error| adapter("cannot replace bodies of dead letters", error))?;
            changed += done.rows_affected();
        }
        commit(tx).await.map_err(plain)?;
        Ok(changed)
    }

    /// The number of the group that the letter belongs to.
    pub(super) async fn group_of(
        &self,
        tx: &mut SqliteConnection,
        letter: &Letter,
    ) -> Result<i64, AdapterError> {
        let sql = format!(
            "INSERT INTO {} (kind, fingerprint, consumer, place, class, reason, error_type, error, first_seen, last_seen) \
             VALUES (json_array(?1, ?2, ?3, ?4, ?5), ?1, ?2, ?3, ?4, ?5, ?6, ?7, {seen_at}, {seen_at}) ON CONFLICT (kind) DO UPDATE \
             SET first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen) \
             RETURNING n",
            self.database.tables.letter_group(),
            seen_at = seen_at("?8")
        );
        sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&letter.fingerprint)
            .bind(&letter.consumer)
            .bind(&letter.place)
            .bind(&letter.class)
            .bind(&letter.reason)
            .bind(&letter.error_type)
            .bind(&letter.error)
            .bind(letter.dead_at.map(|at| at.timestamp_millis()))
            .fetch_one(tx)
            .await
            .map_err(|error| adapter("cannot write a group of dead letters", error))
    }

    pub(super) async fn write_terms(
        &self,
        tx: &mut SqliteConnection,
        n: i64,
        letter: &Letter,
    ) -> Result<(), AdapterError> {
        let terms: Vec<String> = terms::of_letter(letter).into_iter().collect();
        let sql = format!(
            "INSERT INTO {} (term, letter) SELECT value, ? FROM json_each(?)",
            self.database.tables.letter_term()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(n).bind(serde_json::json!(terms).to_string());
        query.execute(tx).await.map_err(|error| adapter("cannot write what to search for", error))?;
        Ok(())
    }

    /// Closes older letters of the same message: this one says how their redrive ended. One may be open again because
    /// the confirmation of its redrive was lost; the higher generation proves that the redrive arrived.
    pub(super) async fn supersede(
        &self,
        connection: &mut SqliteConnection,
        newer: &Letter,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET status = 'superseded', outcome = CASE WHEN redrive IS NULL THEN outcome ELSE 'failed-again' END \
             WHERE consumer IS ? AND message_key = ? AND status IN ('open', 'redriving') AND generation < ? \
             AND id <> ? RETURNING n",
            self.database.tables.letter()
        );
        let older: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(newer.consumer.as_deref())
            .bind(newer.message_key.as_deref())
            .bind(newer.generation)
            .bind(&newer.id)
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| adapter("cannot close the older letter", error))?;
        for n in older {
            self.step_everywhere(connection, n, "failed-again").await?;
            self.note(connection, n, "failed-again", Some(&newer.id)).await?;
        }
        Ok(())
    }

    /// Writes an outcome down wherever the letter was sent and none is known yet.
    pub(super) async fn step_everywhere(
        &self,
        connection: &mut SqliteConnection,
        letter: i64,
        step: &str,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "UPDATE {} SET step = ? WHERE letter = ? AND step IN ('sending', 'waiting', 'silent', 'unknown')",
            self.database.tables.redrive_letter()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(step).bind(letter);
        query.execute(connection).await.map_err(|error| adapter("cannot write an outcome", error))?;
        Ok(())
    }

    pub(super) async fn note(
        &self,
        connection: &mut SqliteConnection,
        letter: i64,
        what: &str,
        detail: Option<&str>,
    ) -> Result<(), AdapterError> {
        let sql = format!(
            "INSERT INTO {} (letter, what, detail) VALUES (?, ?, ?)",
            self.database.tables.letter_event()
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(letter).bind(what).bind(detail);
        query.execute(connection).await.map_err(|error| adapter("cannot write a letter's history", error))?;
        Ok(())
    }
}
