//! An idempotent producer whose every message is answered for: what sink and publisher share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use backstop_core::message::{Envelope, Headers};
use backstop_core::sink::{PublishError, Scope};
use backstop_core::{AdapterError, FaultKind};
use rdkafka::Message as _;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::types::RDKafkaErrorCode as Code;

use crate::context::{Voice, lock};
use crate::fault::{code_of, fault, publish_fault};
use crate::settings::KafkaSettings;
use crate::token::TokenFile;
use crate::topics::check_name;

/// What one record costs beside key, headers and body, generously.
const RECORD_OVERHEAD: usize = 100;
/// What one header costs beside its name and value.
const HEADER_OVERHEAD: usize = 10;

/// Whom deliveries are told to.
pub(crate) trait Outbox: Send + Sync + 'static {
    /// Names one message.
    type Ticket: Send + 'static;

    /// What became of a message. Called from librdkafka's polling thread, or from a thread that closes a producer.
    fn confirmed(&self, ticket: Self::Ticket, result: Result<(), PublishError>);

    /// The producer cannot go on and wants to be replaced.
    fn broken(&self);
}

/// What a producer is told.
#[derive(Debug, Clone)]
pub(crate) struct LineOptions {
    pub(crate) settings: KafkaSettings,
    /// How long a batch waits for company.
    pub(crate) linger: Duration,
    /// Messages in one batch at most.
    pub(crate) batch: usize,
    /// Messages under way at most.
    pub(crate) window: usize,
    /// Bytes of one message at most, before compression.
    pub(crate) max_message_bytes: usize,
}

impl LineOptions {
    fn create<O: Outbox>(&self, out: &Arc<O>) -> Result<Live<O>, AdapterError> {
        let queue = (self.window + 1).to_string();
        let (batch, linger) = (self.batch.to_string(), format!("{:.3}", self.linger.as_secs_f64() * 1_000.0));
        let bytes = self.max_message_bytes.to_string();
        let defaults = [
            ("compression.codec", "zstd"),
            ("compression.level", "1"),
            ("partitioner", "murmur2_random"),
            ("batch.size", "1000000"),
            ("batch.num.messages", &batch),
            ("queue.buffering.max.kbytes", "262144"),
            // A topic that does not exist is told after 5 s instead of 30.
            ("topic.metadata.propagation.max.ms", "5000"),
            ("socket.keepalive.enable", "true"),
            // A broker that is back is found within seconds, however long it was away.
            ("reconnect.backoff.max.ms", "2000"),
        ];
        // A message that timed out in the queue, or was given up after some retries, would let later ones pass.
        let fixed = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("max.in.flight.requests.per.connection", "5"),
            ("message.timeout.ms", "0"),
            ("message.send.max.retries", "2147483647"),
            ("linger.ms", &linger),
            ("queue.buffering.max.messages", &queue),
            ("message.max.bytes", &bytes),
        ];
        let context = Context {
            voice: Voice::default(),
            token: self.settings.token_file(),
            out: out.clone(),
            slots: Mutex::new(Slots::default()),
            broken: AtomicBool::new(false),
            all_down: AtomicBool::new(false),
        };
        let producer = self
            .settings
            .client_config(&defaults, &fixed)?
            .create_with_context(context)
            .map_err(|error| fault("the Kafka producer could not be made", &error))?;
        Ok(Live { producer: Some(producer) })
    }
}

/// A producer that is made when it is first needed and made anew after a fatal error.
pub(crate) struct Line<O: Outbox> {
    options: LineOptions,
    out: Arc<O>,
    live: Mutex<Option<Arc<Live<O>>>>,
}

impl<O: Outbox> Line<O> {
    pub(crate) fn new(options: LineOptions, out: O) -> Self {
        Self { options, out: Arc::new(out), live: Mutex::new(None) }
    }

    pub(crate) fn options(&self) -> &LineOptions {
        &self.options
    }

    pub(crate) fn out(&self) -> &O {
        &self.out
    }

    /// The producer; a broken one is let go first, which fails everything that was under way in it.
    pub(crate) fn live(&self) -> Result<Arc<Live<O>>, AdapterError> {
        let mut live = lock(&self.live);
        if let Some(sound) = live.as_ref().filter(|live| !live.is_broken()) {
            return Ok(sound.clone());
        }
        *live = None;
        let fresh = Arc::new(self.options.create(&self.out)?);
        *live = Some(fresh.clone());
        Ok(fresh)
    }

    /// Lets a broken producer go.
    pub(crate) fn mend(&self) {
        let mut live = lock(&self.live);
        if live.as_ref().is_some_and(|live| live.is_broken()) {
            *live = None;
        }
    }

    /// What librdkafka said last about what keeps it waiting; empty if nothing.
    pub(crate) fn complaint(&self) -> String {
        lock(&self.live).as_ref().map(|live| live.context().voice.last_reason()).unwrap_or_default()
    }

    /// Lets the producer go, sound or not: what it has under way is confirmed as unknown.
    pub(crate) fn let_go(&self) {
        *lock(&self.live) = None;
    }

    /// Takes back what still waits in the queue: it is confirmed as unknown. Does not wait for librdkafka's threads, one of
    /// which may be looking for the address of a broker.
    pub(crate) fn purge_queue(&self) {
        if let Some(live) = lock(&self.live).as_ref() {
            live.producer().purge(PurgeConfig::default().queue().non_blocking());
        }
    }

    /// Queues a message; never waits. An error gives the ticket back.
    pub(crate) fn send(&self, ticket: O::Ticket, topic: &str, envelope: &Envelope) -> Result<(), Unsent> {
        check_name(topic).map_err(|error| Unsent::Failed(PublishError::new(Scope::Destination, error)))?;
        check_size(topic, envelope, self.options.max_message_bytes).map_err(Unsent::Failed)?;
        let live = self.live().map_err(|error| Unsent::Failed(PublishError::new(Scope::Broker, error)))?;
        live.send(ticket, topic, envelope)
    }
}

/// A refusal by the broker would fail the whole batch, so that size is checked here.
pub(crate) fn check_size(topic: &str, envelope: &Envelope, limit: usize) -> Result<(), PublishError> {
    let size = envelope.size() + RECORD_OVERHEAD + HEADER_OVERHEAD * envelope.headers.len();
    if size <= limit {
        return Ok(());
    }
    let error = AdapterError::new(
        FaultKind::Invalid,
        format!("a message of {size} bytes for topic {topic} is over the limit of {limit}"),
    )
    .with_hint("raise max.message.bytes of the topic together with the publisher's limit, or send less");
    Err(PublishError::new(Scope::Message, error))
}

/// Why a message was not queued.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// There is no room for it now.
    Full,
    /// It cannot be sent.
    Failed(PublishError),
}

/// One producer of librdkafka and its polling thread.
pub(crate) struct Live<O: Outbox> {
    /// Gone only while it is being dropped.
    producer: Option<ThreadedProducer<Context<O>>>,
}

impl<O: Outbox> Live<O> {
    fn producer(&self) -> &ThreadedProducer<Context<O>> {
        self.producer.as_ref().expect("a producer is there until it is dropped")
    }

    fn context(&self) -> &Arc<Context<O>> {
        self.producer().client().context()
    }

    fn is_broken(&self) -> bool {
        self.context().broken.load(Ordering::Acquire)
    }

    fn send(&self, ticket: O::Ticket, topic: &str, envelope: &Envelope) -> Result<(), Unsent> {
        let context = self.context();
        let slot = lock(&context.slots).put(ticket);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, slot);
        record.key = envelope.key.as_deref();
        record.payload = envelope.body.as_deref();
        if !envelope.headers.is_empty() {
            record.headers = Some(wire_headers(&envelope.headers));
        }
        let Err((error, _)) = self.producer().send(record) else { return Ok(()) };
        lock(&context.slots).take(slot);
        match error.rdkafka_error_code() {
            Some(Code::QueueFull) => Err(Unsent::Full),
            code => {
                if code == Some(Code::Fatal) {
                    context.break_down();
                }
                Err(Unsent::Failed(publish_fault(topic, &error)))
            }
        }
    }
}

impl<O: Outbox> Drop for Live<O> {
    /// Closing takes up to a second, so that it happens on a thread of its own. Whatever is not confirmed by then is
    /// told to be unknown.
    fn drop(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        let context = producer.client().context().clone();
        let close = move || {
            drop(producer);
            context.abandon();
        };
        if let Err(error) = thread::Builder::new().name("backstop-kafka".to_owned()).spawn(close) {
            tracing::warn!(%error, "kafka: no thread could be started to close a producer");
        }
    }
}

/// The callbacks of one producer.
pub(crate) struct Context<O: Outbox> {
    voice: Voice,
    token: TokenFile,
    out: Arc<O>,
    slots: Mutex<Slots<O::Ticket>>,
    broken: AtomicBool,
    /// No broker could be reached since a message was last confirmed.
    all_down: AtomicBool,
}

impl<O: Outbox> Context<O> {
    fn break_down(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "kafka: the producer met a fatal error and is made anew: {}",
                self.voice.last_reason()
            );
        }
        self.out.broken();
    }

    /// Tells of everything that librdkafka will not tell of any more.
    fn abandon(&self) {
        let left = lock(&self.slots).drain();
        for ticket in left {
            self.out
                .confirmed(ticket, Err(self.judged("", &KafkaError::MessageProduction(Code::PurgeInflight))));
        }
    }

    /// The error of a message. One that was given up because brokers refuse this client says so.
    fn judged(&self, topic: &str, error: &KafkaError) -> PublishError {
        let given_up = matches!(code_of(error), Some(Code::PurgeQueue | Code::PurgeInflight));
        match self.voice.refusal().filter(|_| given_up) {
            Some(refusal) => PublishError::new(Scope::Broker, refusal),
            None => publish_fault(topic, error),
        }
    }

    /// A broker that refuses this client does not matter while others take it. Where none is left, waiting is in vain.
    fn consider_refusal(&self) {
        if self.all_down.load(Ordering::Acquire) && self.voice.refusal().is_some() {
            self.break_down();
        }
    }
}

impl<O: Outbox> ClientContext for Context<O> {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.voice.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(&error, reason);
        match error.rdkafka_error_code() {
            Some(Code::Fatal) => return self.break_down(),
            Some(Code::AllBrokersDown) => self.all_down.store(true, Ordering::Release),
            _ => self.voice.warn("the producer waits", reason),
        }
        self.consider_refusal();
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        // Without a token nothing connects, so that no broker is ever told to be down.
        self.token.read().inspect_err(|_| self.all_down.store(true, Ordering::Release))
    }
}

impl<O: Outbox> ProducerContext for Context<O> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        let Some(ticket) = lock(&self.slots).take(slot) else { return };
        let result = match result {
            Ok(_) => {
                self.all_down.store(false, Ordering::Release);
                self.voice.forget_refusal();
                Ok(())
            }
            Err((error, message)) => Err(self.judged(message.topic(), error)),
        };
        self.out.confirmed(ticket, result);
    }
}

/// Tickets under way, by the small number that librdkafka carries for each.
#[derive(Debug)]
struct Slots<T> {
    tickets: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { tickets: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn put(&mut self, ticket: T) -> usize {
        if let Some(slot) = self.free.pop() {
            self.tickets[slot] = Some(ticket);
            return slot;
        }
        self.tickets.push(Some(ticket));
        self.tickets.len() - 1
    }

    fn take(&mut self, slot: usize) -> Option<T> {
        let ticket = self.tickets.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(ticket)
    }

    fn drain(&mut self) -> Vec<T> {
        self.free.clear();
        std::mem::take(&mut self.tickets).into_iter().flatten().collect()
    }
}

/// Headers as librdkafka takes them.
pub(crate) fn wire_headers(headers: &Headers) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |wire, (key, value)| {
        wire.insert(Header { key, value: value.map(|value| &value[..]) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_none_is_answered_twice() {
        let mut slots = Slots::default();
        let (a, b) = (slots.put("a"), slots.put("b"));
        assert_eq!((slots.take(a), slots.take(a), slots.take(99)), (Some("a"), None, None));
        assert_eq!(slots.put("c"), a);
        assert_eq!(slots.drain(), ["c", "b"]);
        assert_eq!(slots.take(b), None);
    }
}
