//! What was told, and what waits to be told. It has bounds: it is kept in one text.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::news::{News, Notice};

/// Notices that wait for one target.
const WAITING: usize = 100;
/// News that are remembered for one target, unless more than these are news still.
const REMEMBERED: usize = 2_000;
/// How long they are remembered: longer than anything is news.
const FOR: TimeDelta = TimeDelta::days(8);
/// How long a notice is tried.
const TRIED: TimeDelta = TimeDelta::days(1);
/// First wait after a failure; it doubles.
const RETRY_MIN: i64 = 1_000;
/// Longest wait after a failure.
const RETRY_MAX: i64 = 600_000;

/// A notice that has not been taken yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) notice: Notice,
    tries: u32,
    /// In milliseconds since the epoch.
    due: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Target {
    /// What was told or waits to be told, and since when, in seconds since the epoch.
    told: BTreeMap<String, i64>,
    waiting: VecDeque<Waiting>,
    /// What is news since the last [`State::prune`].
    #[serde(skip)]
    news: BTreeSet<String>,
    #[serde(skip)]
    full: bool,
}

/// By target.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    targets: BTreeMap<String, Target>,
    #[serde(skip)]
    changed: bool,
}

impl State {
    /// What was kept; nothing where that cannot be read.
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| {
            warn!(%error, "what was told is not known: some of it may be told again");
            Self::default()
        })
    }

    /// The text to keep, if it is another one.
    pub(super) fn changed(&self) -> Option<String> {
        self.changed.then(|| serde_json::to_string(self).ok()).flatten()
    }

    pub(super) fn kept(&mut self) {
        self.changed = false;
    }

    /// Takes what was not told yet. Where too much waits, it is left for later.
    pub(super) fn take(&mut self, target: &str, News { key, notice }: News, now: DateTime<Utc>) {
        let target = self.targets.entry(target.to_owned()).or_default();
        target.news.insert(key.clone());
        if target.told.contains_key(&key) {
            return;
        }
        if target.waiting.len() >= WAITING {
            if !target.full {
                warn!("{WAITING} notices wait for one target: more are left for later");
            }
            target.full = true;
            return;
        }
        target.full = false;
        target.told.insert(key, now.timestamp());
        target.waiting.push_back(Waiting { notice, tries: 0, due: 0 });
        self.changed = true;
    }

    /// The first notice, once it is due: one that fails keeps the others behind it.
    pub(super) fn due(&self, target: &str, now: DateTime<Utc>) -> Option<&Waiting> {
        self.targets.get(target)?.waiting.front().filter(|waiting| waiting.due <= now.timestamp_millis())
    }

    /// The first notice was taken, or not; says whether it is still tried, or was taken.
    pub(super) fn settle(&mut self, target: &str, taken: bool, now: DateTime<Utc>) -> bool {
        let Some(target) = self.targets.get_mut(target) else { return true };
        self.changed = true;
        let Some(mut waiting) = target.waiting.pop_front().filter(|_| !taken) else { return true };
        if now - waiting.notice.at > TRIED {
            return false;
        }
        waiting.due = now.timestamp_millis() + (RETRY_MIN << waiting.tries.min(20)).min(RETRY_MAX);
        waiting.tries += 1;
        target.waiting.push_front(waiting);
        true
    }

    /// Forgets what is no news any more, after a look for news. What still is would be told again.
    pub(super) fn prune(&mut self, now: DateTime<Utc>) {
        for target in self.targets.values_mut() {
            let before = target.told.len();
            let oldest = (now - FOR).timestamp();
            target.told.retain(|_, at| *at >= oldest);
            let news = std::mem::take(&mut target.news);
            let mut past: Vec<_> = target.told.iter().filter(|(key, _)| !news.contains(*key)).collect();
            past.sort_by_key(|(_, at)| **at);
            let past: Vec<_> = past.into_iter().map(|(key, _)| key.clone()).collect();
            let surplus = target.told.len().saturating_sub(REMEMBERED);
            for key in past.iter().take(surplus) {
                target.told.remove(key);
            }
            self.changed |= target.told.len() != before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use uuid::Uuid;

    fn news(key: &str, at: DateTime<Utc>) -> News {
        let (id, event, text) = (Uuid::nil(), "group-new".to_owned(), key.to_owned());
        News { key: key.to_owned(), notice: Notice { id, event, at, text, link: None, details: Value::Null } }
    }

    fn next(state: &State, at: DateTime<Utc>) -> Option<String> {
        state.due("ops", at).map(|waiting| waiting.notice.text.clone())
    }

    #[test]
    fn news_are_told_once_and_a_restart_changes_nothing() {
        let (mut state, now) = (State::default(), Utc::now());
        for key in ["a", "b", "a"] {
            state.take("ops", news(key, now), now);
        }
        let mut state = State::read(&state.changed().expect("it has changed"));
        assert_eq!(state.changed(), None);
        for key in ["a", "b"] {
            assert_eq!(next(&state, now).as_deref(), Some(key));
            assert!(state.settle("ops", true, now));
            state.take("ops", news(key, now), now);
        }
        assert_eq!(next(&state, now), None);
    }

    #[test]
    fn what_is_not_taken_waits_longer_each_time_and_is_given_up_after_a_day() {
        let (mut state, now) = (State::default(), Utc::now());
        state.take("ops", news("a", now), now);
        let mut at = now;
        for seconds in [1, 2, 4, 8] {
            assert!(state.settle("ops", false, at));
            assert_eq!(next(&state, at + TimeDelta::milliseconds(seconds * 1_000 - 1)), None, "{seconds}");
            at += TimeDelta::seconds(seconds);
            assert!(next(&state, at).is_some(), "{seconds}");
        }
        assert!(!state.settle("ops", false, now + TRIED + TimeDelta::seconds(1)));
        assert_eq!(next(&state, now + FOR), None);
    }

    #[test]
    fn what_waits_and_what_is_remembered_is_bounded() {
        let (mut state, now) = (State::default(), Utc::now());
        for n in 0..WAITING + 1 {
            state.take("ops", news(&n.to_string(), now), now);
        }
        assert_eq!(state.targets["ops"].waiting.len(), WAITING);
        assert!(
            !state.targets["ops"].told.contains_key(&WAITING.to_string()),
            "it is told when there is room"
        );
        for n in 0..REMEMBERED + 10 {
            state.take("ops", news(&format!("more {n}"), now), now);
            state.settle("ops", true, now);
        }
        state.prune(now);
        assert!(state.targets["ops"].told.len() > REMEMBERED, "all of it is news");
        state.take("ops", news("0", now), now);
        state.prune(now + TimeDelta::seconds(1));
        assert_eq!(state.targets["ops"].told.len(), REMEMBERED);
        assert!(state.targets["ops"].told.contains_key("0"), "still news, although it was told first");
        state.prune(now + FOR + TimeDelta::seconds(1));
        assert_eq!(state.targets["ops"].told.len(), 0);
    }
}
