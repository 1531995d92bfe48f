//! The audit log: what people do by hand, and who.
//!
//! Its events have the target `audit` and are logged whatever the filter of the log. Each action is told before it
//! begins and when it has ended, so that one which is cut off shows as well.

use std::env;

use tracing::info;

/// The target of all events.
pub(crate) const TARGET: &str = "audit";

/// An action on rows of an outbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Action<'a> {
    /// The command.
    pub(crate) what: &'a str,
    /// Whose rows.
    pub(crate) outbox: &'a str,
    /// Which of them, as the operator chose.
    pub(crate) choice: &'a str,
    /// Why, as the operator says.
    pub(crate) because: Option<&'a str>,
}

impl Action<'_> {
    /// It begins, with so many rows in view.
    pub(crate) fn begins(&self, rows: u64) {
        self.tell("begins", rows, None);
    }

    /// It has ended, after so many rows.
    pub(crate) fn ended(&self, rows: u64) {
        self.tell("ended", rows, None);
    }

    /// It has failed, after so many rows.
    pub(crate) fn failed(&self, rows: u64, error: &str) {
        self.tell("failed", rows, Some(error));
    }

    fn tell(&self, step: &str, rows: u64, error: Option<&str>) {
        let Self { what, outbox, choice, because } = self;
        let (user, uid) = (user(), uid());
        info!(target: TARGET, what, step, rows, outbox, choice, because, user, uid, error);
    }
}

/// The name that the session claims.
fn user() -> Option<String> {
    ["LOGNAME", "USER", "USERNAME"].into_iter().find_map(|name| env::var(name).ok())
}

/// What the system says, whatever the session claims.
#[cfg(unix)]
fn uid() -> Option<u32> {
    Some(rustix::process::getuid().as_raw())
}

#[cfg(not(unix))]
fn uid() -> Option<u32> {
    None
}
