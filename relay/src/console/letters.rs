//! The list behind a number.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::{Letter, LetterStatus};
use maud::{Markup, html};
use serde::Deserialize;

use super::Asked;
use super::page::{Page, Place, Shown};
use super::parts::{ago, group_of, name, safe, standing, total};
use super::{ROWS, forms, groups};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, Page as Letters};

/// A filter and where the page begins.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    #[serde(flatten)]
    filter: FilterQuery,
    after: Option<String>,
}

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(query): Asked<ListQuery>,
) -> Result<Response, Shown> {
    let filter = query.filter.filter()?;
    let after = query.after.as_deref().filter(|after| !after.is_empty());
    let changes = async {
        match groups::is_all(&filter) {
            true => Ok(html! {}),
            false => forms::changes(&desk, &who, &query.filter).await,
        }
    };
    let (count, letters, changes) =
        tokio::try_join!(desk.count(&filter), desk.letters(&filter, after, ROWS), changes)?;
    let open = filter.status == Some(LetterStatus::Open) && count > 0;
    let address = query.filter.query();
    let body = html! {
        div.head {
            div { p.crumbs { a href="/groups" { "Dead letters" } " / letters" } h1 { "Dead letters" }
                p.sub data-live="total" data-total=(count) { (total(count, filter.is_by_group())) " match, oldest first" } }
            @if open { div.acts { a.btn.go href={ "/plan?" (address) } { "Plan a redrive" } } }
        }
        (groups::search("/dead-letters", &query.filter))
        (list(&letters, &format!("/dead-letters?{address}")))
        @if count > 0 { (changes) }
    };
    let (command, api) = ("dead-letters list".to_owned(), format!("/letters?{address}"));
    Ok(Page { place: Place::Letters, title: "Dead letters".into(), who: &who, command, api, body }
        .into_response())
}

/// A page of letters, and the way to the next.
pub(super) fn list(page: &Letters, address: &str) -> Markup {
    html! {
        @if page.letters.is_empty() { p.more { "No letter matches." } }
        @else { (table(&page.letters)) }
        @if let Some(next) = &page.next {
            @let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
            p.more { a rel="next" href={ (address) "&after=" (next) } { "Next page" } }
        }
    }
}

fn table(letters: &[Letter]) -> Markup {
    html! {
        table.stack role="table" aria-label="Dead letters" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Letter" }
                th role="columnheader" scope="col" { "Consumer" }
                th role="columnheader" scope="col" { "Key" }
                th.p3 role="columnheader" scope="col" { "From" }
                th role="columnheader" scope="col" { "Failed" }
                th role="columnheader" scope="col" { "State" }
                th.p3 role="columnheader" scope="col" { "Group" }
            } }
            tbody role="rowgroup" { @for letter in letters { (line(letter)) } }
        }
    }
}

fn line(letter: &Letter) -> Markup {
    let key = letter.envelope.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
    html! {
        tr role="row" {
            th.main role="rowheader" scope="row" { a.t.id href={ "/dead-letters/" (letter.id) } { (letter.id) } }
            td role="cell" data-l="Consumer" { (name(letter.consumer.as_deref())) }
            td role="cell" data-l="Key" { @match key { Some(key) => span.id { (safe(&key, 80)) }, None => span.muted { "none" } } }
            td.p3 role="cell" data-l="From" { (name(letter.place.as_deref())) }
            td role="cell" data-l="Failed" { (ago(letter.seen_at())) }
            td role="cell" { (standing(letter)) @if letter.hold.is_some() { " · on hold" } }
            td.p3 role="cell" data-l="Group" {
                @match letter.fingerprint.as_deref() {
                    Some(fingerprint) => a.n.id href=(group_of(fingerprint)) { (safe(fingerprint, 16)) },
                    None => span.muted { "none" },
                }
            }
        }
    }
}
