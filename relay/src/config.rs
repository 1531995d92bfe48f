//! The relay's configuration: one TOML file.
//!
//! ```toml
//! [database]
//! url = "postgres://orders:${ORDERS_DB_PASSWORD}@db.internal/orders"
//!
//! [broker]
//! kind = "kafka"
//! brokers = ["kafka-1:9092", "kafka-2:9092"]
//!
//! [dead_letters]
//! enabled = true
//! sources = ["orders.stock.dlq"]
//! ```
//!
//! Unknown keys are refused, and every fault is reported at once with its line. Secrets come from environment
//! variables (`${NAME}` inside a text; `$$` is a dollar sign) or from files (`url_file` in place of `url`, and in the
//! broker's properties `"sasl.password_file"` in place of `"sasl.password"`); they are never shown.
//!
//! An environment variable takes the place of any key: `BACKSTOP__OUTBOX__LEASE_TTL=5s` stands for `lease_ttl` in
//! `[outbox]`, `BACKSTOP__BROKER__BROKERS=kafka-1:9092,kafka-2:9092` for the list, and
//! `BACKSTOP__BROKER__PROPERTIES__SASL_PASSWORD_FILE=/run/secrets/kafka` for `"sasl.password_file"` in
//! `[broker.properties]`. Its value is taken as it is; a variable that names no key is refused like an unknown key.

mod archive;
mod databases;
mod document;
mod encryption;
mod environment;
mod files;
mod interpolate;
mod layout;
mod loosened;
mod notify;
mod rules;
mod sections;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use backstop_core::ledger::LetterStatus;
use backstop_kafka::KafkaSettings;
use serde::{Serialize, Serializer};

pub use archive::{ArchiveConfig, BucketUrl, S3Config, Unusable};
pub(crate) use databases::{is_local, url_is_local};
pub use document::{Fault, Place};
pub use encryption::EncryptionConfig;
pub use environment::Environment;
pub use layout::{DebeziumConfig, Layout};
pub use notify::{NoticeEvent, NotifyConfig, NotifyKind};
pub use rules::{RuleConfig, RuleTrigger};

use crate::exit::{Complaint, Exit, Failure};
use crate::secret::{Scrubber, Secret, SecretUrl, is_secret_name};

/// The schema of the configuration file, as JSON Schema 2020-12.
pub const SCHEMA: &str = include_str!("../config.schema.json");
/// The file that is read unless another is named.
pub const USUAL_FILE: &str = "backstop-relay.toml";
/// Faults that are reported at once.
const MAX_FAULTS: usize = 100;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// `[database]`: where the outbox is.
    pub database: DatabaseConfig,
    /// `[broker]`: where messages go that no route names, and where dead letters are. Not needed for `migrate` and
    /// `outbox`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerConfig>,
    /// `[brokers.<name>]`: further brokers, to which routes lead.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub brokers: BTreeMap<String, BrokerConfig>,
    /// `[[routes]]`: which destinations go to a further broker; the first that matches counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteConfig>,
    /// `[outbox]`, or `[[outbox]]` for each of several. One with the defaults unless given.
    pub outbox: Vec<OutboxConfig>,
    /// `[http]`: the relay answers HTTP where the section is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpConfig>,
    /// `[dead_letters]`
    pub dead_letters: DeadLettersConfig,
    /// `[[notify]]`: who is told what happens to dead letters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NotifyConfig>,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseConfig {
    /// `url` or `url_file`: `postgres://…`, `mysql://…` or `sqlite:…`.
    ///
    /// A server on another host is asked for TLS with a verified certificate (`sslmode=verify-full`, MySQL's
    /// `ssl-mode=VERIFY_IDENTITY`) unless the URL names another mode.
    pub url: SecretUrl,
    /// `schema`: PostgreSQL's schema of the tables, MySQL's database. Defaults to the connection's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// `prefix`: what the names of the tables begin with, before an underscore. Defaults to `backstop`.
    pub prefix: String,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BrokerConfig {
    /// `kind = "kafka"`
    Kafka(KafkaConfig),
    /// `kind = "rabbitmq"`
    RabbitMq(RabbitConfig),
}

/// A way from destinations to a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteConfig {
    /// `destination`: the name of a topic, exchange or queue; each `*` in it stands for any text.
    pub destination: String,
    /// `broker`: the name of one of `[brokers]`.
    pub broker: String,
}

/// Apache Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KafkaConfig {
    /// `brokers`: `host:port` of a few of them.
    pub brokers: Vec<String>,
    /// `properties`: librdkafka's, such as `"security.protocol"`. A name that ends in `_file` names a file that
    /// holds the value.
    #[serde(serialize_with = "masked")]
    pub properties: BTreeMap<String, Secret>,
    /// `max_message_bytes`: largest message of the outbox in bytes, before compression; must not be over
    /// `max.message.bytes` of the topics. Defaults to 1,000,000.
    pub max_message_bytes: u64,
    /// `allow_plaintext`: whether a password may cross the network without TLS. Defaults to `false`; a broker on
    /// this host is no matter.
    pub allow_plaintext: bool,
}

/// RabbitMQ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RabbitConfig {
    /// `url` or `url_file`: `amqp://…` or `amqps://…`.
    pub url: SecretUrl,
    /// `management` or `management_file`: `http://…` or `https://…` of the management API, by which queues of dead
    /// letters are found by pattern. Without user and password it is asked with those of `url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<SecretUrl>,
    /// `ordering`: whether messages of one key wait for each other. Defaults to `"per-key"`.
    pub ordering: Ordering,
    /// `channels`: AMQP channels that publish side by side. Defaults to 4.
    pub channels: u64,
    /// `window`: messages under way at once, on all channels together. Defaults to 1024.
    pub window: u64,
    /// `allow_plaintext`: whether a password may cross the network without TLS. Defaults to `false`; a broker on
    /// this host is no matter.
    pub allow_plaintext: bool,
}

/// Order of publishing on RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ordering {
    /// One message of a key is under way at a time.
    PerKey,
    /// Nothing waits: faster, and after a failure a later message of a key may come first.
    None,
}

/// The outbox and how it is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxConfig {
    /// `enabled`: whether `run` drains the outbox. Defaults to `true`.
    pub enabled: bool,
    /// `name`: of the outbox and its lease, so that one of several relays owns it. Defaults to `outbox`.
    pub name: String,
    /// `lease_ttl`: after which time another relay takes over from one that died. Defaults to 10 s.
    #[serde(serialize_with = "duration")]
    pub lease_ttl: Duration,
    /// `batch_rows`: rows in one read. Defaults to 2,500.
    pub batch_rows: u64,
    /// `batch_bytes`: bytes in one read. Defaults to 8 MiB.
    pub batch_bytes: u64,
    /// `unsettled_rows`: rows published and not yet deleted; at most so many come twice when the relay is killed.
    /// Defaults to 4,000.
    pub unsettled_rows: u64,
    /// `idle_poll`: the longest pause between two reads of an empty outbox. Defaults to 44 ms.
    #[serde(serialize_with = "duration")]
    pub idle_poll: Duration,
    /// `on_unsendable`: what to do with a row that can never be sent. Defaults to `"dead"`.
    pub on_unsendable: OnUnsendable,
    /// `layout`: what the table looks like. Defaults to `"backstop"`.
    pub layout: Layout,
    /// `[outbox.debezium]`: names in a table of Debezium's layout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debezium: Option<DebeziumConfig>,
    /// `[outbox.database]`: where this outbox is; what is not given is as in `[database]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseConfig>,
}

/// What to do with a row that can never be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnsendable {
    /// Moved to the dead table, with its reason; later rows of its key go on.
    Dead,
    /// Stays, and the later rows of its key wait behind it.
    BlockKey,
    /// The relay stops.
    Stop,
}

/// What the relay answers over HTTP: `/live`, `/ready`, `/metrics`, the API and the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpConfig {
    /// `listen`: address and port. Defaults to `127.0.0.1:8642`.
    pub listen: SocketAddr,
    /// `token` or `token_file`: what callers other than probes send as `Authorization: Bearer …`, or browsers as the
    /// password beside a name of the caller's choice. Who has it may do everything. Needed beyond this host, unless
    /// `insecure` is set.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "mask")]
    pub token: Option<Secret>,
    /// `viewer_token` or `viewer_token_file`: the same for callers who may see everything but bodies and change nothing.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "mask")]
    pub viewer_token: Option<Secret>,
    /// `allowed_hosts`: names under which the server may be called without a token, besides its address and, on this
    /// host, `localhost`.
    pub allowed_hosts: Vec<String>,
    /// `insecure`: whether anybody who reaches the address may ask. Defaults to `false`.
    pub insecure: bool,
}

/// The collector of dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLettersConfig {
    /// `enabled`: whether `run` collects dead letters. Defaults to `false`.
    pub enabled: bool,
    /// `name`: of the ledger's lease and of the Kafka group that reads the letters. Defaults to `dead-letters`.
    pub name: String,
    /// `sources`: topics or queues with dead letters; also patterns, which begin with `^`, on RabbitMQ where `management`
    /// is configured.
    pub sources: Vec<String>,
    /// `receipts`: topics or queues to which consumers publish receipts of redriven letters and report in. None by
    /// default: outcomes stay unknown then.
    pub receipts: Vec<String>,
    /// `lease_ttl`: after which time another relay takes over from one that died. Defaults to 10 s.
    #[serde(serialize_with = "duration")]
    pub lease_ttl: Duration,
    /// `edit`: whether a letter's body may be edited by hand, in a copy that takes its place. Defaults to `false`.
    pub edit: bool,
    /// `[dead_letters.redrive]`: what redrives may do.
    pub redrive: RedriveConfig,
    /// `[[dead_letters.rules]]`: when letters are redriven by themselves. Never, unless a rule says so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleConfig>,
    /// `[[dead_letters.redact]]`: what of letters is not kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<RedactConfig>,
    /// `[dead_letters.encryption]`: with which keys bodies are encrypted before they are stored. In clear where the
    /// section is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionConfig>,
    /// `[dead_letters.retention]`: how long the ledger keeps letters. For ever where the section is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionConfig>,
    /// `[dead_letters.ledger]`: where the ledger is; what is not given is as in `[database]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<DatabaseConfig>,
}

/// What of letters is replaced before they are stored; one of `pointer`, `header` and `pattern`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RedactConfig {
    /// `pointer`: a JSON pointer into bodies; `*` stands for every member or element.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// `header`: the name of a header, in whichever case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// `pattern`: a regular expression over keys, headers, bodies and error texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// `replace`: what stands in its place. Defaults to `[redacted]`.
    pub replace: String,
}

/// How long the ledger keeps letters, from when they died or something happened to them last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionConfig {
    /// `resolved`: those that were handled after all. Defaults to 90 days.
    #[serde(serialize_with = "kept")]
    pub resolved: Option<Duration>,
    /// `discarded`: those that were given up. Defaults to 90 days.
    #[serde(serialize_with = "kept")]
    pub discarded: Option<Duration>,
    /// `superseded`: those that failed again or were edited, so that another letter stands for them. Defaults to 90 days.
    #[serde(serialize_with = "kept")]
    pub superseded: Option<Duration>,
    /// `open`: those that wait for somebody. Defaults to `"never"`: they stay.
    #[serde(serialize_with = "kept")]
    pub open: Option<Duration>,
    /// `archive`: the folder, or the bucket as `s3://bucket/prefix`, to which letters are written before they are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveConfig>,
    /// `[dead_letters.retention.s3]`: how the bucket is reached. There where the archive is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
    /// `without_archive`: that they are deleted and written nowhere. Defaults to `false`.
    pub without_archive: bool,
}

impl RetentionConfig {
    /// How long letters of each status are kept; those without a time, for ever.
    pub fn by_status(&self) -> [(LetterStatus, Option<Duration>); 4] {
        [
            (LetterStatus::Resolved, self.resolved),
            (LetterStatus::Discarded, self.discarded),
            (LetterStatus::Superseded, self.superseded),
            (LetterStatus::Open, self.open),
        ]
    }
}

/// What redrives may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RedriveConfig {
    /// `targets`: topics and queues that letters without a door may be sent back to, where every consumer sees them
    /// again. None by default.
    pub targets: Vec<String>,
    /// `inbox_retention`: how long consumers remember what they handled. Letters whose message failed first before that
    /// are left alone unless somebody insists. Not known by default.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_duration")]
    pub inbox_retention: Option<Duration>,
    /// `max_generation`: letters that were redriven so often before are left alone. Defaults to 5.
    pub max_generation: u32,
    /// `silent_after`: how long an outcome may take before a letter counts as silent. Defaults to 15 min.
    #[serde(serialize_with = "duration")]
    pub silent_after: Duration,
}

impl Config {
    /// Reads the file. Where the file of the usual name is missing, overrides in the environment may stand for it.
    ///
    /// # Errors
    /// With one complaint for each fault.
    pub fn load(path: &Path, env: &Environment) -> Result<Self, Failure> {
        let without_file = path == Path::new(USUAL_FILE) && !path.exists() && !env.overrides().is_empty();
        let text = if without_file { String::new() } else { read(path)? };
        Self::parse(&text, env).map_err(|faults| {
            let complaint = |fault: Fault| Complaint {
                what: match fault.place {
                    Place::Line(line) => format!("{}:{line}: {}", path.display(), fault.what),
                    Place::Variable(name) => format!("environment variable {name}: {}", fault.what),
                },
                hint: Some(fault.hint),
            };
            let more = faults.len().saturating_sub(MAX_FAULTS);
            let shown = faults.into_iter().take(MAX_FAULTS).map(complaint).collect();
            let mut failure = Failure::of(Exit::Configuration, shown);
            if more > 0 {
                failure.add(format!("{}: {more} more errors", path.display()), "mend these first");
            }
            failure
        })
    }

    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// Every fault there is, by line.
    pub fn parse(text: &str, env: &Environment) -> Result<Self, Vec<Fault>> {
        let reader = document::Reader::new(text, env);
        let table = reader.parse();
        let config = sections::config(&table, &reader);
        match (config, reader.faults()) {
            (Some(config), faults) if faults.is_empty() => Ok(config),
            (_, faults) => Err(faults),
        }
    }

    /// The database that holds an outbox of this configuration.
    pub fn database_of<'a>(&'a self, outbox: &'a OutboxConfig) -> &'a DatabaseConfig {
        outbox.database.as_ref().unwrap_or(&self.database)
    }

    /// Every database, each once.
    pub fn databases(&self) -> Vec<&DatabaseConfig> {
        let outboxes = self.outbox.iter().map(|outbox| self.database_of(outbox));
        let mut databases = Vec::new();
        for database in std::iter::once(&self.database).chain(outboxes).chain([self.ledger()]) {
            if !databases.contains(&database) {
                databases.push(database);
            }
        }
        databases
    }

    /// The database that holds the ledger.
    pub fn ledger(&self) -> &DatabaseConfig {
        self.dead_letters.ledger.as_ref().unwrap_or(&self.database)
    }

    /// Knows every secret of this configuration.
    pub fn scrubber(&self) -> Scrubber {
        let mut scrubber = Scrubber::default();
        for database in self.databases() {
            scrubber.learn_url(&database.url);
        }
        for notify in &self.notify {
            scrubber.learn(notify.url.expose());
            notify.secret.iter().for_each(|secret| scrubber.learn(secret.expose()));
        }
        let retention = self.dead_letters.retention.iter();
        for secret in retention.flat_map(|retention| &retention.s3).flat_map(S3Config::secrets) {
            scrubber.learn(secret.expose());
        }
        for key in self.dead_letters.encryption.iter().flat_map(EncryptionConfig::keys) {
            scrubber.learn(key.expose());
        }
        for token in self.http.iter().flat_map(|http| http.token.iter().chain(&http.viewer_token)) {
            scrubber.learn(token.expose());
        }
        for broker in self.broker.iter().chain(self.brokers.values()) {
            match broker {
                BrokerConfig::Kafka(kafka) => {
                    let secrets = kafka.properties.iter().filter(|(name, _)| is_secret_name(name));
                    secrets.for_each(|(_, value)| scrubber.learn(value.expose()));
                }
                BrokerConfig::RabbitMq(rabbit) => {
                    scrubber.learn_url(&rabbit.url);
                    rabbit.management.iter().for_each(|url| scrubber.learn_url(url));
                }
            }
        }
        scrubber
    }
}

impl KafkaConfig {
    /// The adapter's settings.
    pub(crate) fn settings(&self) -> KafkaSettings {
        let exposed = |(name, value): (&String, &Secret)| (name.clone(), value.expose().to_owned());
        KafkaSettings::new(self.brokers.join(","))
            .properties(self.properties.iter().map(exposed).collect())
            .allow_plaintext(self.allow_plaintext)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |error: std::io::Error| {
        let what = format!("cannot read the configuration file {}: {error}", path.display());
        Failure::new(Exit::Configuration, what, "name the file with --config or BACKSTOP_CONFIG")
    };
    files::read(path, files::MAX_CONFIG).map_err(unreadable)
}

fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

fn optional_duration<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => duration(value, serializer),
        None => serializer.serialize_none(),
    }
}

/// In days, which people count in here, and not in months of 30.44 days.
fn kept<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    const DAY: u64 = 86_400;
    match value {
        None => serializer.serialize_str(sections::NEVER),
        Some(kept) if kept.subsec_nanos() == 0 && kept.as_secs().is_multiple_of(DAY) => {
            serializer.collect_str(&format_args!("{}d", kept.as_secs() / DAY))
        }
        Some(kept) => duration(kept, serializer),
    }
}

fn mask<S: Serializer>(_secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(crate::secret::MASK)
}

fn masked<S: Serializer>(properties: &BTreeMap<String, Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(properties.iter().map(|(name, value)| {
        let shown = if is_secret_name(name) { crate::secret::MASK } else { value.expose() };
        (name, shown)
    }))
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
