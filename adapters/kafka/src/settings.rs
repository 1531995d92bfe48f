//! How to reach the brokers.

use std::collections::BTreeMap;
use std::fmt;

use backstop_core::{AdapterError, FaultKind};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;

use crate::token::{TOKEN_LOCATION, TokenFile};

/// What stands in place of a secret.
const REDACTED: &str = "(redacted)";

/// Brokers, client id and properties of librdkafka.
///
/// Properties are librdkafka's own, such as `security.protocol`, `sasl.username` or `ssl.ca.location`, and win over
/// Backstop's defaults. One is Backstop's: for the mechanism OAUTHBEARER, `backstop.oauthbearer.token.location` names
/// a file with the token. It is read at every start and again well before the token ends, so that something else, such
/// as a sidecar, can keep it fresh. A client with such a file cannot make topics: dead-letter topics, and doors of one
/// partition, must be there already. `Debug` never shows a secret.
///
/// ```
/// use backstop_kafka::KafkaSettings;
///
/// let settings = KafkaSettings::new("kafka-1:9092,kafka-2:9092")
///     .property("security.protocol", "SASL_SSL")
///     .property("sasl.password", "hunter2");
/// assert!(!format!("{settings:?}").contains("hunter2"));
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaSettings {
    bootstrap_servers: String,
    #[serde(default = "default_client_id")]
    client_id: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    allow_plaintext: bool,
}

impl KafkaSettings {
    /// Brokers as `host:port`, separated by commas; the client id is `backstop` and there are no properties.
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: default_client_id(),
            properties: BTreeMap::new(),
            allow_plaintext: false,
        }
    }

    /// Sets the name under which brokers see this client in logs and quotas. Defaults to `backstop`.
    #[must_use]
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// Sets one property of librdkafka.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Adds properties of librdkafka; those that are set already are replaced.
    #[must_use]
    pub fn properties(mut self, properties: BTreeMap<String, String>) -> Self {
        self.properties.extend(properties);
        self
    }

    /// Sets whether a password or token may cross the network as it is: by PLAIN or OAUTHBEARER, without TLS, to another
    /// machine. Defaults to `false`: such settings are refused before anything connects.
    #[must_use]
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// The brokers, as given.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The configuration of a client: `defaults`, over them the user's properties, over them `fixed`, on which a
    /// promise rests and which the user may therefore not set, under whatever name.
    pub(crate) fn client_config(
        &self,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> Result<ClientConfig, AdapterError> {
        let reserved = || fixed.iter().map(|(name, _)| *name).chain(RESERVED);
        let is_reserved = |given: &str| reserved().any(|name| real_name(name) == real_name(given));
        if let Some(given) = self.properties.keys().find(|given| is_reserved(given)) {
            return Err(refused(given));
        }
        self.check_password_is_safe()?;
        let mut config = ClientConfig::new();
        // Why a connection ended may be told there and nowhere else; what is shown is decided later.
        if (config.log_level as i32) < RDKafkaLogLevel::Info as i32 {
            config.set_log_level(RDKafkaLogLevel::Info);
        }
        // Two names of one property would be set in no particular order.
        let is_given = |name: &str| self.properties.keys().any(|given| real_name(given) == real_name(name));
        for (name, value) in defaults.iter().filter(|(name, _)| !is_given(name)) {
            config.set(*name, *value);
        }
        for (name, value) in self.properties.iter().filter(|(name, _)| *name != TOKEN_LOCATION) {
            config.set(name, value);
        }
        for (name, value) in fixed {
            config.set(*name, *value);
        }
        config.set("bootstrap.servers", &self.bootstrap_servers).set("client.id", &self.client_id);
        Ok(config)
    }

    /// The configuration of a client that only asks about topics and makes them.
    pub(crate) fn admin_config(&self) -> Result<ClientConfig, AdapterError> {
        let mut config = self.client_config(&[("socket.keepalive.enable", "true")], &[])?;
        config.remove("group.id");
        Ok(config)
    }

    /// Where tokens for OAUTHBEARER come from.
    pub(crate) fn token_file(&self) -> TokenFile {
        TokenFile::new(self.properties.get(TOKEN_LOCATION).map(String::as_str))
    }

    /// Whether the admin client can log in. It alone has nowhere to take a token from: the callback for tokens is
    /// served by polling, and rdkafka polls no events of an admin client.
    pub(crate) fn can_administrate(&self) -> bool {
        !self.properties.contains_key(TOKEN_LOCATION)
    }

    /// Whether a password or token would cross the network as it is: by PLAIN or OAUTHBEARER, without TLS, to another
    /// machine. Such settings are refused unless plaintext is allowed.
    pub fn exposes_password(&self) -> bool {
        // librdkafka cuts white space off.
        let is = |name: &str, value: &str| {
            self.properties.get(name).is_some_and(|set| set.trim().eq_ignore_ascii_case(value))
        };
        let says_it = |mechanism| is("sasl.mechanism", mechanism) || is("sasl.mechanisms", mechanism);
        is("security.protocol", "sasl_plaintext")
            && (says_it("plain") || says_it("oauthbearer"))
            && !self.bootstrap_servers.split(',').all(is_local)
    }

    fn check_password_is_safe(&self) -> Result<(), AdapterError> {
        if self.allow_plaintext || !self.exposes_password() {
            return Ok(());
        }
        let what = "the password or token for Kafka would cross the network without TLS";
        Err(AdapterError::new(FaultKind::Invalid, what)
            .with_hint("set security.protocol to SASL_SSL, or say that plaintext is allowed"))
    }
}

/// Whether a broker is on this machine.
fn is_local(broker: &str) -> bool {
    let address = broker.trim().rsplit_once("://").map_or(broker.trim(), |(_, address)| address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(name, value): (&String, &String)| {
            let value = if is_secret(name) { REDACTED.to_owned() } else { value.clone() };
            (name.clone(), value)
        };
        f.debug_struct("KafkaSettings")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("client_id", &self.client_id)
            .field("properties", &self.properties.iter().map(shown).collect::<BTreeMap<_, _>>())
            .finish()
    }
}

/// Properties that every client takes from the settings themselves.
const RESERVED: [&str; 2] = ["bootstrap.servers", "client.id"];

/// librdkafka's other names of properties that Backstop sets, with the real ones.
const ALIASES: [(&str, &str); 8] = [
    ("bootstrap.servers", "metadata.broker.list"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("retries", "message.send.max.retries"),
    ("compression.type", "compression.codec"),
    ("acks", "request.required.acks"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("enable.auto.commit", "auto.commit.enable"),
];

/// The name behind an alias, so that two names of one property are equal.
fn real_name(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, real)| real)
}

/// The other name of a property that has two.
fn other_name(name: &str) -> Option<&'static str> {
    ALIASES.iter().find_map(|(alias, real)| match name {
        name if name == *alias => Some(*real),
        name if name == *real => Some(*alias),
        _ => None,
    })
}

/// The error of a property that a user may not set.
fn refused(given: &str) -> AdapterError {
    let other = other_name(given).map(|other| format!(" (also called {other})")).unwrap_or_default();
    AdapterError::new(FaultKind::Invalid, format!("the Kafka property {given}{other} is Backstop's to set"))
        .with_hint(format!("remove {given} from the properties: {}", why_fixed(given)))
}

/// Why a property is not the user's to set, or where else it can be chosen.
fn why_fixed(given: &str) -> &'static str {
    match real_name(given) {
        "metadata.broker.list" => "the brokers have a setting of their own",
        "client.id" => "the client id has a setting of its own",
        "group.id" => "the group is named with the topics",
        "auto.commit.enable" | "enable.auto.offset.store" => "only settled messages are committed",
        "auto.offset.reset" => "start_from and out_of_range say where to begin",
        "group.protocol" | "partition.assignment.strategy" => {
            "the rebalance protocol is a setting of the source"
        }
        "enable.idempotence" | "request.required.acks" | "max.in.flight.requests.per.connection" => {
            "confirmed messages must not be lost, doubled or reordered"
        }
        "transactional.id" | "transaction.timeout.ms" => "both are settings of the pipeline",
        "isolation.level" => "a pipeline reads committed messages only",
        "message.timeout.ms" | "message.send.max.retries" => {
            "a message that is given up by itself would let later ones pass"
        }
        "queue.buffering.max.ms" => "the linger is a setting of sink, publisher and pipeline",
        "queue.buffering.max.messages" => "the number of messages under way is a setting of the publisher",
        "message.max.bytes" => "the largest message is a setting of sink and publisher",
        _ => "a promise rests on its value",
    }
}

/// Whether the value of this property must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    const MARKS: [&str; 6] = ["pass", "secret", "key.pem", "jaas", "token", "oauthbearer.config"];
    let name = name.to_ascii_lowercase();
    name != TOKEN_LOCATION && MARKS.iter().any(|mark| name.contains(mark))
}

fn default_client_id() -> String {
    "backstop".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s28_secrets_are_not_shown() {
        let secrets = [
            "sasl.password",
            "ssl.key.pem",
            "sasl.jaas.config",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
        ];
        let settings = secrets
            .iter()
            .fold(KafkaSettings::new("localhost:1"), |settings, name| settings.property(*name, "hunter2"))
            .property("sasl.username", "alice");
        let shown = format!("{settings:?} {settings:#?}");
        assert!(!shown.contains("hunter2") && shown.contains("alice"), "{shown}");
    }

    #[test]
    fn s33_a_password_does_not_leave_the_machine_without_tls_unless_told() {
        let by = |mechanism: &str, brokers: &str| {
            let settings = KafkaSettings::new(brokers).property("security.protocol", " sasl_plaintext");
            settings.property("sasl.mechanism", mechanism).property("sasl.password", "hunter2")
        };
        let plain = |brokers: &str| by("PLAIN", brokers);
        assert!(by("OAUTHBEARER", "kafka:9092").exposes_password(), "a token is one, too");
        assert!(
            !by("SCRAM-SHA-512", "kafka:9092").exposes_password(),
            "it proves a password and does not say it"
        );
        for brokers in ["kafka:9092", "localhost:9092,10.0.0.7:9092", "localhost.example:1"] {
            let error = plain(brokers).client_config(&[], &[]).unwrap_err();
            assert_eq!(error.kind(), FaultKind::Invalid);
            assert!(error.hint().is_some_and(|hint| hint.contains("SASL_SSL")));
            assert!(plain(brokers).allow_plaintext(true).client_config(&[], &[]).is_ok());
            assert!(plain(brokers).property("security.protocol", "SASL_SSL").client_config(&[], &[]).is_ok());
        }
        for brokers in ["localhost:9092, 127.0.0.1:9092", "[::1]:9092", "SASL_PLAINTEXT://localhost:9092"] {
            assert!(plain(brokers).client_config(&[], &[]).is_ok(), "{brokers}");
        }
    }

    #[test]
    fn librdkafka_never_sees_the_file_of_the_token() {
        let settings = KafkaSettings::new("localhost:1").property(TOKEN_LOCATION, "/run/token");
        let config = settings.client_config(&[], &[]).expect("valid");
        assert_eq!(config.get(TOKEN_LOCATION), None);
        assert!(format!("{settings:?}").contains("/run/token"), "a path is no secret");
    }

    #[test]
    fn a_property_that_a_promise_rests_on_is_refused() {
        let settings = KafkaSettings::new("localhost:1").property("enable.auto.commit", "true");
        let error = settings.client_config(&[], &[("enable.auto.commit", "false")]).unwrap_err();
        assert_eq!(error.kind(), FaultKind::Invalid);
        assert!(error.to_string().contains("enable.auto.commit"));
    }

    #[test]
    fn the_other_names_of_such_a_property_are_refused_too() {
        let pairs = ALIASES.iter().flat_map(|(alias, real)| [(*alias, *real), (*real, *alias)]);
        for (given, fixed) in pairs {
            let settings = KafkaSettings::new("localhost:1").property(given, "1");
            let error = settings.client_config(&[], &[(fixed, "2")]).unwrap_err();
            assert_eq!(error.kind(), FaultKind::Invalid);
            let told = format!("{error} {:?}", error.hint());
            assert!(told.contains(given) && told.contains(fixed), "{told}");
            assert!(
                !told.contains("a promise rests") || fixed.contains("compression"),
                "it says why: {told}"
            );
        }
    }

    #[test]
    fn brokers_and_client_id_are_not_properties() {
        for given in ["bootstrap.servers", "metadata.broker.list", "client.id"] {
            let error =
                KafkaSettings::new("localhost:1").property(given, "x").client_config(&[], &[]).unwrap_err();
            assert!(error.to_string().contains(given), "{error}");
        }
    }

    #[test]
    fn what_is_taken_for_an_alias_is_one() {
        for (alias, real) in ALIASES.iter().filter(|(alias, _)| !alias.starts_with("enable.auto")) {
            let value = if *alias == "compression.type" { "zstd" } else { "7" };
            let config = ClientConfig::new().set(*alias, value).create_native_config().expect("known");
            let found = config.get(real).expect("known");
            assert!(found.starts_with(value), "{alias} is not {real}: {found}");
        }
    }

    #[test]
    fn a_default_gives_way_to_the_other_name_of_its_property() {
        let settings = KafkaSettings::new("localhost:1").property("compression.type", "lz4");
        let config = settings.client_config(&[("compression.codec", "zstd")], &[]).expect("valid");
        assert_eq!((config.get("compression.codec"), config.get("compression.type")), (None, Some("lz4")));
    }

    #[test]
    fn the_users_properties_win_over_defaults() {
        let settings = KafkaSettings::new("localhost:1").property("fetch.wait.max.ms", "7");
        let config = settings.client_config(&[("fetch.wait.max.ms", "500")], &[]).expect("valid");
        assert_eq!(config.get("fetch.wait.max.ms"), Some("7"));
    }

    #[test]
    fn librdkafka_is_built_with_everything_that_users_need() {
        let native = ClientConfig::new().create_native_config().expect("a default configuration");
        let features = native.get("builtin.features").expect("a property of every build");
        for wanted in ["ssl", "sasl_scram", "zstd", "gzip", "snappy", "lz4", "sasl_oauthbearer"] {
            assert!(features.split(',').any(|feature| feature == wanted), "{wanted} is not in {features}");
        }
    }
}
