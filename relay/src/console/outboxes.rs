//! Are events leaving, who owns the lease, and what is dead?

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use backstop_core::dead_rows::{BuriedRow, DeadRowFilter};
use backstop_core::outbox::OutboxStatus;
use chrono::TimeDelta;
use maud::{Markup, html};
use serde::Deserialize;

use super::Asked;
use super::ROWS;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{ago, counted, grouped, safe, span_of};
use crate::desk::{Caller, Desk, OutboxLook};

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
) -> Result<Response, Shown> {
    let looks = desk.outboxes().await;
    let body = html! {
        div.head { div { h1 { "Outboxes" } p.sub { "of this relay" } } }
        div data-live="outboxes" { (table(&looks)) }
        section #dead aria-labelledby="h-dead" { div.sh { h2 #h-dead { "Dead rows" } p { "can never be sent as they are" } }
            div data-live="dead" { (dead_groups(&looks)) } }
    };
    let (command, api) = ("outbox status".to_owned(), "/outboxes".to_owned());
    Ok(Page { place: Place::Outboxes, title: "Outboxes".into(), who: &who, command, api, body }
        .into_response())
}

/// A table of outboxes.
pub(super) fn table(looks: &[OutboxLook]) -> Markup {
    html! {
        @if looks.is_empty() { p.more { "This relay drains no outbox." } }
        @else {
            table.stack role="table" aria-label="Outboxes" {
                thead role="rowgroup" { tr role="row" {
                    th.main role="columnheader" scope="col" { "Outbox" }
                    th role="columnheader" scope="col" { "State" }
                    th.r role="columnheader" scope="col" { "Pending" }
                    th.r role="columnheader" scope="col" { "Oldest" }
                    th.r role="columnheader" scope="col" { "Rows/s" }
                    th.r.p3 role="columnheader" scope="col" { "Scheduled" }
                    th.p3 role="columnheader" scope="col" { "Owner" }
                    th.r role="columnheader" scope="col" { "Dead" }
                } }
                tbody role="rowgroup" { @for look in looks { (line(look)) } }
            }
        }
    }
}

fn line(look: &OutboxLook) -> Markup {
    let number = |what: fn(&OutboxStatus) -> u64| {
        look.status.as_ref().map_or("unknown".to_owned(), |status| grouped(what(status)))
    };
    let dead: u64 = look.dead.iter().map(|group| group.rows).sum();
    let oldest = match &look.status {
        Some(status) => {
            status.oldest.and_then(|age| TimeDelta::from_std(age).ok()).map_or("none".to_owned(), span_of)
        }
        None => "unknown".to_owned(),
    };
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" { b { (look.name) }
                @if let Some(trouble) = &look.trouble { small { (safe(&trouble.what, 300)) } } }
            td role="cell" { (told(look)) }
            td.r role="cell" data-l="Pending" { (number(|status| status.pending)) }
            td.r role="cell" data-l="Oldest" { (oldest) }
            td.r role="cell" data-l="Rows/s" { @match &look.standing { Some(standing) => (standing.rate), None => "unknown" } }
            td.r.p3 role="cell" data-l="Scheduled" { (number(|status| status.scheduled)) }
            td.p3 role="cell" data-l="Owner" { @match &look.holder { Some(holder) => span.id { (safe(&holder.lease.owner, 60)) }, None => span.muted { "nobody" } } }
            td.r role="cell" data-l="Dead" { (counted(dead, &format!("/outboxes/{}/dead", look.name))) }
        }
    }
}

fn told(look: &OutboxLook) -> Markup {
    match (&look.holder, &look.standing) {
        (None, _) => state("stop", "bad", "no owner"),
        (Some(_), None) => state("wait", "", "unknown"),
        (Some(_), Some(standing)) => html! {
            @if standing.state == "running" { (state("ok", "good", "draining")) } @else { (state("pause", "warn", safe(&standing.state, 40))) }
            @if standing.paused_destinations > 0 { small.blk { (standing.paused_destinations) " destinations take nothing" } }
            @if standing.blocked_keys > 0 { small.blk { (standing.blocked_keys) " keys are blocked" } }
            @if let Some(error) = &standing.error { small.blk { (safe(&error.error, 200)) } }
        },
    }
}

fn dead_groups(looks: &[OutboxLook]) -> Markup {
    let groups: Vec<_> =
        looks.iter().flat_map(|look| look.dead.iter().map(move |group| (look, group))).collect();
    html! {
        @if groups.is_empty() { p.more { "No dead rows." } }
        @else {
            table.stack role="table" aria-label="Dead rows by destination and reason" {
                thead role="rowgroup" { tr role="row" {
                    th.main role="columnheader" scope="col" { "Destination" } th role="columnheader" scope="col" { "Outbox" }
                    th role="columnheader" scope="col" { "Reason" } th.r role="columnheader" scope="col" { "Rows" } } }
                tbody role="rowgroup" { @for (look, group) in groups { tr role="row" {
                    th.main role="rowheader" scope="row" { span.id { (safe(&group.destination, 200)) } }
                    td role="cell" data-l="Outbox" { (look.name) }
                    td role="cell" data-l="Reason" { (safe(&group.reason, 80)) }
                    td.r role="cell" data-l="Rows" { (counted(group.rows, &address(&look.name, &group.destination, &group.reason))) }
                } } }
            }
        }
    }
}

fn address(outbox: &str, destination: &str, reason: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("destination", destination).append_pair("reason", reason);
    format!("/outboxes/{outbox}/dead?{}", query.finish())
}

/// Which dead rows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    destination: Option<String>,
    reason: Option<String>,
}

pub(super) async fn dead(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(name): Path<String>,
    Asked(which): Asked<Which>,
) -> Result<Response, Shown> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty() && !text.contains('\0'));
    let (destination, reason) = (given(which.destination), given(which.reason));
    let filter = DeadRowFilter { destination, reason, ..DeadRowFilter::default() };
    let (rows, count) = desk.dead_rows(&name, &filter, ROWS).await?;
    let body = html! {
        div.head { div { p.crumbs { a href="/outboxes" { "Outboxes" } " / " (safe(&name, 64)) }
            h1 { "Dead rows of " (safe(&name, 64)) } p.sub data-total=(count) { (grouped(count)) " match; the oldest " (ROWS) " at most are shown" } } }
        (dead_table(&rows))
        p.more { "Retry or discard them from a terminal: " code { "backstop-relay outbox dead retry" } ", " code { "discard" } "." }
    };
    let (command, api) = (format!("outbox dead list --outbox {name}"), format!("/outboxes/{name}/dead"));
    Ok(Page { place: Place::Outboxes, title: "Dead rows".into(), who: &who, command, api, body }
        .into_response())
}

fn dead_table(rows: &[BuriedRow]) -> Markup {
    html! {
        @if rows.is_empty() { p.more { "No dead row matches." } }
        @else {
            table.stack role="table" aria-label="Dead rows" {
                thead role="rowgroup" { tr role="row" {
                    th.main role="columnheader" scope="col" { "Message" } th role="columnheader" scope="col" { "Destination" }
                    th role="columnheader" scope="col" { "Reason" } th role="columnheader" scope="col" { "Died" } } }
                tbody role="rowgroup" { @for dead in rows { tr role="row" {
                    th.main role="rowheader" scope="row" { span.id { (safe(&dead.row.message.id, 100)) } small { (safe(&dead.error, 300)) } }
                    td role="cell" data-l="Destination" { span.id { (safe(&dead.row.destination.to_string(), 200)) } }
                    td role="cell" data-l="Reason" { (safe(&dead.reason, 80)) }
                    td role="cell" data-l="Died" { (ago(dead.died_at)) }
                } } }
            }
        }
    }
}
