//! Reading ahead: one read at a time, in a task of its own, into a bounded buffer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backstop_core::outbox::{Claimed, OutboxReader, OutboxRow, OutboxStore, Reread};
use backstop_core::{AdapterError, FaultKind};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::settings::PumpSettings;

/// What a read was for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The next rows.
    Ahead,
    /// Rows of a paused destination or a blocked key.
    Again(Reread),
}

/// A read that has ended.
pub(super) struct Done {
    pub(super) purpose: Purpose,
    pub(super) result: Result<Claimed, AdapterError>,
    bytes: usize,
}

struct Task {
    reader: Box<dyn OutboxReader>,
    done: Done,
}

struct Batch {
    rows: VecDeque<OutboxRow>,
    bytes: usize,
}

/// The reader and what it has brought.
pub(super) struct Intake {
    store: Arc<dyn OutboxStore>,
    reader: Option<Box<dyn OutboxReader>>,
    task: Option<JoinHandle<Task>>,
    batches: VecDeque<Batch>,
    rows: usize,
    bytes: usize,
    /// When to read ahead next.
    next: Instant,
    quiet: Duration,
    /// Since the last reset a read has reached the end.
    pub(super) reached_end: bool,
    /// Since rows were written last, as far as we know of it, a read has reached the end.
    caught_up: bool,
}

impl Intake {
    pub(super) fn new(store: Arc<dyn OutboxStore>) -> Self {
        let reader = Some(store.reader());
        Self {
            store,
            reader,
            task: None,
            batches: VecDeque::new(),
            rows: 0,
            bytes: 0,
            next: Instant::now(),
            quiet: Duration::ZERO,
            reached_end: false,
            caught_up: false,
        }
    }

    /// Whether everything that was there has been read and taken from the buffer.
    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up && self.rows == 0
    }

    /// Rows were written by ourselves: they are read at once.
    pub(super) fn rows_were_written(&mut self) {
        self.caught_up = false;
        self.quiet = Duration::ZERO;
        self.next = Instant::now();
    }

    pub(super) fn is_reading(&self) -> bool {
        self.task.is_some()
    }

    pub(super) fn buffered(&self) -> usize {
        self.rows
    }

    /// When the next read ahead is due; `None` while the buffer is full.
    pub(super) fn due(&self, settings: &PumpSettings) -> Option<Instant> {
        (self.rows < settings.buffer_rows && self.bytes < settings.buffer_bytes).then_some(self.next)
    }

    /// Begins a read. Only while none is under way.
    pub(super) fn start(&mut self, purpose: Purpose, rows: usize, settings: &PumpSettings) {
        let mut reader = self.reader.take().unwrap_or_else(|| self.store.reader());
        let bytes = settings.read_bytes;
        let limit = settings.database_timeout;
        self.task = Some(tokio::spawn(async move {
            let read = async {
                match &purpose {
                    Purpose::Ahead => reader.read(rows, bytes).await,
                    Purpose::Again(what) => reader.reread(what, rows, bytes).await,
                }
            };
            let result = match timeout(limit, read).await {
                Ok(result) => result,
                Err(_) => Err(AdapterError::new(FaultKind::Unreachable, "reading the outbox took too long")),
            };
            let bytes = result.as_ref().map_or(0, |claimed| claimed.rows.iter().map(OutboxRow::size).sum());
            Task { reader, done: Done { purpose, result, bytes } }
        }));
    }

    /// Waits for the read that is under way; for ever when there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Done {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(task) => {
                self.reader = Some(task.reader);
                task.done
            }
            // The reader is gone with its task; the next read makes a new one.
            Err(panic) => Done {
                purpose: Purpose::Ahead,
                result: Err(
                    AdapterError::new(FaultKind::Other, "reading the outbox panicked").with_source(panic)
                ),
                bytes: 0,
            },
        }
    }

    /// Buffers what a read ahead brought and sets the pace: at once while there is more, soon while there is
    /// something, ever later while there is nothing.
    pub(super) fn buffer(&mut self, rows: Vec<OutboxRow>, bytes: usize, more: bool, settings: &PumpSettings) {
        let now = Instant::now();
        self.quiet = match (more, rows.is_empty()) {
            (true, _) => Duration::ZERO,
            (false, false) => settings.busy_poll,
            (false, true) => (self.quiet * 2).clamp(settings.busy_poll, settings.idle_poll),
        };
        self.next = now + self.quiet;
        self.reached_end |= !more;
        self.caught_up = !more;
        if !rows.is_empty() {
            self.rows += rows.len();
            self.bytes += bytes;
            self.batches.push_back(Batch { rows: rows.into(), bytes });
        }
    }

    /// The next row.
    pub(super) fn pop(&mut self) -> Option<OutboxRow> {
        let batch = self.batches.front_mut()?;
        let row = batch.rows.pop_front();
        self.rows -= usize::from(row.is_some());
        if batch.rows.is_empty() {
            self.bytes -= batch.bytes;
            self.batches.pop_front();
        }
        row
    }

    /// Drops buffered rows for which `drop` says so.
    pub(super) fn drop_if(&mut self, mut drop: impl FnMut(&OutboxRow) -> bool) {
        for batch in &mut self.batches {
            batch.rows.retain(|row| !drop(row));
        }
        self.batches.retain(|batch| !batch.rows.is_empty());
        self.rows = self.batches.iter().map(|batch| batch.rows.len()).sum();
        self.bytes = self.batches.iter().map(|batch| batch.bytes).sum();
    }

    /// Drops what was read.
    pub(super) fn clear(&mut self) {
        self.batches.clear();
        (self.rows, self.bytes) = (0, 0);
    }

    /// Drops what was read and begins again at the lowest pending row. Only while no read is under way.
    pub(super) fn reset(&mut self) {
        self.clear();
        (self.reached_end, self.caught_up) = (false, false);
        self.quiet = Duration::ZERO;
        self.next = Instant::now();
        match &mut self.reader {
            Some(reader) => reader.reset(),
            None => self.reader = Some(self.store.reader()),
        }
    }
}

impl Done {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
