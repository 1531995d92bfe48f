//! Held keys.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use backstop_core::held_keys::{Ending, HeldFilter};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::views::PageView;
use super::{Asked, Given, Problem, page_size};
use crate::desk::{Caller, Desk, HeldLine, HeldLook, Trouble};

/// What is held in the database of an outbox.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HeldView {
    outbox: String,
    /// Why it cannot be looked at.
    trouble: Option<String>,
    /// The head of each key, the oldest first.
    keys: Vec<HeldKeyView>,
    /// Whether there are more keys than these.
    more: bool,
}

/// The head of a held key.
#[derive(Debug, Serialize, ToSchema)]
struct HeldKeyView {
    consumer: String,
    place: String,
    message_key: String,
    generation: u32,
    /// `retry`, `waiting`, or `quarantined`: it waits for somebody.
    state: String,
    /// Messages behind it.
    behind: u64,
    attempts: u32,
    error: Option<String>,
    held_since: DateTime<Utc>,
    /// The letter of a head that was given up, where the ledger has it.
    letter: Option<String>,
    /// What its consumer was asked to do and has not answered: `release`, `skip` or `resolve`.
    pending: Option<String>,
}

impl From<&HeldLine> for HeldKeyView {
    fn from(HeldLine { key, letter, pending }: &HeldLine) -> Self {
        Self {
            consumer: key.consumer.clone(),
            place: key.head.place.clone(),
            message_key: key.head.message_key.as_str().to_owned(),
            generation: key.head.generation(),
            state: key.state.as_str().to_owned(),
            behind: key.behind,
            attempts: key.head.attempts,
            error: key.head.error.clone(),
            held_since: key.head.held_since,
            letter: letter.as_ref().map(|letter| letter.id.clone()),
            pending: pending.map(|pending| pending.ending.as_str().to_owned()),
        }
    }
}

impl From<HeldLook> for HeldView {
    fn from(look: HeldLook) -> Self {
        let trouble = look.trouble.map(|trouble| trouble.what);
        let keys = look.keys.iter().map(HeldKeyView::from).collect();
        Self { outbox: look.outbox, trouble, keys, more: look.more }
    }
}

/// Which keys.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct HeldQuery {
    /// Of this consumer.
    consumer: Option<String>,
    /// Of this topic or queue.
    place: Option<String>,
    /// `true`: only those that wait for somebody.
    quarantined: Option<String>,
    /// Keys of each database, from 1 to 200; 50 unless given.
    limit: Option<String>,
}

/// Keys that are held in the databases of this relay's outboxes. Of other databases see `held` of `/consumers`.
#[utoipa::path(get, path = "/held", tag = "held", params(HeldQuery),
    responses((status = 200, body = PageView<HeldView>)))]
pub(super) async fn list(
    State(desk): State<Arc<Desk>>,
    Asked(query): Asked<HeldQuery>,
) -> Result<Json<PageView<HeldView>>, Problem> {
    let limit = page_size(query.limit.as_deref())?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty() && !text.contains('\0'));
    let filter = HeldFilter {
        consumer: given(query.consumer),
        place: given(query.place),
        quarantined: query.quarantined.as_deref() == Some("true"),
        ..HeldFilter::default()
    };
    let items = desk.held(&filter, limit).await?.into_iter().map(HeldView::from).collect();
    Ok(Json(PageView { items, next: None }))
}

/// What a consumer is to do with a message that it holds.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EndOrder {
    /// `release`: later messages of the key go on without it. `skip`: it is never run. `resolve`: it counts as handled.
    ending: String,
    /// Kept in the history of the letter and in the audit log.
    because: String,
}

/// What a consumer was asked. It has not happened yet: the history of the letter tells when it has.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AskedView {
    letter: String,
    asked: String,
}

/// Asks the consumer of a letter, through its door, to end the wait of its message. Asking twice does no harm.
#[utoipa::path(post, path = "/letters/{id}/end", tag = "held", request_body = EndOrder,
    params(("id" = String, Path, description = "The letter's id.")), responses((status = 202, body = AskedView)))]
pub(super) async fn end(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Given(order): Given<EndOrder>,
) -> Result<(StatusCode, Json<AskedView>), Problem> {
    let unknown = || Trouble::invalid("the ending is not known", "use release, skip or resolve");
    let ending = Ending::parse(&order.ending).ok_or_else(unknown)?;
    let letter = desk.end_wait(&who, &id, ending, &order.because).await?;
    let asked = ending.as_str().to_owned();
    Ok((StatusCode::ACCEPTED, Json(AskedView { letter: letter.id, asked })))
}
