//! The HTTP API, `/api/v1`: what the console does, for programs.
//!
//! Failures are problem documents (RFC 9457); lists come in pages with a cursor; the OpenAPI document is made from the
//! code and served beside it.

mod audit;
mod document;
mod held;
mod letters;
mod outboxes;
mod problem;
mod redrives;
mod rules;
mod views;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use crate::desk::{Desk, Trouble};
pub(crate) use problem::{Problem, Stated};

/// Items of a page unless the caller asks for another number.
const PAGE: u32 = 50;
/// Most items of a page.
const MAX_PAGE: u32 = 200;

/// The routes of the API, below `/api/v1`.
pub(crate) fn routes() -> Router<Arc<Desk>> {
    Router::new()
        .route("/openapi.json", get(document::get))
        .route("/groups", get(letters::groups))
        .route("/letters", get(letters::list))
        .route("/letters/count", get(letters::count))
        .route("/letters/minutes", get(letters::minutes))
        .route("/letters/discard", post(letters::discard))
        .route("/letters/hold", post(letters::hold))
        .route("/letters/release", post(letters::release))
        .route("/letters/{id}", get(letters::show))
        .route("/letters/{id}/reveal", post(letters::reveal))
        .route("/letters/{id}/edit", post(letters::edit))
        .route("/letters/{id}/end", post(held::end))
        .route("/held", get(held::list))
        .route("/plan", get(redrives::plan))
        .route("/redrives", get(redrives::list).post(redrives::create))
        .route("/redrives/{id}", get(redrives::show))
        .route("/redrives/{id}/pause", post(redrives::pause))
        .route("/redrives/{id}/resume", post(redrives::resume))
        .route("/redrives/{id}/cancel", post(redrives::cancel))
        .route("/redrives/{id}/rate", post(redrives::rate))
        .route("/rules", get(rules::list))
        .route("/rules/{name}/resume", post(rules::resume))
        .route("/outboxes", get(outboxes::list))
        .route("/outboxes/{name}/dead", get(outboxes::dead))
        .route("/consumers", get(outboxes::consumers))
        .route("/audit", get(audit::list))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_so)
}

async fn nothing_here() -> Problem {
    Problem(Trouble::missing("there is nothing at this path"))
}

async fn not_so() -> Stated {
    let trouble = Trouble::invalid("this path does not take that method", "see /api/v1/openapi.json");
    Stated(StatusCode::METHOD_NOT_ALLOWED, trouble)
}

/// A query that is told in a problem document when it cannot be read.
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        read.map(|Query(asked)| Self(asked)).map_err(|error: QueryRejection| {
            Problem(Trouble::invalid(error.body_text(), "see /api/v1/openapi.json"))
        })
    }
}

/// A JSON body, told the same way.
pub(crate) struct Given<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = Stated;

    async fn from_request(request: Request, state: &S) -> Result<Self, Stated> {
        let read = Json::<T>::from_request(request, state).await;
        read.map(|Json(given)| Self(given)).map_err(|error: JsonRejection| {
            Stated(error.status(), Trouble::invalid(error.body_text(), "see /api/v1/openapi.json"))
        })
    }
}

/// The size of a page that somebody asks for.
///
/// # Errors
/// When it is none.
fn page_size(limit: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = limit.filter(|text| !text.is_empty()) else { return Ok(PAGE) };
    let size = text.parse().ok().filter(|size| (1..=MAX_PAGE).contains(size));
    let wrong = || Trouble::invalid(format!("limit is no number from 1 to {MAX_PAGE}"), "leave it out");
    size.ok_or_else(|| Problem(wrong()))
}
