//! What is worth telling: pure, from what the ledger says.

use std::collections::BTreeMap;

use backstop_core::ledger::{LetterGroup, Redrive, Tally};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::{NoticeEvent, NotifyConfig};

/// A group that began longer ago is not new.
const NEW: TimeDelta = TimeDelta::hours(24);
/// A redrive that was made longer ago is not told of.
const RECENT: TimeDelta = TimeDelta::days(7);
/// Namespace of the ids of notices; a constant of Backstop's own.
const NAMESPACE: Uuid = Uuid::from_u128(0x51d0_3f7a_92c4_4e0b_8a1d_6f2e_b7c3_90a4);

/// What is told. No text of an error is in it: those may hold what nobody else is to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    /// The same for the same news to the same target.
    pub(crate) id: Uuid,
    /// `group-new`, `group-growing` or `redrive-ended`.
    pub(crate) event: String,
    pub(crate) at: DateTime<Utc>,
    /// One sentence.
    pub(crate) text: String,
    /// The page that shows it, where the configuration says where the console is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
    /// Numbers and names, by event.
    pub(crate) details: serde_json::Value,
}

/// A notice, and what it is the news of: told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) key: String,
    pub(crate) notice: Notice,
}

/// All news for a target; those that were told before are among them.
pub(crate) fn of(
    config: &NotifyConfig,
    groups: &[LetterGroup],
    redrives: &[Redrive],
    now: DateTime<Utc>,
) -> Vec<News> {
    let wants = |event| config.on.contains(&event);
    let mut news = Vec::new();
    for group in by_consumer(groups).values() {
        if wants(NoticeEvent::GroupNew) && now - group.first_seen < NEW {
            news.push(group.news(config, NoticeEvent::GroupNew, now));
        }
        if wants(NoticeEvent::GroupGrowing) && group.last_hour >= config.growing_over {
            news.push(group.news(config, NoticeEvent::GroupGrowing, now));
        }
    }
    let ended = redrives.iter().filter(|redrive| redrive.standing.run.is_over());
    let ended = ended.filter(|redrive| now - redrive.created_at < RECENT);
    if wants(NoticeEvent::RedriveEnded) {
        news.extend(ended.map(|redrive| of_redrive(config, redrive, now)));
    }
    news
}

/// Letters of one fingerprint and consumer.
struct Failing {
    fingerprint: String,
    consumer: Option<String>,
    error_type: Option<String>,
    reason: Option<String>,
    first_seen: DateTime<Utc>,
    open: u64,
    last_hour: u64,
}

fn by_consumer(groups: &[LetterGroup]) -> BTreeMap<(&str, Option<&str>), Failing> {
    let mut all = BTreeMap::new();
    for group in groups {
        let Some(fingerprint) = group.fingerprint.as_deref() else { continue };
        let failing = all.entry((fingerprint, group.consumer.as_deref())).or_insert_with(|| Failing {
            fingerprint: fingerprint.to_owned(),
            consumer: group.consumer.clone(),
            error_type: group.error_type.clone(),
            reason: group.reason.clone(),
            first_seen: group.first_seen,
            open: 0,
            last_hour: 0,
        });
        failing.first_seen = failing.first_seen.min(group.first_seen);
        failing.open += group.by_status.open;
        failing.last_hour += group.last_hour;
    }
    all
}

impl Failing {
    fn news(&self, config: &NotifyConfig, event: NoticeEvent, now: DateTime<Utc>) -> News {
        let who = self.consumer.as_deref().unwrap_or("an unknown consumer");
        let what = self.error_type.as_deref().or(self.reason.as_deref()).unwrap_or("unknown error");
        let text = match event {
            NoticeEvent::GroupGrowing => {
                format!("{who} is failing: {} dead letters in the last hour, {what}", self.last_hour)
            }
            _ => format!("{who} has a new kind of dead letters: {what}, {} open", self.open),
        };
        let details = serde_json::json!({
            "fingerprint": self.fingerprint, "consumer": self.consumer, "error_type": self.error_type,
            "reason": self.reason, "open": self.open, "last_hour": self.last_hour, "first_seen": self.first_seen,
        });
        let of =
            format!("{}:{}:{}", event.as_str(), self.fingerprint, self.consumer.as_deref().unwrap_or(""));
        let key = match event {
            // Once an hour, as long as it lasts.
            NoticeEvent::GroupGrowing => format!("{of}:{}", now.timestamp() / 3_600),
            _ => of,
        };
        news(config, event, key, text, &format!("groups/{}", encoded(&self.fingerprint)), details, now)
    }
}

fn of_redrive(config: &NotifyConfig, redrive: &Redrive, now: DateTime<Utc>) -> News {
    let (id, event) = (&redrive.plan.id, NoticeEvent::RedriveEnded);
    let Tally { resolved, failed_again, silent, unknown, refused, .. } = redrive.letters();
    let run = redrive.standing.run.as_str();
    let text = format!(
        "a redrive of {} letters by {} is {run}: {resolved} resolved, {failed_again} failed again, {silent} silent",
        redrive.letters().sum(),
        redrive.plan.created_by
    );
    let details = serde_json::json!({
        "redrive": id, "run": run, "letters": redrive.letters().sum(), "resolved": resolved,
        "failed_again": failed_again, "silent": silent, "unknown": unknown, "refused": refused,
        "created_by": redrive.plan.created_by,
    });
    news(config, event, format!("{}:{id}", event.as_str()), text, &format!("redrives/{id}"), details, now)
}

fn news(
    config: &NotifyConfig,
    event: NoticeEvent,
    key: String,
    text: String,
    page: &str,
    details: serde_json::Value,
    now: DateTime<Utc>,
) -> News {
    let id = Uuid::new_v5(&NAMESPACE, format!("{}\0{key}", config.name).as_bytes());
    let link = config.console.as_ref().map(|console| format!("{}/{page}", console.trim_end_matches('/')));
    News { key, notice: Notice { id, event: event.as_str().to_owned(), at: now, text, link, details } }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
