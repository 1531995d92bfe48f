//! Which message is being handled on this thread just now.
//!
//! The consumer loop wraps a handler's future in [`scope`]; what the handler enqueues inherits the correlation id
//! and names the handled message as its cause.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;

use crate::message::{Headers, Message};
use crate::names::{CAUSATION_ID, CORRELATION_ID};

/// Longest id that is inherited.
const MAX_BYTES: usize = 255;

/// What messages that are enqueued now inherit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    correlation_id: String,
    causation_id: String,
}

impl Cause {
    /// The cause that `message` is: its correlation id, or its id where it begins a conversation, and its id.
    pub fn of(message: &Message) -> Self {
        let inherited = message.headers.get_str(CORRELATION_ID);
        let inherited = inherited.filter(|id| !id.is_empty() && id.len() <= MAX_BYTES && !id.contains('\0'));
        Self { correlation_id: inherited.unwrap_or(&message.id).to_owned(), causation_id: message.id.clone() }
    }

    fn write(&self, headers: &mut Headers) {
        for (name, value) in [(CORRELATION_ID, &self.correlation_id), (CAUSATION_ID, &self.causation_id)] {
            if headers.get(name).is_none() {
                headers.append(name, value.clone());
            }
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Cause>> = const { RefCell::new(None) };
}

/// Runs `future` with `cause` as the current one, on whatever thread it is polled.
pub async fn scope<F: Future>(cause: Cause, future: F) -> F::Output {
    let mut future = pin!(future);
    let mut own = Some(cause);
    poll_fn(move |context| {
        let _restore = Swap::new(&mut own);
        future.as_mut().poll(context)
    })
    .await
}

/// Writes the current cause into headers that do not name one; nothing outside of a handler.
pub fn inherit(headers: &mut Headers) {
    CURRENT.with_borrow(|current| {
        if let Some(cause) = current {
            cause.write(headers);
        }
    });
}

/// Puts a cause in place for one poll and takes it back on drop, panics included.
struct Swap<'a> {
    own: &'a mut Option<Cause>,
}

impl<'a> Swap<'a> {
    fn new(own: &'a mut Option<Cause>) -> Self {
        CURRENT.with_borrow_mut(|current| std::mem::swap(current, own));
        Self { own }
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| std::mem::swap(current, self.own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn what_is_enqueued_inherits_and_nothing_leaks() {
        let message = Message::new("order.placed").id("m-1").header(CORRELATION_ID, "c-1");
        let mut future = pin!(scope(Cause::of(&message), async {
            let mut headers = Headers::default();
            inherit(&mut headers);
            headers
        }));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(headers) = future.as_mut().poll(&mut context) else { panic!("nothing to wait for") };
        assert_eq!(
            (headers.get_str(CORRELATION_ID), headers.get_str(CAUSATION_ID)),
            (Some("c-1"), Some("m-1"))
        );
        let mut outside = Headers::default();
        inherit(&mut outside);
        assert!(outside.is_empty());
    }
}
