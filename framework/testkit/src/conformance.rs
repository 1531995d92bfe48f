//! What every adapter must show, one named test a case.
//!
//! An adapter implements a harness ([`StoreHarness`] or [`BrokerHarness`]) for its database or broker, says in its
//! capabilities what the technology can do, and calls the macro in a test file:
//!
//! ```text
//! backstop_testkit::store_conformance!(support::Postgres);
//! ```
//!
//! Each case becomes a `#[test]` of its own, in a module named after its group, with a fresh and isolated store or
//! broker, a runtime of two threads and a limit of [`LIMIT`]. A case that a capability excludes prints why and passes;
//! nothing else leaves a case out. The cases panic where a promise is broken: that is what they are for.

pub mod broker;
mod cases;
mod memory;
pub mod store;

use std::future::Future;
use std::time::Duration;

pub use broker::{BrokerCapabilities, BrokerHarness};
pub use memory::{MemoryBroker, MemoryStore};
pub use store::{StoreCapabilities, StoreHarness};

/// How long a case may take.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Runs one case on a runtime of its own.
///
/// # Panics
/// When the case panics or does not end within [`LIMIT`].
pub fn run(case: &str, body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    let ended = runtime.block_on(async { tokio::time::timeout(LIMIT, Box::pin(body)).await });
    runtime.shutdown_background();
    assert!(ended.is_ok(), "case {case} did not end within {LIMIT:?}");
}

/// Asks again until there is an answer. Cases wait for events this way; [`run`] sets the limit.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Leaves a case out because of a capability, and says so.
macro_rules! needs {
    ($capabilities:expr, $capability:ident) => {
        if !$capabilities.$capability {
            println!("not applicable: the adapter's capabilities say {} = false", stringify!($capability));
            return;
        }
    };
}
pub(crate) use needs;
