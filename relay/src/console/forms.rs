//! What the pages' forms do.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use backstop_core::ledger::{COUNT_LIMIT, Change};
use futures_util::future::try_join_all;
use maud::{Markup, html};
use serde::Deserialize;

use super::page::{Page, Place, Shown, with_status};
use super::parts::{grouped, letters_in_words, letters_of};
use super::plan::{self, moment};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Choice, Desk, Meant, Order, Started, Steer, Trouble, id_of_key};

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
    /// How many letters the page said would be changed.
    expected: String,
    /// Letters that died before this time were counted.
    as_of: Option<String>,
    /// The number that was typed, where it must be.
    count: Option<String>,
}

impl Wanted {
    /// Which letters the page meant, and how many.
    fn choice(&self) -> Result<Choice, Trouble> {
        if self.filter.pairs().is_empty() {
            return Err(Trouble::invalid("the filter is empty", "say which letters are meant"));
        }
        let incomplete = |_| Trouble::invalid("the form is incomplete", "open the letters again");
        let expected = self.expected.parse().map_err(incomplete)?;
        let typed = self.count.as_deref().and_then(|text| text.trim().replace(',', "").parse().ok());
        if expected >= MANY && typed != Some(expected) {
            let what = format!("{expected} letters are meant, and that number was not typed");
            return Err(Trouble::invalid(what, "go back, look at the number and type it"));
        }
        let as_of = FilterQuery { until: self.as_of.clone(), ..FilterQuery::default() }.filter()?.until;
        Ok(Choice { filter: self.filter.filter()?, as_of, expected: Some(expected) })
    }
}

/// Something that is done with letters by hand.
struct Deed {
    /// The last part of its address.
    path: &'static str,
    /// What its button says before the letters.
    button: &'static str,
    /// What is said of the letters afterwards.
    done: &'static str,
    make: fn(String) -> Change,
}

const HOLD: Deed = Deed {
    path: "hold",
    button: "Hold",
    done: "put under legal hold",
    make: |because| Change::Hold { because },
};

const RELEASE: Deed = Deed {
    path: "release",
    button: "End the hold of",
    done: "released from legal hold",
    make: |because| Change::Release { because },
};

const DISCARD: Deed = Deed {
    path: "discard",
    button: "Discard",
    done: "discarded",
    make: |because| Change::Discard { because },
};

pub(super) async fn discard(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    change(&desk, &who, &wanted, &DISCARD).await
}

pub(super) async fn hold(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    change(&desk, &who, &wanted, &HOLD).await
}

pub(super) async fn release(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Form(wanted): Form<Wanted>,
) -> Result<Response, Shown> {
    change(&desk, &who, &wanted, &RELEASE).await
}

async fn change(desk: &Desk, who: &Caller, wanted: &Wanted, deed: &Deed) -> Result<Response, Shown> {
    let changed = desk.change(who, &wanted.choice()?, deed.make, &wanted.because).await?;
    let all = letters_of(&FilterQuery { status: None, ..wanted.filter.clone() });
    let body = html! {
        h1 { (letters_in_words(changed.letters)) " " (deed.done) }
        @if changed.held == 1 { p { "1 letter stays as it is: it is under legal hold." } }
        @else if changed.held > 1 { p { (grouped(changed.held)) " letters stay as they are: they are under legal hold." } }
        @if !changed.complete { p { "There are more: open these letters again to go on." } }
        p { "It is in the history of each letter, with your reason, and in the audit log." }
        p { a href=(all) { "Look at these letters" } " · " a href="/" { "To the overview" } }
    };
    let (title, command) = (format!("Letters {}", deed.done), "dead-letters list".to_owned());
    let api = "/audit".to_owned();
    Ok(Page { place: Place::Letters, title, who, command, api, body }.into_response())
}

/// Discard, hold and release, at the end of a page. Letters that are named are meant whenever they died; of all others
/// those that died until now.
pub(super) async fn changes(desk: &Desk, who: &Caller, filter: &FilterQuery) -> Result<Markup, Trouble> {
    let chosen = filter.filter()?;
    let as_of = if chosen.ids.is_empty() { moment() } else { String::new() };
    let until = FilterQuery { until: Some(as_of.clone()), ..FilterQuery::default() }.filter()?.until;
    let choice = Choice { filter: chosen, as_of: until, expected: None };
    let mut forms = Vec::new();
    if who.operates() {
        let applies = async |deed: &'static Deed| {
            let meant = desk.applies(&choice, &(deed.make)(String::new())).await?;
            Ok::<_, Trouble>(form(deed, filter, &as_of, meant))
        };
        forms = try_join_all([&HOLD, &RELEASE, &DISCARD].map(applies)).await?;
    }
    Ok(html! {
        section.danger #changes aria-labelledby="h-changes" {
            div.sh { h2 #h-changes { "Discard or hold" } }
            p { "A discarded letter is never sent. It stays in the ledger with your reason. What is under legal hold cannot be discarded." }
            @if !who.operates() { p { "Both need the operator role. Send the address of this page to an operator." } }
            @else if !as_of.is_empty() { p.hint { "Letters that failed in the last 5 s, or fail later, are not among these." } }
            @for form in forms { (form) }
        }
    })
}

/// One of them, with the number of letters that it means; nothing where it means none.
fn form(deed: &Deed, filter: &FilterQuery, as_of: &str, meant: Meant) -> Markup {
    let Deed { path, button, .. } = deed;
    let Meant { letters, exact } = meant;
    let (words, is_final) = (letters_in_words(letters), *path == DISCARD.path);
    html! {
        @if !exact { p { (button) ": more than " (grouped(COUNT_LIMIT)) " letters, too many to be counted. Narrow them by time, or take one group whole." } }
        @else if letters > 0 {
            details { summary.btn.no[is_final] { (button) " " (words) "…" }
                form method="post" action={ "/dead-letters/" (path) } {
                    @for (name, value) in filter.pairs() { input type="hidden" name=(name) value=(value); }
                    input type="hidden" name="as_of" value=(as_of);
                    input type="hidden" name="expected" value=(letters);
                    div.fields { (why())
                        @if letters >= MANY { label { span.lab { "Type " (letters) " to confirm" } input.num type="text" name="count" inputmode="numeric" required autocomplete="off"; } }
                        div.acts { button.no[is_final] type="submit" { (button) " " (words) }
                            @if is_final { a.btn href="#changes" { @if letters == 1 { "Keep it" } @else { "Keep them" } } } } } } }
        }
    }
}

fn why() -> Markup {
    html! { label { span.lab { "Reason (required, kept in the audit log)" } textarea name="because" rows="2" required {} } }
}
