//! The filter as it stands in an address, the same for API and console.

use backstop_core::ledger::{HeaderFilter, LetterFilter, LetterStatus, Outcome, terms};
use backstop_core::report::escaped;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::trouble::Trouble;
use crate::secret::{MASK, is_unsearchable};

/// Longest value of a parameter, in bytes.
const MAX_VALUE: usize = 512;
/// Most ids.
const MAX_IDS: usize = 100;
/// Every parameter.
const NAMES: [&str; 16] = [
    "ids",
    "fingerprint",
    "consumer",
    "place",
    "class",
    "reason",
    "status",
    "since",
    "until",
    "key",
    "message_key",
    "header",
    "error",
    "outcome",
    "redrive",
    "on_hold",
];

/// Which letters are meant. Every parameter that is given narrows it. In an address an empty one counts as not given; in a
/// body it is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(crate) struct FilterQuery {
    /// Exactly these, by id, with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ids: Option<String>,
    /// The group: with this fingerprint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
    /// Of this consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) consumer: Option<String>,
    /// From this topic or queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<String>,
    /// Whose last error is of this class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) class: Option<String>,
    /// Given up for this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// `open`, `redriving`, `resolved`, `discarded` or `superseded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<String>,
    /// Dead at this time or later: RFC 3339, or `YYYY-MM-DD HH:MM` in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<String>,
    /// Dead before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<String>,
    /// With exactly this ordering key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// Of the message with this identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message_key: Option<String>,
    /// With this header: `name`, or `name=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) header: Option<String>,
    /// Whose error has all of these words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// Whose last redrive ended, or stands, so: `waiting`, `resolved`, `failed-again`, `silent` or `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<String>,
    /// Last sent by the redrive with this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) redrive: Option<String>,
    /// Whether they are under legal hold: `true` or `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_hold: Option<String>,
}

impl FilterQuery {
    /// The letters of a group.
    pub(crate) fn of_group(fingerprint: &str) -> Self {
        Self { fingerprint: Some(fingerprint.to_owned()), ..Self::default() }
    }

    /// Those of them with this status.
    #[must_use]
    pub(crate) fn with_status(mut self, status: LetterStatus) -> Self {
        self.status = Some(status.as_str().to_owned());
        self
    }

    /// What it asks of the ledger.
    ///
    /// # Errors
    /// Names the parameter that makes no sense.
    pub(crate) fn filter(&self) -> Result<LetterFilter, Trouble> {
        let text = |name: &str, value: &Option<String>| given(name, value);
        Ok(LetterFilter {
            ids: ids(&self.ids)?,
            fingerprint: text("fingerprint", &self.fingerprint)?,
            consumer: text("consumer", &self.consumer)?,
            place: text("place", &self.place)?,
            class: text("class", &self.class)?,
            reason: text("reason", &self.reason)?,
            status: word("status", &self.status, LetterStatus::parse)?,
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            key: text("key", &self.key)?,
            message_key: text("message_key", &self.message_key)?,
            header: header(&self.header)?,
            error: words(&self.error)?,
            outcome: word("outcome", &self.outcome, Outcome::parse)?,
            redrive: text("redrive", &self.redrive)?,
            on_hold: word("on_hold", &self.on_hold, |word| word.parse().ok())?,
        })
    }

    /// The filter as a query, without the parameters that are not given.
    pub(crate) fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in self.pairs() {
            query.append_pair(name, value);
        }
        query.finish()
    }

    /// The same for the audit log, without the value of a header that may hold a secret.
    pub(crate) fn audited(&self) -> String {
        let secret = self.header.as_deref().and_then(|header| header.split_once('='));
        match secret.filter(|(name, _)| is_unsearchable(name)) {
            Some((name, _)) => Self { header: Some(format!("{name}={MASK}")), ..self.clone() }.query(),
            None => self.query(),
        }
    }

    /// The letters that a frozen filter means now, by its address; `None` where it holds a secret.
    pub(crate) fn shown(filter: &LetterFilter) -> Option<Self> {
        (without_secrets(filter.clone()) == *filter).then(|| Self::from(filter))
    }

    /// Name and value of each parameter that is given.
    pub(crate) fn pairs(&self) -> Vec<(&'static str, &str)> {
        let values = [
            &self.ids,
            &self.fingerprint,
            &self.consumer,
            &self.place,
            &self.class,
            &self.reason,
            &self.status,
            &self.since,
            &self.until,
            &self.key,
            &self.message_key,
            &self.header,
            &self.error,
            &self.outcome,
            &self.redrive,
            &self.on_hold,
        ];
        NAMES
            .into_iter()
            .zip(values)
            .filter_map(|(name, value)| Some((name, value.as_deref().filter(|value| !value.is_empty())?)))
            .collect()
    }
}

/// The filter as it may be shown, with `***` for the value of a header that may hold a secret.
pub(crate) fn without_secrets(mut filter: LetterFilter) -> LetterFilter {
    if let Some(header) = filter.header.as_mut().filter(|header| is_unsearchable(&header.name)) {
        header.value = header.value.as_ref().map(|_| MASK.to_owned());
    }
    filter
}

/// For bodies: a parameter that is not known, or empty, as a script makes it of nothing, is refused, for a filter without it
/// would mean more letters. A form sends the fields that nobody filled in, so that addresses may hold empty ones.
pub(crate) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FilterQuery, D::Error> {
    let given = serde_json::Map::deserialize(deserializer)?;
    if let Some(name) = given.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(D::Error::custom(format!("unknown field `{}` in the filter", escaped(name))));
    }
    if let Some((name, _)) = given.iter().find(|(_, value)| value.as_str() == Some("")) {
        return Err(D::Error::custom(format!(
            "field `{name}` in the filter is empty: give it a value, or leave it out"
        )));
    }
    serde_json::from_value(given.into()).map_err(D::Error::custom)
}

/// The filter in an address.
impl From<&LetterFilter> for FilterQuery {
    fn from(filter: &LetterFilter) -> Self {
        let at = |at: Option<DateTime<Utc>>| at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
        Self {
            ids: (!filter.ids.is_empty()).then(|| filter.ids.join(",")),
            fingerprint: filter.fingerprint.clone(),
            consumer: filter.consumer.clone(),
            place: filter.place.clone(),
            class: filter.class.clone(),
            reason: filter.reason.clone(),
            status: filter.status.map(|status| status.as_str().to_owned()),
            since: at(filter.since),
            until: at(filter.until),
            key: filter.key.clone(),
            message_key: filter.message_key.clone(),
            header: filter.header.as_ref().map(|header| match &header.value {
                Some(value) => format!("{}={value}", header.name),
                None => header.name.clone(),
            }),
            error: filter.error.clone(),
            outcome: filter.outcome.map(|outcome| outcome.as_str().to_owned()),
            redrive: filter.redrive.clone(),
            on_hold: filter.on_hold.map(|held| held.to_string()),
        }
    }
}

fn given(name: &str, value: &Option<String>) -> Result<Option<String>, Trouble> {
    let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { return Ok(None) };
    if value.len() > MAX_VALUE || value.contains('\0') {
        let what = format!("{name} is longer than {MAX_VALUE} bytes, or holds a zero byte");
        return Err(Trouble::invalid(what, "shorten it"));
    }
    Ok(Some(value.clone()))
}

/// A list without any id, as a script may make it of nothing, would mean every letter.
fn ids(value: &Option<String>) -> Result<Vec<String>, Trouble> {
    let Some(list) = value.as_ref().filter(|list| !list.is_empty()) else { return Ok(Vec::new()) };
    let ids: Vec<String> =
        list.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect();
    if ids.is_empty() {
        return Err(Trouble::invalid("ids hold no id", "name at least one, or leave the field out"));
    }
    match ids.iter().any(|id| id.len() > MAX_VALUE || id.contains('\0')) || ids.len() > MAX_IDS {
        true => Err(Trouble::invalid(format!("ids are no list of up to {MAX_IDS} ids"), "shorten it")),
        false => Ok(ids),
    }
}

fn words(error: &Option<String>) -> Result<Option<String>, Trouble> {
    let error = given("error", error)?;
    match error.as_deref().is_none_or(terms::has_words) {
        true => Ok(error),
        false => Err(Trouble::invalid("error holds no word", "give a word of letters or digits")),
    }
}

/// Filters are shown to everybody and kept with their redrives. Whoever may search for a secret can also guess it.
fn header(header: &Option<String>) -> Result<Option<HeaderFilter>, Trouble> {
    let Some(header) = given("header", header)? else { return Ok(None) };
    match header.split_once('=') {
        Some((name, _)) if is_unsearchable(name) => {
            let what =
                format!("header {:?} may hold a secret, whose value is not searched for", escaped(name));
            Err(Trouble::invalid(what, "give its name alone, or use the command line"))
        }
        Some((name, value)) => {
            Ok(Some(HeaderFilter { name: name.to_owned(), value: Some(value.to_owned()) }))
        }
        None => Ok(Some(HeaderFilter { name: header, value: None })),
    }
}

fn word<T>(name: &str, value: &Option<String>, parse: fn(&str) -> Option<T>) -> Result<Option<T>, Trouble> {
    let Some(value) = given(name, value)? else { return Ok(None) };
    let unknown =
        || Trouble::invalid(format!("{name} {:?} is not known", escaped(&value)), "see the reference");
    parse(&value).map(Some).ok_or_else(unknown)
}

fn time(name: &str, value: &Option<String>) -> Result<Option<DateTime<Utc>>, Trouble> {
    let Some(value) = given(name, value)? else { return Ok(None) };
    let zoned = DateTime::parse_from_rfc3339(&value).ok().map(|at| at.to_utc());
    let plain = || {
        let formats = ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"];
        formats.iter().find_map(|format| NaiveDateTime::parse_from_str(&value, format).ok())
    };
    let at = zoned.or_else(|| plain().map(|at| at.and_utc()));
    // Every database has times from 1970 to 9999.
    at.filter(|at| (0..=253_402_300_799).contains(&at.timestamp())).map(Some).ok_or_else(|| {
        let what = format!("{name} {:?} is no time", escaped(&value));
        Trouble::invalid(what, "write it as 2026-01-31 17:05 in UTC, or as RFC 3339 has it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> FilterQuery {
        serde_json::from_value(
            url::form_urlencoded::parse(query.as_bytes())
                .map(|(name, value)| (name.into_owned(), serde_json::Value::String(value.into_owned())))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        )
        .expect("texts")
    }

    #[test]
    fn an_address_and_back_is_the_same_filter() {
        let query = "ids=a%2Cb&fingerprint=f&consumer=c&place=p&class=t&reason=r&status=open&since=2026-01-02T03%3A04%3A05.006Z\
                     &until=2026-01-02+03%3A05&key=k%26%3D&message_key=m&header=x-region%3Deu%3D1&error=not+null\
                     &outcome=failed-again&redrive=1&on_hold=false";
        let filter = read(query).filter().expect("sound");
        assert_eq!(FilterQuery::from(&filter).filter().expect("sound"), filter);
        assert_eq!(filter.ids, ["a", "b"]);
        assert_eq!(filter.header.expect("given").value.as_deref(), Some("eu=1"));
    }

    #[test]
    fn empty_fields_of_a_form_mean_nothing() {
        assert_eq!(
            read("status=&key=&since=&ids=&header=").filter().expect("sound"),
            LetterFilter::default()
        );
    }

    #[test]
    fn s27_the_value_of_a_secret_header_is_not_shown() {
        let of = |name: &str| LetterFilter {
            header: Some(HeaderFilter { name: name.to_owned(), value: Some("7".to_owned()) }),
            ..LetterFilter::default()
        };
        for name in ["X-Api-Token", "x-api-to\u{212A}en", "amqp:typed"] {
            assert_eq!(
                without_secrets(of(name)).header.expect("given").value.as_deref(),
                Some(MASK),
                "{name}"
            );
        }
        assert_eq!(FilterQuery::shown(&of("X-Api-Token")), None);
        assert_eq!(without_secrets(of("x-region")), of("x-region"));
        assert_eq!(FilterQuery::shown(&of("x-region")), Some(FilterQuery::from(&of("x-region"))));
    }

    #[test]
    fn s24_what_makes_no_sense_is_refused_by_name() {
        for query in [
            "status=gone",
            "since=yesterday",
            "until=%2B262142-01-01T00%3A00%3A00Z",
            "on_hold=maybe",
            "key=%00",
            "ids=+%2C%0A",
            "error=-%3E",
            "header=X-Api-Key%3Dguess",
            "header=x-api-to%E2%84%AAen%3Dguess",
            "header=AMQP%3Atyped%3Dguess",
        ] {
            let trouble = read(query).filter().expect_err(query);
            let name = query.split('=').next().expect("a name");
            assert!(trouble.what.starts_with(name), "{}", trouble.what);
        }
    }
}
