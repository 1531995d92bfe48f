//! The audit log: what people do by hand, and who; and what the relay does to letters by itself.
//!
//! It is in the ledger's database, where it only grows, and in the log: events with the target `audit`, which are logged
//! whatever the filter. Each action is told before it begins and when it has ended, so that one which is cut off shows as
//! well.

use std::env;
use std::sync::Arc;

use backstop_core::AdapterError;
use backstop_core::ledger::{AuditStep, Ledger, NewAuditEntry};
use backstop_core::report::{cut, escaped};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::commands::Context;
use crate::exit::{Failure, with_cause};
use crate::patience::answer;

/// The target of all events.
pub(crate) const TARGET: &str = "audit";

/// Longest text of an entry, in bytes.
const MAX_TEXT: usize = 2_000;

/// An action of somebody at a command line, or of the relay.
pub(crate) struct Action<'a> {
    /// The command.
    what: &'a str,
    /// Whose rows; `None` where it is about dead letters.
    outbox: Option<&'a str>,
    /// Which of them, as the operator chose.
    choice: &'a str,
    /// Why, as the operator says.
    because: Option<&'a str>,
    redrive: Option<String>,
    /// Whether nobody gave the command.
    is_the_relays: bool,
    deed: String,
    ledger: Option<Arc<dyn Ledger>>,
    /// Once it has ended, the ledger is not waited for much longer.
    term: CancellationToken,
}

impl<'a> Action<'a> {
    /// On dead letters. What cannot be written into the ledger's audit log is not done.
    pub(crate) fn on_letters(
        ledger: &Arc<dyn Ledger>,
        what: &'a str,
        choice: &'a str,
        because: Option<&'a str>,
    ) -> Self {
        let deed = Uuid::now_v7().to_string();
        let (ledger, term) = (Some(ledger.clone()), CancellationToken::new());
        Self { what, outbox: None, choice, because, redrive: None, is_the_relays: false, deed, ledger, term }
    }

    /// On dead letters, as the configuration says.
    pub(crate) fn of_the_relay(ledger: &Arc<dyn Ledger>, what: &'a str, choice: &'a str) -> Self {
        Self { is_the_relays: true, ..Self::on_letters(ledger, what, choice, None) }
    }

    /// On rows of an outbox's database, which need no ledger: where one answers, it has the action, too.
    pub(crate) async fn on_rows(
        context: &Context,
        what: &'a str,
        outbox: &'a str,
        choice: &'a str,
        because: Option<&'a str>,
    ) -> Self {
        let deed = Uuid::now_v7().to_string();
        let (ledger, term) = (context.ledger().await.ok(), CancellationToken::new());
        let outbox = Some(outbox);
        Self { what, outbox, choice, because, redrive: None, is_the_relays: false, deed, ledger, term }
    }

    /// The same, about this redrive.
    #[must_use]
    pub(crate) fn about(mut self, redrive: &str) -> Self {
        self.redrive = Some(redrive.to_owned());
        self
    }

    /// The same, as a part of work that lasts a term.
    #[must_use]
    pub(crate) fn within(mut self, term: &CancellationToken) -> Self {
        self.term = term.clone();
        self
    }

    /// It begins, with so many rows or letters in view.
    ///
    /// # Errors
    /// When the ledger cannot keep it.
    pub(crate) async fn begins(&self, number: u64) -> Result<(), Failure> {
        self.tell("begins", number, None);
        match self.keep(AuditStep::Begun, number, None).await {
            Err(error) if self.outbox.is_none() => Err(Failure::database(&error)),
            Err(error) => {
                warn!(error = %with_cause(&error), "the ledger's audit log does not have this");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// It has ended, after so many.
    pub(crate) async fn ended(&self, number: u64) {
        self.tell("ended", number, None);
        self.keep_end(AuditStep::Done, number, None).await;
    }

    /// It has failed, after so many.
    pub(crate) async fn failed(&self, number: u64, error: &str) {
        self.tell("failed", number, Some(error));
        self.keep_end(AuditStep::Failed, number, Some(error)).await;
    }

    fn tell(&self, step: &str, number: u64, error: Option<&str>) {
        let Self { what, outbox, choice, because, .. } = self;
        let (user, uid) = (user(), uid());
        match outbox {
            Some(outbox) => {
                info!(target: TARGET, what, step, rows = number, outbox, choice, because, user, uid, error);
            }
            None => info!(target: TARGET, what, step, letters = number, choice, because, user, uid, error),
        }
    }

    /// Its beginning is kept: without an end it shows as one of which nobody knows how it ended.
    async fn keep_end(&self, step: AuditStep, number: u64, error: Option<&str>) {
        if let Err(error) = self.keep(step, number, error).await {
            warn!(error = %with_cause(&error), "the ledger's audit log does not have the end of this");
        }
    }

    async fn keep(&self, step: AuditStep, number: u64, error: Option<&str>) -> Result<(), AdapterError> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let object = match self.outbox {
            Some(outbox) => format!("outbox {outbox}: {}", self.choice),
            None => self.choice.to_owned(),
        };
        let text = |text: &str| cut(&escaped(text), MAX_TEXT);
        let (who, role, from) = if self.is_the_relays {
            ("backstop-relay".to_owned(), "relay", of_the_configuration())
        } else {
            (user().unwrap_or_else(|| "unknown".to_owned()), "operator", origin())
        };
        let entry = NewAuditEntry {
            deed: self.deed.clone(),
            step,
            who: text(&who),
            role: role.to_owned(),
            origin: text(&from),
            action: self.what.to_owned(),
            object: text(&object),
            redrive: self.redrive.clone(),
            letters: Some(number),
            because: self.because.map(text),
            error: error.map(text),
        };
        answer(&self.term, ledger.write_audit(&entry)).await
    }
}

/// From where that comes which the relay does because its configuration says so.
pub(crate) fn of_the_configuration() -> String {
    format!("configuration of the relay on {}", host())
}

/// From where a command comes.
fn origin() -> String {
    let host = host();
    match uid() {
        Some(uid) => format!("command line on {host}, uid {uid}"),
        None => format!("command line on {host}"),
    }
}

fn host() -> String {
    let host = env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    let host = host.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok());
    host.map_or_else(|| "this host".to_owned(), |host| host.trim().to_owned())
}

/// The name that the session claims.
pub(crate) fn user() -> Option<String> {
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
