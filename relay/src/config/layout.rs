//! `layout` of an outbox and the names that belong to it.

use backstop_core::AdapterError;
use backstop_postgres::{AdditionalField, DebeziumOutbox};
use serde::Serialize;

use super::DatabaseConfig;
use super::document::Section;

/// What the table of an outbox looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// The table `backstop_outbox`.
    Backstop,
    /// A table as Debezium's outbox event router reads it, on PostgreSQL.
    Debezium,
}

/// Names in a table of Debezium's layout; each stands for an option of Debezium's outbox event router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebeziumConfig {
    /// `table`: with its schema, or in that of the other tables. Defaults to `outboxevent`.
    pub table: String,
    /// `id`: `table.field.event.id`. Defaults to `id`.
    pub id: String,
    /// `key`: `table.field.event.key`. Defaults to `aggregateid`.
    pub key: String,
    /// `type`: the column with the event's type. Defaults to `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `payload`: `table.field.event.payload`. Defaults to `payload`.
    pub payload: String,
    /// `timestamp`: `table.field.event.timestamp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// `route_by`: `route.by.field`. Defaults to `aggregatetype`.
    pub route_by: String,
    /// `topic`: `route.topic.replacement`. Defaults to `outbox.event.${routedByValue}`.
    pub topic: String,
    /// `additional`: `table.fields.additional.placement`.
    pub additional: Vec<String>,
}

impl DebeziumConfig {
    /// The outbox that these names describe.
    ///
    /// # Errors
    /// When a column is placed in another way than Debezium's.
    pub fn outbox(&self) -> Result<DebeziumOutbox, AdapterError> {
        let additional = self.additional.iter().map(|text| AdditionalField::parse(text));
        Ok(DebeziumOutbox {
            table: self.table.clone(),
            id: self.id.clone(),
            key: self.key.clone(),
            kind: self.kind.clone(),
            payload: self.payload.clone(),
            timestamp: self.timestamp.clone(),
            route_by: self.route_by.clone(),
            topic: self.topic.clone(),
            additional: additional.collect::<Result<_, _>>()?,
        })
    }
}

/// The layout, and the names of a table that is not ours.
pub(super) fn layout(
    section: &mut Section<'_>,
    database: Option<&DatabaseConfig>,
) -> (Layout, Option<DebeziumConfig>) {
    let layouts = [("backstop", Layout::Backstop), ("debezium", Layout::Debezium)];
    let layout = section.choice("layout", &layouts).unwrap_or(Layout::Backstop);
    let mut inner = section.section("debezium");
    let names = names(&mut inner);
    let (place, is_there) = (inner.place(), inner.is_there());
    inner.finish();
    if layout == Layout::Backstop {
        if is_there {
            let what = format!("{} says nothing without the layout", section.path("debezium"));
            section.fault(place, what, "set layout = \"debezium\" in [outbox]");
        }
        return (layout, None);
    }
    if database.is_some_and(|database| !database.url.expose().starts_with("postgres")) {
        let what = format!("{}: \"debezium\" needs PostgreSQL", section.path("layout"));
        section.fault(section.place(), what, "use layout = \"backstop\" on other databases");
    }
    if let Err(error) = names.outbox().and_then(|outbox| outbox.validate()) {
        let hint = error.hint().unwrap_or("see the guide of the relay").to_owned();
        section.fault(place, format!("{}: {error}", section.path("debezium")), hint);
    }
    (layout, Some(names))
}

fn names(section: &mut Section<'_>) -> DebeziumConfig {
    let usual = DebeziumOutbox::default();
    let mut name = |key, usual: String| section.text(key).map_or(usual, |text| text.text);
    DebeziumConfig {
        table: name("table", usual.table),
        id: name("id", usual.id),
        key: name("key", usual.key),
        kind: name("type", usual.kind),
        payload: name("payload", usual.payload),
        route_by: name("route_by", usual.route_by),
        timestamp: section.text("timestamp").map(|text| text.text),
        topic: section.literal("topic").map_or(usual.topic, |text| text.text),
        additional: placements(section),
    }
}

/// A list, or one text with commas, as Debezium has it.
fn placements(section: &mut Section<'_>) -> Vec<String> {
    let texts = section.texts("additional");
    let each = texts.iter().flat_map(|text| text.text.split(','));
    each.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}
