//! A TOML document that is read section by section, with every fault noted at its line.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::environment::{Environment, Override, is_too_deep, merge};
use super::files;
use super::interpolate::interpolate;

/// Where a value of the configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// The environment variable of that name.
    Variable(String),
}

/// What is wrong with the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What, in one line.
    pub what: String,
    /// How to mend it.
    pub hint: String,
}

/// What the sections of one document share.
pub(super) struct Reader<'a> {
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    env: &'a Environment,
    overrides: Vec<Override<'a>>,
    faults: RefCell<Vec<Fault>>,
}

/// A text with its place.
pub(super) struct Located {
    pub(super) text: String,
    pub(super) place: Place,
    interpolated: bool,
}

impl Located {
    /// The text for an error line; what came from the environment is not shown.
    pub(super) fn shown(&self) -> String {
        if self.interpolated {
            return "the value from the environment".to_owned();
        }
        format!("{:?}", self.text)
    }

    /// Whether an environment variable took the place of the key.
    pub(super) fn is_override(&self) -> bool {
        matches!(self.place, Place::Variable(_))
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, env: &'a Environment) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            lines: std::iter::once(0).chain(after).collect(),
            env,
            overrides: env.overrides(),
            faults: RefCell::default(),
        }
    }

    /// The top table of the document, with what the environment overrides; syntax errors are noted as faults.
    pub(super) fn parse(&self) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let place = error.span().map_or(Place::Line(1), |span| self.place(&span));
            let what = error.message().lines().next().unwrap_or("syntax error").to_owned();
            self.fault(place, what, "mend the TOML syntax; texts stand in \"quotes\"");
        }
        for (name, _) in self.overrides.iter().filter(|(_, value)| value.is_none()) {
            self.fault(Place::Variable((*name).to_owned()), "the value is not UTF-8", "set a value in UTF-8");
        }
        for (name, _) in self.overrides.iter().filter(|(name, _)| is_too_deep(name)) {
            let hint = "write BACKSTOP__SECTION__KEY";
            self.fault(Place::Variable((*name).to_owned()), "there is no key so deep", hint);
        }
        let mut table = table.into_inner();
        merge(&mut table, &self.overrides, self.text.len() + 1);
        table
    }

    pub(super) fn fault(&self, place: Place, what: impl Into<String>, hint: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { place, what: what.into(), hint: hint.into() });
    }

    /// Everything noted, by line.
    pub(super) fn faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by(|one, other| one.place.cmp(&other.place));
        faults.dedup();
        faults
    }

    /// A line, or for a span behind the text the variable that was merged with it.
    fn place(&self, span: &Range<usize>) -> Place {
        match span.start.checked_sub(self.text.len() + 1).and_then(|n| self.overrides.get(n)) {
            Some((name, _)) => Place::Variable((*name).to_owned()),
            None => Place::Line(self.lines.partition_point(|begin| *begin <= span.start)),
        }
    }

    /// The text with `${NAME}` replaced; `None` when a variable is missing, which is noted. What comes from the
    /// environment is taken as it is.
    fn interpolated(&self, text: &str, place: Place) -> Option<Located> {
        if let Place::Variable(_) = place {
            return Some(Located { text: text.to_owned(), place, interpolated: true });
        }
        match interpolate(text, self.env) {
            Ok(done) => Some(Located { interpolated: done != text, text: done, place }),
            Err(faults) => {
                for (what, hint) in faults {
                    self.fault(place.clone(), what, hint);
                }
                None
            }
        }
    }
}

/// One table of the document. Each key that is asked for is known; [`finish`](Section::finish) refuses the rest.
pub(super) struct Section<'a> {
    name: String,
    place: Place,
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
    reader: &'a Reader<'a>,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn top(table: &'a DeTable<'a>, reader: &'a Reader<'a>) -> Self {
        Self { name: String::new(), place: Place::Line(1), table: Some(table), known: Vec::new(), reader }
    }

    /// The table of that name, which need not be there.
    pub(super) fn section(&mut self, name: &'static str) -> Self {
        let found = self.value(name);
        let table = found.and_then(|(value, place)| match value.as_table() {
            Some(table) => Some((table, place)),
            None => self.wrong_type(name, place, "a table", value),
        });
        let (table, place) = table.unzip();
        let place = place.unwrap_or_else(|| self.place.clone());
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) };
        Section { name, place, table, known: Vec::new(), reader: self.reader }
    }

    /// The tables of that name: `[name]` once, or `[[name]]` for each.
    pub(super) fn sections(&mut self, name: &'static str) -> Vec<Self> {
        let Some((value, place)) = self.value(name) else { return Vec::new() };
        let one = |table, place| self.inner(name.to_owned(), table, place);
        match value {
            DeValue::Table(table) => vec![one(table, place)],
            DeValue::Array(items) => {
                let item = |item: &'a Spanned<DeValue<'a>>| {
                    let place = self.reader.place(&item.span());
                    match item.get_ref() {
                        DeValue::Table(table) => Some(one(table, place)),
                        other => self.wrong_type(name, place, "a table", other),
                    }
                };
                items.iter().filter_map(item).collect()
            }
            other => self.wrong_type(name, place, "a table", other).unwrap_or_default(),
        }
    }

    /// The tables within the table of that name, by names that are free.
    pub(super) fn named(&mut self, name: &'static str) -> Vec<(Located, Self)> {
        let Some((value, place)) = self.value(name) else { return Vec::new() };
        let DeValue::Table(table) = value else {
            return self.wrong_type(name, place, "a table of tables", value).unwrap_or_default();
        };
        let inner = |(key, value): (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let place = self.reader.place(&value.span());
            let path = format!("{name}.{}", key.get_ref());
            let DeValue::Table(table) = value.get_ref() else {
                return self.wrong_type(&path, place, "a table", value.get_ref());
            };
            let text = key.get_ref().clone().into_owned();
            let key = Located { text, place: self.reader.place(&key.span()), interpolated: false };
            Some((key, self.inner(path, table, place)))
        };
        table.iter().filter_map(inner).collect()
    }

    fn inner(&self, name: String, table: &'a DeTable<'a>, place: Place) -> Self {
        let name = if self.name.is_empty() { name } else { format!("{}.{name}", self.name) };
        Section { name, place, table: Some(table), known: Vec::new(), reader: self.reader }
    }

    /// Whether the table stands in the document.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// The environment of the process.
    pub(super) fn env(&self) -> &'a Environment {
        self.reader.env
    }

    /// Notes a fault.
    pub(super) fn fault(&self, place: Place, what: impl Into<String>, hint: impl Into<String>) {
        self.reader.fault(place, what, hint);
    }

    /// `[section] key`, as error lines name it.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("[{}] {key}", self.name) }
    }

    /// Whether the key stands in the document, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Notes that a key is missing, unless the whole section is (which is said once).
    pub(super) fn missing(&self, key: &str, hint: impl Into<String>) {
        if self.is_there() {
            self.fault(self.place(), format!("{} is missing", self.path(key)), hint);
        }
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located> {
        let (value, place) = self.value(key)?;
        match value {
            DeValue::String(text) => self.reader.interpolated(text, place),
            other => self.wrong_type(key, place, "a text in quotes", other),
        }
    }

    /// A text in which `${…}` is not the environment's.
    pub(super) fn literal(&mut self, key: &'static str) -> Option<Located> {
        let (value, place) = self.value(key)?;
        match value {
            DeValue::String(text) => {
                Some(Located { text: text.clone().into_owned(), place, interpolated: false })
            }
            other => self.wrong_type(key, place, "a text in quotes", other),
        }
    }

    /// Whether the key has exactly this text; where it has another, somebody else reads it.
    pub(super) fn says(&mut self, key: &'static str, word: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key)).map(Spanned::get_ref);
        let says = matches!(value, Some(DeValue::String(text)) if text == word);
        if says {
            self.known.push(key);
        }
        says
    }

    /// A secret text: under `key`, or in the file that `file_key` names (without the line end at its end).
    pub(super) fn secret(&mut self, key: &'static str, file_key: &'static str) -> Option<Located> {
        let (here, file) = (self.text(key), self.text(file_key));
        match (here, file) {
            (Some(here), None) => Some(here),
            (None, Some(file)) => self.read_secret(file, file_key),
            (Some(here), Some(file)) if here.is_override() != file.is_override() => {
                if here.is_override() {
                    Some(here)
                } else {
                    self.read_secret(file, file_key)
                }
            }
            (Some(_), Some(file)) => {
                let what = format!("{} and {file_key} are both set", self.path(key));
                self.fault(file.place, what, "keep one of them");
                None
            }
            (None, None) => None,
        }
    }

    /// Secret texts: those under `key`, and those in the files that `file_key` names.
    pub(super) fn secrets(&mut self, key: &'static str, file_key: &'static str) -> Vec<Located> {
        let (mut secrets, files) = (self.texts(key), self.texts(file_key));
        secrets.extend(files.into_iter().filter_map(|file| self.read_secret(file, file_key)));
        secrets
    }

    fn read_secret(&self, file: Located, key: &str) -> Option<Located> {
        let what = format!("{}: ", self.path(key));
        let text = match files::read(Path::new(&file.text), files::MAX_SECRET) {
            Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
            Err(error) => {
                let what = format!("{what}cannot read {}: {error}", file.shown());
                self.fault(file.place, what, "check that the file is there and readable");
                return None;
            }
        };
        // An empty password is sent as one, and refused by a server with words that lead elsewhere.
        if text.is_empty() {
            let what = format!("{what}{} is empty", file.shown());
            self.fault(file.place, what, "write the value into the file");
            return None;
        }
        Some(Located { text, place: file.place, interpolated: true })
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let Some((value, place)) = self.value(key) else { return default };
        let found = match (value, &place) {
            (DeValue::Boolean(value), _) => Some(*value),
            (DeValue::String(text), Place::Variable(_)) => text.parse().ok(),
            _ => None,
        };
        found.or_else(|| self.wrong_type(key, place, "true or false", value)).unwrap_or(default)
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, key: &'static str, default: u64, bounds: Range<u64>) -> u64 {
        let Some((value, place)) = self.value(key) else { return default };
        let number = match (value, &place) {
            (DeValue::Integer(number), _) => u64::from_str_radix(number.as_str(), number.radix()),
            (DeValue::String(text), Place::Variable(_)) => text.parse(),
            _ => return self.wrong_type(key, place, "a whole number", value).unwrap_or(default),
        };
        match number {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                let shown = match (value, &place) {
                    (DeValue::Integer(number), Place::Line(_)) => format!(" = {number}"),
                    _ => String::new(),
                };
                let what = format!("{}{shown} is out of bounds", self.path(key));
                self.fault(place, what, format!("use {} to {}", bounds.start, bounds.end - 1));
                default
            }
        }
    }

    /// A duration such as `"10s"`, within bounds.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: Range<Duration>,
    ) -> Duration {
        let Some(text) = self.text(key) else { return default };
        let within = format!(
            "use a duration from \"{}\" to \"{}\", such as \"1500ms\", \"10s\" or \"2m\"",
            humantime::format_duration(bounds.start),
            humantime::format_duration(bounds.end)
        );
        let what = match humantime::parse_duration(&text.text) {
            Ok(duration) if bounds.contains(&duration) || duration == bounds.end => return duration,
            Ok(_) => "is out of bounds",
            Err(_) => "is no duration",
        };
        self.fault(text.place.clone(), format!("{}: {} {what}", self.path(key), text.shown()), within);
        default
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text.text).map(|(_, value)| *value);
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let what = format!("{}: {} is not known", self.path(key), text.shown());
            self.fault(text.place.clone(), what, format!("use {}", list.join(" or ")));
        }
        found
    }

    /// A list of texts; one text counts as a list of one.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<Located> {
        let Some((value, place)) = self.value(key) else { return Vec::new() };
        match (value, &place) {
            (DeValue::String(list), Place::Variable(_)) => {
                let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.filter_map(|item| self.reader.interpolated(item, place.clone())).collect()
            }
            (DeValue::String(text), _) => self.reader.interpolated(text, place).into_iter().collect(),
            (DeValue::Array(items), _) => items.iter().filter_map(|item| self.item(key, item)).collect(),
            _ => self.wrong_type(key, place, "a list of texts", value).unwrap_or_default(),
        }
    }

    fn item(&self, key: &str, item: &Spanned<DeValue<'_>>) -> Option<Located> {
        let place = self.reader.place(&item.span());
        match item.get_ref() {
            DeValue::String(text) => self.reader.interpolated(text, place),
            other => self.wrong_type(key, place, "a list of texts", other),
        }
    }

    /// A table of free names with texts, numbers or booleans. A name that ends in `_file` names a file that holds
    /// the value.
    pub(super) fn properties(&mut self, key: &'static str) -> Vec<(String, Located)> {
        let Some((value, place)) = self.value(key) else { return Vec::new() };
        let DeValue::Table(table) = value else {
            return self.wrong_type(key, place, "a table of names and values", value).unwrap_or_default();
        };
        let properties: Vec<_> =
            table.iter().filter_map(|(name, value)| self.property(name.get_ref(), value)).collect();
        // An override under its own spelling (SASL_PASSWORD_FILE) takes the place of the file's property.
        let overridden: Vec<String> =
            properties.iter().filter(|(_, text)| text.is_override()).map(|(name, _)| name.clone()).collect();
        let stands = |(name, text): &(String, Located)| text.is_override() || !overridden.contains(name);
        properties.into_iter().filter(stands).collect()
    }

    fn property(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<(String, Located)> {
        let place = self.reader.place(&value.span());
        let plain = |text: String| Some(Located { text, place: place.clone(), interpolated: false });
        let text = match value.get_ref() {
            DeValue::String(text) => self.reader.interpolated(text, place),
            DeValue::Integer(number) => plain(number.to_string()),
            DeValue::Float(number) => plain(number.to_string()),
            DeValue::Boolean(value) => plain(value.to_string()),
            other => self.wrong_type(name, place, "a text, a number or a boolean", other),
        }?;
        // Names of variables cannot hold the dots that librdkafka's names have.
        let dotted = |name: &str| if text.is_override() { name.replace('_', ".") } else { name.to_owned() };
        match name.strip_suffix("_file") {
            Some(stem) => {
                let stem = dotted(stem);
                self.read_secret(text, name).map(|text| (stem, text))
            }
            None => Some((dotted(name), text)),
        }
    }

    /// Refuses every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let place = self.reader.place(&key.span());
                let what = if self.name.is_empty() {
                    format!("unknown key {name:?}")
                } else {
                    format!("unknown key {name:?} in [{}]", self.name)
                };
                self.fault(place, what, nearest(name, &self.known));
            }
        }
    }

    fn value(&mut self, key: &'static str) -> Option<(&'a DeValue<'a>, Place)> {
        self.known.push(key);
        let value = self.table?.get(key)?;
        Some((value.get_ref(), self.reader.place(&value.span())))
    }

    fn wrong_type<T>(&self, key: &str, place: Place, wanted: &str, found: &DeValue<'_>) -> Option<T> {
        let found = match found.type_str() {
            "string" => "text",
            other => other,
        };
        self.fault(
            place,
            format!("{} must be {wanted}, not of type {found}", self.path(key)),
            format!("write {wanted}"),
        );
        None
    }
}

/// The known name that was probably meant, or all of them.
fn nearest(name: &str, known: &[&'static str]) -> String {
    let best = known
        .iter()
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(alike, _)| *alike > 0.75)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match best {
        Some((_, meant)) => format!("did you mean {meant:?}?"),
        None => format!("known are {}", known.join(", ")),
    }
}
