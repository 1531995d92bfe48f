//! Named points at which a test kills the process.
//!
//! [`crash_point!`](crate::crash_point) is nothing in a build without the feature `crash-points`. With it, the
//! process aborts at the point that the environment variable `BACKSTOP_CRASH_AT` names: `name` at the first pass,
//! `name:3` at the third. There is no unwinding, no destructor and no flush, as with a power cut. At the point that
//! `BACKSTOP_STOP_AT` names in the same way it stops (SIGSTOP) until somebody lets it go on, as a machine that sleeps.

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

/// Called at a crash point; aborts, or stops, when its turn has come.
#[cfg(feature = "crash-points")]
pub fn reached(name: &'static str) {
    use std::sync::LazyLock;

    static CRASH: LazyLock<Option<Turn>> = LazyLock::new(|| Turn::of("BACKSTOP_CRASH_AT"));
    static STOP: LazyLock<Option<Turn>> = LazyLock::new(|| Turn::of("BACKSTOP_STOP_AT"));
    if CRASH.as_ref().is_some_and(|turn| turn.has_come(name)) {
        eprintln!("crash point {name}");
        std::process::abort();
    }
    if STOP.as_ref().is_some_and(|turn| turn.has_come(name)) {
        eprintln!("stopped at {name}");
        // To this thread: one that is sent to the process stops another one first, and this one would go on for a while.
        // There is no stopping elsewhere, and to go on would prove nothing.
        #[cfg(not(unix))]
        std::process::abort();
        #[cfg(unix)]
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).expect("a thread can stop itself");
    }
}

/// At which pass of which point something happens.
#[cfg(feature = "crash-points")]
struct Turn {
    name: String,
    left: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "crash-points")]
impl Turn {
    fn of(variable: &str) -> Option<Self> {
        let text = std::env::var(variable).ok()?;
        let (name, turn) = text.rsplit_once(':').unwrap_or((&text, "1"));
        Some(Self { name: name.to_owned(), left: turn.parse().unwrap_or(1).into() })
    }

    fn has_come(&self, name: &str) -> bool {
        use std::sync::atomic::Ordering;
        self.name == name && self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}
