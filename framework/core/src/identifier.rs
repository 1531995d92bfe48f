//! Names of tables and schemas that come from configuration: checked here, quoted here, nowhere else.

use std::fmt;

use crate::adapter_error::{AdapterError, FaultKind};

/// A checked SQL identifier: a letter or underscore, then letters, digits and underscores, at most 48 bytes, ASCII.
///
/// 48 leaves room for the suffixes of indexes within PostgreSQL's 63.
///
/// ```
/// use backstop_core::identifier::Identifier;
///
/// assert_eq!(Identifier::new("orders_outbox")?.quoted('"'), "\"orders_outbox\"");
/// assert!(Identifier::new("outbox\"; drop table x;--").is_err());
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identifier(String);

impl Identifier {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 48;

    /// Checks the name.
    ///
    /// # Errors
    /// When it is not of the form above; the error shows it escaped.
    pub fn new(name: &str) -> Result<Self, AdapterError> {
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let tail = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if head && tail && name.len() <= Self::MAX_BYTES {
            return Ok(Self(name.to_owned()));
        }
        let shown: String = name.chars().take(60).flat_map(char::escape_default).collect();
        Err(AdapterError::new(FaultKind::Invalid, format!("\"{shown}\" is not a usable SQL name")).with_hint(
            format!(
                "use a letter or underscore, then letters, digits and underscores, at most {} in all",
                Self::MAX_BYTES
            ),
        ))
    }

    /// The name between two of the database's quote characters.
    pub fn quoted(&self, quote: char) -> String {
        format!("{quote}{}{quote}", self.0)
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
