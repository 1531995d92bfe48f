//! Messages that the broker has not confirmed yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation};

use super::backlog::Job;
use super::returns::{Returns, Word};
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
    returns: Returns,
    next: u64,
}

impl Flights {
    /// Messages whose outcome is not certain yet.
    pub(super) fn len(&self) -> usize {
        self.jobs.len() + self.returns.len()
    }

    /// Whether there is nothing to wait for. Nothing is held back then, either.
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
        self.complete(&mut words);
        self.sort(words)
    }

    /// Completes a batch: whatever lapin has resolved before one of its words is in it, too.
    ///
    /// lapin resolves one confirm after the other and wakes each at once, so that with a word everything resolved
    /// before it has been woken. The stream has polled all that has been woken when it is pending and has not asked
    /// to be polled again; it does that, for fairness, while there is more.
    fn complete(&mut self, words: &mut Vec<(u64, lapin::Result<Confirmation>)>) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            match self.futures.poll_next_unpin(&mut context) {
                Poll::Ready(Some(word)) => words.push(word),
                Poll::Ready(None) => return,
                Poll::Pending if woken.0.swap(false, Ordering::AcqRel) => {}
                Poll::Pending => return,
            }
        }
    }

    fn sort(&mut self, results: Vec<(u64, lapin::Result<Confirmation>)>) -> Landed {
        let mut landed = Landed::default();
        let mut words = Vec::with_capacity(results.len());
        for (number, result) in results {
            let Some(job) = self.jobs.remove(&number) else { continue };
            let (stored, carried) = match result {
                Ok(Confirmation::Ack(message)) => (true, message),
                Ok(Confirmation::Nack(message)) => (false, message),
                Ok(Confirmation::NotRequested) => {
                    landed.settled.push((job, Err(not_confirming())));
                    continue;
                }
                Err(error) => {
                    // the broker's own words say more than "the channel is closed", which the others say
                    if landed.error.as_ref().is_none_or(|known| !known.is_amqp_error()) {
                        landed.error = Some(error);
                    }
                    landed.unknown.push(job);
                    continue;
                }
            };
            words.push(Word { job, stored, carried: carried.map(Into::into) });
        }
        // a lost channel resolves what is under way without handing anything out
        let complete = landed.error.is_none() && self.jobs.is_empty();
        self.returns.sort(words, &mut self.jobs, complete, &mut landed.settled);
        landed
    }

    /// Takes out everything; nobody knows what becomes of it.
    pub(super) fn abandon(&mut self) -> Vec<Job> {
        self.futures = FuturesUnordered::new();
        let mut jobs: Vec<_> = self.jobs.drain().collect();
        jobs.sort_unstable_by_key(|(number, _)| *number);
        let mut all = self.returns.take_all();
        all.extend(jobs.into_iter().map(|(_, job)| job));
        all
    }
}

/// Whether the stream has asked to be polled again.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
