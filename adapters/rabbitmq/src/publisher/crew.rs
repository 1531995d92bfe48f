//! The workers, what each has under way, and what becomes of that when one dies.

use std::collections::HashSet;
use std::sync::Arc;

use backstop_core::sink::{Confirmation, Scope};
use backstop_core::{AdapterError, FaultKind};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::backlog::Job;
use super::worker::{Report, Worker};
use crate::error::Failure;
use crate::link::Link;

/// A worker, as the publisher knows it.
#[derive(Debug, Default)]
struct Seat {
    /// Where its messages go; none until it has one, and after its death.
    inbox: Option<mpsc::UnboundedSender<Job>>,
    /// Tickets without a confirmation.
    under_way: HashSet<u64>,
    /// Failures of the worker that the relay has been told of.
    failures_seen: u64,
}

/// What the publisher hears of a worker.
#[derive(Debug)]
enum News {
    Report(usize, Report),
    /// Its task has ended; nothing more will come from it.
    Death(usize),
}

/// The workers.
#[derive(Debug)]
pub(super) struct Crew {
    link: Arc<Link>,
    window: usize,
    seats: Vec<Seat>,
    news: mpsc::UnboundedReceiver<News>,
    reporter: mpsc::UnboundedSender<News>,
    /// Tells the workers to give up what is under way.
    give_up: watch::Sender<()>,
}

/// Where a worker reports to. Reports its death when dropped.
#[derive(Debug)]
pub(super) struct Reporter {
    number: usize,
    news: mpsc::UnboundedSender<News>,
}

impl Reporter {
    /// Nobody listens any more once the publisher has been dropped.
    pub(super) fn report(&self, report: Report) {
        let _ = self.news.send(News::Report(self.number, report));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.news.send(News::Death(self.number));
    }
}

impl Crew {
    /// `count` workers, each with its own channel on `link` and `window` messages under way at most.
    pub(super) fn new(link: Arc<Link>, count: usize, window: usize) -> Self {
        // the queues are bounded by the windows
        let (reporter, news) = mpsc::unbounded_channel();
        let seats = (0..count).map(|_| Seat::default()).collect();
        Self { link, window, seats, news, reporter, give_up: watch::Sender::new(()) }
    }

    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// Messages without a confirmation.
    pub(super) fn under_way(&self) -> usize {
        self.seats.iter().map(|seat| seat.under_way.len()).sum()
    }

    /// Starts every worker that there is not.
    pub(super) fn start_all(&mut self) -> Result<(), AdapterError> {
        (0..self.len()).try_for_each(|number| self.start(number))
    }

    fn start(&mut self, number: usize) -> Result<(), AdapterError> {
        if self.seats[number].inbox.is_some() {
            return Ok(());
        }
        let Ok(runtime) = Handle::try_current() else {
            let what = "a publisher works only inside of a tokio runtime";
            return Err(AdapterError::new(FaultKind::Invalid, what)
                .with_hint("use it from a task of the runtime, or under `Runtime::enter`"));
        };
        let (jobs, inbox) = mpsc::unbounded_channel();
        let reporter = Reporter { number, news: self.reporter.clone() };
        let worker = Worker::new(self.link.clone(), self.window, reporter, self.give_up.subscribe());
        runtime.spawn(worker.run(inbox));
        // a worker counts from nothing
        self.seats[number].failures_seen = 0;
        self.seats[number].inbox = Some(jobs);
        Ok(())
    }

    /// Hands the message to the worker, which is started if there is none.
    pub(super) fn assign(&mut self, number: usize, mut job: Job) -> Result<(), Failure> {
        self.start(number).map_err(|error| Failure::broker(&error))?;
        let seat = &mut self.seats[number];
        job.failures_seen = seat.failures_seen;
        seat.under_way.insert(job.ticket);
        if let Some(inbox) = &seat.inbox {
            // A dead worker's messages fail with the news of its death, which is on its way.
            let _ = inbox.send(job);
        }
        Ok(())
    }

    /// Waits for the next confirmations. Cancel-safe.
    pub(super) async fn hear(&mut self, into: &mut Vec<Confirmation>) {
        let before = into.len();
        while into.len() == before {
            let news = self.news.recv().await.expect("the crew has a sender itself");
            self.take(news, into);
        }
        while let Ok(news) = self.news.try_recv() {
            self.take(news, into);
        }
    }

    fn take(&mut self, news: News, into: &mut Vec<Confirmation>) {
        match news {
            News::Report(number, report) => {
                let seat = &mut self.seats[number];
                for confirmation in &report.confirmations {
                    seat.under_way.remove(&confirmation.ticket);
                }
                seat.failures_seen = report.failures;
                into.extend(report.confirmations);
            }
            News::Death(number) => {
                let seat = &mut self.seats[number];
                tracing::error!(
                    worker = number,
                    messages = seat.under_way.len(),
                    "a task of the publisher has died; the next message starts another one"
                );
                let what = "the publisher's background task has died; nobody knows whether the broker has it";
                let failure = Failure::new(Scope::Broker, FaultKind::Other, what);
                let fail = |ticket| Confirmation { ticket, result: Err(failure.to_error()) };
                into.extend(std::mem::take(seat).under_way.into_iter().map(fail));
            }
        }
    }

    /// Has every worker give up what it has under way.
    pub(super) fn give_up(&self) {
        self.give_up.send_replace(());
    }
}
