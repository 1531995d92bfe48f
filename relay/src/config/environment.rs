//! The environment of the process, as far as the configuration needs it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// What the names of variables that override keys begin with. Two underscores, so that no other variable of the
/// program does.
const PREFIX: &str = "BACKSTOP__";
/// The parts of a name behind that, at most; no key lies deeper. Tables are as deep as a name has parts, and so is the
/// stack on which they are walked.
const MAX_PARTS: usize = 8;

/// Environment variables: for `${NAME}` in texts, and `BACKSTOP__SECTION__KEY` in place of a key of the file.
#[derive(Clone, Default)]
pub struct Environment {
    /// `None` for a value that is not UTF-8.
    variables: BTreeMap<String, Option<String>>,
}

/// Without the values, which may be secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// An override: the variable's name and its value, `None` where it is not UTF-8.
pub(super) type Override<'e> = (&'e str, Option<&'e str>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// The value of a variable that is set, and is UTF-8.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.as_deref()
    }

    /// The variables that override keys, by name.
    pub(super) fn overrides(&self) -> Vec<Override<'_>> {
        let all = self.variables.iter().filter(|(name, _)| name.starts_with(PREFIX));
        all.map(|(name, value)| (name.as_str(), value.as_deref())).collect()
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let text = |(name, value): (N, V)| {
            let name = name.into().into_string().ok()?;
            Some((name, value.into().into_string().ok()))
        };
        Self { variables: variables.into_iter().filter_map(text).collect() }
    }
}

/// Whether no key can have the name.
pub(super) fn is_too_deep(name: &str) -> bool {
    name[PREFIX.len()..].split("__").nth(MAX_PARTS).is_some()
}

/// Puts the overrides into the table, but those that are too deep, each with a span of its own: the first begins at `at`, the next one byte later.
pub(super) fn merge<'a>(table: &mut DeTable<'a>, overrides: &[Override<'a>], at: usize) {
    for (n, (name, value)) in overrides.iter().enumerate().filter(|(_, (name, _))| !is_too_deep(name)) {
        let place = at + n..at + n;
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        let value = DeValue::String(value.unwrap_or_default().into());
        insert(table, &path, &place, value);
    }
}

fn insert<'a>(table: &mut DeTable<'a>, path: &[String], place: &std::ops::Range<usize>, value: DeValue<'a>) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        // Removed first: the key in the table keeps its span otherwise, and with it the place of faults.
        table.remove(key.as_str());
        table.insert(Spanned::new(place.clone(), key.clone().into()), Spanned::new(place.clone(), value));
        return;
    }
    if !table.contains_key(key.as_str()) {
        let empty = DeValue::Table(DeTable::new());
        table.insert(Spanned::new(place.clone(), key.clone().into()), Spanned::new(place.clone(), empty));
    }
    // What is no table stays: that is a fault of the file, which is told.
    match table.get_mut(key.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => insert(inner, rest, place, value),
        Some(DeValue::Array(items)) => insert_into_item(items, rest, place, value),
        _ => {}
    }
}

/// The first of the path counts the items from 0. An item that is not there, or is no table, is left alone: the
/// variable becomes an item of its own, which is refused for its type.
fn insert_into_item<'a>(
    items: &mut DeArray<'a>,
    path: &[String],
    place: &std::ops::Range<usize>,
    value: DeValue<'a>,
) {
    let item =
        path.first().and_then(|index| index.parse::<usize>().ok()).and_then(|index| items.get_mut(index));
    match item.map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) if path.len() > 1 => insert(inner, &path[1..], place, value),
        _ => items.push(Spanned::new(place.clone(), value)),
    }
}
