//! Held keys: what an operator sees of them and does with them.

use std::fmt;
use std::time::Duration;

use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;
use crate::held::{HeldMessage, HeldMessages};
use crate::identity::MessageKey;

/// How the wait for a held message is ended by somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its key goes on without it. It is left to its letter, and a redrive runs it, after what came later.
    Release,
    /// It is never run: the inbox takes it for handled.
    Skip,
    /// Somebody has brought about its effects: the inbox takes it for handled.
    Resolve,
}

impl Ending {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Release, Self::Skip, Self::Resolve];

    /// As headers and the command line spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Skip => "skip",
            Self::Resolve => "resolve",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ending| ending.as_str() == name)
    }

    /// Whether the inbox takes the message for handled afterwards.
    pub const fn is_handled(self) -> bool {
        matches!(self, Self::Skip | Self::Resolve)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of an [`Ending`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It is not held any more. Where the inbox takes it for handled, it need not have been held.
    Done,
    /// It is not held, and it was handled.
    AlreadyHandled,
    /// It is not held, and there was nothing to release.
    NotHeld,
    /// It is held, but still tried: released, it would be lost, for it has no letter.
    NotQuarantined,
    /// It has been redriven in the meantime.
    Redriven,
    /// It is at work just now: ask again.
    Busy,
}

impl Ended {
    /// What follows from what was found, where the message is held as `found` says and nobody is at it; `None` where it
    /// may be taken out.
    pub fn refusal(
        found: &HeldMessage,
        state: HeldState,
        ending: Ending,
        asked: Option<u32>,
    ) -> Option<Self> {
        if asked.is_some_and(|asked| asked != found.generation()) {
            return Some(Self::Redriven);
        }
        (ending == Ending::Release && state != HeldState::Quarantined).then_some(Self::NotQuarantined)
    }
}

/// What a held message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldState {
    /// Its next attempt, or the next attempt to publish its letter.
    Retry,
    /// Those of its key that were held before it.
    Waiting,
    /// Somebody: it is given up, its letter is published, and its followers wait behind it.
    Quarantined,
}

impl HeldState {
    /// As tables and the command line spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Waiting => "waiting",
            Self::Quarantined => "quarantined",
        }
    }

    /// The state of a row: one that waits although it is given up is quarantined.
    pub fn of_row(waits: bool, condemned: bool) -> Self {
        match (waits, condemned) {
            (false, _) => Self::Retry,
            (true, false) => Self::Waiting,
            (true, true) => Self::Quarantined,
        }
    }
}

impl fmt::Display for HeldState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A held key: its head, and how many messages wait behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    /// The consumer.
    pub consumer: String,
    /// What the head waits for.
    pub state: HeldState,
    /// How long until its next attempt, by the database's clock; `None` unless it waits for one.
    pub due_in: Option<Duration>,
    /// Messages behind it.
    pub behind: u64,
    /// The head, without its body.
    pub head: HeldMessage,
}

/// Which keys are meant. Every field narrows the choice; the default means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldFilter {
    /// Heads with one of these numbers; any where there are none.
    pub numbers: Vec<i64>,
    /// Keys of this consumer.
    pub consumer: Option<String>,
    /// Keys of this topic or queue.
    pub place: Option<String>,
    /// Keys that wait for somebody.
    pub quarantined: bool,
    /// Heads with a higher number than this.
    pub after: Option<i64>,
}

/// The held keys of a database. Object-safe, for programs that know their database at run time only.
pub trait HeldKeys: Send + Sync {
    /// As [`HeldMessages::keys`].
    ///
    /// # Errors
    /// As there.
    fn keys<'a>(
        &'a self,
        filter: &'a HeldFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<HeldKey>, AdapterError>>;

    /// As [`HeldMessages::end`].
    ///
    /// # Errors
    /// As there.
    fn end<'a>(
        &'a self,
        consumer: &'a str,
        message_key: &'a MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> BoxFuture<'a, Result<Ended, AdapterError>>;
}

impl<T: HeldMessages> HeldKeys for T {
    fn keys<'a>(
        &'a self,
        filter: &'a HeldFilter,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<HeldKey>, AdapterError>> {
        Box::pin(HeldMessages::keys(self, filter, limit))
    }

    fn end<'a>(
        &'a self,
        consumer: &'a str,
        message_key: &'a MessageKey,
        ending: Ending,
        generation: Option<u32>,
    ) -> BoxFuture<'a, Result<Ended, AdapterError>> {
        Box::pin(HeldMessages::end(self, consumer, message_key, ending, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for ending in Ending::ALL {
            assert_eq!(Ending::parse(ending.as_str()), Some(ending));
        }
        assert_eq!(Ending::parse("RELEASE"), None);
    }

    #[test]
    fn what_waits_although_it_is_given_up_is_quarantined() {
        let states = [(false, false), (false, true), (true, false), (true, true)]
            .map(|(waits, condemned)| HeldState::of_row(waits, condemned).as_str());
        assert_eq!(states, ["retry", "retry", "waiting", "quarantined"]);
    }
}
