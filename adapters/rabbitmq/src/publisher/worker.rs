//! One channel of the publisher.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::FaultKind;
use backstop_core::sink::{Confirmation, Scope};
use lapin::Channel;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::backlog::{Backlog, Job};
use super::crew::Reporter;
use super::flights::{Flights, Landed};
use super::grudges::Grudges;
use crate::error::Failure;
use crate::link::{Link, backoff};

/// Messages taken from the inbox in one go, at most.
const BATCH: usize = 256;

/// How often a message is sent, at most, before it is failed as unknown.
const MAX_TRIES: u32 = 4;

/// What a worker tells the publisher.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) confirmations: Vec<Confirmation>,
    /// Failures of this worker so far, these included.
    pub(super) failures: u64,
}

/// Owns one channel and everything that is sent on it.
pub(super) struct Worker {
    link: Arc<Link>,
    window: usize,
    reporter: Reporter,
    /// Changes when what is under way is to be given up.
    give_up: watch::Receiver<()>,
    backlog: Backlog,
    flights: Flights,
    /// Were under way when the broker closed the channel; sent one at a time until the culprit is found.
    suspects: VecDeque<Job>,
    /// A suspect is under way, alone.
    probing: bool,
    grudges: Grudges,
    /// Confirmations to report.
    outbox: Vec<Confirmation>,
}

impl Worker {
    pub(super) fn new(
        link: Arc<Link>,
        window: usize,
        reporter: Reporter,
        give_up: watch::Receiver<()>,
    ) -> Self {
        Self {
            link,
            window,
            reporter,
            give_up,
            backlog: Backlog::default(),
            flights: Flights::default(),
            suspects: VecDeque::new(),
            probing: false,
            grudges: Grudges::default(),
            outbox: Vec::new(),
        }
    }

    /// Works until the publisher is dropped.
    pub(super) async fn run(mut self, mut inbox: UnboundedReceiver<Job>) {
        while let Some(channel) = self.open(&mut inbox).await {
            if self.serve(&channel, &mut inbox).await.is_none() {
                return;
            }
        }
    }

    /// Opens a channel, however often it takes; `None` when the publisher is gone. What waits meanwhile fails with
    /// every attempt that fails.
    async fn open(&mut self, inbox: &mut UnboundedReceiver<Job>) -> Option<Arc<Channel>> {
        let mut waits = backoff();
        loop {
            let link = self.link.clone();
            let opened = tokio::select! {
                opened = link.confirm_channel() => opened,
                Ok(()) = self.give_up.changed() => {
                    self.give_up_all(inbox);
                    continue;
                }
            };
            let error = match opened {
                Ok(channel) => return Some(Arc::new(channel)),
                Err(error) => error,
            };
            tracing::warn!(%error, hint = error.hint(), "cannot publish; connecting again");
            self.fail_inbox_too(Vec::new(), inbox, &Failure::broker(&error));
            if inbox.is_closed() {
                return None;
            }
            tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))).await;
        }
    }

    /// Publishes on the channel until it is lost; `None` when the publisher is gone.
    async fn serve(&mut self, channel: &Arc<Channel>, inbox: &mut UnboundedReceiver<Job>) -> Option<()> {
        let mut arrived = Vec::with_capacity(BATCH);
        loop {
            if self.wants_to_send() && !channel.status().connected() && self.flights.is_empty() {
                return Some(());
            }
            self.launch(channel);
            tokio::select! {
                landed = self.flights.land(), if !self.flights.is_empty() => {
                    let lost = landed.error.is_some();
                    self.settle(landed, inbox);
                    self.report();
                    if lost {
                        return Some(());
                    }
                }
                Ok(()) = self.give_up.changed() => {
                    self.give_up_all(inbox);
                    let channel = channel.clone();
                    // the broker may be slow to answer, or gone
                    tokio::spawn(async move { channel.close(200, "OK".into()).await });
                    return Some(());
                }
                received = inbox.recv_many(&mut arrived, BATCH) => {
                    if received == 0 {
                        return None;
                    }
                    arrived.drain(..).for_each(|job| self.admit(job));
                    self.report();
                }
            }
        }
    }

    /// Fails everything that is under way or waits. What the broker says of it later is heard by nobody.
    fn give_up_all(&mut self, inbox: &mut UnboundedReceiver<Job>) {
        let unknown = self.flights.abandon();
        let what = "given up, because the broker did not confirm it in time";
        let failure = Failure::new(Scope::Broker, FaultKind::Unreachable, what);
        self.fail_inbox_too(unknown, inbox, &failure);
    }

    /// Fails everything here and in the inbox, and reports it.
    fn fail_inbox_too(&mut self, unknown: Vec<Job>, inbox: &mut UnboundedReceiver<Job>, failure: &Failure) {
        while let Ok(job) = inbox.try_recv() {
            self.admit(job);
        }
        self.fail_everything(unknown, failure);
        self.report();
    }

    fn wants_to_send(&self) -> bool {
        !self.suspects.is_empty() || self.backlog.is_ready()
    }

    fn launch(&mut self, channel: &Arc<Channel>) {
        if !channel.status().connected() {
            return;
        }
        if self.flights.is_empty() {
            let suspect = self.suspects.pop_front();
            self.probing = suspect.is_some();
            suspect.into_iter().for_each(|suspect| self.flights.launch(channel, suspect));
        }
        while !self.probing
            && self.flights.len() < self.window
            && let Some(job) = self.backlog.next()
        {
            self.flights.launch(channel, job);
        }
    }

    /// Takes a message in, or fails it with the failure it must share.
    fn admit(&mut self, job: Job) {
        match self.grudges.against(&job) {
            Some(failure) => self.fail(job, &failure),
            None => self.backlog.admit(job),
        }
    }

    fn settle(&mut self, landed: Landed, inbox: &mut UnboundedReceiver<Job>) {
        for (job, word) in landed.settled {
            match word {
                Ok(()) => self.confirm(job),
                Err(failure) => self.fail_lane(job, &failure),
            }
        }
        let Some(error) = landed.error else { return };
        let mut unknown = landed.unknown;
        unknown.extend(self.flights.abandon());
        if error.is_amqp_soft_error() || self.link.is_connected() {
            return self.suspect(unknown, error);
        }
        let error = crate::error::adapter_error("the connection to the broker was lost", error);
        self.fail_inbox_too(unknown, inbox, &Failure::broker(&error));
    }

    /// The broker closed the channel, not the connection: one message is to blame.
    fn suspect(&mut self, mut unknown: Vec<Job>, error: lapin::Error) {
        if unknown.len() > 1 || !error.is_amqp_soft_error() {
            let (again, hopeless) = unknown.into_iter().partition(|job| job.tries < MAX_TRIES);
            self.suspects.extend::<Vec<Job>>(again);
            let error = crate::error::adapter_error("the broker closed the channel again and again", error);
            let failure = Failure::broker(&error);
            return hopeless.into_iter().for_each(|job: Job| self.fail_lane(job, &failure));
        }
        let Some(culprit) = unknown.pop() else { return };
        let failure = Failure::of_channel(&culprit.address.describe(), error);
        let exchange = culprit.address.exchange.to_string();
        self.fail_lane(culprit, &failure);
        if failure.scope == Scope::Destination && !exchange.is_empty() {
            self.fail_exchange(&exchange, &failure);
        }
    }

    /// Everything else that goes to an exchange which cannot be published to.
    fn fail_exchange(&mut self, exchange: &str, failure: &Failure) {
        let suspects = std::mem::take(&mut self.suspects);
        let (same, others) =
            suspects.into_iter().partition(|job: &Job| job.address.exchange.as_str() == exchange);
        self.suspects = others;
        let ready = self.backlog.take_ready_for(exchange);
        for job in VecDeque::into_iter(same).chain(ready) {
            self.fail_lane(job, failure);
        }
        self.grudges.record_exchange(exchange, failure);
    }

    fn fail_everything(&mut self, mut jobs: Vec<Job>, failure: &Failure) {
        jobs.extend(std::mem::take(&mut self.suspects));
        jobs.extend(self.backlog.take_all());
        for job in jobs {
            self.fail(job, failure);
        }
    }

    /// Fails a lane's message under way and everything behind it.
    fn fail_lane(&mut self, job: Job, failure: &Failure) {
        let followers = job.lane.map(|lane| self.backlog.give_up(lane)).unwrap_or_default();
        self.fail(job, failure);
        // What is wrong with one message is not wrong with the next; it is only not sent.
        let scope = if failure.scope == Scope::Message { Scope::Broker } else { failure.scope };
        let shared = Failure { scope, ..failure.clone() };
        for follower in followers {
            self.fail(follower, &shared);
        }
    }

    fn fail(&mut self, job: Job, failure: &Failure) {
        let scope = if failure.scope == Scope::Message { Scope::Broker } else { failure.scope };
        self.grudges.record(&job, &Failure { scope, ..failure.clone() });
        self.outbox.push(Confirmation { ticket: job.ticket, result: Err(failure.to_error()) });
    }

    fn confirm(&mut self, job: Job) {
        if let Some(lane) = job.lane {
            self.backlog.advance(lane);
        }
        self.outbox.push(Confirmation { ticket: job.ticket, result: Ok(()) });
    }

    fn report(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let confirmations = std::mem::take(&mut self.outbox);
        self.reporter.report(Report { confirmations, failures: self.grudges.failures() });
    }
}
