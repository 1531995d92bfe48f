//! What the table of an outbox looks like, as far as statements depend on it.

use crate::tables::PgTables;

/// A table, and its rows in the form of `backstop_outbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The table, quoted.
    pub(crate) table: String,
    /// Expressions over a row `o` of the table, named as the columns of `backstop_outbox` are.
    pub(crate) select: String,
    /// The text of the row's id, as an expression over `o`.
    pub(crate) id: String,
    /// How dead rows of this table are marked, and what is needed to put them back; `None` for `backstop_outbox`
    /// itself.
    pub(crate) origin: Option<Origin>,
}

/// A table that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Its name in `backstop_outbox_dead.origin`: checked, so that there is nothing to quote in it.
    pub(crate) name: String,
    /// Columns that an INSERT may name, quoted.
    pub(crate) columns: Vec<String>,
}

impl Layout {
    /// The outbox among those tables.
    pub(crate) fn standard(tables: &PgTables) -> Self {
        const COLUMNS: [&str; 13] = [
            "seq",
            "id",
            "source",
            "destination",
            "routing_key",
            "key",
            "kind",
            "subject",
            "event_time",
            "content_type",
            "headers",
            "payload",
            "created_at",
        ];
        let select = COLUMNS.map(|column| format!("o.{column}")).join(", ");
        Self { table: tables.outbox(), select, id: "o.id".to_owned(), origin: None }
    }

    /// The rows, to be read from: the planner sees through the derived table to the index of `seq`.
    fn rows(&self) -> String {
        match self.origin {
            None => self.table.clone(),
            Some(_) => format!("(SELECT {} FROM {} AS o) AS r", self.select, self.table),
        }
    }

    /// Which dead rows are of this table.
    fn mine(&self) -> String {
        match &self.origin {
            None => "origin IS NULL".to_owned(),
            Some(origin) => format!("origin = '{}'", origin.name),
        }
    }

    /// A statement with the marks of the layout filled in, and those of [`PgTables::fill`].
    pub(crate) fn fill(&self, tables: &PgTables, statement: &str) -> String {
        let name = self.origin.as_ref().map(|origin| format!("'{}'", origin.name));
        let original = if self.origin.is_some() { "to_jsonb(o)" } else { "NULL::jsonb" };
        let marks = [
            ("{rows}", self.rows()),
            ("{mine}", self.mine()),
            ("{select}", self.select.clone()),
            ("{id}", self.id.clone()),
            ("{origin}", name.unwrap_or_else(|| "NULL".to_owned())),
            ("{original}", original.to_owned()),
            ("{outbox}", self.table.clone()),
        ];
        let filled = marks.iter().fold(statement.to_owned(), |text, (mark, value)| text.replace(mark, value));
        tables.fill(&filled)
    }
}
