//! Which keys wait, for what, and what may I do?

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use backstop_core::ConsumerReport;
use backstop_core::held_keys::{Ending, HeldFilter, HeldState};
use backstop_core::ledger::{Letter, LetterStatus};
use chrono::{TimeDelta, Utc};
use maud::{Markup, html};
use serde::Deserialize;

use super::Asked;
use super::ROWS;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{ago, grouped, letters_of, safe, span_of};
use crate::ask::Pending;
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, HeldLine, HeldLook, Trouble, endings};

/// Which keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Which {
    consumer: Option<String>,
    quarantined: Option<String>,
}

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(which): Asked<Which>,
) -> Result<Response, Shown> {
    let consumer = which.consumer.filter(|consumer| !consumer.is_empty());
    let quarantined = which.quarantined.as_deref() == Some("true");
    let filter = HeldFilter { consumer, quarantined, ..HeldFilter::default() };
    let looks = desk.held(&filter, ROWS).await?;
    let reports = desk.consumers().await?;
    let body = html! {
        div.head { div { h1 { "Held keys" } p.sub { "messages that wait at their consumer: for another try, for those before them of their key, or for somebody" } } }
        section aria-labelledby="h-told" { div.sh { h2 #h-told { "As consumers report" } p { "the latest report of each; what one did not tell is unknown" } }
            div data-live="told" { (told(&reports)) } }
        form.filter method="get" action="/held" {
            label { span.lab { "Consumer" } input type="text" name="consumer" value=(filter.consumer.as_deref().unwrap_or_default()); }
            label.check { input type="checkbox" name="quarantined" value="true" checked[filter.quarantined]; span { "Only those that wait for somebody" } }
            button type="submit" { "Show" }
        }
        @for look in &looks { (database(look)) }
    };
    let (command, api) = ("held list".to_owned(), "/held".to_owned());
    Ok(Page { place: Place::Held, title: "Held keys".into(), who: &who, command, api, body }.into_response())
}

/// Instances of a consumer share what they hold: the latest word counts.
fn told(reports: &[ConsumerReport]) -> Markup {
    let mut latest = BTreeMap::<&str, &ConsumerReport>::new();
    for report in reports {
        let known = latest.entry(&report.consumer).or_insert(report);
        if known.at < report.at {
            *known = report;
        }
    }
    let open = |consumer: &str| {
        let filter = FilterQuery { consumer: Some(consumer.to_owned()), ..FilterQuery::default() };
        letters_of(&filter.with_status(LetterStatus::Open))
    };
    html! {
        @if latest.is_empty() { p.more { "No consumer has reported in. Give consumers a destination for receipts to see them here." } }
        @else { table.stack role="table" aria-label="Held messages by consumer" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Consumer" } th.r role="columnheader" scope="col" { "Held" }
                th.r role="columnheader" scope="col" { "Oldest" } th role="columnheader" scope="col" { "Reported" } } }
            tbody role="rowgroup" { @for (consumer, report) in latest { tr role="row" {
                th.main role="rowheader" scope="row" { a.t href=(open(consumer)) { (safe(consumer, 100)) } small { "its open letters" } }
                td.r role="cell" data-l="Held" { @match report.held { Some(held) => (grouped(held)), None => "unknown" } }
                td.r role="cell" data-l="Oldest" { (oldest(report)) }
                td role="cell" data-l="Reported" { (ago(report.at)) }
            } } }
        } }
    }
}

fn oldest(report: &ConsumerReport) -> String {
    let age = report.oldest_held_seconds.and_then(|seconds| i64::try_from(seconds).ok());
    match (report.held, age.and_then(TimeDelta::try_seconds)) {
        (Some(0), _) => "none".to_owned(),
        (_, Some(age)) => span_of(age),
        (_, None) => "unknown".to_owned(),
    }
}

fn database(look: &HeldLook) -> Markup {
    let id = format!("h-in-{}", look.outbox);
    html! {
        section aria-labelledby=(id) {
            div.sh { h2 id=(id) { "In the database of outbox " (safe(&look.outbox, 64)) } p { "the head of each key, the oldest first" } }
            div data-live=(id) {
                @if let Some(trouble) = &look.trouble { p.more { (state("bad", "bad", "unknown")) " " (safe(&trouble.what, 300)) } }
                @else if look.keys.is_empty() { p.more { "No held keys." } }
                @else { (table(&look.keys)) }
                @if look.more { p.more { "There are more: ask for one consumer, or from a terminal." } }
            }
        }
    }
}

fn table(lines: &[HeldLine]) -> Markup {
    html! {
        table.stack role="table" aria-label="Held keys" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Message" } th role="columnheader" scope="col" { "Consumer" }
                th role="columnheader" scope="col" { "Waits for" } th.r role="columnheader" scope="col" { "Behind it" }
                th.r.p3 role="columnheader" scope="col" { "Attempts" } th role="columnheader" scope="col" { "Error" }
                th role="columnheader" scope="col" { "Since" } } }
            tbody role="rowgroup" { @for held in lines { (line(held)) } }
        }
    }
}

fn line(HeldLine { key, letter, pending }: &HeldLine) -> Markup {
    let message = safe(key.head.message_key.as_str(), 100);
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" {
                @match letter { Some(letter) => a.t href={ "/dead-letters/" (letter.id) "#key" } { (message) }, None => span.id { (message) } }
                small.id { (safe(&key.head.place, 100)) } }
            td role="cell" data-l="Consumer" { (safe(&key.consumer, 100)) }
            td role="cell" data-l="Waits for" { (waits(key.state, letter.is_some(), *pending)) }
            td.r role="cell" data-l="Behind it" { (grouped(key.behind)) }
            td.r.p3 role="cell" data-l="Attempts" { (key.head.attempts) }
            td role="cell" data-l="Error" { (safe(key.head.error.as_deref().unwrap_or("none"), 160)) }
            td role="cell" data-l="Since" { (ago(key.head.held_since)) }
        }
    }
}

fn waits(held: HeldState, known: bool, pending: Option<Pending>) -> Markup {
    match (held, pending) {
        (_, Some(pending)) => asked(pending),
        (HeldState::Retry, None) => state("wait", "", "its next try"),
        (HeldState::Waiting, None) => state("wait", "", "those before it"),
        (HeldState::Quarantined, None) if known => state("pause", "warn", "somebody"),
        (HeldState::Quarantined, None) => {
            html! { (state("pause", "warn", "somebody")) small.blk { "its letter is not collected yet" } }
        }
    }
}

fn asked(Pending { ending, since }: Pending) -> Markup {
    let late = Utc::now() - since > TimeDelta::minutes(5);
    html! {
        (state("wait", if late { "warn" } else { "act" }, format!("{ending} asked, no answer yet"))) " " (ago(since))
        @if late { small.blk { "A consumer answers only when it sends receipts, and when the message was held as it was asked." } }
    }
}

/// What can be done about the key of a letter; nothing where its consumer cannot be asked.
pub(super) fn key(who: &Caller, letter: &Letter, pending: Option<Pending>) -> Markup {
    let endings = endings(letter);
    html! {
        @if !endings.is_empty() {
            section.danger #key aria-labelledby="h-key" {
                div.sh { h2 #h-key { "Its key" } }
                p { "A consumer that keeps order (" code { "ordered()" } ") lets later messages of this key wait behind this one until a redrive succeeds, or you end the wait." }
                @if let Some(pending) = pending { p { (asked(pending)) } }
                @if !who.operates() { p { "Ending the wait needs the operator role." } }
                @else { details { summary.btn { "End the wait…" } (order(letter, &endings)) } }
            }
        }
    }
}

fn order(letter: &Letter, endings: &[Ending]) -> Markup {
    html! {
        form method="post" action={ "/dead-letters/" (letter.id) "/end" } {
            div.fields {
                fieldset { legend.lab { "What its consumer is to do" }
                    @for ending in endings { label.check { input type="radio" name="ending" value=(ending.as_str()) required; span { b { (ending.as_str()) } ": " (meaning(*ending)) } } }
                }
                label { span.lab { "Reason (required, kept in the audit log)" } textarea name="because" rows="2" required {} }
                p.hint { "The command goes through the door. It has happened once the consumer's receipt is in the history above." }
                div.acts { button.no type="submit" { "Send the command" } a.btn href="#key" { "Let it wait" } }
            }
        }
    }
}

const fn meaning(ending: Ending) -> &'static str {
    match ending {
        Ending::Release => "later messages go on without it; its letter stays as it is",
        Ending::Skip => "it is never run, and the letter is discarded",
        Ending::Resolve => {
            "somebody has brought about its effects: it counts as handled, and the letter is resolved"
        }
    }
}

/// What somebody asks of a consumer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wish {
    ending: String,
    because: String,
}

pub(super) async fn end(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Form(wish): Form<Wish>,
) -> Result<Response, Shown> {
    let unknown = || Trouble::invalid("the ending is not known", "choose release, skip or resolve");
    let ending = Ending::parse(&wish.ending).ok_or_else(unknown)?;
    let letter = desk.end_wait(&who, &id, ending, &wish.because).await?;
    Ok(Redirect::to(&format!("/dead-letters/{}#key", letter.id)).into_response())
}
