//! Named points at which a test kills the process.
//!
//! [`crash_point!`](crate::crash_point) is nothing in a build without the feature `crash-points`. With it, the
//! process aborts at the point that the environment variable `BACKSTOP_CRASH_AT` names: `name` at the first pass,
//! `name:3` at the third. There is no unwinding, no destructor and no flush, as with a power cut.

/// Dies here when the environment says so; nothing in builds without the feature `crash-points`.
///
/// ```
/// backstop_core::crash_point!("relay.published");
/// ```
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::reached($name)
    };
}

/// Called at a crash point; does nothing without the feature.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn reached(_name: &'static str) {}

/// Called at a crash point; aborts when its turn has come.
#[cfg(feature = "crash-points")]
pub fn reached(name: &'static str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static TARGET: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = std::env::var("BACKSTOP_CRASH_AT").ok()?;
        let (name, turn) = text.rsplit_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicU64::new(turn.parse().unwrap_or(1))))
    });
    if let Some((target, left)) = &*TARGET
        && target == name
        && left.fetch_sub(1, Ordering::SeqCst) == 1
    {
        eprintln!("crash point {name}");
        std::process::abort();
    }
}
