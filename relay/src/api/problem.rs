//! Failures as problem documents, RFC 9457.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::desk::{Done, Trouble};

/// A problem document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProblemView {
    /// Names the sort of problem.
    #[schema(example = "urn:backstop:problem:conflict")]
    r#type: String,
    /// The same for every problem of that sort.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What is wrong this time.
    detail: String,
    /// What to do about it.
    hint: String,
    /// `nothing`: surely nothing was done. `unknown`: nobody knows how much, and `detail` says what shows it.
    #[schema(example = "nothing")]
    done: &'static str,
    /// Letters that were changed at least; absent where none was, as far as anybody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    letters: Option<u64>,
}

/// A failure on its way out.
#[derive(Debug)]
pub(crate) struct Problem(pub(crate) Trouble);

/// A failure with a status of its own.
#[derive(Debug)]
pub(crate) struct Stated(pub(super) StatusCode, pub(super) Trouble);

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Self {
        Self(trouble)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        Stated(self.0.kind.status(), self.0).into_response()
    }
}

impl IntoResponse for Stated {
    fn into_response(self) -> Response {
        let Self(status, Trouble { kind, what, hint, done }) = self;
        let (word, detail) = match done {
            Done::Nothing => ("nothing", what),
            Done::Unknown { look, .. } => {
                ("unknown", format!("{what}; nobody knows how much was done: look at {look}"))
            }
        };
        let view = ProblemView {
            r#type: format!("urn:backstop:problem:{}", kind.as_str()),
            title: kind.title(),
            status: status.as_u16(),
            detail,
            hint,
            done: word,
            letters: done.letters(),
        };
        let headers = [
            (CONTENT_TYPE, "application/problem+json"),
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        let mut response = (status, Json(view)).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
        }
        response
    }
}
