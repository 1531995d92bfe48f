//! `[[notify]]`: who is told what happens to dead letters.

use serde::Serialize;
use url::Url;

use super::databases::url_is_local;
use super::document::{Located, Section};
use crate::secret::Secret;

/// Shortest secret that signs, in characters.
const MIN_SECRET: usize = 16;

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotifyConfig {
    /// `name`: by which it is remembered what was told; no two may share one. Defaults to `notify`.
    pub name: String,
    /// `url` or `url_file`: where notices are posted. A secret, since it often is one.
    #[serde(serialize_with = "mask")]
    pub url: Secret,
    /// `kind`: what is posted. Defaults to `"webhook"`.
    pub kind: NotifyKind,
    /// `secret` or `secret_file`: signs what is posted to a webhook, which needs one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::mask")]
    pub secret: Option<Secret>,
    /// `on`: what is told. Defaults to everything.
    pub on: Vec<NoticeEvent>,
    /// `growing_over`: letters within an hour from which on a group counts as growing. Defaults to 100.
    pub growing_over: u64,
    /// `console`: under which address people reach the console, for links.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// `allow_plaintext`: whether notices may cross the network without TLS. Defaults to `false`; this host is no matter.
    pub allow_plaintext: bool,
}

/// What is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyKind {
    /// The notice as JSON, signed.
    Webhook,
    /// `{"text": "…"}`, as Slack and its like take it.
    Slack,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoticeEvent {
    /// Letters of a fingerprint and consumer that had none before.
    GroupNew,
    /// So many letters within an hour; told once an hour.
    GroupGrowing,
    /// A redrive is over, however it ended.
    RedriveEnded,
}

impl NoticeEvent {
    const ALL: [Self; 3] = [Self::GroupNew, Self::GroupGrowing, Self::RedriveEnded];

    /// As the configuration and notices spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GroupNew => "group-new",
            Self::GroupGrowing => "group-growing",
            Self::RedriveEnded => "redrive-ended",
        }
    }
}

/// All of them; faults are with the reader.
pub(super) fn notify(top: &mut Section<'_>) -> Vec<NotifyConfig> {
    let mut all = Vec::<NotifyConfig>::new();
    for section in top.sections("notify") {
        let place = section.place();
        if let Some(config) = one(section) {
            if all.iter().any(|other| other.name == config.name) {
                let what = format!("[notify] name: there are two called {:?}", config.name);
                top.fault(place, what, "give each a name of its own");
            }
            all.push(config);
        }
    }
    all
}

fn one(mut section: Section<'_>) -> Option<NotifyConfig> {
    let name = super::sections::lease_name(&mut section, "notify");
    let allow_plaintext = section.switch("allow_plaintext", false);
    if !section.has("url") && !section.has("url_file") {
        section.missing("url", "write https://…, or name a file that holds it with url_file");
    }
    let url = section.secret("url", "url_file");
    if let Some(url) = &url {
        check_url(&section, url, allow_plaintext);
    }
    let kinds = [("webhook", NotifyKind::Webhook), ("slack", NotifyKind::Slack)];
    let kind = section.choice("kind", &kinds).unwrap_or(NotifyKind::Webhook);
    let secret = section.secret("secret", "secret_file");
    check_secret(&section, kind, secret.as_ref());
    let on = events(&mut section);
    let growing_over = section.number("growing_over", 100, 1..1_000_001);
    let console = console(&mut section);
    section.finish();
    let secret = secret.map(|secret| Secret::new(secret.text));
    let url = Secret::new(url?.text);
    Some(NotifyConfig { name, url, kind, secret, on, growing_over, console, allow_plaintext })
}

/// What it is, is not shown: it may be all that a sender needs.
fn check_url(section: &Section<'_>, located: &Located, allow_plaintext: bool) {
    let path = section.path("url");
    let fault = |what: &str, hint: &str| section.fault(located.place.clone(), format!("{path} {what}"), hint);
    match Url::parse(&located.text) {
        Ok(url) if url.scheme() == "https" && url.has_host() => {}
        Ok(url) if url.scheme() == "http" && url.has_host() => {
            if !allow_plaintext && !url_is_local(&url) {
                fault(
                    "is without TLS",
                    "use https, or allow_plaintext = true where the network keeps others out",
                );
            }
        }
        _ => fault("is no address of a web server", "write https://host/path"),
    }
}

fn check_secret(section: &Section<'_>, kind: NotifyKind, secret: Option<&Located>) {
    const HINT: &str = "make one with: openssl rand -base64 32";
    match (kind, secret) {
        (NotifyKind::Webhook, None) if !section.has("secret") && !section.has("secret_file") => {
            section.missing("secret", "the receiver knows by it who sent a notice; or use kind = \"slack\"");
        }
        (NotifyKind::Webhook, Some(secret)) if secret.text.len() < MIN_SECRET => {
            let what = format!("{} has less than {MIN_SECRET} characters", section.path("secret"));
            section.fault(secret.place.clone(), what, HINT);
        }
        (NotifyKind::Slack, Some(secret)) => {
            let what = format!("{} signs nothing with kind = \"slack\"", section.path("secret"));
            section.fault(secret.place.clone(), what, "leave it out");
        }
        _ => {}
    }
}

fn events(section: &mut Section<'_>) -> Vec<NoticeEvent> {
    let words = section.texts("on");
    if !section.has("on") {
        return NoticeEvent::ALL.to_vec();
    }
    let mut on = Vec::new();
    for word in words {
        match NoticeEvent::ALL.into_iter().find(|event| event.as_str() == word.text) {
            Some(event) => on.push(event),
            None => {
                let what = format!("{}: {} is not known", section.path("on"), word.shown());
                let known = NoticeEvent::ALL.map(|event| format!("{:?}", event.as_str())).join(", ");
                section.fault(word.place.clone(), what, format!("use some of {known}"));
            }
        }
    }
    on
}

fn console(section: &mut Section<'_>) -> Option<String> {
    let console = section.text("console")?;
    let sound =
        Url::parse(&console.text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !sound {
        let what = format!("{}: {} is no address of a web server", section.path("console"), console.shown());
        section.fault(
            console.place.clone(),
            what,
            "write it as a browser reaches it, such as \"https://relay.internal\"",
        );
    }
    Some(console.text)
}

fn mask<S: serde::Serializer>(_secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(crate::secret::MASK)
}
