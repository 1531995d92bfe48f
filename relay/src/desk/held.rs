//! Keys that consumers hold, and what somebody asks consumers to do with them.

use std::sync::Arc;

use backstop_core::held_keys::{Ending, HeldFilter, HeldKey, HeldKeys, HeldState};
use backstop_core::ledger::{Letter, LetterFilter, LetterStatus};
use backstop_core::report::{cut, escaped};
use backstop_core::sink::PublishError;
use futures_util::future::try_join_all;
use tokio::sync::OnceCell;

use super::letters::{no_reason, reason};
use super::trail::Deed;
use super::{Caller, Desk, Kind, Trouble, glance, in_time};
use crate::ask::{self, NotAsked, Pending};
use crate::config::{Config, DatabaseConfig};
use crate::database::Database;
use crate::exit::with_cause;

/// What shows whether a consumer was asked.
const LOOK: &str = "the history of the letter";
/// Letters of one message that are looked at for the one whose failure its consumer holds.
const LETTERS: u32 = 50;

/// A database in which consumers may hold messages: one of an outbox.
pub(super) struct HeldIn {
    /// The first outbox in it.
    outbox: String,
    config: DatabaseConfig,
    keys: OnceCell<Arc<dyn HeldKeys>>,
}

impl HeldIn {
    /// Every database of an outbox, once.
    pub(super) fn of(config: &Config) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for outbox in &config.outbox {
            let database = config.database_of(outbox);
            if !all.iter().any(|known| known.config == *database) {
                let (outbox, config) = (outbox.name.clone(), database.clone());
                all.push(Self { outbox, config, keys: OnceCell::new() });
            }
        }
        all
    }

    async fn keys(&self) -> Result<&dyn HeldKeys, Trouble> {
        let open = || async { Ok(Database::open(&self.config).await?.held) };
        Ok(&**in_time(self.keys.get_or_try_init(open)).await?)
    }
}

/// What is held in one database.
#[derive(Debug)]
pub(crate) struct HeldLook {
    /// The outbox whose database it is.
    pub(crate) outbox: String,
    /// Why it cannot be looked at.
    pub(crate) trouble: Option<Trouble>,
    pub(crate) keys: Vec<HeldLine>,
    /// Whether there are more.
    pub(crate) more: bool,
}

/// A held key, and what the ledger knows of its head.
#[derive(Debug)]
pub(crate) struct HeldLine {
    pub(crate) key: HeldKey,
    /// The letter of a head that was given up; `None` where the ledger has none.
    pub(crate) letter: Option<Letter>,
    pub(crate) pending: Option<Pending>,
}

impl Desk {
    /// Keys that are held in the databases of this relay's outboxes. One that cannot be asked says so and keeps none of
    /// the others from being shown.
    pub(crate) async fn held(&self, filter: &HeldFilter, limit: u32) -> Result<Vec<HeldLook>, Trouble> {
        try_join_all(self.held.iter().map(|place| self.look_at(place, filter, limit))).await
    }

    async fn look_at(&self, place: &HeldIn, filter: &HeldFilter, limit: u32) -> Result<HeldLook, Trouble> {
        let mut look =
            HeldLook { outbox: place.outbox.clone(), trouble: None, keys: Vec::new(), more: false };
        match glance(Box::pin(self.keys_in(place, filter, limit))).await {
            Ok(mut keys) => {
                look.more = keys.len() > limit as usize;
                keys.truncate(limit as usize);
                for key in keys {
                    look.keys.push(self.with_letter(key).await?);
                }
            }
            Err(trouble) => look.trouble = Some(trouble),
        }
        Ok(look)
    }

    async fn keys_in(
        &self,
        place: &HeldIn,
        filter: &HeldFilter,
        limit: u32,
    ) -> Result<Vec<HeldKey>, Trouble> {
        in_time(place.keys().await?.keys(filter, limit + 1)).await
    }

    async fn with_letter(&self, key: HeldKey) -> Result<HeldLine, Trouble> {
        let letter = match key.state {
            HeldState::Quarantined => self.letter_of(&key).await?,
            HeldState::Retry | HeldState::Waiting => None,
        };
        let pending = match &letter {
            Some(letter) => self.pending(letter).await?,
            None => None,
        };
        Ok(HeldLine { key, letter, pending })
    }

    /// The letter of the failure for which the key waits.
    async fn letter_of(&self, key: &HeldKey) -> Result<Option<Letter>, Trouble> {
        let filter = LetterFilter {
            message_key: Some(key.head.message_key.as_str().to_owned()),
            consumer: Some(key.consumer.clone()),
            ..LetterFilter::default()
        };
        let letters = in_time(self.ledger().await?.list(&filter, None, LETTERS)).await?;
        let generation = i64::from(key.head.generation());
        let mut of_this = letters.into_iter().filter(|letter| letter.generation == generation);
        let first = of_this.next();
        // One that was edited is kept; its copy stands for it.
        let is_kept = first.as_ref().is_some_and(|letter| letter.status == LetterStatus::Superseded);
        Ok(of_this.find(|letter| is_kept && letter.status != LetterStatus::Superseded).or(first))
    }

    async fn pending(&self, letter: &Letter) -> Result<Option<Pending>, Trouble> {
        let history = in_time(self.ledger().await?.history(&letter.id)).await?;
        Ok(Pending::of(&history))
    }

    /// Asks the consumer of a letter to end the wait of its message. It has not happened when this returns: the receipt
    /// says so.
    pub(crate) async fn end_wait(
        &self,
        who: &Caller,
        id: &str,
        ending: Ending,
        because: &str,
    ) -> Result<Letter, Trouble> {
        let because = reason(Some(because));
        let action = match ending {
            Ending::Release => "held.release",
            Ending::Skip => "held.skip",
            Ending::Resolve => "held.resolve",
        };
        let deed = Deed::new(who, action, escaped(&cut(id, 128)), because.as_deref());
        let work = async {
            let because = because.as_ref().ok_or_else(no_reason)?;
            let letter = self.letter_alone(id).await?;
            let because = format!("{because} (by {})", who.name);
            let (ledger, doors) = (self.ledger().await?, self.doors()?);
            ask::ask(ledger, doors, &letter, ending, &because).await.map_err(|error| trouble(&error))?;
            Ok(letter)
        };
        self.recorded(&deed, work, |_| Some(1)).await
    }
}

/// Endings that somebody may ask for of this letter.
pub(crate) fn endings(letter: &Letter) -> Vec<Ending> {
    Ending::ALL.into_iter().filter(|ending| ask::unfit(letter, *ending).is_none()).collect()
}

fn trouble(error: &NotAsked) -> Trouble {
    match error {
        NotAsked::Unfit(why) => Trouble::new(Kind::Conflict, *why, "look at the letter again"),
        NotAsked::Ledger(error) => Trouble::of_change(error, LOOK),
        NotAsked::Refused(failed) => unsent(error, failed),
        NotAsked::Unknown(failed) => unsent(error, failed).unknown(LOOK),
    }
}

fn unsent(error: &NotAsked, failed: &PublishError) -> Trouble {
    let hint = failed.error().hint().unwrap_or("look at the relay's log");
    Trouble::new(Kind::Unreachable, with_cause(error), hint)
}
