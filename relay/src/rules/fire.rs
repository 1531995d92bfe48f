//! The redrive of a rule: which letters, how, and its entry in the audit log.

use backstop_core::AdapterError;
use backstop_core::ledger::{
    AuditFilter, AuditStep, Guard, HeaderFilter, Ledger, LetterFilter, LetterStatus, NewAuditEntry,
    NewRedrive, Redrive, Verdict,
};
use chrono::{DateTime, TimeDelta, Utc};
use tracing::{info, warn};
use uuid::Uuid;

use super::watch::{Event, Scene};
use crate::audit;
use crate::config::{DeadLettersConfig, RuleConfig, RuleTrigger};
use crate::desk::filter::FilterQuery;
use crate::exit::with_cause;

/// Namespace of the ids of rules' redrives; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x3e7d_18c5_04ab_4f69_9d52_b1c8_6a07_e3f4);
/// What the audit log calls it.
const ACTION: &str = "redrive.start";

/// The id of the redrive that a rule makes after an event: the same whoever makes it, and how often.
fn id_of(rule: &RuleConfig, event: &Event) -> String {
    let of = [&*rule.name, rule.after.as_str(), &rule.consumer, &event.key()].join("\0");
    Uuid::new_v5(&NAMESPACE, of.as_bytes()).to_string()
}

/// A redrive by this rule as things are now.
pub(super) fn wanted(letters: &DeadLettersConfig, rule: &RuleConfig, scene: &Scene<'_>) -> NewRedrive {
    NewRedrive {
        id: Uuid::now_v7().to_string(),
        filter: filter(rule, scene.now()),
        guard: guard(letters, rule, scene),
        limit: Some(rule.limit),
        canary: rule.canary,
        rate: Some(rule.rate as f64),
        brake: rule.brake as f64 / 100.0,
        silent_after: letters.redrive.silent_after,
        created_by: format!("rule {}", rule.name),
        because: None,
    }
}

/// Open letters of its consumer, as it says. What is under legal hold nobody sends who did not look at it.
fn filter(rule: &RuleConfig, now: DateTime<Utc>) -> LetterFilter {
    let header = rule.header.as_ref().map(|header| match header.split_once('=') {
        Some((name, value)) => HeaderFilter { name: name.to_owned(), value: Some(value.to_owned()) },
        None => HeaderFilter { name: header.clone(), value: None },
    });
    let since = rule.since.and_then(|since| TimeDelta::from_std(since).ok());
    LetterFilter {
        consumer: Some(rule.consumer.clone()),
        place: rule.place.clone(),
        class: rule.class.clone(),
        reason: rule.reason.clone(),
        fingerprint: rule.fingerprint.clone(),
        error: rule.error.clone(),
        header,
        key: rule.key.clone(),
        since: since.and_then(|since| now.checked_sub_signed(since)),
        status: Some(LetterStatus::Open),
        on_hold: Some(false),
        ..LetterFilter::default()
    }
}

/// Nothing that its consumer may have forgotten, nothing to where others see it, and after a breaker closed nothing that
/// was ever redriven: an outage is no reason for a letter to fail twice.
fn guard(letters: &DeadLettersConfig, rule: &RuleConfig, scene: &Scene<'_>) -> Guard {
    let configured =
        letters.redrive.inbox_retention.and_then(|retention| TimeDelta::from_std(retention).ok());
    let retention = configured.into_iter().chain(scene.inbox_retention()).min();
    Guard {
        max_generation: match rule.after {
            RuleTrigger::BreakerClosed => 1,
            RuleTrigger::NewVersion => i64::from(letters.redrive.max_generation),
        },
        not_before: retention.and_then(|retention| scene.now().checked_sub_signed(retention)),
        foreign: Vec::new(),
    }
}

/// How many letters a redrive would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takes {
    /// Letters that can be sent.
    pub(crate) sendable: u64,
    /// Those of them that would be sent: no more than its limit.
    pub(crate) sent: u64,
    /// Whether it may be more, because not every letter that matches was judged.
    pub(crate) or_more: bool,
}

/// How many letters a redrive would take; of those that match at most `judged` are judged, the first.
pub(super) async fn takes(ledger: &dyn Ledger, new: &NewRedrive, judged: u64) -> Result<Takes, AdapterError> {
    let groups = ledger.plan_redrive(&new.filter, &new.guard, judged).await?;
    let matched: u64 = groups.iter().map(|group| group.letters).sum();
    let can_go = groups.iter().filter(|group| group.verdict == Verdict::Send);
    let sendable: u64 = can_go.map(|group| group.letters).sum();
    let sent = sendable.min(new.limit.unwrap_or(u64::MAX));
    Ok(Takes { sendable, sent, or_more: matched == judged })
}

/// Whether the redrive of a rule after this event is there already: made before a crash, or by another relay.
pub(super) async fn is_made(
    ledger: &dyn Ledger,
    rule: &RuleConfig,
    event: &Event,
) -> Result<bool, AdapterError> {
    Ok(ledger.redrive(&id_of(rule, event)).await?.is_some())
}

/// Makes the redrive of a rule after an event, unless it is there already; `None` where there is nothing to send.
pub(super) async fn fire(
    ledger: &dyn Ledger,
    letters: &DeadLettersConfig,
    rule: &RuleConfig,
    event: &Event,
    scene: &Scene<'_>,
) -> Result<Option<Redrive>, AdapterError> {
    let because = Some(format!("after {}: {event}", rule.after.as_str()));
    let new = NewRedrive { id: id_of(rule, event), because, ..wanted(letters, rule, scene) };
    let of = AuditFilter {
        action: Some(ACTION.to_owned()),
        redrive: Some(new.id.clone()),
        ..AuditFilter::default()
    };
    let told = ledger.read_audit(&of, 10).await?;
    let made = match ledger.redrive(&new.id).await? {
        Some(made) => made,
        None => {
            let letters = takes(ledger, &new, u64::MAX).await?.sent;
            if letters == 0 {
                return Ok(None);
            }
            if told.is_empty() {
                tell(ledger, &new, AuditStep::Begun, letters).await?;
            }
            ledger.create_redrive(&new).await?
        }
    };
    if !told.iter().any(|entry| entry.entry.step == AuditStep::Done)
        && let Err(error) = tell(ledger, &new, AuditStep::Done, made.letters().sum()).await
    {
        // Its beginning is kept: without an end it shows as one of which nobody knows how it ended.
        warn!(error = %with_cause(&error), "the audit log does not have the end of this");
    }
    Ok(Some(made))
}

/// Writes it into the audit log: one deed, however often it is begun.
async fn tell(
    ledger: &dyn Ledger,
    new: &NewRedrive,
    step: AuditStep,
    letters: u64,
) -> Result<(), AdapterError> {
    let entry = NewAuditEntry {
        deed: new.id.clone(),
        step,
        who: new.created_by.clone(),
        role: "relay".to_owned(),
        origin: audit::of_the_configuration(),
        action: ACTION.to_owned(),
        object: FilterQuery::from(&new.filter).audited(),
        redrive: Some(new.id.clone()),
        letters: Some(letters),
        because: new.because.clone(),
        error: None,
    };
    let NewAuditEntry { who, action, object, because, .. } = &entry;
    info!(target: audit::TARGET, what = action, step = step.as_str(), object, letters, because, who);
    ledger.write_audit(&entry).await
}
