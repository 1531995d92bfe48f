//! Messages that the broker has not confirmed yet.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use super::backlog::Job;
use crate::error::Failure;
use crate::sink::not_confirming;

type Flight = BoxFuture<'static, (u64, lapin::Result<Confirmation>)>;

/// What became of messages that were under way.
#[derive(Debug, Default)]
pub(super) struct Landed {
    /// The broker's word on each.
    pub(super) settled: Vec<(Job, Result<(), Failure>)>,
    /// Nobody knows: the channel or connection was lost.
    pub(super) unknown: Vec<Job>,
    /// Why it was lost.
    pub(super) error: Option<lapin::Error>,
}

/// Messages under way on one channel.
#[derive(Default)]
pub(super) struct Flights {
    futures: FuturesUnordered<Flight>,
    jobs: HashMap<u64, Job>,
    next: u64,
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Publishes on the channel. Nothing is written before [`land`](Self::land) is polled.
    pub(super) fn launch(&mut self, channel: &Arc<Channel>, mut job: Job) {
        job.tries += 1;
        job.returned = false;
        let number = self.next;
        self.next += 1;
        let channel = channel.clone();
        let (exchange, key) = (job.address.exchange.clone(), job.address.routing_key.clone());
        let (properties, body) = (job.properties(), job.body());
        self.jobs.insert(number, job);
        let flight = async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirmed =
                async { channel.basic_publish(exchange, key, options, &body, properties).await?.await };
            (number, confirmed.await)
        };
        self.futures.push(flight.boxed());
    }

    /// Waits for the broker's word on at least one message, and takes all that has come. Cancel-safe.
    pub(super) async fn land(&mut self) -> Landed {
        let mut words = Vec::new();
        words.extend(self.futures.next().await);
        while let Some(Some(word)) = self.futures.next().now_or_never() {
            words.push(word);
        }
        self.sort(words)
    }

    fn sort(&mut self, words: Vec<(u64, lapin::Result<Confirmation>)>) -> Landed {
        let mut landed = Landed::default();
        let mut acked = Vec::with_capacity(words.len());
        let mut returned = Vec::new();
        for (number, word) in words {
            let Some(job) = self.jobs.remove(&number) else { continue };
            match word {
                Ok(Confirmation::Ack(message)) => {
                    acked.push(job);
                    returned.extend(message.map(|message| (acked.len() - 1, message)));
                }
                Ok(Confirmation::Nack(message)) => {
                    let failure = Failure::refused(&job.address.describe());
                    landed.settled.push((job, Err(failure)));
                    returned.extend(message.map(|message| (usize::MAX, message)));
                }
                Ok(Confirmation::NotRequested) => landed.settled.push((job, Err(not_confirming()))),
                Err(error) => {
                    // the broker's own words say more than "the channel is closed", which the others say
                    if landed.error.as_ref().is_none_or(|known| !known.is_amqp_error()) {
                        landed.error = Some(error);
                    }
                    landed.unknown.push(job);
                }
            }
        }
        for (carrier, message) in returned {
            self.attribute(carrier, &message, &mut acked);
        }
        for job in acked {
            let word = if job.returned { Err(Failure::unroutable(&job.address.describe())) } else { Ok(()) };
            landed.settled.push((job, word));
        }
        landed
    }

    /// Marks the message that the broker has returned.
    ///
    /// lapin hands a returned message to whichever confirm is resolved next, which is another one's when the broker
    /// confirms several messages with one `multiple` ack. The true owner is resolved at the same moment or later, so
    /// it is in this batch or still under way.
    fn attribute(&mut self, carrier: usize, message: &BasicReturnMessage, acked: &mut [Job]) {
        let is_owner = |job: &&mut Job| !job.returned && job.is(message);
        let owner = match acked.get(carrier).is_some_and(|job| !job.returned && job.is(message)) {
            true => acked.get_mut(carrier),
            false => acked.iter_mut().find(is_owner).or_else(|| self.jobs.values_mut().find(is_owner)),
        };
        match owner {
            Some(job) => job.returned = true,
            None => tracing::debug!(
                exchange = %message.delivery.exchange,
                routing_key = %message.delivery.routing_key,
                "the broker returned a message that is no longer under way"
            ),
        }
    }

    /// Takes out everything; nobody knows what becomes of it.
    pub(super) fn abandon(&mut self) -> Vec<Job> {
        self.futures = FuturesUnordered::new();
        let mut jobs: Vec<_> = self.jobs.drain().collect();
        jobs.sort_unstable_by_key(|(number, _)| *number);
        jobs.into_iter().map(|(_, job)| job).collect()
    }
}
