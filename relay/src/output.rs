//! What commands print on standard output: tables for people, JSON for programs.

use std::io::{self, Write};

use backstop_core::report::escaped;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Tables and sentences.
    #[default]
    #[value(alias = "text")]
    Human,
    /// One JSON document.
    Json,
}

/// Prints a document as JSON on standard output.
///
/// # Errors
/// When standard output cannot be written to.
pub fn json(document: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a line on standard output.
///
/// # Errors
/// When standard output cannot be written to.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a table on standard output: cells are escaped, there is no colour, and on a
/// terminal it fits the width.
///
/// # Errors
/// When standard output cannot be written to.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| escaped(cell)));
    }
    for row in table.lines() {
        line(row.trim_end().strip_prefix(' ').unwrap_or(row.trim_end()))?;
    }
    Ok(())
}

/// A text, or a dash for none.
pub fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// So many of something, in words.
pub fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
