use std::time::Duration;

use super::*;

fn rule(after: RuleTrigger) -> RuleConfig {
    let text = format!(
        "[database]\nurl = \"sqlite:x.db\"\n[[dead_letters.rules]]\nname = \"r\"\nafter = \"{}\"\nconsumer = \"stock\"\n",
        after.as_str()
    );
    let config = crate::config::Config::parse(&text, &crate::config::Environment::default()).expect("sound");
    config.dead_letters.rules[0].clone()
}

fn report(instance: &str, at: DateTime<Utc>) -> ConsumerReport {
    let mut report = ConsumerReport::new("stock", instance, ConsumerState::Running);
    report.at = at;
    report.version = Some("1".to_owned());
    (report.breaker, report.breaker_closings) = (Some(BreakerState::Closed), Some(0));
    report
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two instances of which one has just closed its breaker.
fn closed(now: DateTime<Utc>) -> [ConsumerReport; 2] {
    let mut one = report("1", now);
    (one.breaker_closings, one.breaker_closed_at) = (Some(1), Some(now));
    [one, report("2", now)]
}

fn event(watch: &Watch, rule: &RuleConfig, reports: &[ConsumerReport], now: DateTime<Utc>) -> Option<Event> {
    watch.event(&Scene::of(rule, reports, now))
}

#[test]
fn an_outage_is_over_when_every_instance_says_so() {
    let (rule, begun) = (rule(RuleTrigger::BreakerClosed), Utc::now());
    let watch = Watch::begin(&rule, &Scene::of(&rule, &[report("1", begun)], begun)).expect("one is there");
    let now = begun + seconds(10);
    let fired = Some(Event::Closed(now));
    assert_eq!(event(&watch, &rule, &closed(now), now), fired);
    for breaker in [BreakerState::Open, BreakerState::Probing] {
        let mut reports = closed(now);
        reports[1].breaker = Some(breaker);
        assert_eq!(event(&watch, &rule, &reports, now), None, "{breaker}");
        // Who was killed while its breaker was open is in nobody's way for ever.
        let later = now + seconds(91);
        reports[0].at = later;
        assert_eq!(event(&watch, &rule, &reports, later), fired, "{breaker}");
    }
    let mut reports = closed(now);
    reports[0].state = ConsumerState::Stopped;
    assert_eq!(event(&watch, &rule, &reports, now), fired, "who has gone told it last");
    reports[1].state = ConsumerState::Paused;
    assert_eq!(event(&watch, &rule, &reports, now), None, "nobody would handle what is sent");
}

#[test]
fn a_clock_that_is_ahead_closes_nothing_before_its_time() {
    let (rule, begun) = (rule(RuleTrigger::BreakerClosed), Utc::now());
    let watch = Watch::begin(&rule, &Scene::of(&rule, &[report("1", begun)], begun)).expect("one is there");
    let ahead = begun + seconds(3_600);
    let reports = |now| {
        let mut reports = closed(now);
        reports[0].breaker_closed_at = Some(ahead);
        reports
    };
    assert_eq!(event(&watch, &rule, &reports(begun), begun), None);
    assert_eq!(event(&watch, &rule, &reports(ahead), ahead), Some(Event::Closed(ahead)));
}

#[test]
fn a_version_counts_once_every_instance_has_it() {
    let (rule, now) = (rule(RuleTrigger::NewVersion), Utc::now());
    let mut reports = [report("1", now), report("2", now)];
    let watch = Watch::begin(&rule, &Scene::of(&rule, &reports, now)).expect("they are there");
    assert_eq!(event(&watch, &rule, &reports, now), None);
    reports[0].version = Some("2".to_owned());
    assert_eq!(event(&watch, &rule, &reports, now), None, "the other one may get the letter");
    reports[1].version = None;
    assert_eq!(event(&watch, &rule, &reports, now), None, "nobody knows what it has");
    reports[1].state = ConsumerState::Stopped;
    assert_eq!(event(&watch, &rule, &reports, now), Some(Event::Version("2".to_owned())));
}

#[test]
fn what_is_remembered_is_bounded_and_survives() {
    let (rule, now) = (rule(RuleTrigger::NewVersion), Utc::now());
    let mut watch = Watch::begin(&rule, &Scene::of(&rule, &[report("1", now)], now)).expect("one is there");
    for version in 0..2 * VERSIONS {
        watch.know(format!("v{version}"));
    }
    assert_eq!(watch.versions.len(), VERSIONS);
    assert!(!watch.is_new("v999") && watch.is_new("v0"));
    watch.waiting = Some(Waiting { event: Event::Closed(now), since: now });
    let memory = Memory { rules: [("r".to_owned(), watch)].into() };
    assert_eq!(Memory::read(&memory.text().expect("JSON")), memory);
    assert_eq!(Memory::read("{"), Memory::default());
}
