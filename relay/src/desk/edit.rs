//! A letter edited by hand: a copy with another body takes its place.

use backstop_core::ledger::Edit;
use backstop_core::report::{cut, escaped};
use bytes::Bytes;

use super::letters::{MAX_ID, no_reason, reason};
use super::trail::Deed;
use super::{Caller, Desk, Kind, Trouble, in_time_or_unknown};
use crate::edit::{TOO_LATE, notes};

/// What shows whether it was done.
const LOOK: &str = "the history of this letter";

impl Desk {
    /// Puts a copy with this body in the letter's place; the id of the copy, and what to know of it.
    pub(crate) async fn edit(
        &self,
        who: &Caller,
        id: &str,
        body: Bytes,
        because: &str,
    ) -> Result<(String, Vec<&'static str>), Trouble> {
        let because = reason(Some(because));
        let deed = Deed::new(who, "letters.edit", escaped(&cut(id, MAX_ID)), because.as_deref());
        let work = async {
            let because = because.as_ref().ok_or_else(no_reason)?;
            let (letter, history) = self.letter(id).await?;
            let edit = self
                .editing
                .edit(&self.keys, (&letter, &history), body, format!("{because} (by {})", who.name))
                .map_err(|why| Trouble::new(Kind::Conflict, why.to_string(), why.hint()))?;
            Ok((self.put_in_place(edit).await?, notes(&letter)))
        };
        self.recorded(&deed, work, |_| Some(1)).await
    }

    async fn put_in_place(&self, edit: Edit) -> Result<String, Trouble> {
        match in_time_or_unknown(LOOK, self.ledger().await?.edit(&edit)).await? {
            true => Ok(edit.copy.id),
            false => Err(Trouble::new(Kind::Conflict, TOO_LATE, "look at its history")),
        }
    }
}
