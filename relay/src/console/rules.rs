//! What is redriven by itself, what would that be now, and why does a rule not fire?

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Extension, Form};
use backstop_core::ledger::Redrive;
use maud::{Markup, html};
use serde::Deserialize;

use super::Asked;
use super::icons::state;
use super::page::{Page, Place, Shown};
use super::parts::{ago, counted, grouped, letters_in_words, safe};
use super::{ROWS, letters, plan, redrives};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, Order};
use crate::rules::{Fired, NONE, Standing, View, choice};

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
) -> Result<Response, Shown> {
    let views = desk.rules().await?;
    let body = html! {
        div.head { div { p.crumbs { a href="/redrives" { "Redrives" } " / rules" } h1 { "Rules" }
            p.sub data-total=(views.len()) { @if views.is_empty() { (NONE) } @else { "redrives that this relay makes by itself, because its configuration says so" } } } }
        @if !views.is_empty() {
            div data-live="rules" { (table(&who, &views)) }
            p.more { "A plan by hand may send more than the rule: what was redriven before, or what consumers have forgotten." }
        }
    };
    let (command, api) = ("rules list".to_owned(), "/rules".to_owned());
    Ok(Page { place: Place::Redrives, title: "Rules".into(), who: &who, command, api, body }.into_response())
}

/// The way to the rules, in a few words.
pub(super) fn link(desk: &Desk) -> Markup {
    html! {
        @match desk.rules_written() {
            0 => (NONE),
            1 => { (counted(1, "/rules")) " rule makes redrives by itself" },
            rules => { (counted(rules as u64, "/rules")) " rules make redrives by themselves" },
        }
    }
}

fn table(who: &Caller, views: &[View<'_>]) -> Markup {
    html! {
        table.stack role="table" aria-label="Rules" {
            thead role="rowgroup" { tr role="row" {
                th.main role="columnheader" scope="col" { "Rule" }
                th role="columnheader" scope="col" { "After" }
                th.r role="columnheader" scope="col" { "Sends now" }
                th role="columnheader" scope="col" { "Stands" }
                th role="columnheader" scope="col" { "Fired last" }
            } }
            tbody role="rowgroup" { @for view in views { (line(who, view)) } }
        }
    }
}

fn line(who: &Caller, view: &View<'_>) -> Markup {
    let View { rule, standing, last, .. } = view;
    html! {
        tr role="row" id=(rule.name) {
            th.main role="rowheader" scope="row" { b { (rule.name) }
                small { a href={ "/plan?" (planned(view)) } { (safe(&choice(rule), 400)) } } }
            td role="cell" data-l="After" { (rule.after.as_str()) }
            td.r role="cell" data-l="Sends now" { (sends(view)) }
            td role="cell" data-l="Stands" { (stands(standing))
                @if view.rests_after().is_ok() { (resume(who, &rule.name)) } }
            td role="cell" data-l="Fired last" { @match last { Some((fired, redrive)) => (fired_last(fired, redrive.as_ref())), None => "never" } }
        }
    }
}

/// How many letters it would send, which opens them.
fn sends(view: &View<'_>) -> Markup {
    let (takes, letters) = (view.takes, format!("/rules/{}/letters", view.rule.name));
    html! {
        @if takes.sent < takes.sendable { (grouped(takes.sent)) " of " }
        (counted(takes.sendable, &letters))
        @if takes.or_more { " or more" }
    }
}

/// The letters and the way of the rule's redrive, for a plan by hand.
fn planned(view: &View<'_>) -> String {
    let rule = view.rule;
    let order = Order {
        canary: Some(rule.canary.to_string()),
        rate: Some(rule.rate.to_string()),
        brake: Some(rule.brake.to_string()),
        limit: Some(rule.limit.to_string()),
        ..Order::default()
    };
    plan::address(&FilterQuery::from(&view.wanted.filter), &order)
}

fn stands(standing: &Standing) -> Markup {
    let words = standing.words();
    match standing {
        Standing::Blocked { why, remedy } => html! {
            (state("stop", "bad", words)) small.blk { (safe(why, 300)) } small.blk { (safe(remedy, 300)) }
        },
        Standing::Unattended => state("wait", "warn", words),
        Standing::Watching => state("ok", "good", words),
        Standing::Waiting { after, since, behind } => html! {
            (state("wait", "act", words)) small.blk { (safe(after, 300)) ", " (ago(*since)) }
            @if let Some(id) = behind { small.blk { "until " a href={ "/redrives/" (id) } { "another redrive" } " is over" } }
        },
        Standing::Resting { why } => html! { (state("pause", "warn", words)) small.blk { (safe(why, 300)) } },
    }
}

fn fired_last(fired: &Fired, redrive: Option<&Redrive>) -> Markup {
    html! {
        (ago(fired.at)) small.blk { (safe(&fired.after, 300)) }
        @match (redrive, &fired.redrive) {
            (Some(redrive), _) => { a href={ "/redrives/" (redrive.plan.id) } { "its redrive" } ": " (redrives::standing(redrive)) },
            (None, Some(_)) => "its redrive is in the ledger no more",
            (None, None) => "there was nothing to send",
        }
    }
}

fn resume(who: &Caller, name: &str) -> Markup {
    html! {
        @if !who.operates() { small.blk { "Resuming it needs the operator role." } }
        @else { details.resume { summary.btn { "Resume…" }
            form method="post" action={ "/rules/" (name) "/resume" } { div.fields {
                label { span.lab { "Reason (required, kept in the audit log)" } textarea name="because" rows="2" required {} }
                p.hint { "It sends nothing now: it fires again when its time comes. A new version of its consumer does the same." }
                div.acts { button type="submit" { "Resume this rule" } a.btn href={ "#" (name) } { "Let it rest" } } } } } }
    }
}

/// Where a page of letters begins.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct From {
    after: Option<String>,
}

/// The letters behind the number that a rule would send.
pub(super) async fn letters(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(name): Path<String>,
    Asked(from): Asked<From>,
) -> Result<Response, Shown> {
    let view = desk.rule(&name).await?;
    let after = from.after.as_deref().filter(|after| !after.is_empty());
    let page = desk.letters_of_rule(&view, after, ROWS as usize).await?;
    let takes = view.takes;
    let body = html! {
        div.head { div { p.crumbs { a href="/redrives" { "Redrives" } " / " a href="/rules" { "rules" } " / " (name) }
            h1 { "Letters that rule " (name) " can send" }
            p.sub data-total=(takes.sendable) { (letters_in_words(takes.sendable)) @if takes.or_more { " or more" } " now"
                @if takes.sent < takes.sendable { ", of which a redrive takes " (grouped(takes.sent)) ", the first that the ledger took" } } } }
        (letters::list(&page, &format!("/rules/{name}/letters?")))
    };
    let (command, api) = (format!("rules run {name} --dry-run"), "/rules".to_owned());
    let title = format!("Letters of rule {name}");
    Ok(Page { place: Place::Redrives, title, who: &who, command, api, body }.into_response())
}

/// Why a rule is to fire again.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wish {
    because: String,
}

pub(super) async fn resumed(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Path(name): Path<String>,
    Form(wish): Form<Wish>,
) -> Result<Response, Shown> {
    let view = desk.resume_rule(&who, &name, &wish.because).await?;
    Ok(Redirect::to(&format!("/rules#{}", view.rule.name)).into_response())
}
