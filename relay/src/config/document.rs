//! A TOML document that is read section by section, with every fault noted at its line.

use std::cell::RefCell;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::interpolate::interpolate;

/// What is wrong with a configuration file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
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
    env: &'a dyn Fn(&str) -> Option<String>,
    faults: RefCell<Vec<Fault>>,
}

/// A text with its place.
pub(super) struct Located {
    pub(super) text: String,
    pub(super) line: usize,
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
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, lines: std::iter::once(0).chain(after).collect(), env, faults: RefCell::default() }
    }

    /// The top table of the document; syntax errors are noted as faults.
    pub(super) fn parse(&self) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = error.span().map_or(1, |span| self.line(&span));
            let what = error.message().lines().next().unwrap_or("syntax error").to_owned();
            self.fault(line, what, "mend the TOML syntax; texts stand in \"quotes\"");
        }
        table.into_inner()
    }

    pub(super) fn fault(&self, line: usize, what: impl Into<String>, hint: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { line, what: what.into(), hint: hint.into() });
    }

    /// Everything noted, by line.
    pub(super) fn faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|fault| fault.line);
        faults.dedup();
        faults
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.lines.partition_point(|begin| *begin <= span.start)
    }

    /// The text with `${NAME}` replaced; `None` when a variable is missing, which is noted.
    fn interpolated(&self, text: &str, line: usize) -> Option<Located> {
        match interpolate(text, self.env) {
            Ok(done) => Some(Located { interpolated: done != text, text: done, line }),
            Err(faults) => {
                for (what, hint) in faults {
                    self.fault(line, what, hint);
                }
                None
            }
        }
    }
}

/// One table of the document. Each key that is asked for is known; [`finish`](Section::finish) refuses the rest.
pub(super) struct Section<'a> {
    name: &'a str,
    line: usize,
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
    reader: &'a Reader<'a>,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn top(table: &'a DeTable<'a>, reader: &'a Reader<'a>) -> Self {
        Self { name: "", line: 1, table: Some(table), known: Vec::new(), reader }
    }

    /// The table of that name, which need not be there.
    pub(super) fn section(&mut self, name: &'static str) -> Self {
        let found = self.value(name);
        let table = found.and_then(|(value, line)| {
            value
                .as_table()
                .map(|table| (table, line))
                .or_else(|| self.wrong_type(name, line, "a table", value))
        });
        let (table, line) = table.unzip();
        Section { name, line: line.unwrap_or(self.line), table, known: Vec::new(), reader: self.reader }
    }

    /// Whether the table stands in the document.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Where the table begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Notes a fault.
    pub(super) fn fault(&self, line: usize, what: impl Into<String>, hint: impl Into<String>) {
        self.reader.fault(line, what, hint);
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
            self.fault(self.line, format!("{} is missing", self.path(key)), hint);
        }
    }

    /// A text.
    pub(super) fn text(&mut self, key: &'static str) -> Option<Located> {
        let (value, line) = self.value(key)?;
        match value {
            DeValue::String(text) => self.reader.interpolated(text, line),
            other => self.wrong_type(key, line, "a text in quotes", other),
        }
    }

    /// A secret text: under `key`, or in the file that `file_key` names (without the line end at its end).
    pub(super) fn secret(&mut self, key: &'static str, file_key: &'static str) -> Option<Located> {
        let here = self.text(key);
        let file = self.text(file_key);
        if self.has(key) && self.has(file_key) {
            let line = file.map_or(self.line, |file| file.line);
            let what = format!("{} and {file_key} are both set", self.path(key));
            self.fault(line, what, "keep one of them");
            return None;
        }
        here.or_else(|| self.read_secret(file?, file_key))
    }

    fn read_secret(&self, file: Located, key: &str) -> Option<Located> {
        match std::fs::read_to_string(&file.text) {
            Ok(text) => {
                let text = text.trim_end_matches(['\r', '\n']).to_owned();
                Some(Located { text, line: file.line, interpolated: true })
            }
            Err(error) => {
                let what = format!("{}: cannot read {}: {error}", self.path(key), file.shown());
                self.fault(file.line, what, "check that the file is there and readable");
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let Some((value, line)) = self.value(key) else { return default };
        match value {
            DeValue::Boolean(value) => *value,
            other => self.wrong_type(key, line, "true or false", other).unwrap_or(default),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, key: &'static str, default: u64, bounds: Range<u64>) -> u64 {
        let Some((value, line)) = self.value(key) else { return default };
        let DeValue::Integer(number) = value else {
            return self.wrong_type(key, line, "a whole number", value).unwrap_or(default);
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if bounds.contains(&number) => number,
            _ => {
                let what = format!("{} = {number} is out of bounds", self.path(key));
                self.fault(line, what, format!("use {} to {}", bounds.start, bounds.end - 1));
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
        self.fault(text.line, format!("{}: {} {what}", self.path(key), text.shown()), within);
        default
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text.text).map(|(_, value)| *value);
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            let what = format!("{}: {} is not known", self.path(key), text.shown());
            self.fault(text.line, what, format!("use {}", list.join(" or ")));
        }
        found
    }

    /// A list of texts; one text counts as a list of one.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<Located> {
        let Some((value, line)) = self.value(key) else { return Vec::new() };
        match value {
            DeValue::String(text) => self.reader.interpolated(text, line).into_iter().collect(),
            DeValue::Array(items) => items.iter().filter_map(|item| self.item(key, item)).collect(),
            other => self.wrong_type(key, line, "a list of texts", other).unwrap_or_default(),
        }
    }

    fn item(&self, key: &str, item: &Spanned<DeValue<'_>>) -> Option<Located> {
        let line = self.reader.line(&item.span());
        match item.get_ref() {
            DeValue::String(text) => self.reader.interpolated(text, line),
            other => self.wrong_type(key, line, "a list of texts", other),
        }
    }

    /// A table of free names with texts, numbers or booleans. A name that ends in `_file` names a file that holds
    /// the value.
    pub(super) fn properties(&mut self, key: &'static str) -> Vec<(String, Located)> {
        let Some((value, line)) = self.value(key) else { return Vec::new() };
        let DeValue::Table(table) = value else {
            return self.wrong_type(key, line, "a table of names and values", value).unwrap_or_default();
        };
        table.iter().filter_map(|(name, value)| self.property(name.get_ref(), value)).collect()
    }

    fn property(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<(String, Located)> {
        let line = self.reader.line(&value.span());
        let plain = |text: String| Some(Located { text, line, interpolated: false });
        let text = match value.get_ref() {
            DeValue::String(text) => self.reader.interpolated(text, line),
            DeValue::Integer(number) => plain(number.to_string()),
            DeValue::Float(number) => plain(number.to_string()),
            DeValue::Boolean(value) => plain(value.to_string()),
            other => self.wrong_type(name, line, "a text, a number or a boolean", other),
        }?;
        match name.strip_suffix("_file") {
            Some(stem) => self.read_secret(text, name).map(|text| (stem.to_owned(), text)),
            None => Some((name.to_owned(), text)),
        }
    }

    /// Refuses every key that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if !self.known.contains(&name) {
                let line = self.reader.line(&key.span());
                let what = if self.name.is_empty() {
                    format!("unknown key {name:?}")
                } else {
                    format!("unknown key {name:?} in [{}]", self.name)
                };
                self.fault(line, what, nearest(name, &self.known));
            }
        }
    }

    fn value(&mut self, key: &'static str) -> Option<(&'a DeValue<'a>, usize)> {
        self.known.push(key);
        let value = self.table?.get(key)?;
        Some((value.get_ref(), self.reader.line(&value.span())))
    }

    fn wrong_type<T>(&self, key: &str, line: usize, wanted: &str, found: &DeValue<'_>) -> Option<T> {
        let found = match found.type_str() {
            "string" => "text",
            other => other,
        };
        self.fault(
            line,
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
