//! Every redrive, the newest first.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{Redrive, Run};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::Asked;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{ago, grouped, safe};
use super::{ROWS, rules};
use crate::desk::filter::{FilterQuery, without_secrets};
use crate::desk::{Caller, Desk};

/// Where the page begins.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    after: Option<String>,
}

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(from): Asked<From>,
) -> Result<Response, Shown> {
    let after = from.after.as_deref().filter(|id| Uuid::try_parse(id).is_ok());
    let (redrives, next) = desk.redrives(after, ROWS).await?;
    let body = html! {
        div.head { div { h1 { "Redrives" } p.sub { "newest first; " (rules::link(&desk)) } } }
        div data-live="redrives" { (table(&redrives)) }
        @if let Some(next) = next { p.more { a rel="next" href={ "/redrives?after=" (next) } { "Next page" } } }
    };
    let (command, api) = ("redrives list".to_owned(), "/redrives".to_owned());
    Ok(Page { place: Place::Redrives, title: "Redrives".into(), who: &who, command, api, body }
        .into_response())
}

/// A table of redrives.
pub(super) fn table(redrives: &[Redrive]) -> Markup {
    html! {
        @if redrives.is_empty() { p.more { "No redrive yet." } }
        @else {
            table.stack role="table" aria-label="Redrives" {
                thead role="rowgroup" { tr role="row" {
                    th.main role="columnheader" scope="col" { "Redrive" }
                    th role="columnheader" scope="col" { "State" }
                    th.r role="columnheader" scope="col" { "Letters" }
                    th.r role="columnheader" scope="col" { "Resolved" }
                    th.r role="columnheader" scope="col" { "Failed again" }
                    th.p3 role="columnheader" scope="col" { "Started" }
                } }
                tbody role="rowgroup" { @for redrive in redrives { (line(redrive)) } }
            }
        }
    }
}

fn line(redrive: &Redrive) -> Markup {
    let (letters, id) = (redrive.letters(), &redrive.plan.id);
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" { a.t href={ "/redrives/" (id) } { (title(redrive)) }
                small { "by " b { (safe(&redrive.plan.created_by, 64)) } } }
            td role="cell" { (standing(redrive)) }
            td.r role="cell" data-l="Letters" { (grouped(letters.sum())) }
            td.r role="cell" data-l="Resolved" { (super::parts::counted(letters.resolved, &outcome(id, "resolved"))) }
            td.r role="cell" data-l="Failed again" { (super::parts::counted(letters.failed_again, &outcome(id, "failed-again"))) }
            td.p3 role="cell" data-l="Started" { (ago(redrive.created_at)) }
        }
    }
}

/// Letters that a redrive sent last and whose outcome is this.
pub(super) fn outcome(id: &str, outcome: &str) -> String {
    format!("/dead-letters?redrive={id}&outcome={outcome}")
}

/// What a redrive is about, in a line.
pub(super) fn title(redrive: &Redrive) -> String {
    let filter = FilterQuery::from(&without_secrets(redrive.plan.filter.clone()));
    let pairs = filter.pairs().into_iter().filter(|(name, _)| *name != "status");
    let said: Vec<String> = pairs.map(|(name, value)| format!("{name} {}", safe(value, 40))).collect();
    if said.is_empty() { "all open letters".to_owned() } else { said.join(", ") }
}

/// Where a redrive stands, in a word.
pub(super) fn standing(redrive: &Redrive) -> Markup {
    let phase = redrive.standing.phase.as_str();
    match redrive.standing.run {
        Run::Running => state("run", "act", format!("running: {phase}")),
        Run::Paused => state("pause", "warn", "paused"),
        Run::Done => state("ok", "good", "done"),
        Run::Cancelled => state("stop", "", "cancelled"),
        Run::Stopped => state("stop", "bad", "stopped itself"),
    }
}
