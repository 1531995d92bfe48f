//! The sections of the configuration file, key by key, with their defaults and bounds.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use regex::Regex;
use toml::de::DeTable;
use url::{Host, Url};

use super::archive::{archive, s3};
use super::databases::{DATABASE_URL, database, inner_database, url_is_local};
use super::document::{Located, Place, Reader, Section};
use super::encryption::encryption;
use super::layout::layout;
use super::notify::notify;
use super::rules::rules;
use super::{
    BrokerConfig, Config, DatabaseConfig, DeadLettersConfig, HttpConfig, KafkaConfig, OnUnsendable, Ordering,
    OutboxConfig, RabbitConfig, RedactConfig, RedriveConfig, RetentionConfig, RouteConfig,
};
use crate::broker::is_pattern;
use crate::secret::{Secret, SecretUrl};

/// Shortest token of the HTTP server, so that nobody can guess it.
const MIN_TOKEN: usize = 16;
/// What stands for letters that are kept for ever.
pub(super) const NEVER: &str = "never";
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
    let rabbit = match &broker {
        Some(Some(BrokerConfig::RabbitMq(rabbit))) => Some(rabbit.management.is_some()),
        _ => None,
    };
    let http = top.section("http");
    let http = http.is_there().then(|| self::http(http));
    let letters = top.section("dead_letters");
    let place_of_letters = letters.place();
    let dead_letters = dead_letters(letters, rabbit, database.as_ref());
    if dead_letters.enabled {
        let name = &dead_letters.name;
        if let Some(other) = shares_lease(&outbox, name, database.as_ref(), dead_letters.ledger.as_ref()) {
            let what = format!("[dead_letters] name {name:?} takes the lease of [outbox] {other:?}");
            top.fault(place_of_letters, what, "give one of them another name: it names the lease");
        }
    }
    let notify = notify(&mut top);
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
        notify,
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
    let max_message_bytes = section.number("max_message_bytes", 1_000_000, 1_000..(128 << 20) + 1);
    let properties = properties.into_iter().map(|(name, value)| (name, Secret::new(value.text))).collect();
    let config = KafkaConfig { brokers: hosts, properties, max_message_bytes, allow_plaintext };
    if !allow_plaintext && config.settings().exposes_password() {
        section.fault(
            place,
            "[broker] would send its password over the network without TLS",
            "use \"security.protocol\" = \"SASL_SSL\", or set allow_plaintext = true",
        );
    }
    section.finish();
    Some(config)
}

fn rabbitmq(mut section: Section<'_>) -> Option<RabbitConfig> {
    let url = section.secret("url", "url_file");
    if !section.has("url") && !section.has("url_file") {
        section.missing("url", BROKER_URL);
    }
    let allow_plaintext = section.switch("allow_plaintext", false);
    let url = url.and_then(|url| rabbitmq_url(&section, &url, allow_plaintext));
    let management = section.secret("management", "management_file");
    let management = management.and_then(|url| management_url(&section, &url, allow_plaintext));
    let ordering = section.choice("ordering", &[("per-key", Ordering::PerKey), ("none", Ordering::None)]);
    let channels = section.number("channels", 4, 1..65);
    let window = section.number("window", 1024, 1..65_536);
    section.finish();
    let ordering = ordering.unwrap_or(Ordering::PerKey);
    Some(RabbitConfig { url: url?, management, ordering, channels, window, allow_plaintext })
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

fn management_url(section: &Section<'_>, located: &Located, allow_plaintext: bool) -> Option<SecretUrl> {
    let url = Url::parse(&located.text).ok();
    let Some(url) = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) else {
        section.fault(
            located.place.clone(),
            "[broker] management is no usable HTTP URL",
            "write http://user:password@host:15672 or https://…; percent-encode @ : / ? # in a password",
        );
        return None;
    };
    if url.scheme() == "http" && !allow_plaintext && !url_is_local(&url) {
        section.fault(
            located.place.clone(),
            "[broker] management would send its password over the network without TLS",
            "use an https:// URL, or set allow_plaintext = true",
        );
    }
    Some(SecretUrl::new(&located.text))
}

fn outboxes(top: &mut Section<'_>, database: Option<&DatabaseConfig>) -> Vec<OutboxConfig> {
    let sections = if top.has("outbox") { top.sections("outbox") } else { vec![top.section("outbox")] };
    let (mut names, mut tables) = (BTreeSet::new(), BTreeSet::new());
    let mut outboxes: Vec<OutboxConfig> = Vec::new();
    for section in sections {
        let place = section.place();
        let outbox = outbox(section, database);
        if !names.insert(outbox.name.clone()) {
            let what = format!("[[outbox]] has the name {:?} twice", outbox.name);
            top.fault(place, what, "give each outbox a name of its own; it names the lease");
        } else if outbox.enabled && table(&outbox, database).is_some_and(|table| !tables.insert(table)) {
            let what = format!("[[outbox]] {:?} reads a table that another one reads", outbox.name);
            top.fault(
                place,
                what,
                "two owners would break the order of its rows: give it a prefix or table of its own",
            );
        }
        outboxes.push(outbox);
    }
    outboxes
}

/// The outbox whose lease has the name of the dead letters' own, or of what belongs to them: one would wait for the other
/// for ever.
fn shares_lease<'a>(
    outboxes: &'a [OutboxConfig],
    letters: &str,
    database: Option<&DatabaseConfig>,
    ledger: Option<&DatabaseConfig>,
) -> Option<&'a str> {
    let is_theirs =
        |name: &str| name.strip_prefix(letters).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let leases = |database: Option<&DatabaseConfig>| {
        database.map(|it| (it.url.expose().to_owned(), it.schema.clone(), it.prefix.clone()))
    };
    let mut sharing = outboxes.iter().filter(|outbox| {
        outbox.enabled
            && is_theirs(&outbox.name)
            && leases(outbox.database.as_ref().or(database)) == leases(ledger.or(database))
    });
    sharing.next().map(|outbox| outbox.name.as_str())
}

/// What tells the table of an outbox from that of another.
fn table(outbox: &OutboxConfig, database: Option<&DatabaseConfig>) -> Option<[String; 4]> {
    let database = outbox.database.as_ref().or(database)?;
    let (schema, url) = (database.schema.clone().unwrap_or_default(), database.url.expose().to_owned());
    Some(match &outbox.debezium {
        Some(names) => [url, schema, String::new(), names.table.clone()],
        None => [url, schema, database.prefix.clone(), String::new()],
    })
}

fn outbox(mut section: Section<'_>, database: Option<&DatabaseConfig>) -> OutboxConfig {
    let choices =
        [("dead", OnUnsendable::Dead), ("block-key", OnUnsendable::BlockKey), ("stop", OnUnsendable::Stop)];
    let own = inner_database(section.section("database"), database);
    let (layout, debezium) = layout(&mut section, own.as_ref().or(database));
    let outbox = OutboxConfig {
        enabled: section.switch("enabled", true),
        name: lease_name(&mut section, "outbox"),
        lease_ttl: lease_ttl(&mut section),
        batch_rows: section.number("batch_rows", 2_500, 1..10_001),
        batch_bytes: section.number("batch_bytes", 8 << 20, 1024..(1 << 30) + 1),
        unsettled_rows: section.number("unsettled_rows", 4_000, 1..1_000_001),
        idle_poll: section.duration("idle_poll", millis(44), millis(1)..millis(60_000)),
        on_unsendable: section.choice("on_unsendable", &choices).unwrap_or(OnUnsendable::Dead),
        layout,
        debezium,
        database: own,
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
    let viewer_token = section.secret("viewer_token", "viewer_token_file");
    tokens(&section, token.as_ref(), viewer_token.as_ref());
    let insecure = section.switch("insecure", false);
    if token.is_none() && !insecure && !listen.ip().is_loopback() && !section.has("token_file") {
        let what =
            format!("[http] listen = \"{listen}\" can be reached from other hosts, and there is no token");
        section.fault(place, what, "set token_file, or insecure = true where the network keeps others out");
    }
    let allowed_hosts = section.texts("allowed_hosts");
    for host in allowed_hosts.iter().filter(|host| !is_host(&host.text)) {
        let what = format!("[http] allowed_hosts: {} is no host", host.shown());
        section.fault(
            host.place.clone(),
            what,
            "name a host without scheme and port, such as \"relay.internal\"",
        );
    }
    let allowed_hosts = allowed_hosts.into_iter().map(|host| host.text).collect();
    section.finish();
    let secret = |token: Option<Located>| token.map(|token| Secret::new(token.text));
    HttpConfig { listen, token: secret(token), viewer_token: secret(viewer_token), allowed_hosts, insecure }
}

fn tokens(section: &Section<'_>, token: Option<&Located>, viewer: Option<&Located>) {
    const HINT: &str = "make one with: openssl rand -base64 32";
    for (name, token) in [("token", token), ("viewer_token", viewer)] {
        if let Some((token, what)) = token.and_then(|token| Some((token, unfit(name, &token.text)?))) {
            section.fault(token.place.clone(), what, HINT);
        }
    }
    if let Some(viewer) = viewer {
        if token.is_none() && !section.has("token_file") {
            let what = "[http] viewer_token without a token: nobody could operate";
            section.fault(viewer.place.clone(), what, "set token_file, too");
        } else if token.is_some_and(|token| token.text == viewer.text) {
            section.fault(viewer.place.clone(), "[http] viewer_token is the same as token", HINT);
        }
    }
}

/// Why nobody could call with this token, or anybody guess it.
fn unfit(name: &str, token: &str) -> Option<String> {
    if token.len() < MIN_TOKEN {
        return Some(format!("[http] {name} has less than {MIN_TOKEN} characters"));
    }
    // White space at its ends would be cut off from a header, and other bytes have no place in one.
    let fits = token.bytes().all(|byte| byte.is_ascii_graphic());
    (!fits).then(|| format!("[http] {name} holds white space or characters that are not ASCII"))
}

/// Whether a header can name this host.
fn is_host(host: &str) -> bool {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let is_name = !host.is_empty() && host.bytes().all(in_name);
    is_name || matches!(Host::parse(host), Ok(Host::Ipv6(_)))
}

fn dead_letters(
    mut section: Section<'_>,
    rabbit: Option<bool>,
    database: Option<&DatabaseConfig>,
) -> DeadLettersConfig {
    let enabled = section.switch("enabled", false);
    let name = lease_name(&mut section, "dead-letters");
    let lease_ttl = lease_ttl(&mut section);
    let sources = section.texts("sources");
    if enabled && sources.is_empty() && !section.has("sources") {
        section.missing("sources", "use sources = [\"orders.stock.dlq\"], or enabled = false");
    }
    let receipts = section.texts("receipts");
    for (key, places) in [("sources", &sources), ("receipts", &receipts)] {
        for place in places {
            source_name(&section, key, place);
            if key == "sources" && is_pattern(&place.text) {
                pattern(&section, key, place, rabbit);
            }
        }
    }
    for both in receipts.iter().filter(|place| sources.iter().any(|source| source.text == place.text)) {
        let what = format!("{}: {} is among sources, too", section.path("receipts"), both.shown());
        section.fault(
            both.place.clone(),
            what,
            "let consumers publish receipts to a destination of their own",
        );
    }
    let edit = section.switch("edit", false);
    let redrive = redrive(section.section("redrive"));
    let rules = rules(&mut section);
    let redact = section.sections("redact").into_iter().filter_map(redact).collect();
    let encryption = section.section("encryption");
    let encryption = if encryption.is_there() { self::encryption(encryption) } else { None };
    let retention = section.section("retention");
    let retention = retention.is_there().then(|| self::retention(retention));
    let ledger = inner_database(section.section("ledger"), database);
    section.finish();
    let texts = |places: Vec<Located>| places.into_iter().map(|place| place.text).collect();
    let (sources, receipts) = (texts(sources), texts(receipts));
    DeadLettersConfig {
        enabled,
        name,
        sources,
        receipts,
        lease_ttl,
        edit,
        redrive,
        rules,
        redact,
        encryption,
        retention,
        ledger,
    }
}

fn redrive(mut section: Section<'_>) -> RedriveConfig {
    let day = 86_400_000;
    let targets = section.texts("targets");
    for target in &targets {
        source_name(&section, "targets", target);
    }
    let retention = section.duration("inbox_retention", Duration::ZERO, millis(1_000)..millis(3_660 * day));
    let redrive = RedriveConfig {
        targets: targets.into_iter().map(|target| target.text).collect(),
        inbox_retention: Some(retention).filter(|retention| !retention.is_zero()),
        max_generation: u32::try_from(section.number("max_generation", 5, 1..1_000_001)).unwrap_or(u32::MAX),
        silent_after: section.duration("silent_after", millis(900_000), millis(1_000)..millis(30 * day)),
    };
    section.finish();
    redrive
}

fn redact(mut section: Section<'_>) -> Option<RedactConfig> {
    // Neither pointers nor patterns are the environment's: ${…} may be a part of them.
    let (pointer, pattern) = (section.literal("pointer"), section.literal("pattern"));
    let header = section.text("header").map(|header| header.text);
    let replace = section.text("replace").map_or_else(|| "[redacted]".to_owned(), |text| text.text);
    let fault = |key: &str, at: &Located, what: &str, hint: &str| {
        section.fault(at.place.clone(), format!("{}: {} {what}", section.path(key), at.shown()), hint);
    };
    if let Some(pointer) = pointer.as_ref().filter(|pointer| !pointer.text.starts_with('/')) {
        fault("pointer", pointer, "is no JSON pointer", "begin it with a slash, such as \"/customer/card\"");
    }
    if let Some(pattern) = pattern.as_ref().filter(|pattern| !is_pattern_of_bytes(&pattern.text)) {
        fault(
            "pattern",
            pattern,
            "is no regular expression",
            "write one that matches text, such as \"[0-9]{13,19}\"",
        );
    }
    let (pointer, pattern) = (pointer.map(|it| it.text), pattern.map(|it| it.text));
    let given = [&pointer, &header, &pattern].into_iter().flatten().count();
    if given != 1 {
        let what = format!("[[dead_letters.redact]] names {given} of pointer, header and pattern");
        section.fault(section.place(), what, "name one of them; write a section for each");
    }
    section.finish();
    (given == 1).then_some(RedactConfig { pointer, header, pattern, replace })
}

/// Whether it is a regular expression that matches something: an empty match would be replaced everywhere.
fn is_pattern_of_bytes(text: &str) -> bool {
    regex::bytes::Regex::new(text).is_ok_and(|regex| !regex.is_match(b""))
}

fn retention(mut section: Section<'_>) -> RetentionConfig {
    let quarter = Some(millis(90 * 86_400_000));
    let archive = archive(&mut section);
    let s3 = s3(section.section("s3"), archive.as_ref(), section.has("archive"));
    let retention = RetentionConfig {
        resolved: kept(&mut section, "resolved", quarter),
        discarded: kept(&mut section, "discarded", quarter),
        superseded: kept(&mut section, "superseded", quarter),
        open: kept(&mut section, "open", None),
        archive,
        s3,
        without_archive: section.switch("without_archive", false),
    };
    if section.has("archive") == retention.without_archive {
        let path = section.path("archive");
        let what = if retention.without_archive {
            format!("{path} and without_archive are both set")
        } else {
            format!("{path} is missing: letters would be deleted and kept nowhere")
        };
        section.fault(section.place(), what, "name a folder or a bucket, or set without_archive = true");
    }
    section.finish();
    retention
}

/// How long letters are kept; `None` stands for ever.
fn kept(section: &mut Section<'_>, key: &'static str, default: Option<Duration>) -> Option<Duration> {
    let day = 86_400_000;
    if section.says(key, NEVER) {
        return None;
    }
    let kept = section.duration(key, Duration::ZERO, millis(1_000)..millis(36_600 * day));
    if kept.is_zero() { default } else { Some(kept) }
}

/// `rabbit` says of RabbitMQ whether it has a management API.
fn pattern(section: &Section<'_>, key: &'static str, source: &Located, rabbit: Option<bool>) {
    let path = section.path(key);
    let fault = |what: &str, hint: &str| {
        section.fault(source.place.clone(), format!("{path}: {} {what}", source.shown()), hint);
    };
    match rabbit {
        None => {}
        Some(false) => fault(
            "is a pattern, and RabbitMQ cannot list queues over AMQP",
            "set management in [broker] to the URL of the management API, or name each queue",
        ),
        Some(true) if Regex::new(&source.text).is_err() => {
            fault("is no regular expression", "write one such as \"^.*\\\\.dlq$\"");
        }
        Some(true) => {}
    }
}

fn source_name(section: &Section<'_>, key: &'static str, source: &Located) {
    let path = section.path(key);
    let fault = |what: &str, hint: &str| {
        section.fault(source.place.clone(), format!("{path}: {} {what}", source.shown()), hint);
    };
    if source.text.is_empty() || source.text.len() > 255 || source.text.contains(char::is_control) {
        fault("is no name of a topic or queue", "name a topic or queue, such as \"orders.stock.dlq\"");
    } else if key != "sources" && is_pattern(&source.text) {
        fault("is a pattern", "name each topic or queue");
    } else if source.text.starts_with("__") || source.text.starts_with("amq.") {
        fault("belongs to the broker itself", "name a topic or queue of yours");
    }
}

pub(super) fn lease_name(section: &mut Section<'_>, default: &str) -> String {
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
