//! A consumer without a database: at least once, retries in place.

use backstop_core::command::Command;
use backstop_core::source::{Received, Settlement};
use backstop_core::{Codec, DeadLetters, Handler, Via};

use crate::consumer::in_place::{Ended, GivenUp, InPlace};
use crate::consumer::run::Process;
use crate::stats::count;

/// The parts of a plain consumer, while it runs.
#[derive(Debug)]
pub(crate) struct PlainWork<H, C, D>(pub(crate) InPlace<H, C, D>);

impl<S, H, C, D> Process<S> for PlainWork<H, C, D>
where
    S: Settlement,
    H: Handler<()>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    fn unordered(&self) -> bool {
        self.0.unordered
    }

    fn at_once(&self) -> usize {
        1
    }

    async fn process(&self, received: Vec<Received<S>>) {
        for received in received {
            self.receive(received).await;
        }
    }

    fn background_tasks(&self) -> usize {
        usize::from(self.0.context.desk.is_some())
    }

    async fn background(&self, _: usize) {
        self.0.context.report_in(std::future::ready).await;
    }
}

impl<H, C, D> PlainWork<H, C, D>
where
    H: Handler<()>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    async fn receive<S: Settlement>(&self, received: Received<S>) {
        let numbered = self.0.numbered(&received);
        let Received { message, identity, origin, via, mut settlement } = received;
        if !settlement.begin() {
            return;
        }
        if via == Via::Door
            && let Some(command) = Command::of(&message.headers)
        {
            self.0.decline(command);
            return settlement.settle();
        }
        let received = Received { message, identity, origin, via, settlement: () };
        let done = match self.0.attempts(&received, numbered, || (), |()| Ok(())).await {
            Ended::Handled(()) => {
                count(&self.0.context.stats.handled);
                self.0.context.acknowledge(&received).await
            }
            Ended::GivenUp(why) => self.give_up(&received, &why).await,
            Ended::Stopped => false,
        };
        if done {
            settlement.settle();
        }
    }

    /// Publishes the letter, for as long as it takes: there is nowhere else to keep the message.
    async fn give_up(&self, received: &Received<()>, why: &GivenUp) -> bool {
        let context = &self.0.context;
        while !context.quarantine(why.subject(received), &why.judged, why.reason, why.attempts).await {
            if !context.wait(5).await {
                return false;
            }
        }
        self.0.waits_no_more(received);
        true
    }
}
