//! A consumer whose handlers write to a database: inbox, held messages and effects commit together.

use std::sync::Arc;
use std::time::Duration;

use backstop_core::held::HeldMessages;
use backstop_core::inbox::Limits;
use backstop_core::source::{Received, Settlement};
use backstop_core::{Codec, DeadLetters};
use tokio::time::Instant;

use crate::consumer::calling::Calls;
use crate::consumer::context::Context;
use crate::consumer::group_size::GroupSize;
use crate::consumer::held_work::HeldWork;
use crate::consumer::invoke::Invocation;
use crate::consumer::run::Process;
use crate::consumer::suspects::Suspects;
use crate::consumer::turns::Turns;
use crate::settings::MissingId;

/// Rows that one clean-up statement forgets at most.
const PRUNE_ROWS: u32 = 5_000;
/// How often it is said that keys wait for somebody.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// How often the inbox is cleaned up.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The parts of a transactional consumer, while it runs.
#[derive(Debug)]
pub(crate) struct Transactional<I, H, C, D> {
    pub(crate) context: Arc<Context<D>>,
    pub(crate) inbox: I,
    pub(crate) handler: H,
    pub(crate) codec: C,
    pub(crate) limits: Limits,
    pub(crate) missing_id: MissingId,
    pub(crate) unordered: bool,
    /// Whether the key of a message that is given up waits for it.
    pub(crate) ordered: bool,
    pub(crate) continue_trace: bool,
    pub(crate) retention: Duration,
    pub(crate) group_size: GroupSize,
    pub(crate) turns: Turns,
    pub(crate) group_age: Duration,
    pub(crate) held_work: HeldWork,
    pub(crate) suspects: Suspects,
    pub(crate) held_workers: usize,
}

impl<I, H, C, D> Transactional<I, H, C, D> {
    pub(crate) fn invocation(&self) -> Invocation<'_> {
        Invocation {
            consumer: &self.context.consumer,
            group: &self.context.group,
            time_limit: self.limits.handler,
            continue_trace: self.continue_trace,
            control: &self.context.control,
        }
    }
}

impl<S, I, H, C, D> Process<S> for Transactional<I, H, C, D>
where
    S: Settlement,
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    fn unordered(&self) -> bool {
        self.unordered
    }

    fn at_once(&self) -> usize {
        self.at_most()
    }

    async fn process(&self, received: Vec<Received<S>>) {
        if self.group_size.is_on() {
            return self.receive_group(received).await;
        }
        for received in received {
            // Groups were switched off meanwhile. What is left now must not be overtaken.
            if self.context.stop.is_cancelled() {
                return;
            }
            self.receive(received).await;
        }
    }

    fn background_tasks(&self) -> usize {
        let telling = if self.context.desk.is_some() { 2 } else { 0 };
        1 + self.held_workers + telling
    }

    async fn background(&self, task: usize) {
        match task.checked_sub(self.held_workers) {
            _ if task == 0 => self.tidy().await,
            // One of them runs those that must run alone.
            None | Some(0) => self.run_held(task == 1).await,
            Some(1) => self.pay().await,
            Some(_) => self.context.report_in(|report| self.facts(report)).await,
        }
    }
}

impl<I, H, C, D> Transactional<I, H, C, D>
where
    I: HeldMessages,
    H: Calls<I::Tx>,
    C: Codec<H::Message>,
    D: DeadLetters,
{
    /// Forgets handled messages that are older than the retention, and says which keys wait for somebody, until the
    /// consumer stops.
    async fn tidy(&self) {
        let consumer = &self.context.consumer;
        let mut reminded: Option<Instant> = None;
        loop {
            if reminded.is_none_or(|last| last.elapsed() >= REMIND_EVERY) {
                self.remind().await;
                reminded = Some(Instant::now());
            }
            let rest = match self.inbox.prune(consumer, self.retention, PRUNE_ROWS).await {
                Ok(rows) if rows >= u64::from(PRUNE_ROWS) => Duration::from_millis(50),
                Ok(_) => PRUNE_EVERY,
                Err(error) => {
                    tracing::warn!(%consumer, %error, hint = error.hint(), "the inbox could not be cleaned up");
                    PRUNE_EVERY
                }
            };
            if !self.context.sleep(rest.mul_f64(0.75 + fastrand::f64() / 2.0)).await {
                return;
            }
        }
    }
}
