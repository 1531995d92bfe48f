//! A redrive before it starts: which letters, what would happen, how to send them.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use backstop_core::ledger::Verdict;
use chrono::{SecondsFormat, TimeDelta, Utc};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::Asked;
use super::icons::icon;
use super::page::{Page, Place, Shown};
use super::parts::{counted, grouped, letters_of, safe, span_of};
use super::{ROWS, letters};
use crate::desk::filter::FilterQuery;
use crate::desk::{Caller, Desk, Order, Plan, Trouble};

/// How long a letter may take from its death to the ledger, as a rule.
const ARRIVING: TimeDelta = TimeDelta::seconds(5);

/// A filter and how to send, as they stand in an address.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PlanQuery {
    #[serde(flatten)]
    pub(super) filter: FilterQuery,
    #[serde(flatten)]
    pub(super) order: Order,
    verdict: Option<String>,
    after: Option<String>,
}

pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(asked): Asked<PlanQuery>,
) -> Result<Response, Shown> {
    let planned = desk.plan(&until_now(&asked.filter), &asked.order).await?;
    Ok(whole(&who, &planned, &asked.filter, &asked.order, None).into_response())
}

/// The same letters, but none that fail later, so that a plan of a group which grows is the one that is confirmed; nor
/// those of the last seconds, of which some are still on their way to the ledger.
pub(super) fn until_now(filter: &FilterQuery) -> FilterQuery {
    match filter.until.as_deref().is_some_and(|until| !until.is_empty()) {
        true => filter.clone(),
        false => FilterQuery { until: Some(moment()), ..filter.clone() },
    }
}

/// Until when letters are shown that somebody may do something with.
pub(super) fn moment() -> String {
    (Utc::now() - ARRIVING).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A page with nothing but the plan; `note` says why it is shown again.
pub(super) fn whole<'a>(
    who: &'a Caller,
    plan: &Plan,
    filter: &FilterQuery,
    order: &Order,
    note: Option<&str>,
) -> Page<'a> {
    let api = format!("/plan?{}", address(&(&plan.filter).into(), order));
    let body = html! {
        div.head { div { p.crumbs { a href="/groups" { "Dead letters" } " / plan" } h1 { "Plan a redrive" } } }
        (section(who, plan, filter, order, note))
    };
    let command = "dead-letters redrive".to_owned();
    Page { place: Place::Letters, title: "Plan a redrive".into(), who, command, api, body }
}

/// Letters of a plan with one verdict.
pub(super) async fn letters(
    State(desk): State<Arc<Desk>>,
    Extension(who): Extension<Caller>,
    Asked(asked): Asked<PlanQuery>,
) -> Result<Response, Shown> {
    let word = asked.verdict.as_deref().unwrap_or("send");
    let unknown = || Trouble::invalid("verdict is not known", "use send, no-target, looped or too-old");
    let verdict = Verdict::parse(word).ok_or_else(unknown)?;
    let plan = desk.plan(&asked.filter, &asked.order).await?;
    let after = asked.after.as_deref().filter(|after| !after.is_empty());
    let page = desk.letters_of_plan(&plan.filter, &plan.guard, verdict, after, ROWS as usize).await?;
    let address = address(&asked.filter, &asked.order);
    let count = plan.of(verdict);
    let body = html! {
        div.head { div { p.crumbs { a href={ "/plan?" (address) } { "Plan" } " / " (said(verdict)) }
            h1 { "Letters: " (said(verdict)) }
            p.sub data-total=(count) { (grouped(count)) " in the dry run" } } }
        (letters::list(&page, &format!("/plan/letters?verdict={word}&{address}")))
    };
    let (command, api) = ("dead-letters redrive --dry-run".to_owned(), format!("/plan?{address}"));
    Ok(Page { place: Place::Letters, title: "Letters of a plan".into(), who: &who, command, api, body }
        .into_response())
}

fn said(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Send => "can be sent",
        Verdict::NoTarget => "nowhere to send them to",
        Verdict::Looped => "redriven too often already",
        Verdict::TooOld => "older than the inbox retention",
    }
}

pub(super) fn address(filter: &FilterQuery, order: &Order) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in filter.pairs().into_iter().chain(order.pairs()) {
        query.append_pair(name, value);
    }
    query.finish()
}

/// The plan as a part of a page.
pub(super) fn section(
    who: &Caller,
    plan: &Plan,
    filter: &FilterQuery,
    order: &Order,
    note: Option<&str>,
) -> Markup {
    html! {
        section.plan #plan aria-labelledby="h-plan" {
            div.sh { h2 #h-plan { "Plan a redrive" } p { "nothing is sent before you confirm below; this plan is a link that you can share" } }
            @if let Some(note) = note { div.note.warn role="alert" tabindex="-1" { (icon("warn")) p { strong { (note) } } } }
            form method="post" action="/redrives" {
                (hidden(filter))
                input type="hidden" name="id" value=(Uuid::now_v7());
                input type="hidden" name="expected" value=(plan.to_send());
                input type="hidden" name="as_of" value=(FilterQuery::from(&plan.filter).until.unwrap_or_default());
                div.cols {
                    (which(filter))
                    div { h3 { span { "2 " } "What would happen" } (ledger(plan, &address(&(&plan.filter).into(), order))) (warnings(plan)) }
                    (how(plan, order))
                }
                (confirm(who, plan))
            }
        }
    }
}

/// Fields of the filter that the form does not show.
fn hidden(filter: &FilterQuery) -> Markup {
    const SHOWN: [&str; 6] = ["place", "since", "until", "key", "header", "error"];
    html! {
        @for (name, value) in filter.pairs().into_iter().filter(|(name, _)| !SHOWN.contains(name)) {
            input type="hidden" name=(name) value=(value);
        }
    }
}

fn which(filter: &FilterQuery) -> Markup {
    let field = |name: &str, label: &str, value: &Option<String>| {
        html! { label { span.lab { (label) } input type="text" name=(name) value=(value.as_deref().unwrap_or_default()) autocomplete="off"; } }
    };
    html! {
        fieldset {
            legend.vh { "Which letters" }
            h3 { span { "1 " } "Which letters" }
            div.fields {
                (field("place", "Topic or queue", &filter.place))
                div.pair { (field("since", "Failed from (UTC)", &filter.since)) (field("until", "to", &filter.until)) }
                (field("key", "Key", &filter.key))
                (field("header", "Header (name=value)", &filter.header))
                (field("error", "Words of the error", &filter.error))
                div { button type="submit" formmethod="get" formaction="/plan" { "Count again" } }
                p.hint { "The list ends 5 s before this dry run: letters that fail later are never swept in. Count again to have them, too." }
            }
        }
    }
}

fn ledger(plan: &Plan, address: &str) -> Markup {
    let term = |verdict: Verdict| {
        counted(plan.of(verdict), &format!("/plan/letters?verdict={}&{address}", verdict.as_str()))
    };
    let all = letters_of(&(&plan.filter).into());
    html! {
        table.ledger data-sum=(plan.matched()) { tbody {
            @if plan.more { tr { td {} td { (grouped(plan.matched())) } th scope="row" { "match, and more do" } } }
            @else { tr { td {} td { (counted(plan.matched(), &all)) } th scope="row" { "match" } } }
            @for verdict in [Verdict::NoTarget, Verdict::Looped, Verdict::TooOld] {
                @if plan.of(verdict) > 0 { tr data-term=(plan.of(verdict)) { td { "−" } td { (term(verdict)) } th scope="row" { (said(verdict)) } } }
            }
            @if plan.over_limit() > 0 { tr data-term=(plan.over_limit()) { td { "−" } td { (grouped(plan.over_limit())) } th scope="row" { "over the limit, the newest" } } }
            tr.eq data-term=(plan.to_send()) { td { "=" } td { @if plan.over_limit() == 0 { (term(Verdict::Send)) } @else { (grouped(plan.to_send())) } } th scope="row" { "would be sent" } }
        } }
        @if plan.to_send() > 0 { p.more { "To "
            @for (at, ((target, _), letters)) in plan.targets().into_iter().enumerate() {
                @if at > 0 { ", " } span.id { (safe(target, 200)) } ": " (grouped(letters))
            } } }
    }
}

fn warnings(plan: &Plan) -> Markup {
    let Terms { with_old, with_looped, .. } = Terms::of(plan);
    let away = plan.targets().keys().any(|(_, foreign)| *foreign);
    html! {
        @if plan.more {
            div.note.warn { (icon("warn")) p { strong { "More letters match" } ": these are the first " (grouped(plan.matched())) " that the ledger took, and a redrive takes no others. Plan the rest when these are resolved." } }
        }
        @if let Some(refused) = &plan.refused {
            div.note.warn { (icon("warn")) p { strong { "Some cannot be opened" } ": " (refused.to_string()) ". " a href={ "/dead-letters/" (refused.first) } { "Look at the first" } } }
        }
        @if plan.of(Verdict::TooOld) > 0 || with_old {
            (choice("with_old", with_old, "Some are older than what their consumer remembers.",
                "If one of them took effect after all, sending it applies it twice.",
                "Leave them out; they stay open", "Send them too, at the risk of a double effect"))
        }
        @if plan.of(Verdict::Looped) > 0 || with_looped {
            (choice("with_looped", with_looped, "Some were redriven again and again, and failed each time.",
                "The loop guard leaves them out.", "Leave them out; they stay open", "Send them once more"))
        }
        @if plan.of(Verdict::NoTarget) > 0 {
            div.note { (icon("warn")) p { (grouped(plan.of(Verdict::NoTarget))) " have no door: a stranger wrote them. They can only go back to where they came from, if the relay's configuration names that place (targets)." } }
        }
        @if away { div.note.warn { (icon("warn")) p { strong { "Every consumer of the target sees these letters again" } ", and nobody tells the outcome." } } }
        @if plan.guard.not_before.is_none() && !with_old && plan.to_send() > 0 {
            div.note { (icon("old")) p { "How long the consumer remembers what it has handled is not known (inbox_retention): what it has forgotten is applied twice." } }
        }
    }
}

/// What of an order the warnings ask about.
struct Terms {
    with_old: bool,
    with_looped: bool,
}

impl Terms {
    fn of(plan: &Plan) -> Self {
        Self { with_old: plan.terms.with_old, with_looped: plan.terms.with_looped }
    }
}

fn choice(name: &str, chosen: bool, what: &str, why: &str, no: &str, yes: &str) -> Markup {
    html! {
        div.note.warn { (icon("warn")) div {
            p { strong { (what) } " " (why) }
            label.opt { input type="radio" name=(name) value="" checked[!chosen]; (no) }
            label.opt { input type="radio" name=(name) value="true" checked[chosen]; (yes) }
        } }
    }
}

fn how(plan: &Plan, order: &Order) -> Markup {
    let terms = &plan.terms;
    html! {
        fieldset {
            legend.vh { "How to send them" }
            h3 { span { "3 " } "How to send them" }
            div.fields {
                label { span.lab { "Canary: letters that go first" } input.num type="text" name="canary" value=(terms.canary) inputmode="numeric"; }
                p.hint { "The rest goes once all of these are resolved; if one fails again, nothing more is sent." }
                label { span.lab { "Rate: letters a second at most" } input.num type="text" name="rate" value=(terms.rate) inputmode="decimal"; }
                label { span.lab { "Brake: pause above so many percent failed again" } input.num type="text" name="brake" value=(terms.brake) inputmode="decimal"; }
                label { span.lab { "At most so many letters (optional)" } input.num type="text" name="limit" value=(terms.limit.map(|limit| limit.to_string()).unwrap_or_default()) inputmode="numeric"; }
                label.opt { input type="checkbox" name="accept_fanout" value="true" checked[terms.accept_fanout]; "Letters without a door may go back to where they came from, to every consumer there" }
                label { span.lab { "Note for the audit log" } input type="text" name="because" value=(order.because.as_deref().unwrap_or_default()) autocomplete="off"; }
                p.hint { "Letters of one key go oldest first." }
            }
        }
    }
}

fn confirm(who: &Caller, plan: &Plan) -> Markup {
    let (send, canary) = (plan.to_send(), plan.canary());
    let rest = send - canary;
    let seconds = (rest as f64 / plan.terms.rate).min(1e9) as i64;
    let takes = span_of(chrono::TimeDelta::seconds(seconds));
    html! {
        div.confirm {
            @if send == 0 { p { "No letter would be sent." } }
            @else {
                p { b { @match (canary, send) {
                        (0, 1) => "1 letter goes",
                        (0, _) => { (grouped(send)) " letters go" },
                        (1, _) => { "1 letter goes first. If it resolves, " (grouped(rest)) " more follow" },
                        _ => { (grouped(canary)) " letters go first. If all of them resolve, " (grouped(rest)) " more follow" },
                    }
                    " at " (plan.terms.rate) " a second at most, about " (takes) "." }
                    " You can pause or cancel at any time; what was sent cannot be called back." }
                @if who.operates() {
                    div.acts { button.go type="submit" { "Start redrive: " @if canary > 0 { (grouped(canary)) ", then " (grouped(rest)) } @else { (grouped(send)) } } }
                } @else { p { "Starting needs the operator role. Send the address of this page to an operator." } }
            }
        }
    }
}
