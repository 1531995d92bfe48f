//! Where the tables are.

use backstop_core::identifier::Identifier;
use backstop_core::{AdapterError, FaultKind};

/// Database and prefix of Backstop's tables; one value is shared by everything that uses them.
///
/// By default the tables are called `backstop_…` and are in the database that the connection has chosen.
///
/// ```
/// use backstop_mysql::MySqlTables;
///
/// let tables = MySqlTables::in_schema("events")?.with_prefix("orders")?;
/// assert_eq!(tables.outbox(), "`events`.`orders_outbox`");
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MySqlTables {
    schema: Option<Identifier>,
    prefix: Identifier,
}

/// Longest prefix, so that names stay within MySQL's 64 characters.
const MAX_PREFIX: usize = 32;

impl Default for MySqlTables {
    fn default() -> Self {
        let prefix = Identifier::new("backstop").expect("a constant that is checked by a test");
        Self { schema: None, prefix }
    }
}

impl MySqlTables {
    /// Tables named `backstop_…` in that database (which MySQL also calls a schema).
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

    /// The inbox as SQL spells it, quoted.
    pub fn inbox(&self) -> String {
        self.quoted("inbox")
    }

    /// Rows of the outbox whose time has not come, quoted.
    pub fn outbox_scheduled(&self) -> String {
        self.quoted("outbox_scheduled")
    }

    pub(crate) fn schema(&self) -> Option<&Identifier> {
        self.schema.as_ref()
    }

    /// The bare name of a table of ours.
    pub(crate) fn name(&self, table: &str) -> String {
        format!("{}_{table}", self.prefix)
    }

    /// A table of ours, quoted and with its database.
    pub(crate) fn quoted(&self, table: &str) -> String {
        format!("{}{table}`", self.start())
    }

    /// A statement of a migration, with these names in place of the standard ones.
    pub(crate) fn renamed(&self, sql: &str) -> String {
        sql.replace("`backstop_", &self.start())
    }

    fn start(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.`{}_", schema.quoted('`'), self.prefix),
            None => format!("`{}_", self.prefix),
        }
    }

    /// The database as an expression.
    pub(crate) fn schema_expression(&self) -> String {
        self.schema.as_ref().map_or_else(|| "DATABASE()".to_owned(), |schema| format!("'{schema}'"))
    }

    /// A statement with `{outbox}`, `{dead}`, `{scheduled}`, `{inbox}`, `{held}`, `{gate}`, `{lease}`, `{receipt}` and `{charge}`
    /// filled in.
    pub(crate) fn fill(&self, statement: &str) -> String {
        const NAMES: [(&str, &str); 9] = [
            ("{outbox}", "outbox"),
            ("{dead}", "outbox_dead"),
            ("{scheduled}", "outbox_scheduled"),
            ("{inbox}", "inbox"),
            ("{held}", "held"),
            ("{gate}", "held_gate"),
            ("{lease}", "lease"),
            ("{receipt}", "receipt"),
            ("{charge}", "charge"),
        ];
        NAMES.iter().fold(statement.to_owned(), |text, (mark, table)| text.replace(mark, &self.quoted(table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_checked() {
        assert_eq!(MySqlTables::default().outbox(), "`backstop_outbox`");
        let injection = "x`; drop table y;--";
        assert!(MySqlTables::in_schema(injection).is_err());
        assert!(MySqlTables::default().with_prefix(injection).is_err());
        assert!(MySqlTables::default().with_prefix("Upper").is_err());
        assert!(MySqlTables::default().with_prefix(&"x".repeat(33)).is_err());
    }

    #[test]
    fn migrations_are_renamed() {
        let tables = MySqlTables::in_schema("d").expect("a name").with_prefix("p").expect("a name");
        assert_eq!(tables.renamed("DROP TABLE `backstop_held_gate`"), "DROP TABLE `d`.`p_held_gate`");
    }
}
