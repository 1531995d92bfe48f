//! What the pages' forms do.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use backstop_core::ledger::Change;
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{Page, Place, Shown, with_status};
use super::parts::{grouped, letters_in_words, letters_of};
use super::plan;
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, Order, Started, Steer, Trouble, id_of_key};

/// From so many letters on, their number must be typed.
const MANY: u64 = 100;

/// A plan that is confirmed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Start {
    #[serde(flatten)]
    filter: FilterQuery,
    #[serde(flatten)]
    order: Order,
    /// Made with the page, so that a second press of its button starts nothing.
    id: String,
    /// How many letters the page said would be sent.
    expected: String,
    /// Letters that died before this time were counted.
    as_of: Option<String>,
}

pub(super) async fn start(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(form): Form<Start>,
) -> Result<Response, Shown> {
    let incomplete = || Trouble::invalid("the form is incomplete", "open the plan again");
    let expected = form.expected.parse().map_err(|_| incomplete())?;
    if form.id.is_empty() {
        return Err(incomplete().into());
    }
    let Start { filter, order, id, as_of, .. } = &form;
    let ends = filter.until.as_deref().is_some_and(|until| !until.is_empty());
    let until = if ends { filter.until.clone() } else { as_of.clone() };
    let shown = FilterQuery { until, ..filter.clone() };
    match desk.start(&who, id_of_key(id), &shown, order, Some(expected)).await? {
        Started::Redrive(redrive) => {
            Ok(Redirect::to(&format!("/redrives/{}", redrive.plan.id)).into_response())
        }
        Started::Differs(_) => {
            let plan = desk.plan(&plan::until_now(filter), order).await?;
            let note =
                format!("Nothing was started: {} letters would be sent now, not {expected}.", plan.to_send());
            let page = plan::whole(&who, &plan, filter, order, Some(&note));
            Ok(with_status(StatusCode::CONFLICT, page))
        }
    }
}

/// What somebody wants of a redrive.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wish {
    because: String,
    rate: String,
}

pub(super) async fn steer(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path((id, action)): Path<(String, String)>,
    Form(wish): Form<Wish>,
) -> Result<Response, Shown> {
    let steer = match action.as_str() {
        "pause" => Steer::Pause,
        "resume" => Steer::Resume,
        "cancel" => Steer::Cancel(&wish.because),
        "rate" => {
            let wrong = |_| Trouble::invalid("rate is no number", "write letters a second, such as 50");
            Steer::Rate(wish.rate.trim().parse().map_err(wrong)?)
        }
        _ => return Err(Trouble::missing("there is no such action").into()),
    };
    let redrive = desk.steer(&who, &id, steer).await?;
    Ok(Redirect::to(&format!("/redrives/{}", redrive.plan.id)).into_response())
}

/// Letters that are to be changed, and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    #[serde(flatten)]
    filter: FilterQuery,
    because: String,
    /// The number that was typed, where it must be.
    count: Option<String>,
}

pub(super) async fn discard(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    if who.operates() {
        let letters = desk.count(&wanted.filter.filter()?).await?;
        let typed = wanted.count.as_deref().and_then(|text| text.trim().replace(',', "").parse().ok());
        if letters >= MANY && typed != Some(letters) {
            let what = format!("{letters} letters match, and that number was not typed");
            return Err(Trouble::invalid(what, "go back, look at the number and type it").into());
        }
    }
    change(&desk, &who, &wanted, "discarded", |because| Change::Discard { because }).await
}

pub(super) async fn hold(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    change(&desk, &who, &wanted, "put under legal hold", |because| Change::Hold { because }).await
}

pub(super) async fn release(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    change(&desk, &who, &wanted, "released from legal hold", |because| Change::Release { because }).await
}

async fn change(
    desk: &Desk,
    who: &Caller,
    wanted: &Wanted,
    done: &str,
    make: fn(String) -> Change,
) -> Result<Response, Shown> {
    let Wanted { filter, because, .. } = wanted;
    if filter.pairs().is_empty() {
        return Err(Trouble::invalid("the filter is empty", "say which letters are meant").into());
    }
    let changed = desk.change(who, &filter.filter()?, make, because).await?;
    let all = letters_of(&FilterQuery { status: None, ..filter.clone() });
    let body = html! {
        h1 { (letters_in_words(changed.letters)) " " (done) }
        @if changed.held == 1 { p { "1 letter stays as it is: it is under legal hold." } }
        @else if changed.held > 1 { p { (grouped(changed.held)) " letters stay as they are: they are under legal hold." } }
        @if !changed.complete { p { "There are more: do it again to go on." } }
        p { "It is in the history of each letter, with your reason, and in the audit log." }
        p { a href=(all) { "Look at these letters" } " · " a href="/" { "To the overview" } }
    };
    let (title, command) = (format!("Letters {done}"), "dead-letters list".to_owned());
    let api = "/audit".to_owned();
    Ok(Page { place: Place::Letters, title, who, command, api, body }.into_response())
}

/// Discard, hold and release, at the end of a page.
pub(super) fn changes(who: &Caller, filter: &FilterQuery, letters: u64) -> Markup {
    let hidden = || {
        html! { @for (name, value) in filter.pairs() { input type="hidden" name=(name) value=(value); } }
    };
    let (number, words) = (grouped(letters), letters_in_words(letters));
    html! {
        section.danger #changes aria-labelledby="h-changes" {
            div.sh { h2 #h-changes { "Discard or hold" } }
            p { "A discarded letter is never sent. It stays in the ledger with your reason. What is under legal hold cannot be discarded." }
            @if !who.operates() { p { "Both need the operator role. Send the address of this page to an operator." } }
            @else {
                details { summary.btn { "Legal hold…" }
                    form method="post" action="/dead-letters/hold" { (hidden()) div.fields { (why())
                        div.acts { button type="submit" { "Hold " (number) } button type="submit" formaction="/dead-letters/release" { "End the hold of " (number) } } } } }
                details { summary.btn.no { "Discard " (words) "…" }
                    form method="post" action="/dead-letters/discard" { (hidden()) div.fields { (why())
                        @if letters >= MANY { label { span.lab { "Type " (letters) " to confirm" } input.num type="text" name="count" inputmode="numeric" required autocomplete="off"; } }
                        div.acts { button.no type="submit" { "Discard " (words) } a.btn href="#changes" { @if letters == 1 { "Keep it" } @else { "Keep them" } } } } } }
            }
        }
    }
}

fn why() -> Markup {
    html! { label { span.lab { "Reason (required, kept in the audit log)" } textarea name="because" rows="2" required {} } }
}
