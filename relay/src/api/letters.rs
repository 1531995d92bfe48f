//! Groups and letters.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use backstop_core::ledger::Change;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::views::{ChangedView, GroupView, LetterStory, LetterView, MinuteView, PageView};
use super::{Asked, Given, Problem, page_size};
use crate::desk::filter::{FilterQuery, strict};
use crate::desk::{Caller, Choice, Desk, Trouble};

/// A page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// `next` of the page before.
    after: Option<String>,
    /// Items of a page, from 1 to 200; 50 unless given.
    limit: Option<String>,
}

impl PageQuery {
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref().filter(|after| !after.is_empty())
    }

    pub(super) fn limit(&self) -> Option<&str> {
        self.limit.as_deref()
    }
}

/// A filter and a page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListQuery {
    #[serde(flatten)]
    filter: FilterQuery,
    #[serde(flatten)]
    page: PageQuery,
}

/// Groups with letters that are meant, those with most open letters first.
#[utoipa::path(get, path = "/groups", tag = "letters", params(FilterQuery),
    responses((status = 200, body = PageView<GroupView>)))]
pub(super) async fn groups(
    State(desk): State<Arc<Desk>>,
    Asked(filter): Asked<FilterQuery>,
) -> Result<Json<PageView<GroupView>>, Problem> {
    let groups = desk.groups(&filter.filter()?).await?;
    Ok(Json(PageView { items: groups.iter().map(GroupView::from).collect(), next: None }))
}

/// Letters that are meant, the oldest first.
#[utoipa::path(get, path = "/letters", tag = "letters", params(FilterQuery, PageQuery),
    responses((status = 200, body = PageView<LetterView>)))]
pub(super) async fn list(
    State(desk): State<Arc<Desk>>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<PageView<LetterView>>, Problem> {
    let ListQuery { filter, page } = query;
    let page = desk.letters(&filter.filter()?, page.after(), page_size(page.limit())?).await?;
    Ok(Json(PageView { items: page.letters.iter().map(LetterView::from).collect(), next: page.next }))
}

/// How many letters are meant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CountView {
    letters: u64,
    /// Whether that is exact; otherwise there are at least so many.
    exact: bool,
}

/// Whose minutes are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MinutesQuery {
    /// Of this group; of all unless given.
    fingerprint: Option<String>,
}

/// In which minutes of the last two hours letters died, and how many; the oldest first, others left out. What was
/// collected more than an hour after it died is not counted.
#[utoipa::path(get, path = "/letters/minutes", tag = "letters", params(MinutesQuery),
    responses((status = 200, body = PageView<MinuteView>)))]
pub(super) async fn minutes(
    State(desk): State<Arc<Desk>>,
    Asked(MinutesQuery { fingerprint }): Asked<MinutesQuery>,
) -> Result<Json<PageView<MinuteView>>, Problem> {
    let filter = FilterQuery { fingerprint, ..FilterQuery::default() }.filter()?;
    let minutes = desk.minutes(filter.fingerprint.as_deref()).await?;
    Ok(Json(PageView { items: minutes.iter().map(MinuteView::from).collect(), next: None }))
}

/// How many letters are meant: exact up to 10,000, and for filters by group and status.
#[utoipa::path(get, path = "/letters/count", tag = "letters", params(FilterQuery),
    responses((status = 200, body = CountView)))]
pub(super) async fn count(
    State(desk): State<Arc<Desk>>,
    Asked(filter): Asked<FilterQuery>,
) -> Result<Json<CountView>, Problem> {
    let filter = filter.filter()?;
    let letters = desk.count(&filter).await?;
    let exact = filter.is_by_group() || letters <= backstop_core::ledger::COUNT_LIMIT;
    Ok(Json(CountView { letters, exact }))
}

/// One letter, its headers and its history. Its body is not in it: see `reveal`.
#[utoipa::path(get, path = "/letters/{id}", tag = "letters", params(("id" = String, Path, description = "The letter's id.")),
    responses((status = 200, body = LetterStory)))]
pub(super) async fn show(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<String>,
) -> Result<Json<LetterStory>, Problem> {
    let (letter, history) = desk.letter(&id).await?;
    Ok(Json(LetterStory::new(&letter, history, &desk.keys)))
}

/// Why somebody wants to see a body.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RevealOrder {
    because: Option<String>,
}

/// A body.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BodyView {
    content_type: Option<String>,
    /// The body in base64; absent for a tombstone.
    base64: Option<String>,
    /// The body as text, where it is UTF-8.
    text: Option<String>,
}

/// The body of a letter. Needs the operator role, and is written into the audit log before it is shown.
#[utoipa::path(post, path = "/letters/{id}/reveal", tag = "letters", request_body = RevealOrder,
    params(("id" = String, Path, description = "The letter's id.")), responses((status = 200, body = BodyView)))]
pub(super) async fn reveal(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Given(order): Given<RevealOrder>,
) -> Result<Json<BodyView>, Problem> {
    let body = desk.reveal(&who, &id, order.because.as_deref()).await?;
    let text = body.bytes.as_ref().and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
    let base64 = body.bytes.map(|bytes| STANDARD.encode(bytes));
    Ok(Json(BodyView { content_type: body.content_type, base64, text }))
}

/// A body in place of a letter's, as `text` or as `base64`, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EditOrder {
    /// The body as text.
    #[serde(default)]
    text: Option<String>,
    /// The body in base64.
    #[serde(default)]
    base64: Option<String>,
    /// Kept in the history of the letter and of its copy, and in the audit log.
    because: String,
}

impl EditOrder {
    fn body(&self) -> Result<Bytes, Trouble> {
        match (&self.text, &self.base64) {
            (Some(text), None) => Ok(Bytes::from(text.clone())),
            (None, Some(base64)) => STANDARD
                .decode(base64)
                .map(Bytes::from)
                .map_err(|error| Trouble::invalid(format!("base64: {error}"), "or give the body as text")),
            _ => Err(Trouble::invalid("give one of text and base64", "see /api/v1/openapi.json")),
        }
    }
}

/// The copy that takes a letter's place.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CopyView {
    /// Its id, by which it is redriven.
    id: String,
    /// The letter that it stands for, which is superseded.
    edit_of: String,
    /// What had better be known of it.
    notes: Vec<&'static str>,
}

/// Puts a copy with another body in the place of an open letter, whose headers the copy keeps. Needs the operator role,
/// and `edit = true` in `[dead_letters]`.
#[utoipa::path(post, path = "/letters/{id}/edit", tag = "letters", request_body = EditOrder,
    params(("id" = String, Path, description = "The letter's id.")), responses((status = 200, body = CopyView)))]
pub(super) async fn edit(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(edit_of): Path<String>,
    Given(order): Given<EditOrder>,
) -> Result<Json<CopyView>, Problem> {
    let (id, notes) = desk.edit(&who, &edit_of, order.body()?, &order.because).await?;
    Ok(Json(CopyView { id, edit_of, notes }))
}

/// Letters that are to be changed, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeOrder {
    /// Which letters; at least one field must be given.
    #[serde(deserialize_with = "strict")]
    filter: FilterQuery,
    /// Kept in the history of each letter and in the audit log.
    because: String,
    /// Only if so many letters would be changed now: of those that match, open and redriving ones that are not under
    /// legal hold for a discard, those that are not for a hold, and those that are for its end.
    #[serde(default)]
    expected: Option<u64>,
}

async fn change(
    desk: &Desk,
    who: &Caller,
    order: &ChangeOrder,
    make: fn(String) -> Change,
) -> Result<Json<ChangedView>, Problem> {
    if order.filter.pairs().is_empty() {
        return Err(Trouble::invalid("the filter is empty", "say which letters are meant").into());
    }
    let choice = Choice { filter: order.filter.filter()?, as_of: None, expected: order.expected };
    let changed = desk.change(who, &choice, make, &order.because).await?;
    Ok(Json(changed.into()))
}

/// Gives up open and redriving letters. Those under legal hold stay, and so do those that come in meanwhile. Refused where
/// more than 10,000 match a filter that is not by group and status alone: they cannot be counted.
#[utoipa::path(post, path = "/letters/discard", tag = "letters", request_body = ChangeOrder,
    responses((status = 200, body = ChangedView)))]
pub(super) async fn discard(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Given(order): Given<ChangeOrder>,
) -> Result<Json<ChangedView>, Problem> {
    change(&desk, &who, &order, |because| Change::Discard { because }).await
}

/// Puts letters under legal hold: nobody can discard them. Asking again changes nothing more.
#[utoipa::path(post, path = "/letters/hold", tag = "letters", request_body = ChangeOrder,
    responses((status = 200, body = ChangedView)))]
pub(super) async fn hold(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Given(order): Given<ChangeOrder>,
) -> Result<Json<ChangedView>, Problem> {
    change(&desk, &who, &order, |because| Change::Hold { because }).await
}

/// Ends the legal hold of letters. Asking again changes nothing more.
#[utoipa::path(post, path = "/letters/release", tag = "letters", request_body = ChangeOrder,
    responses((status = 200, body = ChangedView)))]
pub(super) async fn release(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Given(order): Given<ChangeOrder>,
) -> Result<Json<ChangedView>, Problem> {
    change(&desk, &who, &order, |because| Change::Release { because }).await
}
