//! What happens between the first `next` and the first message: topics are looked for, doors are made, the group is
//! joined.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::dead_letter::kafka_door;
use backstop_core::{AdapterError, FaultKind};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::absence::{PATIENCE, missing, unreadable};
use crate::exchange::Exchange;
use crate::fault::{code_of, coded, ends_a_source, fault};
use crate::flow::Flow;
use crate::group::{Group, Member};
use crate::options::Options;
use crate::progress::Progress;
use crate::topics::{EVENTS, Presence, Steward, Wanted, check_name, presence};

/// One question for a topic.
pub(crate) const QUESTION: Duration = Duration::from_secs(1);
/// Groups share out partitions by their number, those of doors among them: with as many as the topic has, one instance
/// could be given all of the topic, and another one all of the door.
pub(crate) const DOOR_PARTITIONS: i32 = 1;
/// How long a door may take to be made and seen.
const DOOR: Duration = Duration::from_secs(5);

/// A member that has subscribed. `None` when the source was closed before it came so far.
///
/// # Errors
/// What waiting cannot mend: settings, credentials, a topic that does not exist. Brokers that cannot be reached are
/// waited for.
pub(crate) fn start(
    options: &Arc<Options>,
    flow: &Arc<Flow>,
    progress: Progress,
    exchange: Option<Arc<Exchange>>,
) -> Result<Option<Arc<Member>>, AdapterError> {
    let doors = door_names(options)?;
    let group = Group::new(flow.clone(), options.clone(), doors.clone(), progress, exchange);
    let member: Member = options
        .consumer_config()?
        .create_with_context(group)
        .map_err(|error| fault("the Kafka consumer could not be made", &error))?;
    let member = Arc::new(member);
    member.context().is_of(&member);
    if !await_topics(&member, options, flow)? {
        return Ok(None);
    }
    let mut topics: Vec<&str> = options.topics.iter().map(String::as_str).collect();
    topics.extend(doors.iter().map(String::as_str).filter(|door| open_door(&member, options, door)));
    member.subscribe(&topics).map_err(|error| fault("the topics could not be subscribed to", &error))?;
    Ok(Some(member))
}

/// The doors of all topics that have a name of their own.
fn door_names(options: &Options) -> Result<Vec<String>, AdapterError> {
    if !options.door {
        return Ok(Vec::new());
    }
    let doors: Vec<_> = options.named_topics().map(|topic| kafka_door(topic, &options.group)).collect();
    for door in &doors {
        check_name(door).map_err(|error| {
            AdapterError::new(
                FaultKind::Invalid,
                format!("group {:?} cannot be part of a door's name", options.group),
            )
            .with_hint("use letters, digits, dots, underscores and hyphens in its name, or turn the door off")
            .with_source(error)
        })?;
    }
    Ok(doors)
}

/// Waits until every named topic is there; `false` when the source is closing. Only for a member that has not
/// subscribed yet: it polls.
///
/// Brokers that do not answer are waited for without end; an answer that a topic is missing is believed when it is
/// the same for [`PATIENCE`].
fn await_topics(member: &Member, options: &Options, flow: &Flow) -> Result<bool, AdapterError> {
    for topic in options.named_topics() {
        let mut missing_since = None;
        loop {
            refusals(member)?;
            match presence(member.client(), topic, QUESTION) {
                Ok(Presence::Here(_)) => break,
                Ok(Presence::Denied) => return Err(unreadable(topic)),
                Ok(Presence::Missing) => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        return Err(missing(topic));
                    }
                }
                Err(error) => member.context().voice.warn("waiting for the brokers", &error.to_string()),
            }
            if flow.is_closing() {
                return Ok(false);
            }
            flow.wait(Duration::from_millis(50));
        }
    }
    Ok(true)
}

/// Refusals show up only among the events, while a question for a topic just times out; and a token is asked for there.
/// There are no messages among them, because nothing is subscribed to yet.
fn refusals(member: &Member) -> Result<(), AdapterError> {
    while let Some(event) = member.poll(EVENTS) {
        if let Err(error) = event
            && let Some(code) = code_of(&error).filter(|code| ends_a_source(*code))
        {
            return Err(ended(member, &error, code));
        }
    }
    member.context().voice.refusal().map_or(Ok(()), Err)
}

/// The error that ends a source, with what librdkafka said about it.
pub(crate) fn ended(member: &Member, error: &KafkaError, code: Code) -> AdapterError {
    if let Some(refusal) = member.context().voice.refusal() {
        return refusal;
    }
    let reason = member.context().voice.last_reason();
    let (code, reason) = match member.client().fatal_error() {
        Some((fatal, why)) => (fatal, why),
        None => (code, reason),
    };
    let plain = coded("the Kafka consumer cannot go on", code);
    if reason.is_empty() {
        return plain;
    }
    let told = AdapterError::new(plain.kind(), format!("the Kafka consumer cannot go on: {error}"))
        .with_source(reason);
    match plain.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}

/// Makes sure that a door is there; `false` when the source has to go on without it.
fn open_door(member: &Member, options: &Options, door: &str) -> bool {
    match presence(member.client(), door, QUESTION) {
        Ok(Presence::Here(_)) => return true,
        Ok(Presence::Denied) => {
            tracing::warn!(
                door,
                "kafka: the door may not be read: redriven messages will not come in; grant READ on it"
            );
            return false;
        }
        Ok(Presence::Missing) | Err(_) => {}
    }
    let wanted = Wanted { name: door, partitions: DOOR_PARTITIONS, config: Vec::new() };
    let made = Steward::new(&options.settings)
        .map(|steward| steward.create(&wanted).map(|()| steward.await_presence(door, DOOR)));
    match made {
        Ok(Ok(_)) => {}
        Ok(Err(code)) => tracing::warn!(
            door,
            error = %code,
            "kafka: the door is missing and could not be made: redriven messages come in once it exists; create it with one partition, or grant CREATE"
        ),
        Err(error) => tracing::warn!(door, %error, "kafka: the door could not be looked for"),
    }
    // Subscribed even when it is missing: a door that is made later is found within seconds.
    true
}
