//! The filter as it stands in an address, the same for API and console.

use backstop_core::ledger::{HeaderFilter, LetterFilter, LetterStatus, Outcome};
use backstop_core::report::escaped;
use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::trouble::Trouble;
use crate::secret::{MASK, is_secret_name};

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

/// Which letters are meant. Every parameter that is given narrows it; an empty one counts as not given.
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
        let header = given("header", &self.header)?.map(|header| match header.split_once('=') {
            Some((name, value)) => HeaderFilter { name: name.to_owned(), value: Some(value.to_owned()) },
            None => HeaderFilter { name: header, value: None },
        });
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
            header,
            error: text("error", &self.error)?,
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

    /// The same for the audit log, without the value of a header whose name announces a secret.
    pub(crate) fn audited(&self) -> String {
        let secret = self.header.as_deref().and_then(|header| header.split_once('='));
        match secret.filter(|(name, _)| is_secret_name(name)) {
            Some((name, _)) => Self { header: Some(format!("{name}={MASK}")), ..self.clone() }.query(),
            None => self.query(),
        }
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

/// For bodies: a parameter that is not known is refused, for a filter without it would mean more letters.
pub(crate) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FilterQuery, D::Error> {
    let given = serde_json::Map::deserialize(deserializer)?;
    if let Some(name) = given.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(D::Error::custom(format!("unknown field `{}` in the filter", escaped(name))));
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

fn ids(value: &Option<String>) -> Result<Vec<String>, Trouble> {
    let ids: Vec<String> =
        value.iter().flat_map(|list| list.split(',')).map(str::trim).map(str::to_owned).collect();
    let ids: Vec<String> = ids.into_iter().filter(|id| !id.is_empty()).collect();
    match ids.iter().any(|id| id.len() > MAX_VALUE || id.contains('\0')) || ids.len() > MAX_IDS {
        true => Err(Trouble::invalid(format!("ids are no list of up to {MAX_IDS} ids"), "shorten it")),
        false => Ok(ids),
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
    fn s24_what_makes_no_sense_is_refused_by_name() {
        for query in [
            "status=gone",
            "since=yesterday",
            "until=%2B262142-01-01T00%3A00%3A00Z",
            "on_hold=maybe",
            "key=%00",
        ] {
            let trouble = read(query).filter().expect_err(query);
            let name = query.split('=').next().expect("a name");
            assert!(trouble.what.starts_with(name), "{}", trouble.what);
        }
    }
}
