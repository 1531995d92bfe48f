//! Is it working, how long still, and must I stop it?

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{Redrive, Run, Tally};
use chrono::TimeDelta;
use maud::{Markup, html};

use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{Term, at, grouped, letters_in_words, letters_of, safe, span_of, sum};
use super::redrives::{outcome, standing, title};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk};

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Shown> {
    let redrive = desk.redrive(&id).await?;
    let letters = redrive.letters();
    let over = redrive.standing.run.is_over();
    let body = html! {
        div.head {
            div { p.crumbs { a href="/redrives" { "Redrives" } " / " span.id { (id) } }
                h1 { "Redrive: " (title(&redrive)) }
                p.sub data-live="state" { (standing(&redrive)) @if let Some(why) = &redrive.standing.why { " · " (safe(why, 300)) } (left(&redrive, &letters)) } }
            @if who.operates() { div data-live="acts" { @if !over { div.acts { (switch(&redrive)) a.btn href="#pace" { "Change rate…" } span.seg { a href="#cancel" { "Cancel…" } } } } } }
        }
        div data-live="progress" { (bar(&letters)) (terms(&redrive)) }
        section aria-labelledby="h-how" #pace { div.sh { h2 #h-how { "As planned" } span.end { a href={ "/audit?redrive=" (id) } { "Who did what with it" } } }
            div data-live="facts" { (facts(&redrive)) }
            @if who.operates() { div data-live="rate" { @if !over {
                form method="post" action={ "/redrives/" (id) "/rate" } { p.inline {
                    label for="rate" { "At most" } input.num #rate type="text" name="rate" value=(redrive.plan.rate.map(|rate| rate.to_string()).unwrap_or_default()) inputmode="decimal"; " letters a second "
                    button type="submit" { "Set rate" } } }
            } } }
        }
        @if who.operates() { div data-live="cancel" { @if !over { (cancel(&id, &letters)) } } }
    };
    let done = letters.sum() - letters.unsent();
    let title = format!("{done} of {} sent, redrive", letters.sum());
    let (command, api) = (format!("redrives watch {id}"), format!("/redrives/{id}"));
    Ok(Page { place: Place::Redrives, title, who: &who, command, api, body }.into_response())
}

fn left(redrive: &Redrive, letters: &Tally) -> Markup {
    let rate = redrive.plan.rate.filter(|_| redrive.standing.run == Run::Running && letters.unsent() > 0);
    html! {
        @if let Some(rate) = rate {
            " · about " b { (span_of(TimeDelta::seconds((letters.unsent() as f64 / rate).min(1e9) as i64))) } " of sending left"
        }
    }
}

fn switch(redrive: &Redrive) -> Markup {
    let id = &redrive.plan.id;
    html! {
        @if redrive.standing.run == Run::Running { form method="post" action={ "/redrives/" (id) "/pause" } { button type="submit" { "Pause" } } }
        @else { form method="post" action={ "/redrives/" (id) "/resume" } { button.go type="submit" { "Resume" } } }
    }
}

fn bar(letters: &Tally) -> Markup {
    let whole = letters.sum().max(1) as f64;
    let parts = [
        (letters.resolved, "f-good"),
        (letters.failed_again + letters.refused, "f-bad"),
        (letters.silent + letters.unknown, "f-warn"),
        (letters.waiting + letters.sending, "f-act"),
        (letters.pending + letters.dropped, "f-none"),
    ];
    let mut from = 0.0;
    let said = format!(
        "{} of {} sent: {} resolved, {} failed again, {} silent, {} waiting for an outcome",
        letters.sent(),
        letters.sum(),
        letters.resolved,
        letters.failed_again,
        letters.silent,
        letters.waiting
    );
    html! {
        svg.progress role="img" aria-label=(said) {
            @for (number, class) in parts {
                @let width = number as f64 * 100.0 / whole;
                rect class=(class) x={ (format!("{from:.3}")) "%" } width={ (format!("{width:.3}")) "%" } height="100%" {}
                ({ from += width; html! {} })
            }
        }
    }
}

fn terms(redrive: &Redrive) -> Markup {
    let (letters, id) = (redrive.letters(), redrive.plan.id.as_str());
    let sent = |number, word, label| Term { number, href: Some(outcome(id, word)), label };
    // A letter that was discarded meanwhile keeps its outcome, and does not wait for it.
    let awaited = |number, word, label| {
        let href = Some(format!("{}&status=redriving", outcome(id, word)));
        Term { number, href, label }
    };
    let alone = |number, label| Term { number, href: None, label };
    let whole = alone(letters.sum(), html! { "letters in the cohort" });
    let mut parts = vec![
        sent(letters.resolved, "resolved", state("ok", "good", "resolved")),
        sent(letters.failed_again, "failed-again", state("bad", "bad", "failed again")),
        awaited(letters.silent, "silent", state("silent", "warn", "silent")),
        // What is being sent is among the letters that wait: the broker may have it.
        awaited(letters.waiting + letters.sending, "waiting", state("wait", "act", "waiting for outcome")),
        alone(
            letters.pending,
            state("open", "", if redrive.standing.run.is_over() { "not sent, open" } else { "not sent yet" }),
        ),
    ];
    let rare = [
        awaited(letters.unknown, "unknown", state("wait", "", "sent, outcome unknown")),
        alone(letters.refused, state("bad", "bad", "refused")),
        alone(letters.dropped, state("gone", "", "taken by somebody else")),
    ];
    parts.extend(rare.into_iter().filter(|term| term.number > 0));
    sum("Every letter of the cohort", &whole, &parts)
}

fn facts(redrive: &Redrive) -> Markup {
    let plan = &redrive.plan;
    html! {
        dl.facts {
            dt { "Filter" } dd { (title(redrive)) @if let Some(filter) = FilterQuery::shown(&plan.filter) { "; " a href=(letters_of(&filter)) { "letters that match it now" } } }
            dt { "Frozen" } dd { (at(redrive.created_at)) ", by " b { (safe(&plan.created_by, 64)) } }
            dt { "Canary" } dd { @if plan.canary == 0 { "none" } @else { (letters_in_words(plan.canary)) ": " (grouped(redrive.canary_letters.resolved)) " resolved, " (grouped(redrive.canary_letters.failed_again)) " failed again" } }
            dt { "Rate" } dd { @match plan.rate { Some(rate) => { (rate) " a second at most" }, None => "no limit" } }
            dt { "Brake" } dd { "pauses above " (format!("{:.1}", plan.brake * 100.0)) " % failed again" }
            dt { "Silent" } dd { "after " (span_of(TimeDelta::from_std(plan.silent_after).unwrap_or(TimeDelta::MAX))) " without an outcome; a late one still counts" }
            dt { "Note" } dd { @match &plan.because { Some(because) => (safe(because, 500)), None => span.muted { "none" } } }
        }
    }
}

fn cancel(id: &str, letters: &Tally) -> Markup {
    html! {
        section.danger #cancel aria-labelledby="h-cancel" {
            div.sh { h2 #h-cancel { "Cancel" } }
            p { "What was sent cannot be called back; its outcomes still count. Letters that were not sent are open, as before; those that are being sent wait for their outcome. A cancelled redrive cannot be resumed: pause it if you only want to look." }
            details { summary.btn.no { "Cancel: leave about " (letters_in_words(letters.pending)) " unsent…" }
                form method="post" action={ "/redrives/" (id) "/cancel" } { div.fields {
                    label { span.lab { "Reason (required, kept in the audit log)" } textarea name="because" rows="2" required {} }
                    div.acts { button.no type="submit" { "Cancel this redrive" } a.btn href="#cancel" { "Keep sending" } } } } }
        }
    }
}
