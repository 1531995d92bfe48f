//! A copy with another body takes a letter's place.

use backstop_core::AdapterError;
use backstop_core::ledger::Edit;

use super::{PgLedger, stored_id};
use crate::failure::failed;
use crate::storable::storable;
use crate::stranded;

const CLOSE: &str = "
    WITH closed AS (
        UPDATE {letter} SET status = 'superseded' WHERE id = $1 AND status = 'open' AND hold IS NULL RETURNING n
    )
    INSERT INTO {event} (letter, what, detail) SELECT n, 'edited', $2 FROM closed";

const TELL: &str =
    "INSERT INTO {event} (letter, what, detail) SELECT n, 'edit-of', $2 FROM {letter} WHERE id = $1";

impl PgLedger {
    pub(super) async fn put_in_place(&self, edit: &Edit) -> Result<bool, AdapterError> {
        let Edit { id, copy, because } = edit;
        let doing = || failed("put an edited copy in a letter's place");
        let mut tx = stranded::begin(&self.pool).await.map_err(doing())?;
        // In the order in which the collector locks: groups, counts, letters.
        let written = self.record_one(&mut tx, copy).await?;
        let closed = sqlx::query(self.sql(CLOSE))
            .bind(stored_id(id))
            .bind(storable(&format!("{}: {because}", copy.id)))
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        if !written || closed.rows_affected() == 0 {
            tx.rollback().await;
            return Ok(false);
        }
        sqlx::query(self.sql(TELL))
            .bind(stored_id(&copy.id))
            .bind(storable(&format!("{id}: {because}")))
            .execute(&mut *tx)
            .await
            .map_err(doing())?;
        tx.commit().await.map_err(doing())?;
        Ok(true)
    }
}
