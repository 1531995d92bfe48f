//! The console: the relay's pages for operators, rendered on the server and whole without a script.

mod audit;
mod consumers;
mod forms;
mod group;
mod groups;
mod held;
mod icons;
mod letter;
mod letters;
mod outboxes;
mod overview;
mod page;
mod parts;
mod plan;
mod redrive;
mod redrives;
mod rules;
mod trend;

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;

use crate::desk::{Desk, Trouble};
pub(crate) use page::Shown;

const STYLE: &str = include_str!("console/console.css");
const SCRIPT: &str = include_str!("console/console.js");

/// Letters and other rows of a page.
const ROWS: u32 = 50;

/// The pages.
pub(crate) fn routes() -> Router<Arc<Desk>> {
    Router::new()
        .route("/", get(overview::page))
        .route("/groups", get(groups::page))
        .route("/groups/{fingerprint}", get(group::page))
        .route("/dead-letters", get(letters::page))
        .route("/dead-letters/discard", post(forms::discard))
        .route("/dead-letters/hold", post(forms::hold))
        .route("/dead-letters/release", post(forms::release))
        .route("/dead-letters/{id}", get(letter::page))
        .route("/dead-letters/{id}/reveal", post(letter::reveal))
        .route("/dead-letters/{id}/edit", post(letter::edit))
        .route("/dead-letters/{id}/end", post(held::end))
        .route("/held", get(held::page))
        .route("/plan", get(plan::page))
        .route("/plan/letters", get(plan::letters))
        .route("/redrives", get(redrives::page).post(forms::start))
        .route("/redrives/{id}", get(redrive::page))
        .route("/redrives/{id}/{action}", post(forms::steer))
        .route("/rules", get(rules::page))
        .route("/rules/{name}/letters", get(rules::letters))
        .route("/rules/{name}/resume", post(rules::resumed))
        .route("/outboxes", get(outboxes::page))
        .route("/outboxes/{name}/dead", get(outboxes::dead))
        .route("/consumers", get(consumers::page))
        .route("/audit", get(audit::page))
        .route("/console.css", get(style))
        .route("/console.js", get(script))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .fallback(nothing_here)
}

async fn nothing_here(State(_): State<Arc<Desk>>) -> Shown {
    Shown(Trouble::missing("there is no such page"))
}

/// A query that is told as a page when it cannot be read.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Shown;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Shown> {
        let read = Query::<T>::from_request_parts(parts, state).await;
        read.map(|Query(asked)| Self(asked)).map_err(|error| {
            Shown(Trouble::invalid(error.body_text(), "take the page's own links and forms"))
        })
    }
}

async fn style() -> Response {
    asset("text/css; charset=utf-8", STYLE)
}

async fn script() -> Response {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, text).into_response()
}
