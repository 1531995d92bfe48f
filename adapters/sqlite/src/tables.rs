//! What the tables are called.

use backstop_core::identifier::Identifier;
use backstop_core::{AdapterError, FaultKind};

/// The prefix that the migrations are written with.
const STANDARD: &str = "backstop";

/// Longest prefix, as on PostgreSQL.
const MAX_PREFIX: usize = 32;

/// Prefix of Backstop's tables; one value is shared by everything that uses them.
///
/// By default the tables are called `backstop_…`.
///
/// ```
/// use backstop_sqlite::SqliteTables;
///
/// let tables = SqliteTables::default().with_prefix("orders")?;
/// assert_eq!(tables.outbox(), "\"orders_outbox\"");
/// # Ok::<(), backstop_core::AdapterError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SqliteTables {
    prefix: Identifier,
}

impl Default for SqliteTables {
    fn default() -> Self {
        Self { prefix: Identifier::new(STANDARD).expect("the standard prefix is a valid name") }
    }
}

impl SqliteTables {
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

    /// The outbox, quoted.
    pub fn outbox(&self) -> String {
        self.quoted("outbox")
    }

    /// Rows of the outbox that cannot be sent, quoted.
    pub(crate) fn outbox_dead(&self) -> String {
        self.quoted("outbox_dead")
    }

    /// Rows of the outbox whose time has not come, quoted.
    pub fn outbox_scheduled(&self) -> String {
        self.quoted("outbox_scheduled")
    }

    /// Leases, quoted.
    pub(crate) fn lease(&self) -> String {
        self.quoted("lease")
    }

    /// The inbox, quoted.
    pub fn inbox(&self) -> String {
        self.quoted("inbox")
    }

    /// Held messages, quoted.
    pub(crate) fn held(&self) -> String {
        self.quoted("held")
    }

    /// Dead letters, quoted.
    pub(crate) fn letter(&self) -> String {
        self.quoted("letter")
    }

    /// What happened to dead letters, quoted.
    pub(crate) fn letter_event(&self) -> String {
        self.quoted("letter_event")
    }

    /// Groups of dead letters, quoted.
    pub(crate) fn letter_group(&self) -> String {
        self.quoted("letter_group")
    }

    /// How many letters of a group have which status, quoted.
    pub(crate) fn letter_count(&self) -> String {
        self.quoted("letter_count")
    }

    /// How many letters of a group died in which minute, quoted.
    pub(crate) fn letter_minute(&self) -> String {
        self.quoted("letter_minute")
    }

    /// What letters are searched for by, quoted.
    pub(crate) fn letter_term(&self) -> String {
        self.quoted("letter_term")
    }

    /// Redrives, quoted.
    pub(crate) fn redrive(&self) -> String {
        self.quoted("redrive")
    }

    /// Letters of redrives, quoted.
    pub(crate) fn redrive_letter(&self) -> String {
        self.quoted("redrive_letter")
    }

    /// How many letters of a redrive stand where, quoted.
    pub(crate) fn redrive_count(&self) -> String {
        self.quoted("redrive_count")
    }

    /// What consumers say of themselves, quoted.
    pub(crate) fn consumer(&self) -> String {
        self.quoted("consumer")
    }

    /// The audit log, quoted.
    pub(crate) fn audit(&self) -> String {
        self.quoted("audit")
    }

    /// Owed receipts, quoted.
    pub(crate) fn receipt(&self) -> String {
        self.quoted("receipt")
    }

    /// Charges of messages that are not held, quoted.
    pub(crate) fn charge(&self) -> String {
        self.quoted("charge")
    }

    /// Versions of the schema that are applied, quoted.
    pub(crate) fn migrations(&self) -> String {
        self.quoted("migrations")
    }

    /// The outbox, as a text of SQL names it.
    pub(crate) fn outbox_name(&self) -> String {
        format!("{}_outbox", self.prefix)
    }

    /// Statements of a migration with this prefix in place of the standard one.
    pub(crate) fn renamed(&self, sql: &str) -> String {
        sql.replace("backstop_", &format!("{}_", self.prefix))
    }

    fn quoted(&self, name: &str) -> String {
        format!("\"{}_{name}\"", self.prefix)
    }
}
