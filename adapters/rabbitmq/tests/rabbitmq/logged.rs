//! Waiting for what the adapter says in its log, where nothing else tells of it.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{DefaultGuard, Interest, set_default};
use tracing::{Event, Metadata, Subscriber};

struct Listener {
    words: &'static str,
    heard: Arc<Notify>,
}

/// Ready once the adapter has logged these words on this thread, from now on and while the guard lives.
pub(crate) fn logged(words: &'static str) -> (impl Future<Output = ()>, DefaultGuard) {
    let heard = Arc::new(Notify::new());
    let guard = set_default(Listener { words, heard: heard.clone() });
    (async move { heard.notified().await }, guard)
}

impl Subscriber for Listener {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("backstop_rabbitmq")
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Search(self));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Search<'a>(&'a Listener);

impl Visit for Search<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" && format!("{value:?}").contains(self.0.words) {
            self.0.heard.notify_one();
        }
    }
}
