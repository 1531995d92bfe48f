//! The audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use backstop_core::ledger::{AuditEntry, AuditFilter};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::views::PageView;
use super::{Asked, Problem, page_size};
use crate::desk::{Desk, Trouble};

/// Something that somebody did, or tried; or that the relay did with a redrive by itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryView {
    n: i64,
    at: DateTime<Utc>,
    /// `done`, `refused`, `failed`, or `begun` where nobody knows how it ended.
    step: String,
    /// The name that they gave.
    who: String,
    /// `operator`, `viewer` or `relay`.
    role: String,
    /// From where: the console, the API or a command line, and which host.
    origin: String,
    action: String,
    /// To what: an id, or a filter.
    object: String,
    /// The redrive that it is about.
    redrive: Option<String>,
    letters: Option<u64>,
    because: Option<String>,
    /// Why it was refused, or failed; absent where it was done.
    error: Option<String>,
}

impl From<AuditEntry> for EntryView {
    fn from(AuditEntry { n, at, entry }: AuditEntry) -> Self {
        Self {
            n,
            at,
            step: entry.step.as_str().to_owned(),
            who: entry.who,
            role: entry.role,
            origin: entry.origin,
            action: entry.action,
            object: entry.object,
            redrive: entry.redrive,
            letters: entry.letters,
            because: entry.because,
            error: entry.error,
        }
    }
}

/// Which entries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Of this action, or of all whose names begin so.
    action: Option<String>,
    /// Of this person.
    who: Option<String>,
    /// About the redrive with this id.
    redrive: Option<String>,
    /// `next` of the page before.
    after: Option<String>,
    /// Entries of a page, from 1 to 200; 50 unless given.
    limit: Option<String>,
}

/// Who did what, when and from where, over any relay or command line of this ledger, newest first.
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = PageView<EntryView>)))]
pub(super) async fn list(
    State(desk): State<Arc<Desk>>,
    Asked(query): Asked<AuditQuery>,
) -> Result<Json<PageView<EntryView>>, Problem> {
    let limit = page_size(query.limit.as_deref())?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let wrong = |_| Trouble::invalid("after is no place in the audit log", "take next of the page before");
    let filter = AuditFilter {
        before: given(query.after).map(|text| text.parse()).transpose().map_err(wrong)?,
        action: given(query.action),
        who: given(query.who),
        redrive: given(query.redrive),
    };
    let (entries, next) = desk.entries(&filter, limit).await?;
    let next = next.map(|n| n.to_string());
    Ok(Json(PageView { items: entries.into_iter().map(EntryView::from).collect(), next }))
}
