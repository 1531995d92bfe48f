//! Outboxes and consumers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use backstop_core::ConsumerReport;
use backstop_core::dead_rows::{BuriedRow, DeadRowFilter};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::views::PageView;
use super::{Asked, Problem, page_size};
use crate::desk::{Desk, OutboxLook};

/// An outbox that this relay drains or stands by for. What is absent is not known.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OutboxView {
    name: String,
    /// Why it cannot be looked at.
    trouble: Option<String>,
    pending: Option<u64>,
    oldest_seconds: Option<f64>,
    scheduled: Option<u64>,
    /// The sum of `dead_groups`.
    dead: Option<u64>,
    dead_groups: Vec<DeadGroupView>,
    owner: Option<String>,
    token: Option<i64>,
    state: Option<String>,
    /// Rows a second that the owner publishes.
    rate: Option<f64>,
    paused_destinations: Option<usize>,
    blocked_keys: Option<usize>,
    error: Option<String>,
}

/// Dead rows of one destination and reason.
#[derive(Debug, Serialize, ToSchema)]
struct DeadGroupView {
    destination: String,
    reason: String,
    rows: u64,
}

impl From<&OutboxLook> for OutboxView {
    fn from(look: &OutboxLook) -> Self {
        let (status, standing) = (look.status.as_ref(), look.standing.as_ref());
        let group = |group: &backstop_core::dead_rows::DeadGroup| DeadGroupView {
            destination: group.destination.clone(),
            reason: group.reason.clone(),
            rows: group.rows,
        };
        Self {
            name: look.name.clone(),
            trouble: look.trouble.as_ref().map(|trouble| trouble.what.clone()),
            pending: status.map(|status| status.pending),
            oldest_seconds: status.and_then(|status| status.oldest).map(|age| age.as_secs_f64()),
            scheduled: status.map(|status| status.scheduled),
            dead: status.map(|_| look.dead.iter().map(|group| group.rows).sum()),
            dead_groups: look.dead.iter().map(group).collect(),
            owner: look.holder.as_ref().map(|holder| holder.lease.owner.clone()),
            token: look.holder.as_ref().map(|holder| holder.lease.token),
            state: standing.map(|standing| standing.state.clone()),
            rate: standing.map(|standing| standing.rate),
            paused_destinations: standing.map(|standing| standing.paused_destinations),
            blocked_keys: standing.map(|standing| standing.blocked_keys),
            error: standing.and_then(|standing| Some(standing.error.as_ref()?.error.clone())),
        }
    }
}

/// Outboxes of this relay.
#[utoipa::path(get, path = "/outboxes", tag = "outboxes", responses((status = 200, body = PageView<OutboxView>)))]
pub(super) async fn list(State(desk): State<Arc<Desk>>) -> Json<PageView<OutboxView>> {
    let items = desk.outboxes().await.iter().map(OutboxView::from).collect();
    Json(PageView { items, next: None })
}

/// A row that was given up, without its body.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeadRowView {
    n: i64,
    seq: i64,
    destination: String,
    id: String,
    kind: String,
    reason: String,
    error: String,
    died_at: DateTime<Utc>,
}

impl From<&BuriedRow> for DeadRowView {
    fn from(dead: &BuriedRow) -> Self {
        Self {
            n: dead.n,
            seq: dead.row.seq,
            destination: dead.row.destination.to_string(),
            id: dead.row.message.id.clone(),
            kind: dead.row.message.kind.clone(),
            reason: dead.reason.clone(),
            error: dead.error.clone(),
            died_at: dead.died_at,
        }
    }
}

/// Which dead rows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct DeadQuery {
    /// For this topic, exchange or queue.
    destination: Option<String>,
    /// Given up for this reason.
    reason: Option<String>,
    /// Rows, from 1 to 200; 50 unless given.
    limit: Option<String>,
}

/// Dead rows of an outbox, the oldest first.
#[utoipa::path(get, path = "/outboxes/{name}/dead", tag = "outboxes",
    params(("name" = String, Path, description = "The outbox's name."), DeadQuery),
    responses((status = 200, body = PageView<DeadRowView>)))]
pub(super) async fn dead(
    State(desk): State<Arc<Desk>>,
    Path(name): Path<String>,
    Asked(query): Asked<DeadQuery>,
) -> Result<Json<PageView<DeadRowView>>, Problem> {
    let limit = page_size(query.limit.as_deref())?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty() && !text.contains('\0'));
    let filter = DeadRowFilter {
        destination: given(query.destination),
        reason: given(query.reason),
        ..DeadRowFilter::default()
    };
    let (rows, _) = desk.dead_rows(&name, &filter, limit).await?;
    Ok(Json(PageView { items: rows.iter().map(DeadRowView::from).collect(), next: None }))
}

/// What an instance of a consumer told of itself last. What is absent is not known.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConsumerView {
    consumer: String,
    instance: String,
    version: Option<String>,
    state: String,
    breaker: Option<String>,
    /// How often the breaker has closed since the process began.
    breaker_closings: Option<u64>,
    breaker_closed_at: Option<DateTime<Utc>>,
    lag: Option<u64>,
    held: Option<u64>,
    oldest_held_seconds: Option<u64>,
    inbox_retention_seconds: Option<u64>,
    at: DateTime<Utc>,
}

impl From<ConsumerReport> for ConsumerView {
    fn from(report: ConsumerReport) -> Self {
        Self {
            consumer: report.consumer,
            instance: report.instance,
            version: report.version,
            state: report.state.as_str().to_owned(),
            breaker: report.breaker.map(|breaker| breaker.as_str().to_owned()),
            breaker_closings: report.breaker_closings,
            breaker_closed_at: report.breaker_closed_at,
            lag: report.lag,
            held: report.held,
            oldest_held_seconds: report.oldest_held_seconds,
            inbox_retention_seconds: report.inbox_retention_seconds,
            at: report.at,
        }
    }
}

/// Consumers that report in.
#[utoipa::path(get, path = "/consumers", tag = "consumers", responses((status = 200, body = PageView<ConsumerView>)))]
pub(super) async fn consumers(
    State(desk): State<Arc<Desk>>,
) -> Result<Json<PageView<ConsumerView>>, Problem> {
    let items = desk.consumers().await?.into_iter().map(ConsumerView::from).collect();
    Ok(Json(PageView { items, next: None }))
}
