//! Who consumes, and what do they hold?

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::report_in::{BreakerState, ConsumerState};
use backstop_core::{ConsumerReport, report_in};
use chrono::{TimeDelta, Utc};
use maud::{Markup, html};

use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{ago, grouped, name, safe, span_of};
use crate::desk::{Caller, Desk};

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
) -> Result<Response, Shown> {
    let reports = desk.consumers().await?;
    let body = html! {
        div.head { div { h1 { "Consumers" } p.sub { "as each instance reported last; what it did not tell is unknown" } } }
        div data-live="consumers" {
            @if reports.is_empty() { p.more { "No consumer has reported in. Give consumers a destination for receipts to see them here." } }
            @else { (table(&reports)) }
        }
    };
    let (command, api) = ("dead-letters groups".to_owned(), "/consumers".to_owned());
    Ok(Page { place: Place::Consumers, title: "Consumers".into(), who: &who, command, api, body }
        .into_response())
}

fn table(reports: &[ConsumerReport]) -> Markup {
    html! {
        table.stack role="table" aria-label="Consumers" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Consumer" }
                th role="columnheader" scope="col" { "State" }
                th.p3 role="columnheader" scope="col" { "Version" }
                th role="columnheader" scope="col" { "Breaker" }
                th.r role="columnheader" scope="col" { "Lag" }
                th.r role="columnheader" scope="col" { "Held" }
                th.r role="columnheader" scope="col" { "Oldest held" }
                th.r.p3 role="columnheader" scope="col" { "Remembers" }
                th role="columnheader" scope="col" { "Reported" }
            } }
            tbody role="rowgroup" { @for report in reports { (line(report)) } }
        }
    }
}

fn line(report: &ConsumerReport) -> Markup {
    let number = |number: Option<u64>| number.map_or("unknown".to_owned(), grouped);
    let seconds = |seconds: Option<u64>| {
        let time = seconds.and_then(|seconds| TimeDelta::try_seconds(i64::try_from(seconds).ok()?));
        time.map_or("unknown".to_owned(), span_of)
    };
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" {
                a.t href={ "/groups?consumer=" (url::form_urlencoded::byte_serialize(report.consumer.as_bytes()).collect::<String>()) } { (safe(&report.consumer, 100)) }
                small.id { (safe(&report.instance, 100)) } }
            td role="cell" { (told(report)) }
            td.p3 role="cell" data-l="Version" { (name(report.version.as_deref())) }
            td role="cell" data-l="Breaker" { @match report.breaker {
                Some(BreakerState::Open) => (state("stop", "bad", "open")),
                Some(breaker) => (breaker.as_str()),
                None => "unknown",
            } }
            td.r role="cell" data-l="Lag" { (number(report.lag)) }
            td.r role="cell" data-l="Held" { (number(report.held)) }
            td.r role="cell" data-l="Oldest held" { @if report.held == Some(0) { "none" } @else { (seconds(report.oldest_held_seconds)) } }
            td.r.p3 role="cell" data-l="Remembers" { (seconds(report.inbox_retention_seconds)) }
            td role="cell" data-l="Reported" { (ago(report.at)) }
        }
    }
}

fn told(report: &ConsumerReport) -> Markup {
    let silent = TimeDelta::from_std(report_in::EVERY * 3).is_ok_and(|limit| Utc::now() - report.at > limit);
    match report.state {
        ConsumerState::Stopped => state("stop", "", "stopped"),
        _ if silent => state("silent", "warn", "gone: no report any more"),
        ConsumerState::Running => state("ok", "good", "running"),
        ConsumerState::Paused => state("pause", "warn", "paused"),
        other => state("wait", "", other.as_str()),
    }
}
