//! The first page: what needs somebody, and is it getting worse?

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use backstop_core::ledger::{LetterFilter, LetterStatus, Outcome, Redrive, Run};
use chrono::{TimeDelta, Utc};
use maud::{Markup, html};

use super::icons::icon;
use super::page::{Page, Place, Shown};
use super::parts::{counted, group_of, letters_of, safe, span_of};
use super::{groups, outboxes, redrives, trend};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, GroupRow, OutboxLook, State as Failing};

/// Groups that are shown.
const GROUPS: usize = 12;
/// Redrives that are shown, and looked at for what needs somebody.
const REDRIVES: u32 = 8;
/// Rows that wait for longer than this are behind.
const BEHIND: std::time::Duration = std::time::Duration::from_secs(60);

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
) -> Result<axum::response::Response, Shown> {
    let open = LetterFilter::of_status(LetterStatus::Open);
    let (rows, redriving) = (desk.groups(&open).await?, desk.count(&of(LetterStatus::Redriving)).await?);
    let silent = LetterFilter { outcome: Some(Outcome::Silent), ..LetterFilter::default() };
    let (silent, (jobs, _)) = (desk.count(&silent).await?, desk.redrives(None, REDRIVES).await?);
    let (looks, minutes) = (desk.outboxes().await, desk.minutes(None).await?);
    let needs = needs(&rows, &jobs, &looks);
    let body = html! {
        h1.vh { "Overview" }
        section aria-labelledby="h-need" data-live="need" {
            div.sh { h2 #h-need { "Needs you: " (if needs.is_empty() { "nothing".to_owned() } else { needs.len().to_string() }) }
                p { "worst first; goes away by itself when it is no longer so" } }
            @if !needs.is_empty() { ul.need { @for need in &needs { (need.show()) } } }
        }
        (totals(&rows, redriving, silent, &looks))
        section aria-labelledby="h-new" {
            div.sh { h2 #h-new { "New letters" } p { "of all groups, by five minutes; what was collected within an hour" } }
            div data-live="trend" { (trend::plot(&minutes)) }
        }
        section aria-labelledby="h-groups" {
            div.sh { h2 #h-groups { "Dead letters by group" } p { "most open letters first" }
                span.end { a href="/groups" { "Search and filter" } } }
            div data-live="groups" {
                @if rows.is_empty() { p.more { "No open dead letters." } }
                @else { (groups::table(&rows[..rows.len().min(GROUPS)])) }
            }
        }
        div.two.even {
            section aria-labelledby="h-red" { div.sh { h2 #h-red { "Redrives" } span.end { a href="/redrives" { "All" } } }
                div data-live="redrives" { (redrives::table(&jobs)) } }
            section aria-labelledby="h-out" { div.sh { h2 #h-out { "Outboxes" } span.end { a href="/outboxes" { "More" } } }
                div data-live="outboxes" { (outboxes::table(&looks)) } }
        }
    };
    let (command, api) = ("dead-letters groups".to_owned(), "/groups?status=open".to_owned());
    let page = Page { place: Place::Overview, title: "Overview".into(), who: &who, command, api, body };
    Ok(axum::response::IntoResponse::into_response(page))
}

fn of(status: LetterStatus) -> LetterFilter {
    LetterFilter::of_status(status)
}

fn totals(rows: &[GroupRow], redriving: u64, silent: u64, looks: &[OutboxLook]) -> Markup {
    let open = rows.iter().map(|row| row.by_status.open).sum();
    let of = |status| letters_of(&FilterQuery::default().with_status(status));
    let pending: Option<u64> = looks.iter().map(|look| Some(look.status.as_ref()?.pending)).sum();
    let dead: u64 = looks.iter().flat_map(|look| &look.dead).map(|group| group.rows).sum();
    html! {
        dl.totals data-live="totals" {
            div { dt { "Open dead letters" } dd { (counted(open, &of(LetterStatus::Open))) }
                dd.small { "in " (rows.len()) " groups" } }
            div { dt { "Being redriven" } dd { (counted(redriving, &of(LetterStatus::Redriving))) } }
            div { dt { "Silent" } dd { (counted(silent, "/dead-letters?outcome=silent")) } dd.small { "sent, and no outcome in time" } }
            div { dt { "Outbox rows pending" }
                dd { @match pending { Some(0) => "0", Some(pending) => a.n href="/outboxes" { (super::parts::grouped(pending)) }, None => "unknown" } } }
            div { dt { "Dead outbox rows" } dd { @if dead == 0 { "0" } @else { a.n href="/outboxes#dead" { (super::parts::grouped(dead)) } } } }
        }
    }
}

/// Something that somebody can do something about.
struct Need {
    /// Lower comes first.
    rank: u8,
    icon: &'static str,
    tone: &'static str,
    what: Markup,
    more: String,
    href: String,
    step: &'static str,
}

impl Need {
    fn show(&self) -> Markup {
        html! {
            li { span class=(self.tone) { (icon(self.icon)) }
                div { strong { (self.what) } p { (self.more) } }
                a href=(self.href) { (self.step) } }
        }
    }
}

fn needs(rows: &[GroupRow], jobs: &[Redrive], looks: &[OutboxLook]) -> Vec<Need> {
    let mut needs: Vec<Need> = rows.iter().filter_map(of_group).collect();
    needs.extend(jobs.iter().filter_map(of_redrive));
    needs.extend(looks.iter().filter_map(of_outbox));
    needs.sort_by_key(|need| need.rank);
    needs
}

fn of_group(row: &GroupRow) -> Option<Need> {
    let fingerprint = row.fingerprint.as_deref()?;
    let open = letters_of(&FilterQuery::of_group(fingerprint).with_status(LetterStatus::Open));
    let who = row.consumers.keys().flatten().next().map_or("a consumer", String::as_str);
    let (error, group) = (safe(row.error.as_deref().unwrap_or("no error text"), 160), group_of(fingerprint));
    let open = counted(row.by_status.open, &open);
    match row.state(Utc::now()) {
        Failing::Growing => Some(Need {
            rank: 0,
            icon: "warn",
            tone: "bad",
            what: html! { (safe(who, 80)) " is still failing: " (open) " letters" },
            more: format!("{error}. A redrive now would most likely fail again."),
            href: group,
            step: "Open the group",
        }),
        Failing::Quiet(since) if since > TimeDelta::minutes(30) => Some(Need {
            rank: 2,
            icon: "open",
            tone: "",
            what: html! { (safe(who, 80)) ": " (open) " letters wait, none new for " (span_of(since)) },
            more: error,
            href: format!("{group}#plan"),
            step: "Plan a redrive",
        }),
        Failing::Quiet(_) => None,
    }
}

fn of_redrive(job: &Redrive) -> Option<Need> {
    let (letters, id) = (job.letters(), &job.plan.id);
    let href = format!("/redrives/{id}");
    let recent = Utc::now() - job.created_at < TimeDelta::days(1);
    let why = job.standing.why.clone().unwrap_or_default();
    match job.standing.run {
        Run::Stopped if recent => Some(Need {
            rank: 1,
            icon: "stop",
            tone: "bad",
            what: html! { "A redrive stopped itself" },
            more: why,
            href,
            step: "Look at it",
        }),
        Run::Paused => Some(Need {
            rank: 1,
            icon: "pause",
            tone: "warn",
            what: html! { "A redrive is paused" },
            more: why,
            href,
            step: "Resume or cancel",
        }),
        _ if letters.silent > 0 && recent => Some(Need {
            rank: 3,
            icon: "silent",
            tone: "warn",
            what: html! { (counted(letters.silent, &format!("/dead-letters?redrive={id}&outcome=silent"))) " letters are silent" },
            more: "Sent, and neither resolved nor failed again.".to_owned(),
            href,
            step: "Look at it",
        }),
        _ => None,
    }
}

fn of_outbox(look: &OutboxLook) -> Option<Need> {
    let oldest = look.status.as_ref().and_then(|status| status.oldest);
    let more = match (&look.trouble, &look.holder, oldest) {
        (Some(trouble), _, _) => trouble.what.clone(),
        (None, None, _) => "No relay owns it: nothing is published.".to_owned(),
        (None, Some(_), Some(age)) if age > BEHIND => {
            format!("The oldest row has waited for {} s.", age.as_secs())
        }
        _ => return None,
    };
    let what = html! { "Outbox " (look.name) " is behind" };
    let href = "/outboxes".to_owned();
    Some(Need { rank: 1, icon: "pause", tone: "warn", what, more, href, step: "Open the outbox" })
}
