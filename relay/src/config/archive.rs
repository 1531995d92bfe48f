//! `archive` of `[dead_letters.retention]`: a folder, or a bucket and how it is reached.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use url::Url;

use super::databases::url_is_local;
use super::document::{Place, Section};
use super::environment::Environment;
use crate::secret::Secret;

const HINT: &str = "write the path of a folder, or s3://bucket/prefix";
/// Where the vendor's own tools look for the address of a store, the first that is set.
const ENDPOINT: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
const REGION: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// Where they look for credentials.
const CREDENTIALS: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Where archives go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveConfig {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket of S3, or of what speaks its protocol.
    Bucket(BucketUrl),
}

/// `s3://bucket/prefix`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    /// The bucket.
    pub bucket: String,
    /// What names of objects begin with, before a slash; may be empty.
    pub prefix: String,
}

/// How a bucket is reached. What the file does not say comes from the environment, under the names that the vendor's own
/// tools have for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct S3Config {
    /// `endpoint`: address of a store that is not Amazon's. Defaults to `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `region`: of the bucket. Defaults to `AWS_REGION` or `AWS_DEFAULT_REGION`, and then to `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `access_key_id`: who asks. Without it the environment says: keys, a web identity, or the machine's role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// `secret_access_key` or `secret_access_key_file`: belongs to `access_key_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<Secret>,
    /// `allow_plaintext`: whether letters may cross the network without TLS. Defaults to `false`; this host is no matter.
    pub allow_plaintext: bool,
    /// Credentials of the environment, by the names of their variables; none where the file has some.
    #[serde(skip)]
    pub credentials: BTreeMap<&'static str, Secret>,
}

/// Why a text cannot be used, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Why, to stand behind the name of what holds the text, which itself is not shown: it may hold a password.
    pub what: &'static str,
    /// How to mend it.
    pub hint: &'static str,
}

impl ArchiveConfig {
    /// The place that a text names.
    ///
    /// # Errors
    /// When it is a URL that names no bucket.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        let unusable = |what| Err(Unusable { what, hint: HINT });
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None if text.starts_with("s3:") => return unusable("names no bucket"),
            None if text.is_empty() => return unusable("is empty"),
            None => return Ok(Self::Folder(text.into())),
        };
        if scheme != "s3" {
            return unusable("is a URL of a kind that archives do not go to");
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':']) {
            let hint = "write s3://bucket/prefix; credentials, and an endpoint with its port, have keys of their own in \
                        [dead_letters.retention.s3]";
            return Err(Unusable { what: "holds a user, a password or a port", hint });
        }
        let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(in_name) {
            return unusable("names no bucket");
        }
        let prefix = prefix.trim_end_matches('/');
        let is_sound = !prefix.contains(['?', '#']) && object_store::path::Path::parse(prefix).is_ok();
        if !is_sound || prefix.starts_with('/') {
            return unusable("has a prefix that no object can have");
        }
        Ok(Self::Bucket(BucketUrl { bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }
}

impl BucketUrl {
    /// The place of an object and its name; `None` where only a bucket is named.
    pub(crate) fn split(&self) -> Option<(Self, &str)> {
        let (prefix, name) = self.prefix.rsplit_once('/').unwrap_or(("", &self.prefix));
        let place = Self { bucket: self.bucket.clone(), prefix: prefix.to_owned() };
        (!name.is_empty()).then_some((place, name))
    }
}

impl fmt::Display for ArchiveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket(url) => url.fmt(f),
        }
    }
}

impl Serialize for ArchiveConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl S3Config {
    /// What the environment says.
    pub fn of_environment(env: &Environment) -> Self {
        let credentials =
            CREDENTIALS.iter().filter_map(|name| Some((*name, Secret::new(set(env, &[name])?.1))));
        Self {
            endpoint: set(env, &ENDPOINT).map(|(_, endpoint)| endpoint.to_owned()),
            region: set(env, &REGION).map(|(_, region)| region.to_owned()),
            credentials: credentials.collect(),
            ..Self::default()
        }
    }

    /// What of it nobody may see. Names of files are no secret.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let names = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
        let of_environment = names.into_iter().filter_map(|name| self.credentials.get(name));
        self.secret_access_key.iter().chain(of_environment)
    }

    /// Whether the store is reached without TLS.
    pub(crate) fn is_plain(&self) -> bool {
        self.url().is_some_and(|url| url.scheme() == "http")
    }

    /// Whether letters go to another machine without TLS.
    pub(crate) fn is_bare(&self) -> bool {
        self.is_plain() && self.url().is_some_and(|url| !url_is_local(&url))
    }

    fn url(&self) -> Option<Url> {
        Url::parse(self.endpoint.as_deref()?).ok()
    }

    /// Why the endpoint cannot be used, and how to mend it; to stand behind the name of what holds it.
    pub(crate) fn unusable_endpoint(&self) -> Option<Unusable> {
        self.endpoint.as_ref()?;
        let sound = self.url().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        match sound {
            None => Some(Unusable {
                what: "is no address of a web server",
                hint: "write https://host or https://host:port, without the bucket",
            }),
            Some(url) if !url.username().is_empty() || url.password().is_some() => Some(Unusable {
                what: "holds a user or a password",
                hint: "write them as access_key_id and secret_access_key_file in [dead_letters.retention.s3]",
            }),
            Some(_) if self.is_bare() && !self.allow_plaintext => Some(Unusable {
                what: "is without TLS",
                hint: "use https, or allow_plaintext = true in [dead_letters.retention.s3] where the network keeps others out",
            }),
            Some(_) => None,
        }
    }
}

/// The first of these variables that is set, and not to nothing.
fn set<'e>(env: &'e Environment, names: &[&'static str]) -> Option<(&'static str, &'e str)> {
    let mut values = names.iter().filter_map(|name| Some((*name, env.get(name)?)));
    values.find(|(_, value)| !value.is_empty())
}

/// `archive`; faults are with the reader.
pub(super) fn archive(section: &mut Section<'_>) -> Option<ArchiveConfig> {
    let text = section.text("archive")?;
    match ArchiveConfig::parse(&text.text) {
        Ok(archive) => Some(archive),
        Err(Unusable { what, hint }) => {
            section.fault(text.place, format!("{} {what}", section.path("archive")), hint);
            None
        }
    }
}

/// `[dead_letters.retention.s3]`, which need not be there: the environment may say everything. `is_named` says whether there
/// is an `archive`, right or wrong.
pub(super) fn s3(
    mut section: Section<'_>,
    archive: Option<&ArchiveConfig>,
    is_named: bool,
) -> Option<S3Config> {
    let is_bucket = matches!(archive, Some(ArchiveConfig::Bucket(_)));
    // What is wrong with an archive that names no place at all is told already.
    if section.is_there() && !is_bucket && (archive.is_some() || !is_named) {
        let what = format!("{} is for an archive in a bucket", section.path("").trim_end());
        section.fault(
            section.place(),
            what,
            "write archive = \"s3://bucket/prefix\", or leave the section out",
        );
    }
    let of_environment = S3Config::of_environment(section.env());
    let endpoint = section.text("endpoint");
    let place = match (&endpoint, set(section.env(), &ENDPOINT)) {
        (None, Some((variable, _))) => Place::Variable(variable.to_owned()),
        (Some(endpoint), _) => endpoint.place.clone(),
        (None, None) => section.place(),
    };
    let name = if endpoint.is_none() { "it".to_owned() } else { section.path("endpoint") };
    let region = section.text("region").map(|region| region.text);
    let (access_key_id, secret_access_key) = keys(&mut section);
    let credentials = if access_key_id.is_some() { BTreeMap::new() } else { of_environment.credentials };
    let config = S3Config {
        endpoint: endpoint.map(|endpoint| endpoint.text).or(of_environment.endpoint),
        region: region.or(of_environment.region),
        access_key_id,
        secret_access_key,
        allow_plaintext: section.switch("allow_plaintext", false),
        credentials,
    };
    if let Some(Unusable { what, hint }) = config.unusable_endpoint().filter(|_| is_bucket) {
        section.fault(place, format!("{name} {what}"), hint);
    }
    section.finish();
    is_bucket.then_some(config)
}

fn keys(section: &mut Section<'_>) -> (Option<String>, Option<Secret>) {
    let id = section.text("access_key_id");
    let secret = section.secret("secret_access_key", "secret_access_key_file");
    let has_secret = section.has("secret_access_key") || section.has("secret_access_key_file");
    if section.has("access_key_id") != has_secret {
        let what = format!("{} and secret_access_key belong together", section.path("access_key_id"));
        section.fault(section.place(), what, "write both, or neither and let the environment say who asks");
    }
    (id.map(|id| id.text), secret.map(|secret| Secret::new(secret.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bucket: &str, prefix: &str) -> Result<ArchiveConfig, Unusable> {
        Ok(ArchiveConfig::Bucket(BucketUrl { bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }

    #[test]
    fn folders_and_buckets_are_told_apart_and_come_back_as_they_were_written() {
        for folder in ["/var/lib/backstop", "kept", "s3", "C:\\kept", "a:b"] {
            assert_eq!(ArchiveConfig::parse(folder), Ok(ArchiveConfig::Folder(folder.into())));
        }
        assert_eq!(ArchiveConfig::parse("s3://letters"), bucket("letters", ""));
        assert_eq!(ArchiveConfig::parse("s3://letters/"), bucket("letters", ""));
        assert_eq!(
            ArchiveConfig::parse("s3://acme.letters_2/shop/old/"),
            bucket("acme.letters_2", "shop/old")
        );
        for text in ["s3://letters", "s3://letters/shop/old", "/var/lib/backstop"] {
            assert_eq!(ArchiveConfig::parse(text).map(|place| place.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_names_no_bucket_is_refused_and_not_shown() {
        for (text, expected) in [
            ("", "is empty"),
            ("s3:", "names no bucket"),
            ("s3:letters", "names no bucket"),
            ("s3://", "names no bucket"),
            ("s3:///shop", "names no bucket"),
            ("s3://let ters/shop", "names no bucket"),
            ("gs://letters", "is a URL of a kind that archives do not go to"),
            ("https://s3.amazonaws.com/letters", "is a URL of a kind that archives do not go to"),
            ("s3://AKIA:S3cret@letters/shop", "holds a user, a password or a port"),
            ("s3://AKIA:S3/cret@letters/shop", "holds a user, a password or a port"),
            ("s3://letters:9000/shop", "holds a user, a password or a port"),
            ("s3://letters/shop?a=b", "has a prefix that no object can have"),
            ("s3://letters/../shop", "has a prefix that no object can have"),
            ("s3://letters//shop", "has a prefix that no object can have"),
            ("s3://letters/shop//old", "has a prefix that no object can have"),
        ] {
            let unusable = ArchiveConfig::parse(text).expect_err(text);
            assert_eq!(unusable.what, expected, "{text}");
            assert!(!unusable.hint.contains("cret@"), "{text}");
        }
    }

    #[test]
    fn the_first_variable_that_is_set_counts_and_no_secret_of_them_is_shown() {
        let env = Environment::from_iter([
            ("AWS_ENDPOINT_URL", "https://one"),
            ("AWS_ENDPOINT_URL_S3", "https://two"),
            ("AWS_REGION", ""),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_ACCESS_KEY_ID", "AKIA"),
            ("AWS_SECRET_ACCESS_KEY", "S3cret"),
            ("AWS_SESSION_TOKEN", "t0ken"),
            ("AWS_ALLOW_HTTP", "true"),
        ]);
        let s3 = S3Config::of_environment(&env);
        assert_eq!((s3.endpoint.as_deref(), s3.region.as_deref()), (Some("https://two"), Some("eu-west-1")));
        assert_eq!(s3.secrets().map(Secret::expose).collect::<Vec<_>>(), ["S3cret", "t0ken"]);
        let shown = format!("{s3:?} {}", serde_json::to_string(&s3).expect("JSON"));
        assert!(!shown.contains("S3cret") && !shown.contains("t0ken"), "{shown}");
        assert!(!s3.allow_plaintext, "that is for the file to say");
    }
}
