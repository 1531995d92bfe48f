//! The frame of every page.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{SecondsFormat, Utc};
use maud::{DOCTYPE, Markup, html};

use super::icons::sprite;
use super::parts::letters_in_words;
use crate::desk::{Caller, Done, Kind, Trouble};

/// What a page may load and do: nothing but what this server gives.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Where in the console a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Overview,
    Letters,
    Redrives,
    Held,
    Outboxes,
    Consumers,
    Audit,
}

impl Place {
    const ALL: [Self; 7] = [
        Self::Overview,
        Self::Letters,
        Self::Redrives,
        Self::Held,
        Self::Outboxes,
        Self::Consumers,
        Self::Audit,
    ];

    const fn link(self) -> (&'static str, &'static str) {
        match self {
            Self::Overview => ("/", "Overview"),
            Self::Letters => ("/groups", "Dead letters"),
            Self::Redrives => ("/redrives", "Redrives"),
            Self::Held => ("/held", "Held keys"),
            Self::Outboxes => ("/outboxes", "Outbox"),
            Self::Consumers => ("/consumers", "Consumers"),
            Self::Audit => ("/audit", "Audit"),
        }
    }
}

/// A page on its way out.
pub(super) struct Page<'a> {
    pub(super) place: Place,
    pub(super) title: String,
    pub(super) who: &'a Caller,
    /// The same from a terminal.
    pub(super) command: String,
    /// The same for a program.
    pub(super) api: String,
    pub(super) body: Markup,
}

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let Self { place, title, who, command, api, body } = self;
        let foot = html! {
            span { "From a terminal: " code { "backstop-relay " (command) } }
            span { "From a program: " code { "GET /api/v1" (api) } }
            span { "Signed in as " (who.name) ", " (who.role.as_str()) }
        };
        respond(StatusCode::OK, frame(Some(place), &title, Some(who), body, foot))
    }
}

/// A page with another status than 200.
pub(super) fn with_status(status: StatusCode, page: Page<'_>) -> Response {
    let mut response = page.into_response();
    *response.status_mut() = status;
    response
}

/// Trouble, as a page.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) Trouble);

impl From<Trouble> for Shown {
    fn from(trouble: Trouble) -> Self {
        Self(trouble)
    }
}

impl IntoResponse for Shown {
    fn into_response(self) -> Response {
        let Trouble { kind, what, hint, done } = self.0;
        let body = html! {
            h1 { (kind.title()) }
            p.lead-text { (what) "." }
            @match done {
                Done::Nothing if kind == Kind::Missing => {}
                Done::Nothing => p { "Nothing was done." },
                Done::Unknown { letters: 0, look } => p { "Nobody knows how much was done: look at " (look) "." },
                Done::Unknown { letters, look } => p { (letters_in_words(letters)) " were changed, and nobody knows whether more were: look at " (look) "." },
            }
            p.muted { (hint) "." }
            p { a href="/" { "To the overview" } }
        };
        respond(kind.status(), frame(None, kind.title(), None, body, html! {}))
    }
}

fn respond(status: StatusCode, page: Markup) -> Response {
    let mut response = (status, page.into_string()).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (axum::http::header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn frame(place: Option<Place>, title: &str, who: Option<&Caller>, body: Markup, foot: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Backstop" }
                link rel="stylesheet" href="/console.css";
                script src="/console.js" defer {}
            }
            body {
                (sprite())
                a.skip href="#main" { "Skip to content" }
                (top(place, who))
                main #main tabindex="-1" { (body) }
                footer { (foot) span { "Backstop relay " (env!("CARGO_PKG_VERSION")) " · all times UTC" } }
            }
        }
    }
}

fn top(place: Option<Place>, who: Option<&Caller>) -> Markup {
    let now = Utc::now();
    html! {
        header.top {
            a.brand href="/" { "Backstop" }
            nav.nav aria-label="Console" {
                @for item in Place::ALL {
                    @let (href, word) = item.link();
                    a href=(href) aria-current=[(place == Some(item)).then_some("page")] { (word) }
                }
            }
            p.who {
                span #heard role="status" { "as of " time datetime=(now.to_rfc3339_opts(SecondsFormat::Millis, true)) { (now.format("%H:%M:%S")) } }
                button #pause type="button" hidden { "Pause updates" }
                @if let Some(who) = who { span.p3 { (who.name) " · " (who.role.as_str()) } }
            }
        }
    }
}
