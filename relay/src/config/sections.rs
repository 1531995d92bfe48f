//! The sections of the configuration file, key by key, with their defaults and bounds.

use std::net::SocketAddr;
use std::time::Duration;

use backstop_core::identifier::Identifier;
use toml::de::DeTable;
use url::{Host, Url};

use super::document::{Located, Place, Reader, Section};
use super::{
    BrokerConfig, Config, DatabaseConfig, DeadLettersConfig, HttpConfig, KafkaConfig, OnUnsendable, Ordering,
    OutboxConfig, RabbitConfig, RouteConfig,
};
use crate::secret::{Secret, SecretUrl};

/// Longest prefix, so that the names of indexes stay within PostgreSQL's 63 bytes.
const MAX_PREFIX: usize = 32;
/// Shortest token of the HTTP server, so that nobody can guess it.
const MIN_TOKEN: usize = 16;
const DATABASE_URL: &str = "write postgres://user:password@host:5432/database, mysql://… or sqlite:/path/to/file.db; percent-encode @ : / ? # in a password";
const BROKER_URL: &str =
    "write amqp://user:password@host:5672/vhost or amqps://…; percent-encode @ : / ? # in a password";

/// The configuration, as far as it could be read; faults are with the reader.
pub(super) fn config(table: &DeTable<'_>, reader: &Reader<'_>) -> Option<Config> {
    let mut top = Section::top(table, reader);
    let section = top.section("database");
    if !section.is_there() && !top.has("database") {
        top.fault(
            Place::Line(1),
            "[database] is missing",
            "add [database] with url = \"postgres://…\" or \"sqlite:…\"",
        );
    }
    if section.is_there() && !section.has("url") && !section.has("url_file") {
        section.missing("url", DATABASE_URL);
    }
    let database = database(section, None);
    let broker = top.section("broker");
    let broker = if broker.is_there() { self::broker(broker).map(Some) } else { Some(None) };
    let brokers = brokers(&mut top);
    let routes = routes(&mut top, &brokers);
    let outbox = outboxes(&mut top, database.as_ref());
    let rabbit = matches!(broker, Some(Some(BrokerConfig::RabbitMq(_))));
    let http = top.section("http");
    let http = http.is_there().then(|| self::http(http));
    let dead_letters = dead_letters(top.section("dead_letters"), rabbit, database.as_ref());
    top.finish();
    let brokers = brokers.into_iter().map(|(name, broker)| Some((name.text, broker?))).collect::<Option<_>>();
    Some(Config {
        database: database?,
        broker: broker?,
        brokers: brokers?,
        routes,
        outbox,
        http,
        dead_letters,
    })
}

/// A database; what is not given is as in `parent`. Without an URL of either there is none, which was told already.
fn database(mut section: Section<'_>, parent: Option<&DatabaseConfig>) -> Option<DatabaseConfig> {
    let given = section.has("url") || section.has("url_file");
    let url = section.secret("url", "url_file").and_then(|url| database_url(&section, &url));
    let schema = section.text("schema").and_then(|name| identifier(&section, "schema", name));
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

type Named = (Located, Option<BrokerConfig>);

fn brokers(top: &mut Section<'_>) -> Vec<Named> {
    let sections = top.named("brokers");
    sections.into_iter().map(|(name, section)| (name, broker(section))).collect()
}

fn routes(top: &mut Section<'_>, brokers: &[Named]) -> Vec<RouteConfig> {
    let routes: Vec<_> =
        top.sections("routes").into_iter().filter_map(|section| route(section, brokers)).collect();
    for (name, _) in brokers {
        if !routes.iter().any(|route| route.broker == name.text) {
            let hint = format!("add [[routes]] with destination = \"…\" and broker = {:?}", name.text);
            top.fault(name.place.clone(), format!("no route leads to [brokers.{}]", name.text), hint);
        }
    }
    routes
}

fn route(mut section: Section<'_>, brokers: &[Named]) -> Option<RouteConfig> {
    let destination = section.text("destination");
    if !section.has("destination") {
        section.missing("destination", "name a topic, exchange or queue; each * stands for any text");
    }
    let broker = section.text("broker");
    if !section.has("broker") {
        section.missing("broker", "name one of [brokers]");
    }
    if let Some(broker) =
        broker.as_ref().filter(|broker| !brokers.iter().any(|(name, _)| name.text == broker.text))
    {
        let what = format!("{}: there is no [brokers.{}]", section.path("broker"), broker.text);
        section.fault(
            broker.place.clone(),
            what,
            "name one of [brokers]; without a route a message goes to [broker]",
        );
    }
    section.finish();
    Some(RouteConfig { destination: destination?.text, broker: broker?.text })
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
    }
    sound.then(|| SecretUrl::new(&url.text))
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

fn broker(mut section: Section<'_>) -> Option<BrokerConfig> {
    #[derive(Clone, Copy)]
    enum Kind {
        Kafka,
        RabbitMq,
    }
    if !section.has("kind") {
        section.missing("kind", "use kind = \"kafka\" or \"rabbitmq\"");
    }
    match section.choice("kind", &[("kafka", Kind::Kafka), ("rabbitmq", Kind::RabbitMq)])? {
        Kind::Kafka => kafka(section).map(BrokerConfig::Kafka),
        Kind::RabbitMq => rabbitmq(section).map(BrokerConfig::RabbitMq),
    }
}

fn kafka(mut section: Section<'_>) -> Option<KafkaConfig> {
    const HINT: &str = "use brokers = [\"host:9092\"]";
    let brokers = section.texts("brokers");
    if !section.has("brokers") {
        section.missing("brokers", HINT);
    }
    let place = brokers.first().map_or(section.place(), |broker| broker.place.clone());
    let hosts: Vec<String> =
        brokers.iter().flat_map(|list| list.text.split(',')).map(str::to_owned).collect();
    let sound = |host: &String| {
        !host.is_empty()
            && !host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == '@')
    };
    if section.has("brokers") && (hosts.is_empty() || !hosts.iter().all(sound)) {
        section.fault(place.clone(), "[broker] brokers must name hosts and ports", HINT);
    }
    let allow_plaintext = section.switch("allow_plaintext", false);
    let properties = section.properties("properties");
    let is = |name: &str, value: &str| {
        properties.iter().any(|(other, text)| other == name && text.text.eq_ignore_ascii_case(value))
    };
    let plain = is("security.protocol", "sasl_plaintext")
        && (is("sasl.mechanism", "plain") || is("sasl.mechanisms", "plain"));
    if plain && !allow_plaintext && !hosts.iter().all(|host| is_local(host_of(host))) {
        section.fault(
            place,
            "[broker] would send its password over the network without TLS",
            "use \"security.protocol\" = \"SASL_SSL\", or set allow_plaintext = true",
        );
    }
    let max_message_bytes = section.number("max_message_bytes", 1_000_000, 1_000..(128 << 20) + 1);
    section.finish();
    let properties = properties.into_iter().map(|(name, value)| (name, Secret::new(value.text))).collect();
    Some(KafkaConfig { brokers: hosts, properties, max_message_bytes, allow_plaintext })
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

fn rabbitmq(mut section: Section<'_>) -> Option<RabbitConfig> {
    let url = section.secret("url", "url_file");
    if !section.has("url") && !section.has("url_file") {
        section.missing("url", BROKER_URL);
    }
    let allow_plaintext = section.switch("allow_plaintext", false);
    let url = url.and_then(|url| rabbitmq_url(&section, &url, allow_plaintext));
    let ordering = section.choice("ordering", &[("per-key", Ordering::PerKey), ("none", Ordering::None)]);
    let channels = section.number("channels", 4, 1..65);
    let window = section.number("window", 1024, 1..65_536);
    section.finish();
    let ordering = ordering.unwrap_or(Ordering::PerKey);
    Some(RabbitConfig { url: url?, ordering, channels, window, allow_plaintext })
}

fn rabbitmq_url(section: &Section<'_>, located: &Located, allow_plaintext: bool) -> Option<SecretUrl> {
    let url = Url::parse(&located.text).ok();
    let Some(url) = url.filter(|url| matches!(url.scheme(), "amqp" | "amqps") && url.has_host()) else {
        section.fault(located.place.clone(), "[broker] url is no usable AMQP URL", BROKER_URL);
        return None;
    };
    if url.scheme() == "amqp" && !allow_plaintext && !url_is_local(&url) {
        section.fault(
            located.place.clone(),
            "[broker] would send its password over the network without TLS",
            "use an amqps:// URL, or set allow_plaintext = true",
        );
    }
    Some(SecretUrl::new(&located.text))
}

fn outboxes(top: &mut Section<'_>, database: Option<&DatabaseConfig>) -> Vec<OutboxConfig> {
    let sections = if top.has("outbox") { top.sections("outbox") } else { vec![top.section("outbox")] };
    let mut outboxes: Vec<OutboxConfig> = Vec::new();
    for section in sections {
        let place = section.place();
        let outbox = outbox(section, database);
        if outboxes.iter().any(|other| other.name == outbox.name) {
            let what = format!("[[outbox]] has the name {:?} twice", outbox.name);
            top.fault(place, what, "give each outbox a name of its own; it names the lease");
        }
        outboxes.push(outbox);
    }
    outboxes
}

fn outbox(mut section: Section<'_>, database: Option<&DatabaseConfig>) -> OutboxConfig {
    let choices =
        [("dead", OnUnsendable::Dead), ("block-key", OnUnsendable::BlockKey), ("stop", OnUnsendable::Stop)];
    let outbox = OutboxConfig {
        enabled: section.switch("enabled", true),
        name: lease_name(&mut section, "outbox"),
        lease_ttl: lease_ttl(&mut section),
        batch_rows: section.number("batch_rows", 2_000, 1..10_001),
        batch_bytes: section.number("batch_bytes", 8 << 20, 1024..(1 << 30) + 1),
        idle_poll: section.duration("idle_poll", millis(40), millis(1)..millis(60_000)),
        on_unsendable: section.choice("on_unsendable", &choices).unwrap_or(OnUnsendable::Dead),
        database: inner_database(section.section("database"), database),
    };
    section.finish();
    outbox
}

fn http(mut section: Section<'_>) -> HttpConfig {
    const HINT: &str = "write an address and a port, such as \"127.0.0.1:8642\" or \"[::]:8642\"";
    let usual = SocketAddr::from(([127, 0, 0, 1], 8642));
    let listen = section.text("listen");
    let place = listen.as_ref().map_or_else(|| section.place(), |listen| listen.place.clone());
    let listen = listen.map_or(usual, |text| {
        text.text.parse().unwrap_or_else(|_| {
            section.fault(place.clone(), format!("[http] listen: {} is no address", text.shown()), HINT);
            usual
        })
    });
    let token = section.secret("token", "token_file");
    if let Some(short) = token.as_ref().filter(|token| token.text.len() < MIN_TOKEN) {
        let what = format!("[http] token has less than {MIN_TOKEN} characters");
        section.fault(short.place.clone(), what, "make one with: openssl rand -base64 32");
    }
    let insecure = section.switch("insecure", false);
    if token.is_none() && !insecure && !listen.ip().is_loopback() && !section.has("token_file") {
        let what =
            format!("[http] listen = \"{listen}\" can be reached from other hosts, and there is no token");
        section.fault(place, what, "set token_file, or insecure = true where the network keeps others out");
    }
    let allowed_hosts = section.texts("allowed_hosts").into_iter().map(|host| host.text).collect();
    section.finish();
    HttpConfig { listen, token: token.map(|token| Secret::new(token.text)), allowed_hosts, insecure }
}

/// A database of a section's own; `None` where there is none, or it was told what is wrong.
fn inner_database(section: Section<'_>, parent: Option<&DatabaseConfig>) -> Option<DatabaseConfig> {
    if section.is_there() { database(section, parent) } else { None }
}

fn dead_letters(
    mut section: Section<'_>,
    rabbit: bool,
    database: Option<&DatabaseConfig>,
) -> DeadLettersConfig {
    let enabled = section.switch("enabled", false);
    let name = lease_name(&mut section, "dead-letters");
    let lease_ttl = lease_ttl(&mut section);
    let sources = section.texts("sources");
    if enabled && sources.is_empty() && !section.has("sources") {
        section.missing("sources", "use sources = [\"orders.stock.dlq\"], or enabled = false");
    }
    for source in &sources {
        source_name(&section, source, rabbit);
    }
    let ledger = inner_database(section.section("ledger"), database);
    section.finish();
    let sources = sources.into_iter().map(|source| source.text).collect();
    DeadLettersConfig { enabled, name, sources, lease_ttl, ledger }
}

fn source_name(section: &Section<'_>, source: &Located, rabbit: bool) {
    let path = section.path("sources");
    let fault = |what: &str, hint: &str| {
        section.fault(source.place.clone(), format!("{path}: {} {what}", source.shown()), hint);
    };
    if source.text.is_empty() || source.text.len() > 255 || source.text.contains(char::is_control) {
        fault("is no name of a topic or queue", "name a topic or queue, such as \"orders.stock.dlq\"");
    } else if rabbit && source.text.starts_with('^') {
        fault("is a pattern, and RabbitMQ cannot list queues over AMQP", "name each queue");
    } else if source.text.starts_with("__") || source.text.starts_with("amq.") {
        fault("belongs to the broker itself", "name a topic or queue with dead letters");
    }
}

fn lease_name(section: &mut Section<'_>, default: &str) -> String {
    let Some(name) = section.text("name") else { return default.to_owned() };
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.text.is_empty() || name.text.len() > 64 || !name.text.bytes().all(sound) {
        let what = format!("{}: {} is no usable name", section.path("name"), name.shown());
        section.fault(name.place.clone(), what, "use letters, digits, '-', '_' and '.', at most 64 in all");
    }
    name.text
}

fn lease_ttl(section: &mut Section<'_>) -> Duration {
    section.duration("lease_ttl", millis(10_000), millis(1_000)..millis(600_000))
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
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

fn is_local(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || host.starts_with('/')
        || host.to_ascii_lowercase().starts_with("%2f")
        || address.is_ok_and(|address| address.is_loopback())
}
