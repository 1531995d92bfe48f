//! A transactional producer, and what its errors ask for.
//!
//! Its calls wait for the brokers and belong on a thread of their own.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use backstop_core::AdapterError;
use backstop_core::pipeline::Output;
use backstop_core::sink::{PublishError, Scope};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Message as _, TopicPartitionList};

use crate::context::{Voice, lock};
use crate::exchange::Exchange;
use crate::fault::{code_of, fault, publish_fault};
use crate::line::wire_headers;
use crate::options::{Options, Transactions};
use crate::token::TokenFile;

/// How long one call waits for the brokers before it is made again.
const CALL: Duration = Duration::from_secs(2);
/// The time from one call that failed to the next.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a full queue is waited for before it is looked at again.
const FULL: Duration = Duration::from_millis(1);

/// What an error of the transaction API asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The same call again: its outcome is not known.
    Retry,
    /// An abort; then the same may be sent again by whoever owns the partitions.
    Abort,
    /// A new producer: this one was fenced, or has lost its state.
    Replace,
    /// Somebody: waiting mends nothing.
    Stop,
}

/// What to do about an error with that code and those marks.
fn remedy(code: Code, is_fatal: bool, requires_abort: bool, is_retriable: bool) -> Remedy {
    if needs_somebody(code) {
        Remedy::Stop
    } else if is_fatal || is_fence(code) {
        Remedy::Replace
    } else if requires_abort {
        Remedy::Abort
    } else if is_retriable {
        Remedy::Retry
    } else {
        // A call that does not fit the producer's state: an abort clears it.
        Remedy::Abort
    }
}

fn remedy_of(error: &KafkaError) -> Remedy {
    match error {
        KafkaError::Transaction(marks) => {
            remedy(marks.code(), marks.is_fatal(), marks.txn_requires_abort(), marks.is_retriable())
        }
        other => {
            remedy(code_of(other).unwrap_or(Code::Fail), code_of(other) == Some(Code::Fatal), false, false)
        }
    }
}

/// A topic that may not be written to is not among them: others may, and it is waited for.
fn needs_somebody(code: Code) -> bool {
    matches!(
        code,
        Code::TransactionalIdAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
            | Code::InvalidTransactionTimeout
    )
}

/// Whether another producer has taken this one's id, or the brokers have aborted its transaction in its absence.
pub(crate) fn is_fenced(error: &KafkaError) -> bool {
    code_of(error).is_some_and(is_fence)
}

fn is_fence(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The brokers refuse an output. It is aborted.
    Refused(PublishError),
    /// It is aborted, and may be tried again.
    Aborted(KafkaError),
    /// The producer is of no use any more; `unsure` when it may have been committed all the same.
    Replace { error: KafkaError, unsure: bool },
    /// Nothing that waiting mends.
    Stop(AdapterError),
    /// The source has ended, and the brokers do not answer.
    GivenUp,
}

/// A producer that has a transactional id.
pub(crate) struct TransactionalProducer {
    producer: ThreadedProducer<Context>,
    exchange: Arc<Exchange>,
    timeout: Duration,
}

impl TransactionalProducer {
    /// A producer that has fenced all others of its id and has ended what they left open.
    pub(crate) fn start(
        options: &Options,
        transactions: &Transactions,
        id: &str,
        exchange: Arc<Exchange>,
    ) -> Result<Self, Failure> {
        let context = Context { token: options.settings.token_file(), ..Context::default() };
        let producer = options.producer_config(id, transactions.timeout).and_then(|config| {
            let made = config.create_with_context(context);
            made.map_err(|error| fault("the transactional producer could not be made", &error))
        });
        let producer =
            Self { producer: producer.map_err(Failure::Stop)?, exchange, timeout: transactions.timeout };
        producer.call(|producer| producer.init_transactions(CALL), false)?;
        Ok(producer)
    }

    /// Sends the outputs, the offsets and the commit.
    pub(crate) fn transact<'a>(
        &self,
        outputs: impl Iterator<Item = &'a Output>,
        offsets: &TopicPartitionList,
        standing: &ConsumerGroupMetadata,
    ) -> Result<(), Failure> {
        *lock(&self.context().refused) = None;
        self.call(|producer| producer.begin_transaction(), false)?;
        for output in outputs {
            self.send(output)?;
        }
        backstop_core::crash_point!("kafka.transaction.sent");
        self.call(|producer| producer.send_offsets_to_transaction(offsets, standing, CALL), false)?;
        backstop_core::crash_point!("kafka.transaction.offsets");
        self.call(|producer| producer.commit_transaction(CALL), true)?;
        backstop_core::crash_point!("kafka.transaction.committed");
        Ok(())
    }

    /// Queues an output, which waits while the queue is full.
    fn send(&self, output: &Output) -> Result<(), Failure> {
        let (topic, envelope) = (output.destination.name.as_str(), &output.envelope);
        let began = Instant::now();
        loop {
            let mut record = BaseRecord::<[u8], [u8]>::to(topic);
            record.key = envelope.key.as_deref();
            record.payload = envelope.body.as_deref();
            if !envelope.headers.is_empty() {
                record.headers = Some(wire_headers(&envelope.headers));
            }
            let Err((error, _)) = self.producer.send(record) else { return Ok(()) };
            if code_of(&error) == Some(Code::QueueFull) && began.elapsed() < self.timeout {
                thread::sleep(FULL);
                continue;
            }
            if remedy_of(&error) == Remedy::Replace {
                return Err(Failure::Replace { error, unsure: false });
            }
            self.context().note(topic, &error);
            return Err(self.abort(error));
        }
    }

    /// Makes a call until its outcome is known.
    fn call(
        &self,
        call: impl Fn(&ThreadedProducer<Context>) -> KafkaResult<()>,
        commits: bool,
    ) -> Result<(), Failure> {
        loop {
            let Err(error) = call(&self.producer) else { return Ok(()) };
            match remedy_of(&error) {
                Remedy::Retry => self.pause(&error)?,
                Remedy::Abort => return Err(self.abort(error)),
                Remedy::Replace => return Err(Failure::Replace { error, unsure: commits }),
                Remedy::Stop => return Err(Failure::Stop(stopped(&error))),
            }
        }
    }

    /// Aborts the transaction because of that error.
    fn abort(&self, because: KafkaError) -> Failure {
        while let Err(error) = self.producer.abort_transaction(CALL) {
            match remedy_of(&error) {
                Remedy::Replace => return Failure::Replace { error, unsure: false },
                Remedy::Stop => return Failure::Stop(stopped(&error)),
                // There was none to abort.
                Remedy::Abort if code_of(&error) == Some(Code::State) => break,
                Remedy::Retry | Remedy::Abort => {
                    if let Err(failure) = self.pause(&error) {
                        return failure;
                    }
                }
            }
        }
        if let Some(code) = code_of(&because) {
            self.context().note("of an output", &KafkaError::MessageProduction(code));
        }
        lock(&self.context().refused).take().map_or(Failure::Aborted(because), Failure::Refused)
    }

    /// Waits before the same call again; an error where it would be in vain.
    fn pause(&self, error: &KafkaError) -> Result<(), Failure> {
        let voice = &self.context().voice;
        if let Some(refusal) = voice.refusal() {
            return Err(Failure::Stop(refusal));
        }
        if self.exchange.is_overdue() {
            return Err(Failure::GivenUp);
        }
        voice.warn("a transaction waits", &error.to_string());
        thread::sleep(PAUSE);
        Ok(())
    }

    fn context(&self) -> &Context {
        self.producer.client().context()
    }
}

fn stopped(error: &KafkaError) -> AdapterError {
    let what = "transactions cannot be used";
    let fault = fault(what, error);
    match (fault.hint(), code_of(error)) {
        (None, Some(Code::TransactionalIdAuthorizationFailed)) => {
            fault.with_hint("grant this client WRITE and DESCRIBE on the transactional id, or on its prefix")
        }
        _ => fault,
    }
}

/// The callbacks of one producer.
#[derive(Default)]
struct Context {
    voice: Voice,
    token: TokenFile,
    /// The first refusal in this transaction: those after it follow from the abort.
    refused: Mutex<Option<PublishError>>,
}

impl Context {
    fn note(&self, topic: &str, error: &KafkaError) {
        let error = publish_fault(topic, error);
        if error.scope() != Scope::Broker {
            lock(&self.refused).get_or_insert(error);
        }
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        // The source's properties are set for this producer, too: those that mean nothing to it are no mistake.
        let level = if facility == "CONFWARN" { RDKafkaLogLevel::Debug } else { level };
        self.voice.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.token.read()
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.voice.forget_refusal(),
            Err((error, message)) => self.note(message.topic(), error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_api_has_its_remedy() {
        let (fatal, abort, retry) = (true, true, true);
        let cases = [
            (Code::OperationTimedOut, !fatal, !abort, retry, Remedy::Retry),
            (Code::CoordinatorLoadInProgress, !fatal, !abort, retry, Remedy::Retry),
            (Code::ConcurrentTransactions, !fatal, !abort, retry, Remedy::Retry),
            (Code::IllegalGeneration, !fatal, abort, !retry, Remedy::Abort),
            (Code::UnknownMemberId, !fatal, abort, !retry, Remedy::Abort),
            (Code::FencedInstanceId, !fatal, abort, !retry, Remedy::Abort),
            (Code::RebalanceInProgress, !fatal, abort, retry, Remedy::Abort),
            (Code::TopicAuthorizationFailed, !fatal, abort, !retry, Remedy::Abort),
            (Code::State, !fatal, !abort, !retry, Remedy::Abort),
            (Code::Fenced, fatal, !abort, !retry, Remedy::Replace),
            (Code::InvalidProducerEpoch, !fatal, abort, !retry, Remedy::Replace),
            (Code::ProducerFenced, fatal, !abort, !retry, Remedy::Replace),
            (Code::OutOfOrderSequenceNumber, fatal, !abort, !retry, Remedy::Replace),
            (Code::UnknownProducerId, fatal, !abort, !retry, Remedy::Replace),
            (Code::TransactionalIdAuthorizationFailed, fatal, !abort, !retry, Remedy::Stop),
            (Code::GroupAuthorizationFailed, !fatal, abort, !retry, Remedy::Stop),
            (Code::UnsupportedVersion, fatal, !abort, !retry, Remedy::Stop),
            (Code::InvalidTransactionTimeout, fatal, !abort, !retry, Remedy::Stop),
        ];
        for (code, is_fatal, requires_abort, is_retriable, expected) in cases {
            assert_eq!(remedy(code, is_fatal, requires_abort, is_retriable), expected, "{code:?}");
        }
    }

    #[test]
    fn only_what_brokers_say_of_an_output_is_a_refusal() {
        let context = Context::default();
        context.note("t", &KafkaError::MessageProduction(Code::PurgeQueue));
        context.note("t", &KafkaError::MessageProduction(Code::MessageTimedOut));
        assert!(lock(&context.refused).is_none(), "these follow from an abort or an outage");
        context.note("t", &KafkaError::MessageProduction(Code::MessageSizeTooLarge));
        context.note("u", &KafkaError::MessageProduction(Code::UnknownTopicOrPartition));
        let first = lock(&context.refused).take().expect("the first one stays");
        assert_eq!(first.scope(), Scope::Message);
    }
}
