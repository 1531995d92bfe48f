//! Plans and redrives.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::letters::PageQuery;
use super::views::{PageView, PlanView, RedriveView};
use super::{Asked, Given, Problem, page_size};
use crate::desk::filter::{FilterQuery, strict};
use crate::desk::{Caller, Desk, Kind, Order, Started, Steer, Trouble, id_of_key};

/// The header that makes a repeated request the same one.
const KEY: &str = "idempotency-key";
/// Longest key.
const MAX_KEY: usize = 128;

/// A filter and how to send.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlanQuery {
    #[serde(flatten)]
    filter: FilterQuery,
    #[serde(flatten)]
    order: Order,
}

/// The dry run of a redrive: nothing is sent or changed.
#[utoipa::path(get, path = "/plan", tag = "redrives", params(FilterQuery, Order),
    responses((status = 200, body = PlanView)))]
pub(super) async fn plan(
    State(desk): State<Arc<Desk>>,
    Asked(query): Asked<PlanQuery>,
) -> Result<Json<PlanView>, Problem> {
    let plan = desk.plan(&query.filter, &query.order).await?;
    Ok(Json((&plan).into()))
}

/// Redrives, newest first.
#[utoipa::path(get, path = "/redrives", tag = "redrives", params(PageQuery),
    responses((status = 200, body = PageView<RedriveView>)))]
pub(super) async fn list(
    State(desk): State<Arc<Desk>>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<PageView<RedriveView>>, Problem> {
    let after = page.after().filter(|id| Uuid::try_parse(id).is_ok());
    let (redrives, next) = desk.redrives(after, page_size(page.limit())?).await?;
    Ok(Json(PageView { items: redrives.iter().map(RedriveView::from).collect(), next }))
}

/// One redrive.
#[utoipa::path(get, path = "/redrives/{id}", tag = "redrives", params(("id" = String, Path, description = "The redrive's id.")),
    responses((status = 200, body = RedriveView)))]
pub(super) async fn show(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<String>,
) -> Result<Json<RedriveView>, Problem> {
    Ok(Json((&desk.redrive(&id).await?).into()))
}

/// A redrive that is to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartOrder {
    /// Which letters; only open ones are sent.
    #[serde(deserialize_with = "strict")]
    filter: FilterQuery,
    /// How.
    #[serde(default)]
    order: Order,
    /// Only start if so many letters would be sent now, as the dry run said.
    #[serde(default)]
    expected: Option<u64>,
}

/// Starts a redrive, whose letters are frozen now. The same `Idempotency-Key` again starts nothing and returns the redrive
/// that was started under it.
#[utoipa::path(post, path = "/redrives", tag = "redrives", request_body = StartOrder,
    params(("Idempotency-Key" = String, Header, description = "Any text of the caller's own, the same for a repeated request.")),
    responses((status = 201, body = RedriveView)))]
pub(super) async fn create(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    headers: HeaderMap,
    Given(start): Given<StartOrder>,
) -> Result<(StatusCode, Json<RedriveView>), Problem> {
    let key = headers.get(KEY).and_then(|key| key.to_str().ok()).map(str::trim);
    let Some(key) = key.filter(|key| !key.is_empty() && key.len() <= MAX_KEY) else {
        let what = format!("the header Idempotency-Key is missing, empty or longer than {MAX_KEY}");
        return Err(Trouble::invalid(what, "send a new UUID for each redrive").into());
    };
    match desk.start(&who, id_of_key(key), &start.filter, &start.order, start.expected).await? {
        Started::Redrive(redrive) => Ok((StatusCode::CREATED, Json((&*redrive).into()))),
        Started::Differs(plan) => {
            let what = format!("{} letters would be sent, not as many as expected", plan.to_send());
            Err(Trouble::new(Kind::Conflict, what, "nothing was started; look at the plan again").into())
        }
    }
}

async fn steer(desk: &Desk, who: &Caller, id: &str, steer: Steer<'_>) -> Result<Json<RedriveView>, Problem> {
    Ok(Json((&desk.steer(who, id, steer).await?).into()))
}

/// Pauses a running redrive: nothing more is sent, and outcomes still come in.
#[utoipa::path(post, path = "/redrives/{id}/pause", tag = "redrives", params(("id" = String, Path, description = "The redrive's id.")),
    responses((status = 200, body = RedriveView)))]
pub(super) async fn pause(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<RedriveView>, Problem> {
    steer(&desk, &who, &id, Steer::Pause).await
}

/// Lets a paused redrive go on; its brake judges anew.
#[utoipa::path(post, path = "/redrives/{id}/resume", tag = "redrives", params(("id" = String, Path, description = "The redrive's id.")),
    responses((status = 200, body = RedriveView)))]
pub(super) async fn resume(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<RedriveView>, Problem> {
    steer(&desk, &who, &id, Steer::Resume).await
}

/// Why a redrive is cancelled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelOrder {
    because: String,
}

/// Ends a redrive for good. Letters that were not sent are open, as before; those that were being sent wait for their
/// outcome, and are silent without one.
#[utoipa::path(post, path = "/redrives/{id}/cancel", tag = "redrives", request_body = CancelOrder,
    params(("id" = String, Path, description = "The redrive's id.")), responses((status = 200, body = RedriveView)))]
pub(super) async fn cancel(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Given(order): Given<CancelOrder>,
) -> Result<Json<RedriveView>, Problem> {
    steer(&desk, &who, &id, Steer::Cancel(&order.because)).await
}

/// A rate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RateOrder {
    /// Letters a second, from 0.01 to 1,000,000.
    rate: f64,
}

/// Changes the rate of a redrive that is not over.
#[utoipa::path(post, path = "/redrives/{id}/rate", tag = "redrives", request_body = RateOrder,
    params(("id" = String, Path, description = "The redrive's id.")), responses((status = 200, body = RedriveView)))]
pub(super) async fn rate(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(id): Path<String>,
    Given(order): Given<RateOrder>,
) -> Result<Json<RedriveView>, Problem> {
    steer(&desk, &who, &id, Steer::Rate(order.rate)).await
}
