//! Which failures are there?

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{LetterFilter, LetterStatus};
use chrono::{SecondsFormat, TimeDelta, Utc};
use maud::{Markup, html};

use super::Asked;
use super::page::{Page, Place, Shown};
use super::parts::{ago, counted, failing, group_of, grouped, letters_of, safe};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, GroupRow};

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(mut query): Asked<FilterQuery>,
) -> Result<Response, Shown> {
    if query.status.is_none() {
        query.status = Some(LetterStatus::Open.as_str().to_owned());
    }
    let rows = desk.groups(&query.filter()?).await?;
    let all: u64 = rows.iter().map(|row| row.by_status.sum()).sum();
    let body = html! {
        div.head { div { h1 { "Dead letters by group" }
            p.sub { (grouped(all)) " letters in " (rows.len()) " groups match" } } }
        (search("/groups", &query))
        div data-live="groups" {
            @if rows.is_empty() { p.more { "No letter matches. " a href="/groups?status=" { "Show every group" } } }
            @else { (table(&rows)) }
        }
    };
    let api = format!("/groups?{}", query.query());
    let command = "dead-letters groups".to_owned();
    Ok(Page { place: Place::Letters, title: "Dead letters".into(), who: &who, command, api, body }
        .into_response())
}

/// A table of groups.
pub(super) fn table(rows: &[GroupRow]) -> Markup {
    html! {
        table.stack role="table" aria-label="Groups of dead letters" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Failure" }
                th.r role="columnheader" scope="col" { "Open" }
                th.r role="columnheader" scope="col" { "Last hour" }
                th role="columnheader" scope="col" { "Now" }
                th.p3 role="columnheader" scope="col" { "First seen" }
                th role="columnheader" scope="col" { "Last seen" }
            } }
            tbody role="rowgroup" { @for row in rows { (line(row)) } }
        }
    }
}

fn line(row: &GroupRow) -> Markup {
    let title = safe(row.error.as_deref().or(row.error_type.as_deref()).unwrap_or("no error text"), 240);
    let names: Vec<&str> = row.consumers.keys().map(|name| name.as_deref().unwrap_or("unknown")).collect();
    let names = names.join(", ");
    let open =
        row.fingerprint.as_deref().map(|name| FilterQuery::of_group(name).with_status(LetterStatus::Open));
    let hour = row.fingerprint.as_deref().map(last_hour);
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" {
                @match row.fingerprint.as_deref() {
                    Some(fingerprint) => a.t href=(group_of(fingerprint)) { (title) },
                    None => span.t { (title) },
                }
                small { b { (safe(&names, 200)) }
                    @if let Some(reason) = &row.reason { " · " (safe(reason, 80)) } }
            }
            td.r role="cell" data-l="Open" { (count(row.by_status.open, open.as_ref())) }
            td.r role="cell" data-l="Last hour" { (count(row.last_hour, hour.as_ref())) }
            td role="cell" { (failing(row.state(Utc::now()))) }
            td.p3 role="cell" data-l="First seen" { (ago(row.first_seen)) }
            td role="cell" data-l="Last seen" { (ago(row.last_seen)) }
        }
    }
}

fn count(number: u64, filter: Option<&FilterQuery>) -> Markup {
    match filter {
        Some(filter) => counted(number, &letters_of(filter)),
        None => html! { b { (grouped(number)) } },
    }
}

/// The letters of a group that died in the last 60 minutes.
pub(super) fn last_hour(fingerprint: &str) -> FilterQuery {
    let since = (Utc::now() - TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Secs, true);
    FilterQuery { since: Some(since), ..FilterQuery::of_group(fingerprint) }
}

/// The fields of a filter, with what is asked for now.
pub(super) fn search(action: &str, query: &FilterQuery) -> Markup {
    let fields = [
        ("consumer", "Consumer", &query.consumer),
        ("place", "Topic or queue", &query.place),
        ("key", "Key", &query.key),
        ("header", "Header (name=value)", &query.header),
        ("error", "Words of the error", &query.error),
        ("since", "Failed from (UTC)", &query.since),
        ("until", "to", &query.until),
    ];
    let shown: Vec<&str> = fields.iter().map(|(name, ..)| *name).chain(["status"]).collect();
    let status = query.status.as_deref().unwrap_or_default();
    html! {
        form.filter method="get" action=(action) role="search" {
            @for (name, value) in query.pairs().into_iter().filter(|(name, _)| !shown.contains(name)) {
                input type="hidden" name=(name) value=(value);
            }
            label { span.lab { "State" } select name="status" {
                option value="" selected[status.is_empty()] { "any" }
                @for word in ["open", "redriving", "resolved", "discarded", "superseded"] {
                    option value=(word) selected[status == word] { (if word == "superseded" { "failed again, or edited" } else { word }) }
                }
            } }
            @for (name, label, value) in fields {
                label { span.lab { (label) } input type="text" name=(name) value=(value.as_deref().unwrap_or_default()) autocomplete="off"; }
            }
            button type="submit" { "Show" }
        }
    }
}

/// Whether a filter leaves nothing out.
pub(super) fn is_all(filter: &LetterFilter) -> bool {
    *filter == LetterFilter::default()
}
