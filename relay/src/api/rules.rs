//! Rules: redrives that the relay makes by itself, where somebody wrote it.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::views::PageView;
use super::{Given, Problem};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk};
use crate::rules::{Standing, View};

/// A rule, what it would do and what it did last.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RuleView {
    name: String,
    /// What it waits for: `breaker-closed` or `new-version`.
    after: String,
    /// How long that must have stood.
    wait_seconds: f64,
    /// Which letters it takes, as `/letters` and `/plan` take it; `since` is as of now.
    filter: FilterQuery,
    /// How long letters may have been dead; absent where it does not matter.
    since_seconds: Option<f64>,
    canary: u64,
    /// Letters a second.
    rate: u64,
    /// The share of letters that may fail again before its redrive pauses, from 0 to 1.
    brake: f64,
    /// Most letters of one redrive.
    limit: u64,
    /// How many letters it would send now. After a breaker closed it leaves those alone that were redriven before, and
    /// always those without a door, so that it may be fewer than a plan of `filter` would send.
    sends_now: u64,
    /// Sendable, but over `limit`.
    over_limit: u64,
    /// Whether it may be more, because only the first 50,000 letters that match were judged.
    or_more: bool,
    standing: Standing,
    /// Absent where it has not fired.
    last: Option<FiredView>,
}

/// What a rule did last.
#[derive(Debug, Serialize, ToSchema)]
struct FiredView {
    at: DateTime<Utc>,
    /// After what.
    after: String,
    /// The redrive that it made; absent where there was nothing to send.
    redrive: Option<String>,
    /// Where that stands: `running`, `paused`, `done`, `cancelled` or `stopped`.
    run: Option<String>,
}

impl From<&View<'_>> for RuleView {
    fn from(view: &View<'_>) -> Self {
        let View { rule, wanted, takes, standing, last } = view;
        let last = last.as_ref().map(|(fired, redrive)| FiredView {
            at: fired.at,
            after: fired.after.clone(),
            redrive: fired.redrive.clone(),
            run: redrive.as_ref().map(|redrive| redrive.standing.run.as_str().to_owned()),
        });
        Self {
            name: rule.name.clone(),
            after: rule.after.as_str().to_owned(),
            wait_seconds: rule.wait.as_secs_f64(),
            filter: (&wanted.filter).into(),
            since_seconds: rule.since.map(|since| since.as_secs_f64()),
            canary: rule.canary,
            rate: rule.rate,
            brake: wanted.brake,
            limit: rule.limit,
            sends_now: takes.sent,
            over_limit: takes.sendable - takes.sent,
            or_more: takes.or_more,
            standing: standing.clone(),
            last,
        }
    }
}

/// Rules in the configuration of this relay. Without any there is an empty list, and nothing is redriven by itself.
#[utoipa::path(get, path = "/rules", tag = "rules", responses((status = 200, body = PageView<RuleView>)))]
pub(super) async fn list(State(desk): State<Arc<Desk>>) -> Result<Json<PageView<RuleView>>, Problem> {
    let items = desk.rules().await?.iter().map(RuleView::from).collect();
    Ok(Json(PageView { items, next: None }))
}

/// Why a rule is to fire again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResumeOrder {
    /// Kept in the audit log.
    because: String,
}

/// Lets a rule fire again whose last redrive was stopped by its canary, or cancelled. It makes no redrive now.
#[utoipa::path(post, path = "/rules/{name}/resume", tag = "rules", request_body = ResumeOrder,
    params(("name" = String, Path, description = "The rule's name.")), responses((status = 200, body = RuleView)))]
pub(super) async fn resume(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(name): Path<String>,
    Given(order): Given<ResumeOrder>,
) -> Result<Json<RuleView>, Problem> {
    Ok(Json((&desk.resume_rule(&who, &name, &order.because).await?).into()))
}
