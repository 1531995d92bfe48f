//! Texts that PostgreSQL can store.

/// A text as PostgreSQL can store it: NULs, which it cannot, become U+FFFD.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
