//! Sections that say where a database is.

use backstop_core::identifier::Identifier;
use url::{Host, Url};

use super::DatabaseConfig;
use super::document::{Located, Section};
use crate::secret::SecretUrl;

/// Longest prefix, so that the names of indexes stay within PostgreSQL's 63 bytes.
const MAX_PREFIX: usize = 32;
pub(super) const DATABASE_URL: &str = "write postgres://user:password@host:5432/database, mysql://… or sqlite:/path/to/file.db; percent-encode @ : / ? # in a password";
/// Parameters that the driver of PostgreSQL knows.
const POSTGRES_PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];
/// Parameters that the driver of MySQL knows.
const MYSQL_PARAMETERS: [&str; 13] = [
    "ssl-mode",
    "sslmode",
    "ssl-ca",
    "sslca",
    "ssl-cert",
    "sslcert",
    "ssl-key",
    "sslkey",
    "socket",
    "charset",
    "collation",
    "timezone",
    "time-zone",
];

/// A database; what is not given is as in `parent`. Without an URL of either there is none, which was told already.
pub(super) fn database(mut section: Section<'_>, parent: Option<&DatabaseConfig>) -> Option<DatabaseConfig> {
    let given = section.has("url") || section.has("url_file");
    let url = section.secret("url", "url_file").and_then(|url| database_url(&section, &url));
    let schema = section.text("schema").and_then(|name| schema(&section, name, url.as_ref()));
    let prefix = section.text("prefix").and_then(|name| prefix(&section, name));
    section.finish();
    let inherited = parent.filter(|_| !given);
    Some(DatabaseConfig {
        url: url.or_else(|| inherited.map(|parent| parent.url.clone()))?,
        schema: schema.or_else(|| inherited.and_then(|parent| parent.schema.clone())),
        prefix: prefix
            .or_else(|| inherited.map(|parent| parent.prefix.clone()))
            .unwrap_or_else(|| "backstop".to_owned()),
    })
}

/// A database of a section's own; `None` where there is none, or it was told what is wrong.
pub(super) fn inner_database(
    section: Section<'_>,
    parent: Option<&DatabaseConfig>,
) -> Option<DatabaseConfig> {
    if section.is_there() { database(section, parent) } else { None }
}

fn database_url(section: &Section<'_>, url: &Located) -> Option<SecretUrl> {
    let (scheme, rest) = url.text.split_once(':').unwrap_or(("", ""));
    let sound = match scheme {
        "sqlite" => !rest.trim_start_matches('/').is_empty(),
        "mysql" | "mariadb" => Url::parse(&url.text).is_ok_and(|url| url.has_host() && url.path().len() > 1),
        "postgres" | "postgresql" => Url::parse(&url.text).is_ok_and(|url| {
            url.has_host() || url.query_pairs().any(|(name, _)| name == "host" || name == "hostaddr")
        }),
        _ => false,
    };
    if !sound {
        section.fault(
            url.place.clone(),
            format!("{} is no usable database URL", section.path("url")),
            DATABASE_URL,
        );
        return None;
    }
    let known: &[&str] = match scheme {
        "sqlite" => return Some(SecretUrl::new(&url.text)),
        "mysql" | "mariadb" => &MYSQL_PARAMETERS,
        _ => &POSTGRES_PARAMETERS,
    };
    for name in unknown_parameters(&url.text, known) {
        let what = format!("{} has an unknown parameter {name:?}", section.path("url"));
        section.fault(url.place.clone(), what, format!("known are {}", known.join(", ")));
    }
    Some(SecretUrl::new(&url.text))
}

/// Names of the query that nobody would look at: a misspelled `sslrootcert` is not to be passed over.
fn unknown_parameters(url: &str, known: &[&str]) -> Vec<String> {
    let Ok(url) = Url::parse(url) else { return Vec::new() };
    let names = url.query_pairs().map(|(name, _)| name.into_owned());
    names.filter(|name| !known.contains(&name.as_str()) && !name.starts_with("options[")).collect()
}

/// The schema, which SQLite has none of.
fn schema(section: &Section<'_>, name: Located, url: Option<&SecretUrl>) -> Option<String> {
    if url.is_some_and(|url| url.expose().starts_with("sqlite:")) {
        let what = format!("{}: SQLite has no schemas", section.path("schema"));
        section.fault(name.place.clone(), what, "leave it out; prefix tells tables of one file apart");
        return None;
    }
    identifier(section, "schema", name)
}

fn identifier(section: &Section<'_>, key: &str, name: Located) -> Option<String> {
    match Identifier::new(&name.text) {
        Ok(_) => Some(name.text),
        Err(error) => {
            let hint = error.hint().unwrap_or_default().to_owned();
            section.fault(name.place.clone(), format!("{}: {error}", section.path(key)), hint);
            None
        }
    }
}

fn prefix(section: &Section<'_>, name: Located) -> Option<String> {
    let place = name.place.clone();
    let prefix = identifier(section, "prefix", name)?;
    if prefix.len() > MAX_PREFIX || prefix.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let hint = format!("use at most {MAX_PREFIX} lowercase letters, digits and underscores");
        section.fault(place, format!("[database] prefix: {prefix:?} is no usable prefix"), hint);
        return None;
    }
    Some(prefix)
}

/// Whether the URL's host is this machine.
pub(crate) fn url_is_local(url: &Url) -> bool {
    match url.host() {
        None => true,
        Some(Host::Domain(name)) => is_local(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
    }
}

/// Whether a host, an address or a folder with a socket is this machine.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || host.starts_with('/')
        || host.to_ascii_lowercase().starts_with("%2f")
        || address.is_ok_and(|address| address.is_loopback())
}
