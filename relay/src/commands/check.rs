//! `check`

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use backstop_core::lease::Holder;
use backstop_core::ledger::{Ledger, LetterFilter};
use backstop_core::outbox::{OutboxRow, OutboxStatus, OutboxStore};
use backstop_core::report::escaped;
use backstop_core::report_in::{self, ConsumerState};
use backstop_core::schema::{Finding, Severity};
use backstop_core::sink::{Publisher, Scope, Traffic};
use backstop_core::{AdapterError, ConsumerReport, Destination};
use chrono::Utc;
use serde_json::{Value, json};

use crate::archive::Place;
use crate::broker;
use crate::commands::Context;
use crate::commands::outbox::{in_words, time};
use crate::commands::rules;
use crate::config::{Config, DatabaseConfig, NotifyConfig, OutboxConfig};
use crate::database::Database;
use crate::encryption::Keyring;
use crate::exit::{Exit, Failure, with_cause};
use crate::notify::send::Sender;
use crate::output::{self, counted};
use crate::rules::lease_name;

/// Pending rows whose destinations are looked at.
const SAMPLE_ROWS: usize = 1_000;
const SAMPLE_BYTES: usize = 8 << 20;
/// The oldest letters, whose bodies are looked at for the keys that they need.
const OLDEST: u32 = 50;
/// The age of the oldest pending row above which something is amiss.
const OLD: Duration = Duration::from_secs(60);
/// How long a broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn run(context: &Context, notify: bool) -> Result<Exit, Failure> {
    let config = &context.config;
    let mut findings = config.loosened();
    let mut opened = Vec::new();
    for wanted in config.databases() {
        if let Some(database) = database(&mut findings, &title(config, wanted), wanted).await {
            opened.push((wanted, database));
        }
    }
    let usable = |wanted: &DatabaseConfig| {
        opened.iter().find(|(config, _)| *config == wanted).map(|(_, database)| database)
    };
    let mut waiting = BTreeMap::new();
    for outbox in config.outbox.iter().filter(|outbox| outbox.enabled) {
        if let Some(database) = usable(config.database_of(outbox)) {
            if let Some(store) = outbox_store(&mut findings, database, outbox).await {
                waiting.extend(look_at_outbox(&mut findings, &outbox.name, &*store).await);
            }
            lease(&mut findings, database, &outbox.name).await;
        }
    }
    look_at_letters(&mut findings, config, &context.keys(), usable(config.ledger())).await;
    findings.extend(look_at_archive(config).await);
    look_at_brokers(&mut findings, config, waiting).await;
    look_for_queues(&mut findings, config).await;
    if notify {
        for target in &config.notify {
            findings.push(look_at_target(target).await);
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    print(context, &findings)?;
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

/// The ledger, consumers that report in, keys, rules, and who attends to them.
async fn look_at_letters(
    findings: &mut Vec<Finding>,
    config: &Config,
    keys: &Keyring,
    database: Option<&Database>,
) {
    let letters = &config.dead_letters;
    let ledger = match database.filter(|_| letters.enabled).map(Database::ledger) {
        Some(Ok(ledger)) => Some(ledger),
        Some(Err(error)) => {
            findings.push(failed("ledger", &error));
            None
        }
        None => None,
    };
    if let Some(ledger) = ledger.as_ref().filter(|_| !letters.receipts.is_empty()) {
        consumers(findings, &**ledger).await;
    }
    if let Some(ledger) = &ledger {
        findings.extend(encryption(&**ledger, keys).await);
    }
    findings.extend(rules::findings(config, ledger.as_deref()).await);
    if let Some(database) = database.filter(|_| letters.enabled) {
        lease(findings, database, &letters.name).await;
        if !letters.rules.is_empty() {
            lease(findings, database, &lease_name(letters)).await;
        }
    }
}

/// Whether archives can be written where the configuration wants them; nothing without retention.
async fn look_at_archive(config: &Config) -> Option<Finding> {
    let subject = "archive";
    let letters = Some(&config.dead_letters).filter(|letters| letters.enabled)?;
    let place = match Place::of(letters.retention.as_ref()?) {
        Ok(place) => place?,
        Err(failure) => return Some(refused(subject, &failure)),
    };
    Some(place.probe(PATIENCE).await.unwrap_or_else(|failure| refused(subject, &failure)))
}

fn refused(subject: &str, failure: &Failure) -> Finding {
    let remedy = failure.complaints().first().and_then(|complaint| complaint.hint.clone());
    Finding::error(subject, failure.to_string(), remedy.unwrap_or_default())
}

/// Whether anybody answers at the address of somebody who is told.
async fn look_at_target(target: &NotifyConfig) -> Finding {
    let subject = format!("notify {}", target.name);
    let answer = match Sender::new(target) {
        Ok(sender) => sender.probe().await,
        Err(error) => Err(with_cause(&error)),
    };
    match answer {
        Ok(300..400) => {
            let remedy = "write the address that it leads to";
            Finding::error(subject, "it answers with a redirect, which is not followed", remedy)
        }
        // Many answer HEAD with an error and take a POST all the same.
        Ok(status) => Finding::fine(subject, format!("somebody answers, with status {status}")),
        Err(why) => Finding::error(subject, why, "check url, and the way to it"),
    }
}

/// What findings call a database of this configuration.
fn title(config: &Config, database: &DatabaseConfig) -> String {
    let outbox = config.outbox.iter().find(|outbox| config.database_of(outbox) == database);
    match outbox {
        _ if *database == config.database => "database".to_owned(),
        Some(outbox) => format!("database of outbox {}", outbox.name),
        None => "ledger database".to_owned(),
    }
}

/// Connects and looks at the tables; `None` when the rest of this database need not be asked.
async fn database(findings: &mut Vec<Finding>, subject: &str, config: &DatabaseConfig) -> Option<Database> {
    let database = match Database::open(config).await {
        Ok(database) => database,
        Err(error) => {
            findings.push(failed(subject, &error));
            return None;
        }
    };
    match database.schema.check().await {
        Ok(found) => {
            let usable = found.iter().all(|finding| finding.severity != Severity::Error);
            findings.extend(found);
            usable.then_some(database)
        }
        Err(error) => {
            findings.push(failed(subject, &error));
            None
        }
    }
}

/// The outbox, and what is to be said of a table that is not ours; `None` when it cannot be used.
async fn outbox_store(
    findings: &mut Vec<Finding>,
    database: &Database,
    outbox: &OutboxConfig,
) -> Option<Arc<dyn OutboxStore>> {
    let layout = match database.layout_of(outbox) {
        Ok(Some(layout)) => layout.check().await,
        Ok(None) => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let found = layout.unwrap_or_else(|error| vec![failed(&outbox.name, &error)]);
    let usable = found.iter().all(|finding| finding.severity != Severity::Error);
    findings.extend(found);
    if !usable {
        return None;
    }
    let store = database.outbox_of(outbox).await;
    store.map_err(|error| findings.push(failed(&outbox.name, &error))).ok()
}

/// What waits in the outbox and what can never be sent; the destinations of what waits, with the size of the largest
/// row for each.
async fn look_at_outbox(findings: &mut Vec<Finding>, name: &str, outbox: &dyn OutboxStore) -> Waiting {
    let subject = &if name == "outbox" { name.to_owned() } else { format!("outbox {name}") };
    match outbox.status().await {
        Err(error) => findings.push(failed(subject, &error)),
        Ok(status) => {
            let oldest = status.oldest.unwrap_or_default();
            let detail = match status.pending {
                0 => "no rows wait".to_owned(),
                1 => format!("1 row waits, for {}", in_words(oldest)),
                rows => format!("{rows} rows wait, the oldest for {}", in_words(oldest)),
            };
            findings.push(if oldest > OLD {
                Finding::warning(subject, detail, "look at the log of `backstop-relay run`, or start it")
            } else {
                Finding::fine(subject, detail)
            });
            findings.extend(scheduled(name, &status));
            if status.dead > 0 {
                let detail = format!("{} can never be sent", counted(status.dead, "row"));
                findings.push(Finding::warning("dead rows", detail, "see `backstop-relay outbox dead list`"));
            }
        }
    }
    match outbox.reader().read(SAMPLE_ROWS, SAMPLE_BYTES).await {
        Ok(claimed) => largest(claimed.rows),
        Err(error) => {
            findings.push(failed(subject, &error));
            Waiting::new()
        }
    }
}

/// Destinations, each with the size of the largest row that waits for it.
type Waiting = BTreeMap<Destination, usize>;

fn largest(rows: Vec<OutboxRow>) -> Waiting {
    let mut waiting = Waiting::new();
    for row in rows {
        let bytes = row.size();
        let most = waiting.entry(row.destination).or_default();
        *most = (*most).max(bytes);
    }
    waiting
}

/// Rows whose time has not come, or has come and nobody moved them.
fn scheduled(name: &str, status: &OutboxStatus) -> Option<Finding> {
    let due = status.next_due?;
    let subject =
        if name == "outbox" { "scheduled rows".to_owned() } else { format!("scheduled rows of {name}") };
    let detail = format!("{}, the first is due at {}", status.scheduled, time(due));
    let late = (Utc::now() - due).to_std().is_ok_and(|late| late > OLD);
    Some(if late {
        Finding::warning(subject, detail, "look at the log of `backstop-relay run`, or start it")
    } else {
        Finding::fine(subject, detail)
    })
}

/// Whether a relay holds the lease.
async fn lease(findings: &mut Vec<Finding>, database: &Database, name: &str) {
    let subject = format!("lease {name}");
    findings.push(match database.outbox.holder(name).await {
        Ok(Some(Holder { lease, remaining, .. })) => {
            let detail =
                format!("relay {} holds it, for {} unless renewed", lease.owner, in_words(remaining));
            Finding::fine(subject, detail)
        }
        Ok(None) => Finding::warning(subject, "no relay holds it", "start `backstop-relay run`"),
        Err(error) => failed(&subject, &error),
    });
}

/// Sources of the collector that are names, not patterns, and where receipts are; none when it is off.
fn named_sources(config: &Config) -> impl Iterator<Item = Destination> {
    let letters = config.dead_letters.enabled.then_some(&config.dead_letters);
    let places = letters.into_iter().flat_map(|letters| letters.sources.iter().chain(&letters.receipts));
    places.filter(|place| !broker::is_pattern(place)).map(Destination::new)
}

/// Queues of RabbitMQ that the patterns of the sources match now.
async fn look_for_queues(findings: &mut Vec<Finding>, config: &Config) {
    let subject = "dead-letter queues";
    let letters = Some(&config.dead_letters).filter(|letters| letters.enabled);
    let (Some(letters), Some(broker)) = (letters, &config.broker) else { return };
    let queues = match broker::matching_queues(broker, letters) {
        Ok(Some(queues)) => queues.names().await,
        Ok(None) => return,
        Err(error) => Err(error),
    };
    findings.push(match queues {
        Err(error) => failed(subject, &error),
        Ok(names) if names.is_empty() => Finding::warning(
            subject,
            "none matches the patterns",
            "check the patterns of [dead_letters] sources; queues that are made later are found by themselves",
        ),
        Ok(names) => {
            Finding::fine(subject, format!("{} by pattern: {}", counted(names.len() as u64, "queue"), some(&names)))
        }
    });
}

/// The first few names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| escaped(name)).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// Whether an instance has reported lately.
fn is_there(report: &ConsumerReport) -> bool {
    (Utc::now() - report.at).to_std().is_ok_and(|age| age <= 3 * report_in::EVERY)
}

/// Consumers that report in: none, where receipts are configured, is a consumer that was not told where to.
async fn consumers(findings: &mut Vec<Finding>, ledger: &dyn Ledger) {
    let subject = "consumers";
    let reports = match ledger.consumers().await {
        Ok(reports) => reports,
        Err(error) => return findings.push(failed(subject, &error)),
    };
    let heard: BTreeSet<&str> = reports.iter().map(|report| report.consumer.as_str()).collect();
    // One that was killed says no goodbye; that matters where no other has taken its place.
    let there = reports.iter().filter(|report| is_there(report) || report.state == ConsumerState::Stopped);
    let there: BTreeSet<&str> = there.map(|report| report.consumer.as_str()).collect();
    let lost: Vec<&str> = heard.difference(&there).copied().collect();
    findings.push(if heard.is_empty() {
        let remedy =
            "give consumers `.receipts(…)` with this destination; those that cannot report stay unknown";
        Finding::warning(subject, "none has reported in", remedy)
    } else if lost.is_empty() {
        Finding::fine(subject, format!("{} reported in", counted(heard.len() as u64, "consumer")))
    } else {
        let detail = format!("silent, without a goodbye: {}", lost.join(", "));
        Finding::warning(subject, detail, "look whether they run, and whether they reach the broker")
    });
}

/// With which key bodies are encrypted, and whether those of the oldest letters can be had.
async fn encryption(ledger: &dyn Ledger, keys: &Keyring) -> Option<Finding> {
    let subject = "encryption";
    let letters = match ledger.list(&LetterFilter::default(), None, OLDEST).await {
        Ok(letters) => letters,
        Err(error) => return Some(failed(subject, &error)),
    };
    let locked: Vec<_> = letters.iter().filter_map(|letter| keys.locked(letter)).collect();
    match (locked.first(), keys.newest()) {
        (Some(first), _) => {
            let (many, oldest) = (locked.len(), counted(letters.len() as u64, "letter"));
            let detail = format!("{many} of the oldest {oldest} cannot be opened, the first because {first}");
            Some(Finding::warning(subject, detail, first.hint()))
        }
        (None, Some(key)) => {
            Some(Finding::fine(subject, format!("bodies of new letters are encrypted with key {key}")))
        }
        (None, None) => None,
    }
}

/// The brokers of outboxes and the one of dead letters, which are mostly the same.
async fn look_at_brokers(findings: &mut Vec<Finding>, config: &Config, waiting: Waiting) {
    let letters = named_sources(config).collect();
    let mut traffic = Traffic { largest: waiting.into_iter().collect(), ..Traffic::default() };
    if config.brokers.is_empty() {
        traffic.letters = letters;
    } else if let Some(broker) = config.broker.as_ref().filter(|_| config.dead_letters.enabled) {
        let publisher = broker::publisher(broker).map(Some);
        let traffic = Traffic { letters, ..Traffic::default() };
        look_at_broker(findings, "broker of dead letters", publisher, traffic).await;
    }
    look_at_broker(findings, "broker", broker::pipeline(config), traffic).await;
}

async fn look_at_broker(
    findings: &mut Vec<Finding>,
    subject: &str,
    publisher: Result<Option<Box<dyn Publisher>>, AdapterError>,
    traffic: Traffic,
) {
    let publisher = match publisher {
        Ok(Some(publisher)) => publisher,
        Ok(None) => {
            findings.push(Finding::error(subject, "not configured", "add [broker] to the configuration"));
            return;
        }
        Err(error) => return findings.push(failed(subject, &error)),
    };
    let waiting = traffic.largest.iter().map(|(destination, _)| destination);
    let destinations: BTreeSet<_> = waiting.chain(&traffic.letters).cloned().collect();
    let destinations: Vec<_> = destinations.into_iter().collect();
    let Ok(faults) = tokio::time::timeout(PATIENCE, publisher.probe(&destinations)).await else {
        let detail = format!("no answer within {} s", PATIENCE.as_secs());
        return findings.push(Finding::error(subject, detail, "check address, port and firewall"));
    };
    if faults.is_empty() {
        let detail = match destinations.len() {
            0 => "answers".to_owned(),
            1 => "answers; 1 destination is there".to_owned(),
            count => format!("answers; {count} destinations are there"),
        };
        findings.push(Finding::fine(subject, detail));
    }
    let unreachable = faults.iter().any(|fault| fault.scope() == Scope::Broker);
    findings.extend(faults.iter().map(|fault| failed(subject, fault.error())));
    if !unreachable && let Ok(found) = tokio::time::timeout(PATIENCE, publisher.inspect(&traffic)).await {
        findings.extend(found);
    }
}

fn failed(subject: &str, error: &backstop_core::AdapterError) -> Finding {
    let remedy = error.hint().map(str::to_owned);
    Finding { severity: Severity::Error, subject: subject.to_owned(), detail: with_cause(error), remedy }
}

fn print(context: &Context, findings: &[Finding]) -> Result<(), Failure> {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count() as u64;
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let scrub = |text: &str| context.scrubber.scrub(text);
    if context.is_json() {
        let document = |finding: &Finding| {
            json!({
                "severity": word(finding.severity),
                "subject": finding.subject,
                "detail": scrub(&finding.detail),
                "remedy": finding.remedy,
            })
        };
        let findings: Vec<Value> = findings.iter().map(document).collect();
        return Ok(output::json(&json!({ "findings": findings, "errors": errors, "warnings": warnings }))?);
    }
    let blank = String::new;
    let rows = grouped(findings).into_iter().flat_map(|finding| {
        let row = vec![word(finding.severity).to_owned(), finding.subject, scrub(&finding.detail)];
        let remedy = finding.remedy.map(|remedy| vec![blank(), blank(), format!("mend: {remedy}")]);
        std::iter::once(row).chain(remedy)
    });
    output::table(&["", "WHAT", "FOUND"], rows)?;
    output::line(format!("\n{}, {}", counted(errors, "error"), counted(warnings, "warning")))?;
    Ok(())
}

/// The findings for one screen: things of one sort of which all the same is well share a line.
fn grouped(findings: &[Finding]) -> Vec<Finding> {
    let sort = |finding: &Finding| finding.subject.split(' ').next().unwrap_or_default().to_owned();
    let fine = |finding: &&Finding| finding.severity == Severity::Fine;
    let mut lines: Vec<Finding> = findings.iter().filter(|finding| !fine(finding)).cloned().collect();
    let mut told = BTreeSet::new();
    for finding in findings.iter().filter(fine) {
        let alike = |other: &&Finding| sort(other) == sort(finding) && other.detail == finding.detail;
        match findings.iter().filter(fine).filter(alike).count() as u64 {
            1 => lines.push(finding.clone()),
            count if told.insert((sort(finding), &finding.detail)) => {
                lines.push(Finding::fine(counted(count, &sort(finding)), &finding.detail));
            }
            _ => {}
        }
    }
    lines
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}
