//! Outbox tables as Debezium's outbox event router reads them.

use backstop_core::identifier::Identifier;
use backstop_core::{AdapterError, FaultKind};
use sqlx::{AssertSqlSafe, PgPool};

use crate::failure::{failed, invalid};
use crate::layout::{Layout, Origin};
use crate::tables::PgTables;
use crate::time;

/// What stands for the value of the routing column in the name of a topic.
const ROUTED_BY_VALUE: &str = "${routedByValue}";

/// An outbox table of Debezium's layout, and what becomes of its columns. The defaults are those of Debezium's outbox
/// event router; each field names the option that it stands for.
///
/// The payload becomes the message's body as it is: bytes of a `bytea`, the text of any other type. The event's id is
/// also its header `id`, and its type is the CloudEvents type.
///
/// ```
/// use backstop_postgres::DebeziumOutbox;
///
/// let outbox = DebeziumOutbox { table: "public.outbox".to_owned(), ..DebeziumOutbox::default() };
/// assert_eq!(outbox.topic, "outbox.event.${routedByValue}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebeziumOutbox {
    /// The table, with its schema or without. Defaults to `outboxevent`.
    pub table: String,
    /// `table.field.event.id`: the column with the event's id. Defaults to `id`.
    pub id: String,
    /// `table.field.event.key`: the column with the ordering key. Defaults to `aggregateid`.
    pub key: String,
    /// The column with the event's type. Defaults to `type`.
    pub kind: String,
    /// `table.field.event.payload`: the column with the body. Defaults to `payload`.
    pub payload: String,
    /// `table.field.event.timestamp`: the column with the time of the event: a timestamp, or milliseconds since the
    /// epoch. None unless given.
    pub timestamp: Option<String>,
    /// `route.by.field`: the column that tells the topic. Defaults to `aggregatetype`.
    pub route_by: String,
    /// `route.topic.replacement`: the name of the topic, in which `${routedByValue}` stands for the value of that
    /// column. Defaults to `outbox.event.${routedByValue}`.
    pub topic: String,
    /// `table.fields.additional.placement`: further columns that the message is to carry.
    pub additional: Vec<AdditionalField>,
}

impl Default for DebeziumOutbox {
    fn default() -> Self {
        Self {
            table: "outboxevent".to_owned(),
            id: "id".to_owned(),
            key: "aggregateid".to_owned(),
            kind: "type".to_owned(),
            payload: "payload".to_owned(),
            timestamp: None,
            route_by: "aggregatetype".to_owned(),
            topic: format!("outbox.event.{ROUTED_BY_VALUE}"),
            additional: Vec::new(),
        }
    }
}

/// A column that the message is to carry besides its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdditionalField {
    /// The column.
    pub column: String,
    /// Where it goes.
    pub placement: Placement,
    /// What it is called there.
    pub alias: String,
}

/// Where a column goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Into a header, as text. The headers `ce_source`, `ce_type`, `ce_subject` and `content-type` set the attribute of
    /// that name.
    Header,
    /// Into the body, which becomes a JSON object of `payload` and all fields that are placed so.
    Envelope,
}

impl AdditionalField {
    /// Reads `column:placement` or `column:placement:alias`, as Debezium writes it.
    ///
    /// # Errors
    /// When it is of another form, or the placement is neither `header` nor `envelope`.
    pub fn parse(text: &str) -> Result<Self, AdapterError> {
        let mut parts = text.trim().split(':');
        let (column, placement, alias) = (parts.next(), parts.next(), parts.next());
        let placement = match placement {
            Some("header") => Some(Placement::Header),
            Some("envelope") => Some(Placement::Envelope),
            _ => None,
        };
        match (column, placement, parts.next()) {
            (Some(column), Some(placement), None) if !column.is_empty() && alias != Some("") => {
                Ok(Self { column: column.to_owned(), placement, alias: alias.unwrap_or(column).to_owned() })
            }
            _ => Err(invalid(
                format!("{text:?} does not place a column"),
                "write column:header, column:envelope, or either with :alias behind it; a partition cannot be chosen",
            )),
        }
    }
}

/// A column that is there.
struct Column {
    name: String,
    type_name: String,
    is_generated: bool,
}

impl DebeziumOutbox {
    /// Looks at names only.
    ///
    /// # Errors
    /// When a name is not an SQL identifier of the form that [`Identifier`] allows, or the topic is no template.
    pub fn validate(&self) -> Result<(), AdapterError> {
        self.quoted_table(&PgTables::default())?;
        for column in self.columns() {
            Identifier::new(column)?;
        }
        if let Some(field) = self.additional.iter().find(|field| !is_plain(&field.alias)) {
            let hint = "use letters, digits and punctuation without braces and backslashes";
            return Err(invalid(format!("{:?} is no name of a header or field", field.alias), hint));
        }
        let rest = self.topic.replace(ROUTED_BY_VALUE, "");
        if self.topic.is_empty() || rest.contains('$') || !is_plain(&rest) {
            return Err(invalid(
                format!("{:?} is no template of topics", self.topic),
                "write a name in which ${routedByValue} stands for the value of the routing column",
            ));
        }
        Ok(())
    }

    fn columns(&self) -> impl Iterator<Item = &str> {
        let named = [&self.id, &self.key, &self.kind, &self.payload, &self.route_by].map(String::as_str);
        let additional = self.additional.iter().map(|field| field.column.as_str());
        named.into_iter().chain(self.timestamp.as_deref()).chain(additional)
    }

    /// The table as SQL spells it; in the schema of our own tables unless it names one.
    pub(crate) fn quoted_table(&self, tables: &PgTables) -> Result<String, AdapterError> {
        let (schema, table) = match self.table.split_once('.') {
            Some((schema, table)) => (Some(Identifier::new(schema)?), table),
            None => (tables.schema().cloned(), self.table.as_str()),
        };
        let table = Identifier::new(table)?.quoted('"');
        Ok(schema.map_or(table.clone(), |schema| format!("{}.{table}", schema.quoted('"'))))
    }

    /// Looks at the table and says how it is read.
    pub(crate) async fn layout(&self, pool: &PgPool, tables: &PgTables) -> Result<Layout, AdapterError> {
        self.validate()?;
        let table = self.quoted_table(tables)?;
        let columns = columns_of(pool, &table).await?;
        for wanted in self.columns().chain(["seq"]) {
            if !columns.iter().any(|column| column.name == wanted) {
                let what = format!("table {} has no column {wanted:?}", self.table);
                let hint = if wanted == "seq" {
                    "run `backstop-relay migrate`, which adds it"
                } else {
                    "name the column in the configuration"
                };
                return Err(AdapterError::new(FaultKind::Missing, what).with_hint(hint));
            }
        }
        let insertable = columns.iter().filter(|column| column.name != "seq" && !column.is_generated);
        let origin = Origin {
            name: self.table.clone(),
            columns: insertable.map(|column| quoted(&column.name)).collect(),
        };
        let type_of = |name: &str| {
            columns
                .iter()
                .find(|column| column.name == name)
                .map_or("text", |column| column.type_name.as_str())
        };
        let id = format!("coalesce(o.{}::text, '')", quoted(&self.id));
        Ok(Layout { table, select: self.select(&id, type_of), id, origin: Some(origin) })
    }

    fn select<'a>(&self, id: &str, type_of: impl Fn(&str) -> &'a str) -> String {
        let text = |column: &str| format!("o.{}::text", quoted(column));
        let attribute = |alias: &str| {
            let header =
                |field: &&AdditionalField| field.placement == Placement::Header && field.alias == alias;
            self.additional.iter().find(header).map(|field| text(&field.column))
        };
        let or_null = |expression: Option<String>| expression.unwrap_or_else(|| "NULL::text".to_owned());
        let time = self.timestamp.as_deref().map(|column| event_time(&quoted(column), type_of(column)));
        let time = time.unwrap_or_else(|| "NULL::timestamptz".to_owned());
        let columns = [
            ("id", id.to_owned()),
            ("source", or_null(attribute("ce_source"))),
            ("destination", self.destination()),
            ("routing_key", "NULL::text".to_owned()),
            ("key", text(&self.key)),
            ("kind", attribute("ce_type").unwrap_or_else(|| text(&self.kind))),
            ("subject", or_null(attribute("ce_subject"))),
            ("event_time", time.clone()),
            ("content_type", or_null(attribute("content-type"))),
            ("headers", self.headers(id)),
            ("payload", self.body(type_of(&self.payload))),
            ("created_at", time),
        ];
        let named = columns.map(|(name, expression)| format!("{expression} AS {name}")).join(", ");
        format!("o.seq AS seq, {named}")
    }

    fn destination(&self) -> String {
        let route = format!("o.{}::text", quoted(&self.route_by));
        let parts: Vec<String> = self.topic.split(ROUTED_BY_VALUE).map(literal).collect();
        format!(
            "CASE WHEN coalesce({route}, '') = '' THEN '' ELSE {} END",
            parts.join(&format!(" || {route} || "))
        )
    }

    fn headers(&self, id: &str) -> String {
        const ATTRIBUTES: [&str; 5] = ["id", "ce_source", "ce_type", "ce_subject", "content-type"];
        let placed = self.additional.iter().filter(|field| {
            field.placement == Placement::Header && !ATTRIBUTES.contains(&field.alias.as_str())
        });
        let pairs =
            placed.map(|field| format!(", {}, o.{}::text", literal(&field.alias), quoted(&field.column)));
        format!("jsonb_build_object('id', {id}{})", pairs.collect::<String>())
    }

    fn body(&self, type_name: &str) -> String {
        let payload = format!("o.{}", quoted(&self.payload));
        let placed: Vec<_> =
            self.additional.iter().filter(|field| field.placement == Placement::Envelope).collect();
        if placed.is_empty() {
            return match type_name {
                "bytea" => payload,
                _ => format!("convert_to({payload}::text, 'UTF8')"),
            };
        }
        let value = match type_name {
            "bytea" => format!("encode({payload}, 'base64')"),
            _ => payload,
        };
        let fields =
            placed.iter().map(|field| format!(", {}, o.{}", literal(&field.alias), quoted(&field.column)));
        let fields: String = fields.collect();
        format!("convert_to(jsonb_build_object('payload', {value}{fields})::text, 'UTF8')")
    }
}

/// A time that can be told; null where the column holds none that can.
fn event_time(column: &str, type_name: &str) -> String {
    match type_name {
        "timestamptz" => time::sound(&format!("o.{column}")),
        "timestamp" => time::sound(&format!("(o.{column} AT TIME ZONE 'UTC')")),
        "int8" | "int4" => format!(
            "CASE WHEN o.{column} BETWEEN -62135596800000 AND 253402300799999 \
             THEN to_timestamp(o.{column} / 1000.0) END"
        ),
        _ => "NULL::timestamptz".to_owned(),
    }
}

/// Whether a text stays what it is inside of a statement: no mark of ours, no escape.
fn is_plain(text: &str) -> bool {
    !text.contains(|character: char| character.is_control() || matches!(character, '{' | '}' | '\\'))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn columns_of(pool: &PgPool, table: &str) -> Result<Vec<Column>, AdapterError> {
    let doing = || failed("look at the columns of the outbox");
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(pool)
        .await
        .map_err(doing())?;
    if !exists {
        let what = format!("table {} does not exist", table.replace('"', ""));
        return Err(AdapterError::new(FaultKind::Missing, what)
            .with_hint("name the outbox table of the service in the configuration"));
    }
    let sql = "SELECT attname::text, typname::text, attgenerated <> '' FROM pg_attribute \
               JOIN pg_type ON pg_type.oid = atttypid \
               WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let rows: Vec<(String, String, bool)> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(table).fetch_all(pool).await.map_err(doing())?;
    let column = |(name, type_name, is_generated)| Column { name, type_name, is_generated };
    Ok(rows.into_iter().map(column).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_are_read_as_debezium_writes_them() {
        let parse = |text: &str| {
            AdditionalField::parse(text).map(|field| (field.column, field.placement, field.alias))
        };
        assert_eq!(parse("type:header").ok(), Some(("type".into(), Placement::Header, "type".into())));
        assert_eq!(parse(" a:envelope:b ").ok(), Some(("a".into(), Placement::Envelope, "b".into())));
        for odd in ["", "a", "a:body", "a:partition", ":header", "a:header:", "a:header:b:c"] {
            assert!(parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn s15_names_are_checked_before_they_reach_a_statement() {
        let with = |change: fn(&mut DebeziumOutbox)| {
            let mut outbox = DebeziumOutbox::default();
            change(&mut outbox);
            outbox.validate()
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|outbox| outbox.table = "public.Outbox".into()).is_ok());
        assert!(with(|outbox| outbox.table = "a.b.c".into()).is_err());
        assert!(with(|outbox| outbox.key = "a\"; drop table x".into()).is_err());
        for alias in ["a\\", "{outbox}", "{origin}", "a\0b", "a\nb"] {
            let field = AdditionalField::parse(&format!("a:header:{alias}")).expect("a placement");
            let outbox = DebeziumOutbox { additional: vec![field], ..DebeziumOutbox::default() };
            assert!(outbox.validate().is_err(), "{alias:?}");
        }
        for topic in ["", "a\nb", "a.${other}", "${routedByValue", "a\\b"] {
            let outbox = DebeziumOutbox { topic: topic.into(), ..DebeziumOutbox::default() };
            assert!(outbox.validate().is_err(), "{topic}");
        }
        let outbox = DebeziumOutbox { topic: "it's.${routedByValue}".into(), ..DebeziumOutbox::default() };
        assert!(outbox.destination().contains("'it''s.' || o.\"aggregatetype\"::text || ''"));
    }
}
