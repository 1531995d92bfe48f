//! Why did this one fail, and is it safe to send?

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use backstop_core::ledger::{Letter, LetterEvent, LetterStatus};
use chrono::{TimeDelta, Utc};
use maud::{Markup, html};
use serde::Deserialize;

use super::icons::{icon, state};
use super::page::{Page, Place, Shown};
use super::parts::{ago, at, group_of, known, name, safe, standing};
use super::{forms, held};
use crate::ask::Pending;
use crate::desk::filter::FilterQuery;
use crate::desk::{Body, Caller, Desk};
use crate::edit::notes;
use crate::encryption::size_of;
use crate::secret::hidden_headers;

/// Longest body that is shown, in bytes; the API gives all of it.
const MAX_BODY: usize = 256 << 10;
/// Longest body that can be edited in a form, in bytes: it comes back with up to six for each of them, and requests end at
/// 64 KiB.
const MAX_EDITED: usize = 10 << 10;
/// Longest value of a header that is shown.
const MAX_HEADER: usize = 1_000;

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, Shown> {
    show(&desk, &who, &id, None).await
}

/// Why somebody wants to see the body.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reveal {
    because: Option<String>,
}

pub(super) async fn reveal(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Form(order): Form<Reveal>,
) -> Result<Response, Shown> {
    let body = desk.reveal(&who, &id, order.because.as_deref()).await?;
    show(&desk, &who, &id, Some(body)).await
}

/// A body in place of the letter's, and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Edited {
    body: String,
    because: String,
}

pub(super) async fn edit(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Form(order): Form<Edited>,
) -> Result<Response, Shown> {
    // Browsers send each end of a line as two characters.
    let body = order.body.replace("\r\n", "\n");
    let (copy, _) = desk.edit(&who, &id, body.into(), &order.because).await?;
    Ok(Redirect::to(&format!("/dead-letters/{copy}")).into_response())
}

async fn show(desk: &Desk, who: &Caller, id: &str, revealed: Option<Body>) -> Result<Response, Shown> {
    let (letter, history) = desk.letter(id).await?;
    let filter = FilterQuery { ids: Some(letter.id.clone()), ..FilterQuery::default() };
    let changes = forms::changes(desk, who, &filter).await?;
    let title = safe(letter.error.as_deref().unwrap_or("no error text"), 300);
    let body = html! {
        div.head {
            div { p.crumbs { a href="/groups" { "Dead letters" } " / "
                    @if let Some(group) = &letter.fingerprint { a href=(group_of(group)) { "group " span.id { (safe(group, 16)) } } " / " }
                    span.id { (letter.id) } }
                h1 { (title) }
                p.sub { (standing(&letter)) " · " (name(letter.consumer.as_deref())) } }
            @if letter.status == LetterStatus::Open && letter.door.is_some() {
                div.acts { a.btn.go href={ "/plan?canary=0&" (filter.query()) } { "Plan its redrive" } }
            }
        }
        div.two.even {
            section aria-labelledby="h-why" { div.sh { h2 #h-why { "Why and where" } } (facts(&letter)) }
            section aria-labelledby="h-safe" { div.sh { h2 #h-safe { "Is it safe to send?" } } (safety(desk, &letter)) }
        }
        section aria-labelledby="h-body" { div.sh { h2 #h-body { "Body" } } (self::body(who, (&letter, &history), desk, revealed)) }
        section aria-labelledby="h-head" { div.sh { h2 #h-head { "Headers" } p { "values of secret names are left out" } } (headers(&letter)) }
        section aria-labelledby="h-past" #history { div.sh { h2 #h-past { "History" } } (past(&history)) }
        (held::key(who, &letter, Pending::of(&history)))
        (changes)
    };
    let (command, api) = (format!("dead-letters show {id}"), format!("/letters/{id}"));
    let title = format!("Dead letter {}", letter.id);
    Ok(Page { place: Place::Letters, title, who, command, api, body }.into_response())
}

fn facts(letter: &Letter) -> Markup {
    html! {
        dl.facts {
            dt { "Error type" } dd { (known(letter.error_type.as_deref())) }
            dt { "Class, reason" } dd { (known(letter.class.as_deref())) ", " (known(letter.reason.as_deref())) }
            dt { "Read from" } dd { (name(letter.place.as_deref())) }
            dt { "Found in" } dd { (name(Some(&letter.found_in))) }
            dt { "Message" } dd { (name(letter.message_key.as_deref())) }
            dt { "Attempts" } dd { @match letter.attempts { Some(attempts) => (attempts), None => span.muted { "unknown" } } }
            dt { "First failed" } dd { @match letter.first_failed_at { Some(time) => (at(time)), None => span.muted { "unknown" } } }
            dt { "Dead since" } dd { (at(letter.seen_at())) ", " (ago(letter.seen_at())) }
        }
    }
}

fn safety(desk: &Desk, letter: &Letter) -> Markup {
    let age = Utc::now() - letter.first_failed_at.unwrap_or_else(|| letter.seen_at());
    let retention = desk.bounds.inbox_retention.and_then(|time| TimeDelta::from_std(time).ok());
    html! {
        ul.notes {
            @match &letter.door {
                Some(door) => li { (state("ok", "good", "It has a door")) " only its consumer sees it again, through " span.id { (safe(door, 200)) } "." },
                None => li { (state("warn", "warn", "It has no door")) " a stranger wrote it: sent back to where it came from, every consumer there sees it." },
            }
            @match retention {
                Some(limit) if age > limit => li { (state("old", "warn", "Past the dedup horizon")) " its consumer may have forgotten it: if it took effect after all, sending it applies it twice." },
                Some(_) => li { (state("ok", "good", "Within the dedup horizon")) " if it took effect after all, its consumer knows." },
                None => li { (state("warn", "warn", "Dedup horizon unknown")) " nobody says how long its consumer remembers (inbox_retention)." },
            }
            @if letter.generation > 0 {
                li { (state("bad", "bad", "Redriven before")) " " @if letter.generation == 1 { "once, and it failed again." } @else { (letter.generation) " times, and it failed each time." } }
            }
            @if let Some(because) = &letter.hold { li { (icon("lock")) " Under legal hold: " (safe(because, 500)) } }
            @if letter.message_key.is_none() {
                li { (state("warn", "warn", "No identity")) " the message has no id of its own: the same letter may be here twice." }
            }
        }
    }
}

fn body(
    who: &Caller,
    (letter, history): (&Letter, &[LetterEvent]),
    desk: &Desk,
    revealed: Option<Body>,
) -> Markup {
    let Some(size) = size_of(letter) else { return html! { p.more { "None: a tombstone." } } };
    if let Some(locked) = desk.keys.locked(letter) {
        return html! { p.more { (size) " bytes, neither shown nor sent: " (locked.to_string()) "; " (locked.hint()) "." } };
    }
    match revealed {
        Some(Body { content_type, bytes }) => html! {
            p.more { (size) " bytes, " (known(content_type.as_deref())) ". That you looked is in the audit log." }
            pre.shown tabindex="0" aria-label="Body" { (printed(bytes.as_deref().unwrap_or_default())) }
            @if desk.editing.permits(letter, history).is_ok() { (editor(letter, bytes.as_deref().unwrap_or_default())) }
        },
        None if !who.operates() => html! { p.more { (size) " bytes. Bodies need the operator role." } },
        None => html! {
            form.sealed method="post" action={ "/dead-letters/" (letter.id) "/reveal" } {
                button type="submit" { (icon("lock")) "Reveal the body, " (size) " bytes" }
                label.grow { span.lab { "Why (optional)" } input type="text" name="because" autocomplete="off"; }
                span { "It may hold personal data. Who looks, and when, is recorded." }
            }
        },
    }
}

/// What a form brings back as it was: text of a size that requests may have, each line of which ends with one character.
fn editable(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_EDITED && !text.contains(['\r', '\0']))
}

fn editor(letter: &Letter, bytes: &[u8]) -> Markup {
    let Some(text) = editable(bytes) else {
        return html! { p.more { "Too large, or no text that a form can hold: edit it with " code { "dead-letters edit" } "." } };
    };
    html! {
        details.edit {
            summary { "Edit it" }
            form method="post" action={ "/dead-letters/" (letter.id) "/edit" } {
                label { span.lab { "Body" }
                    // Its first line end belongs to the tag.
                    textarea name="body" rows="12" spellcheck="false" autocomplete="off" { "\n" (text) } }
                label { span.lab { "Why" } input type="text" name="because" required autocomplete="off"; }
                @for note in notes(letter) { p.more { "Note: " (note) "." } }
                button.btn type="submit" { "Put a copy with this body in its place" }
                p.more { "Headers stay as they are. This letter is kept as superseded, and the copy stands for it, under an id of its own." }
            }
        }
    }
}

/// Text with line ends kept and everything that does not print as escapes; JSON is laid out.
fn printed(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_BODY)];
    let json = serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let text = match json.and_then(|value| serde_json::to_string_pretty(&value).ok()) {
        Some(pretty) => pretty,
        None => String::from_utf8_lossy(bytes).into_owned(),
    };
    text.lines().map(|line| safe(line, MAX_BODY)).collect::<Vec<_>>().join("\n")
}

fn headers(letter: &Letter) -> Markup {
    let is_hidden = hidden_headers(&letter.envelope.headers);
    html! {
        table.hdr { thead { tr { th scope="col" { "Name" } th scope="col" { "Value" } } }
            tbody { @for (header, value) in letter.envelope.headers.iter() {
                tr { th scope="row" { span.id { (safe(header, 200)) } }
                    td { @match value {
                        None => span.muted { "null" },
                        Some(value) if is_hidden(header) => span.muted { (value.len()) " bytes, not shown" },
                        Some(value) => span.id { (safe(&String::from_utf8_lossy(value), MAX_HEADER)) },
                    } } }
            } } }
    }
}

fn past(history: &[LetterEvent]) -> Markup {
    html! {
        ol.events { @for event in history {
            li { (at(event.at)) p { b { (safe(&event.what, 60)) } @if let Some(detail) = &event.detail { " " (safe(detail, 600)) } } }
        } }
    }
}
