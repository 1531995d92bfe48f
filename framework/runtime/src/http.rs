//! What consumers tell over HTTP, as a router that a service mounts.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::control::handle::ConsumerHandle;
use crate::control::status::{ConsumerStatus, RunState};

type Consumers = Arc<[ConsumerHandle]>;

/// `/live`, `/ready` and `/state` for these consumers.
///
/// | path | answers |
/// |---|---|
/// | `/live` | 200, or 503 when a consumer [is stalled](ConsumerHandle::health); restarting may help |
/// | `/ready` | 200 when every consumer runs or is paused; 503 while one starts, drains, has stopped or its breaker is open |
/// | `/state` | 200 with the [`ConsumerStatus`] of each |
///
/// All answer in JSON. `/state` shows keys and texts of errors, as [`redact`](crate::Consumer::redact) leaves them: mount
/// it where only operators come.
///
/// ```
/// # fn mount(consumers: Vec<backstop::ConsumerHandle>) -> axum::Router {
/// axum::Router::new().nest("/backstop", backstop::http::router(consumers))
/// # }
/// ```
pub fn router(consumers: impl IntoIterator<Item = ConsumerHandle>) -> Router {
    let consumers: Consumers = consumers.into_iter().collect();
    Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/state", get(state))
        .with_state(consumers)
}

/// One consumer and whether it is well.
#[derive(Serialize)]
struct Verdict {
    consumer: String,
    state: RunState,
    problem: Option<String>,
}

async fn live(State(consumers): State<Consumers>) -> (StatusCode, Json<Vec<Verdict>>) {
    verdicts(&consumers, |consumer, _| consumer.health().err().map(|stalled| stalled.to_string()))
}

async fn ready(State(consumers): State<Consumers>) -> (StatusCode, Json<Vec<Verdict>>) {
    verdicts(&consumers, |consumer, state| match state {
        RunState::Running | RunState::Paused => None,
        RunState::BreakerOpen => {
            let cause = consumer.breaker().cause.map_or_else(String::new, |cause| format!(": {cause}"));
            Some(format!("its breaker is open{cause}"))
        }
        _ => Some("it takes no messages".to_owned()),
    })
}

async fn state(State(consumers): State<Consumers>) -> Json<Vec<ConsumerStatus>> {
    Json(consumers.iter().map(ConsumerHandle::status).collect())
}

fn verdicts(
    consumers: &[ConsumerHandle],
    problem: impl Fn(&ConsumerHandle, RunState) -> Option<String>,
) -> (StatusCode, Json<Vec<Verdict>>) {
    let verdict = |consumer: &ConsumerHandle| {
        let state = consumer.state();
        Verdict { consumer: consumer.consumer().to_owned(), state, problem: problem(consumer, state) }
    };
    let verdicts: Vec<_> = consumers.iter().map(verdict).collect();
    let well = verdicts.iter().all(|verdict| verdict.problem.is_none());
    (if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(verdicts))
}
