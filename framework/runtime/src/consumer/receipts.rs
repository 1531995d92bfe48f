//! Receipts of redriven messages.
//!
//! A transactional consumer writes what it owes into its database, in the transaction that handles the message, and a
//! task of its own publishes it from there: no worker and no key waits for the receipts' destination. A plain consumer
//! has nowhere to write to, so its redriven message is settled after its receipt is confirmed.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::cloudevents::{self, Binding};
use backstop_core::held::{HeldMessage, HeldMessages};
use backstop_core::message::Headers;
use backstop_core::owed::Owed;
use backstop_core::pipeline::Output;
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_core::source::Received;
use backstop_core::{
    AdapterError, Destination, FaultKind, Message, MessageKey, Receipt, ReceiptOutcome, Via, crash_point,
    names,
};
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::consumer::context::Context;
use crate::consumer::transactional::Transactional;

/// Receipts that are published at once.
const AT_ONCE: u32 = 200;
/// How often the table is looked at for receipts of instances that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After how long another instance's receipt is published here.
const OTHERS_AFTER: Duration = Duration::from_secs(15);
/// How long one publish may take.
const PUBLISH_LIMIT: Duration = Duration::from_secs(10);
/// How long the last receipts, and the last report, may take when the consumer stops.
pub(crate) const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// Publishes to where receipts go. Object-safe, so that a consumer's type does not grow with it.
pub(crate) trait Post: Send + Sync {
    /// Publishes the message; confirmed when it answers `Ok`.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PublishError>>;

    /// The message as it would be published.
    fn output(&self, message: Message) -> Output;

    /// The header names that it would have.
    fn binding(&self) -> Binding;
}

/// A sink and a destination of it.
pub(crate) struct Address<K> {
    pub(crate) sink: K,
    pub(crate) destination: Destination,
}

impl<K: Sink> Post for Address<K> {
    fn output(&self, message: Message) -> Output {
        let envelope = cloudevents::encode(message, self.sink.binding());
        Output { destination: self.destination.clone(), envelope }
    }

    fn binding(&self) -> Binding {
        self.sink.binding()
    }

    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PublishError>> {
        let Output { envelope, .. } = self.output(message);
        Box::pin(async move {
            let published = timeout(PUBLISH_LIMIT, self.sink.publish(&self.destination, envelope)).await;
            published.unwrap_or_else(|_| {
                let what = format!("{} did not confirm in time", self.destination);
                Err(PublishError::new(Scope::Broker, AdapterError::new(FaultKind::Unreachable, what)))
            })
        })
    }
}

/// Where this instance of a consumer tells what it did, and under which name.
pub(crate) struct Desk {
    post: Arc<dyn Post>,
    pub(crate) instance: String,
    owed: Notify,
}

impl Desk {
    pub(crate) fn new(post: Arc<dyn Post>, host: &str) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let host: String = host.chars().filter(|letter| !letter.is_control()).take(48).collect();
        Self { post, instance: format!("{host}-{}", &unique[..8]), owed: Notify::new() }
    }
}

impl<D> Context<D> {
    /// The receipt of a message that was redriven through the door; `None` for others, and where nobody wants
    /// receipts.
    fn receipt(
        &self,
        via: Via,
        message_key: &MessageKey,
        headers: &Headers,
        outcome: ReceiptOutcome,
    ) -> Option<Receipt> {
        let desk = self.desk.as_ref().filter(|_| via == Via::Door)?;
        let by_hand = matches!(outcome, ReceiptOutcome::Skipped | ReceiptOutcome::Released);
        if !by_hand && !Receipt::is_wanted(headers) {
            return None;
        }
        Some(Receipt::new(message_key.clone(), headers, &self.consumer, &desk.instance, outcome))
    }

    /// Publishes the receipt of a redriven message that a plain consumer has handled, for as long as it takes; `false`
    /// when the consumer stops before.
    pub(crate) async fn acknowledge(&self, received: &Received<()>) -> bool {
        let Some(receipt) = self.handled_receipt(received) else { return true };
        crash_point!("consumer.receipt.due");
        let mut tries = 0;
        while let Err(error) = self.tell(receipt.to_message()).await {
            self.report_late("a receipt is not published; trying again", error.error(), tries);
            tries += 1;
            if !self.wait(tries).await {
                return false;
            }
        }
        crash_point!("consumer.receipt.published");
        true
    }

    /// The receipt of a redriven message that a pipeline has handled, to be committed with what came of it.
    pub(crate) fn receipt_output(&self, received: &Received<()>) -> Option<Output> {
        let receipt = self.handled_receipt(received)?;
        self.desk.as_ref().map(|desk| desk.post.output(receipt.to_message()))
    }

    fn handled_receipt(&self, received: &Received<()>) -> Option<Receipt> {
        let headers = &received.message.headers;
        // A message without an identity has at least its letter's, which is how its receipt is known.
        let letter = || headers.get_str(names::DEAD_LETTER_ID).map(|id| MessageKey::new("", id.as_bytes()));
        let key = received.identity.key().cloned().or_else(letter)?;
        self.receipt(received.via, &key, headers, ReceiptOutcome::Handled)
    }

    /// Publishes a receipt or report, where anybody wants one.
    pub(crate) async fn tell(&self, message: Message) -> Result<(), PublishError> {
        match &self.desk {
            Some(desk) => desk.post.publish(message).await,
            None => Ok(()),
        }
    }

    /// Says what is late the first time, and then now and again.
    fn report_late(&self, what: &str, error: &AdapterError, tries: u32) {
        if tries.is_power_of_two() || tries == 0 {
            tracing::error!(consumer = self.consumer, %error, hint = error.hint(), tries, "{what}");
        }
    }
}

impl<I: HeldMessages, H, C, D> Transactional<I, H, C, D> {
    /// Writes in the transaction that finishes a held message that its receipt is owed, if it came through the door.
    ///
    /// # Errors
    /// When the statement fails; the transaction must not be committed then.
    pub(crate) async fn owe(
        &self,
        tx: &mut I::Tx,
        head: &HeldMessage,
        outcome: ReceiptOutcome,
    ) -> Result<(), AdapterError> {
        let headers = &head.envelope.headers;
        match self.context.receipt(head.via, &head.message_key, headers, outcome) {
            Some(receipt) => self.inbox.owe(tx, &receipt).await,
            None => Ok(()),
        }
    }

    /// The same for several messages; whether there was anything to write.
    ///
    /// # Errors
    /// When a statement fails; the transaction must not be committed then.
    pub(crate) async fn owe_all<'a>(
        &self,
        tx: &mut I::Tx,
        ended: impl Iterator<Item = (&'a HeldMessage, ReceiptOutcome)>,
    ) -> Result<bool, AdapterError> {
        let receipt = |(message, outcome): (&HeldMessage, ReceiptOutcome)| {
            self.context.receipt(message.via, &message.message_key, &message.envelope.headers, outcome)
        };
        let receipts: Vec<Receipt> = ended.filter_map(receipt).collect();
        if !receipts.is_empty() {
            self.inbox.owe_all(tx, &receipts).await?;
        }
        Ok(!receipts.is_empty())
    }

    /// Writes that a receipt is owed for a message that needs no transaction of its own; `false` when the consumer
    /// stops before that could be done.
    pub(crate) async fn owe_now(
        &self,
        message_key: &MessageKey,
        headers: &Headers,
        outcome: ReceiptOutcome,
    ) -> bool {
        let Some(receipt) = self.context.receipt(Via::Door, message_key, headers, outcome) else {
            return true;
        };
        let mut tries = 0;
        while let Err(error) = self.inbox.owe_now(&receipt).await {
            self.context.report_late("an owed receipt is not written down; trying again", &error, tries);
            tries += 1;
            if !self.context.wait(tries).await {
                return false;
            }
        }
        self.receipt_is_owed();
        true
    }

    /// Wakes the task that publishes receipts; called after the commit.
    pub(crate) fn receipt_is_owed(&self) {
        if let Some(desk) = &self.context.desk {
            desk.owed.notify_one();
        }
    }

    /// Publishes what is owed until the consumer stops.
    pub(crate) async fn pay(&self) {
        let Some(desk) = &self.context.desk else { return };
        let mut tries = 0;
        while !self.context.stop.is_cancelled() {
            match self.pay_some(desk).await {
                Paid::All(0) => {
                    tries = 0;
                    tokio::select! {
                        _ = self.context.sleep(LOOK_EVERY.mul_f64(0.5 + fastrand::f64())) => {}
                        () = desk.owed.notified() => {}
                    }
                }
                Paid::All(_) => tries = 0,
                Paid::NotAll => {
                    tries += 1;
                    self.context.wait(tries).await;
                }
            }
        }
    }

    /// Publishes what is still owed when the consumer has stopped, and says goodbye.
    pub(crate) async fn leave(&self) {
        if let Some(desk) = &self.context.desk {
            let rest = async { while matches!(self.pay_some(desk).await, Paid::All(1..)) {} };
            // What is left stays in the table: the next instance publishes it.
            let _ = timeout(FAREWELL_LIMIT, rest).await;
        }
        self.context.sign_off().await;
    }

    /// Publishes some of what is owed, and forgets what the broker has confirmed.
    async fn pay_some(&self, desk: &Desk) -> Paid {
        let consumer = &self.context.consumer;
        let owed = match self.inbox.owed(consumer, &desk.instance, OTHERS_AFTER, AT_ONCE).await {
            Ok(owed) if owed.is_empty() => return Paid::All(0),
            Ok(owed) => owed,
            Err(error) => {
                tracing::warn!(%consumer, %error, hint = error.hint(), "owed receipts cannot be read");
                return Paid::NotAll;
            }
        };
        crash_point!("consumer.receipt.due");
        let publish = |owed: &Owed| {
            let (n, published) = (owed.n, desk.post.publish(owed.receipt.to_message()));
            async move { published.await.map(|()| n) }
        };
        let (mut confirmed, mut failed) = (Vec::with_capacity(owed.len()), None);
        for published in join_all(owed.iter().map(publish)).await {
            match published {
                Ok(n) => confirmed.push(n),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = &failed {
            let hint = error.error().hint();
            let left = owed.len() - confirmed.len();
            tracing::error!(%consumer, %error, hint, left, "receipts are not published; trying again");
        }
        crash_point!("consumer.receipt.published");
        match self.inbox.paid(&confirmed).await {
            Ok(()) if failed.is_none() => Paid::All(confirmed.len()),
            Ok(()) => Paid::NotAll,
            Err(error) => {
                tracing::warn!(%consumer, %error, hint = error.hint(), "published receipts come again");
                Paid::NotAll
            }
        }
    }
}

/// What became of some owed receipts.
enum Paid {
    /// All of so many are published and forgotten.
    All(usize),
    /// Some have to come again.
    NotAll,
}
