//! How to reach the brokers.

use std::collections::BTreeMap;
use std::fmt;

use backstop_core::{AdapterError, FaultKind};
use rdkafka::ClientConfig;
use serde::Deserialize;

/// What stands in place of a secret.
const REDACTED: &str = "(redacted)";

/// Brokers, client id and properties of librdkafka.
///
/// Properties are librdkafka's own, such as `security.protocol`, `sasl.username` or `ssl.ca.location`, and win over
/// Backstop's defaults. `Debug` never shows a secret.
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
}

impl KafkaSettings {
    /// Brokers as `host:port`, separated by commas; the client id is `backstop` and there are no properties.
    pub fn new(bootstrap_servers: impl Into<String>) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            client_id: default_client_id(),
            properties: BTreeMap::new(),
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

    /// The brokers, as given.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// The configuration of a client: `defaults`, over them the user's properties, over them `fixed`, on which a
    /// promise rests and which the user may therefore not set.
    pub(crate) fn client_config(
        &self,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> Result<ClientConfig, AdapterError> {
        if let Some((name, _)) = fixed.iter().find(|(name, _)| self.properties.contains_key(*name)) {
            return Err(AdapterError::new(
                FaultKind::Invalid,
                format!("the Kafka property {name} is Backstop's to set"),
            )
            .with_hint(format!(
                "remove {name} from the properties; where it can be chosen there is a setting for it"
            )));
        }
        let mut config = ClientConfig::new();
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
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

/// Whether the value of this property must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    const MARKS: [&str; 6] = ["password", "secret", "key.pem", "jaas", "token", "oauthbearer.config"];
    let name = name.to_ascii_lowercase();
    MARKS.iter().any(|mark| name.contains(mark))
}

fn default_client_id() -> String {
    "backstop".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let settings = ["sasl.password", "ssl.key.pem", "sasl.jaas.config", "sasl.oauthbearer.client.secret"]
            .iter()
            .fold(KafkaSettings::new("localhost:1"), |settings, name| settings.property(*name, "hunter2"))
            .property("sasl.username", "alice");
        let shown = format!("{settings:?} {settings:#?}");
        assert!(!shown.contains("hunter2") && shown.contains("alice"), "{shown}");
    }

    #[test]
    fn a_property_that_a_promise_rests_on_is_refused() {
        let settings = KafkaSettings::new("localhost:1").property("enable.auto.commit", "true");
        let error = settings.client_config(&[], &[("enable.auto.commit", "false")]).unwrap_err();
        assert_eq!(error.kind(), FaultKind::Invalid);
        assert!(error.to_string().contains("enable.auto.commit"));
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
