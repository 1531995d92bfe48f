//! What a configuration gives up of the safety of connections: allowed, and never in silence.

use backstop_core::schema::Finding;
use url::Url;

use super::{
    BrokerConfig, Config, DatabaseConfig, HttpConfig, KafkaConfig, RabbitConfig, RetentionConfig, S3Config,
};
use crate::database::is_on_this_machine;

impl Config {
    /// A warning for each connection that is open to who sits in between, or to anybody.
    pub fn loosened(&self) -> Vec<Finding> {
        let databases = self.databases().into_iter().filter_map(database);
        let brokers = self.broker.iter().chain(self.brokers.values()).flat_map(|broker| match broker {
            BrokerConfig::Kafka(kafka) => self::kafka(kafka),
            BrokerConfig::RabbitMq(rabbit) => self::rabbitmq(rabbit).into_iter().collect(),
        });
        let archive = self.dead_letters.retention.as_ref().and_then(archive);
        databases.chain(brokers).chain(self.http.as_ref().and_then(http)).chain(archive).collect()
    }
}

fn database(config: &DatabaseConfig) -> Option<Finding> {
    let url = Url::parse(config.url.expose()).ok()?;
    if url.scheme() == "sqlite" || is_on_this_machine(&url) {
        return None;
    }
    // The last one counts, as for the drivers; without any, the relay asks for verification.
    let (_, mode) = url.query_pairs().filter(|(name, _)| matches!(&**name, "sslmode" | "ssl-mode")).last()?;
    let verified = ["verify-full", "verify_identity"].iter().any(|full| mode.eq_ignore_ascii_case(full));
    let detail = format!("{} is not asked to prove that it is the server", url.host_str().unwrap_or("it"));
    (!verified).then(|| {
        Finding::warning(
            "database TLS",
            detail,
            "leave sslmode or ssl-mode out of the URL, so that it is verified",
        )
    })
}

fn kafka(config: &KafkaConfig) -> Vec<Finding> {
    let is = |name: &str, values: &[&str]| {
        let set = config.properties.get(name).map(|value| value.expose().trim().to_ascii_lowercase());
        set.is_some_and(|set| values.contains(&set.as_str()))
    };
    let unproven = is("enable.ssl.certificate.verification", &["false", "f", "0"])
        || is("ssl.endpoint.identification.algorithm", &["none"]);
    let unproven = unproven.then(|| {
        let remedy = "remove enable.ssl.certificate.verification and ssl.endpoint.identification.algorithm";
        Finding::warning("broker TLS", "the brokers are not asked to prove that they are the brokers", remedy)
    });
    let bare = (config.allow_plaintext && config.settings().exposes_password())
        .then(|| bare("use \"security.protocol\" = \"SASL_SSL\""));
    unproven.into_iter().chain(bare).collect()
}

fn rabbitmq(config: &RabbitConfig) -> Option<Finding> {
    let is_open = |url: &Url| matches!(url.scheme(), "amqp" | "http") && !super::url_is_local(url);
    let mut urls = std::iter::once(&config.url).chain(&config.management);
    let is_open = urls.any(|url| Url::parse(url.expose()).is_ok_and(|url| is_open(&url)));
    is_open.then(|| bare("use an amqps:// URL, and https:// for the management API"))
}

fn bare(remedy: &str) -> Finding {
    Finding::warning("broker password", "it crosses the network without TLS", remedy)
}

fn http(config: &HttpConfig) -> Option<Finding> {
    let open = config.token.is_none() && !config.listen.ip().is_loopback();
    open.then(|| {
        Finding::warning("HTTP", "anybody who reaches the address may ask", "set token_file in [http]")
    })
}

fn archive(config: &RetentionConfig) -> Option<Finding> {
    let is_bare = config.s3.as_ref().is_some_and(S3Config::is_bare);
    is_bare.then(|| {
        Finding::warning("archive TLS", "letters cross the network without TLS", "use an https:// endpoint")
    })
}
