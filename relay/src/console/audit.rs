//! Who did what, when, from where, and with which result?

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{AuditEntry, AuditFilter, AuditStep};
use maud::{Markup, html};
use serde::Deserialize;

use super::Asked;
use super::ROWS;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{at, grouped, safe};
use crate::desk::{Caller, Desk};

/// Which entries.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    action: Option<String>,
    who: Option<String>,
    redrive: Option<String>,
    after: Option<String>,
}

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(which): Asked<Which>,
) -> Result<Response, Shown> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let filter = AuditFilter {
        before: given(which.after).and_then(|n| n.parse().ok()),
        action: given(which.action),
        who: given(which.who),
        redrive: given(which.redrive),
    };
    let (entries, next) = desk.entries(&filter, ROWS).await?;
    let field = |name: &str, label: &str, value: &Option<String>| {
        html! { label { span.lab { (label) } input type="text" name=(name) value=(value.as_deref().unwrap_or_default()); } }
    };
    let body = html! {
        div.head { div { h1 { "Audit" } p.sub { "what people did, and what redrives did by themselves, over any relay or command line of this ledger; newest first" } } }
        form.filter method="get" action="/audit" {
            (field("action", "Action begins with", &filter.action))
            (field("who", "Who", &filter.who))
            (field("redrive", "Redrive", &filter.redrive))
            button type="submit" { "Show" }
        }
        @if entries.is_empty() { p.more { "Nothing is written down here." } } @else { (table(&entries)) }
        @if let Some(next) = next { p.more { a rel="next" href={ "/audit?" (address(&filter, Some(next))) } { "Older" } } }
    };
    let asked = address(&filter, None);
    let api = if asked.is_empty() { "/audit".to_owned() } else { format!("/audit?{asked}") };
    let command = "audit".to_owned();
    Ok(Page { place: Place::Audit, title: "Audit".into(), who: &who, command, api, body }.into_response())
}

fn address(filter: &AuditFilter, before: Option<i64>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let fields = [("action", &filter.action), ("who", &filter.who), ("redrive", &filter.redrive)];
    for (name, value) in fields {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    if let Some(before) = before {
        query.append_pair("after", &before.to_string());
    }
    query.finish()
}

fn table(entries: &[AuditEntry]) -> Markup {
    html! {
        table.stack.audit role="table" aria-label="Audit log" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "When" } th role="columnheader" scope="col" { "Who" }
                th role="columnheader" scope="col" { "Action" } th role="columnheader" scope="col" { "Of what" }
                th.r role="columnheader" scope="col" { "Letters" } th role="columnheader" scope="col" { "Result" } } }
            tbody role="rowgroup" { @for entry in entries { (line(entry)) } }
        }
    }
}

fn line(AuditEntry { at: time, entry, .. }: &AuditEntry) -> Markup {
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" { (at(*time)) }
            td role="cell" data-l="Who" { b { (safe(&entry.who, 64)) } ", " (safe(&entry.role, 20)) small.blk { (safe(&entry.origin, 200)) } }
            td role="cell" data-l="Action" { (safe(&entry.action, 100)) }
            td role="cell" data-l="Of what" {
                @match &entry.redrive {
                    Some(redrive) if entry.step == AuditStep::Done => { a href={ "/redrives/" (redrive) } { "redrive " span.id { (safe(redrive, 64)) } } " " },
                    Some(redrive) => { "redrive " span.id { (safe(redrive, 64)) } " " },
                    None => {},
                }
                span.id { (safe(&entry.object, 300)) }
                @if let Some(because) = &entry.because { small.blk { (safe(because, 500)) } } }
            td.r role="cell" data-l="Letters" { @if let Some(letters) = entry.letters { (grouped(letters)) } }
            td role="cell" { (result(entry.step)) @if let Some(why) = &entry.error { small.blk { (safe(why, 300)) } } }
        }
    }
}

fn result(step: AuditStep) -> Markup {
    match step {
        AuditStep::Done => state("ok", "good", "done"),
        AuditStep::Refused => state("bad", "bad", "refused"),
        AuditStep::Failed => state("bad", "bad", "failed"),
        AuditStep::Begun => state("silent", "warn", "begun, end unknown"),
    }
}
