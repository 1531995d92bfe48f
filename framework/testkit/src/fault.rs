//! Faults that come from outside: processes that die at a named point, connections that are cut.

mod crash;
mod proxy;

pub use crash::{CRASH_AT, CrashError, run_until_crash};
pub use proxy::Proxy;
