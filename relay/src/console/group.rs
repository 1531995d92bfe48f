//! What is it, since when, is it over, who is hit, and what may I do?

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{LetterStatus, StatusCounts};
use chrono::Utc;
use maud::{Markup, html};

use super::Asked;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{Term, ago, at, counted, failing, known, letters_of, name, safe, sum};
use super::{forms, groups, letters, plan, trend};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, GroupRow};

/// Letters that are shown of a group.
const SAMPLE: u32 = 6;

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(fingerprint): Path<String>,
    Asked(asked): Asked<plan::PlanQuery>,
) -> Result<Response, Shown> {
    let row = desk.group(&fingerprint).await?;
    let filter = FilterQuery { fingerprint: Some(fingerprint.clone()), ..asked.filter };
    let minutes = desk.minutes(Some(&fingerprint)).await?;
    let open = row.by_status.open;
    let planned =
        if open > 0 { Some(desk.plan(&plan::until_now(&filter), &asked.order).await?) } else { None };
    let group = FilterQuery::of_group(&fingerprint);
    let sample = desk.letters(&group.filter()?, None, SAMPLE).await?;
    let changes = match open > 0 {
        true => forms::changes(&desk, &who, &group.clone().with_status(LetterStatus::Open)).await?,
        false => html! {},
    };
    let title = safe(row.error.as_deref().or(row.error_type.as_deref()).unwrap_or("no error text"), 300);
    let body = html! {
        div.head {
            div { p.crumbs { a href="/groups" { "Dead letters" } " / group " span.id { (safe(&fingerprint, 16)) } }
                h1 { (title) }
                p.sub { (failing(row.state(Utc::now()))) " · " (known(row.reason.as_deref())) } }
            @if open > 0 { div.acts { a.btn.go href="#plan" { "Plan a redrive" } span.seg { a href="#letters" { "Letters" } a href="#changes" { "Discard or hold" } } } }
        }
        div.two.even {
            div data-live="sum" { (states(&row, &group)) (facts(&row, &fingerprint)) }
            section aria-labelledby="h-aff" { div.sh { h2 #h-aff { "Affected" } p { "open letters" } }
                (affected("Consumer", &row.consumers, |name| FilterQuery { consumer: name, ..group.clone() }))
                (affected("Topic or queue", &row.places, |name| FilterQuery { place: name, ..group.clone() })) }
        }
        section aria-labelledby="h-new" {
            div.sh { h2 #h-new { "New letters" } p { "of any status, by five minutes; what was collected within an hour" } }
            div data-live="trend" { (trend::plot(&minutes)) }
        }
        @if let Some(planned) = &planned { (plan::section(&who, planned, &filter, &asked.order, None)) }
        section #letters aria-labelledby="h-let" {
            div.sh { h2 #h-let { "Letters" } p { "the oldest" } span.end { a href=(letters_of(&group)) { "All" } } }
            (letters::list(&crate::desk::Page { next: None, ..sample }, ""))
        }
        (changes)
    };
    let command = format!("dead-letters redrive --fingerprint {fingerprint} --canary 10 --rate 50");
    let api = format!("/groups?fingerprint={fingerprint}");
    Ok(Page { place: Place::Letters, title, who: &who, command, api, body }.into_response())
}

fn states(row: &GroupRow, group: &FilterQuery) -> Markup {
    let StatusCounts { open, redriving, resolved, discarded, superseded } = row.by_status;
    let part = |number, status, label| Term {
        number,
        href: Some(letters_of(&group.clone().with_status(status))),
        label,
    };
    let whole =
        Term { number: row.by_status.sum(), href: Some(letters_of(group)), label: html! { "letters ever" } };
    let parts = [
        part(open, LetterStatus::Open, state("open", "", "open")),
        part(redriving, LetterStatus::Redriving, state("run", "act", "redriving")),
        part(resolved, LetterStatus::Resolved, state("ok", "good", "resolved")),
        part(superseded, LetterStatus::Superseded, state("bad", "bad", "failed again, or edited")),
        part(discarded, LetterStatus::Discarded, state("gone", "", "discarded")),
    ];
    sum("All letters that this group ever had", &whole, &parts)
}

fn facts(row: &GroupRow, fingerprint: &str) -> Markup {
    html! {
        dl.facts {
            dt { "First seen" } dd { (at(row.first_seen)) ", " (ago(row.first_seen)) }
            dt { "Last seen" } dd { (at(row.last_seen)) ", " (ago(row.last_seen)) }
            dt { "Last hour" } dd { (counted(row.last_hour, &letters_of(&groups::last_hour(fingerprint)))) " new letters" }
            dt { "Error type" } dd { (known(row.error_type.as_deref())) }
            dt { "Class" } dd { (known(row.class.as_deref())) }
        }
    }
}

fn affected(
    title: &str,
    counts: &BTreeMap<Option<String>, StatusCounts>,
    narrowed: impl Fn(Option<String>) -> FilterQuery,
) -> Markup {
    html! {
        table.aff {
            thead { tr { th scope="col" { (title) } th.r scope="col" { "Open" } } }
            tbody { @for (value, counts) in counts {
                tr { th scope="row" { (name(value.as_deref())) }
                    td.r { @if value.is_some() { (counted(counts.open, &letters_of(&narrowed(value.clone()).with_status(LetterStatus::Open)))) }
                        @else { (counts.open) } } }
            } }
        }
    }
}
