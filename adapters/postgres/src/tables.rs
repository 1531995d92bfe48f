//! Where the tables are.

use backstop_core::identifier::Identifier;
use backstop_core::{AdapterError, FaultKind};

/// Schema and prefix of Backstop's tables; one value is shared by everything that uses them.
///
/// By default the tables are called `backstop_…` and found through the connection's `search_path`.
///
/// ```
/// use backstop_postgres::PgTables;
///
/// let tables = PgTables::in_schema("events")?.with_prefix("orders")?;
/// assert_eq!(tables.outbox(), "\"events\".\"orders_outbox\"");
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PgTables {
    schema: Option<Identifier>,
    prefix: Identifier,
}

/// Longest prefix, so that the names of indexes stay within PostgreSQL's 63 bytes.
const MAX_PREFIX: usize = 32;

impl Default for PgTables {
    fn default() -> Self {
        let prefix = Identifier::new("backstop").expect("a constant that is checked by a test");
        Self { schema: None, prefix }
    }
}

impl PgTables {
    /// Tables named `backstop_…` in that schema.
    ///
    /// # Errors
    /// When the name is not an SQL identifier of the form that [`Identifier`] allows.
    pub fn in_schema(schema: &str) -> Result<Self, AdapterError> {
        Ok(Self { schema: Some(Identifier::new(schema)?), ..Self::default() })
    }

    /// The same with another prefix than `backstop`.
    ///
    /// # Errors
    /// When the prefix is not lowercase, longer than 32 bytes, or not an SQL identifier.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, AdapterError> {
        let prefix = Identifier::new(prefix)?;
        if prefix.as_str().len() > MAX_PREFIX || prefix.as_str().bytes().any(|byte| byte.is_ascii_uppercase())
        {
            let what = format!("\"{prefix}\" cannot be the prefix of tables");
            let hint = format!("use at most {MAX_PREFIX} lowercase letters, digits and underscores");
            return Err(AdapterError::new(FaultKind::Invalid, what).with_hint(hint));
        }
        self.prefix = prefix;
        Ok(self)
    }

    /// The outbox as SQL spells it, quoted: for queries of your own.
    pub fn outbox(&self) -> String {
        self.quoted("outbox")
    }

    /// The table of scheduled rows as SQL spells it, quoted.
    pub fn outbox_scheduled(&self) -> String {
        self.quoted("outbox_scheduled")
    }

    /// The inbox as SQL spells it, quoted.
    pub fn inbox(&self) -> String {
        self.quoted("inbox")
    }

    pub(crate) fn schema(&self) -> Option<&Identifier> {
        self.schema.as_ref()
    }

    pub(crate) fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// A table of ours, quoted and with its schema.
    pub(crate) fn quoted(&self, table: &str) -> String {
        let name = format!("\"{}_{table}\"", self.prefix);
        match &self.schema {
            Some(schema) => format!("{}.{name}", schema.quoted('"')),
            None => name,
        }
    }

    /// A statement with the names of tables filled in: those below.
    pub(crate) fn fill(&self, statement: &str) -> String {
        const NAMES: [(&str, &str); 18] = [
            ("{outbox}", "outbox"),
            ("{dead}", "outbox_dead"),
            ("{scheduled}", "outbox_scheduled"),
            ("{inbox}", "inbox"),
            ("{held}", "held"),
            ("{lease}", "lease"),
            ("{letter}", "letter"),
            ("{event}", "letter_event"),
            ("{group}", "letter_group"),
            ("{count}", "letter_count"),
            ("{minute}", "letter_minute"),
            ("{redrive}", "redrive"),
            ("{cohort}", "redrive_letter"),
            ("{redrive_count}", "redrive_count"),
            ("{consumer}", "consumer"),
            ("{receipt}", "receipt"),
            ("{charge}", "charge"),
            ("{audit}", "audit"),
        ];
        NAMES.iter().fold(statement.to_owned(), |text, (mark, table)| text.replace(mark, &self.quoted(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s15_names_are_quoted_and_checked() {
        assert_eq!(PgTables::default().outbox(), "\"backstop_outbox\"");
        let injection = "x\"; drop table y;--";
        assert!(PgTables::in_schema(injection).is_err());
        assert!(PgTables::default().with_prefix(injection).is_err());
        assert!(PgTables::default().with_prefix("Upper").is_err());
        assert!(PgTables::default().with_prefix(&"x".repeat(33)).is_err());
    }
}
