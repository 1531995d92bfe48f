//! How large a run is.

/// The number that the environment asks for, such as `tests/long` does; `None` where it names none.
pub fn asked(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}
