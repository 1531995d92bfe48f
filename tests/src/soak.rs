//! Real load for minutes while something breaks every so often; at the end the oracle.

pub mod consumers;
pub mod producers;
pub mod relays;

use crate::servers;

/// Has `tests/servers` kill a server, and start it again.
async fn killed(kill: &'static [&'static str], start: &'static [&'static str]) {
    servers::controlled(kill).await;
    servers::controlled(start).await;
}
