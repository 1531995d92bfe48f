//! `docs/reference/faults.md` says which test shows which fault. It is made from the tests' own doc comments: a line
//! that begins with numbers of faults, such as `/// F12, F44: what it shows of them`.
//!
//! `BACKSTOP_RECORD=1 cargo test -p backstop-tests --test faults page` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backstop_tests::index::{assert_recorded, function, sources};

use crate::list::{Fault, PARTS};

const HEAD: &str = "# Faults, and the tests that show them

What may break around a running relay or consumer, what must hold then, and which tests show that it does. Most end by asking the
ledger oracle: everything that was committed is applied once, in the order of its key, and nothing is dead that was not
made to fail. The numbers stand in the tests' doc comments, from which this page is made;
`BACKSTOP_RECORD=1 cargo test -p backstop-tests --test faults page` makes it anew.

Tests of the conformance suite (`framework/testkit/src/conformance`) run for every adapter.
";

/// A test that shows a fault.
struct Shown {
    name: String,
    file: String,
}

type Index = BTreeMap<u8, Vec<Shown>>;

/// The numbers at the beginning of a doc comment, if it begins with such.
fn numbers(line: &str) -> Option<Vec<u8>> {
    let (numbers, _) = line.trim().strip_prefix("/// F")?.split_once(':')?;
    numbers.split(", ").map(|number| number.trim_start_matches('F').parse().ok()).collect()
}

fn index() -> Index {
    let mut index = Index::new();
    for (file, text) in sources() {
        let mut open = Vec::new();
        for line in text.lines() {
            if let Some(numbers) = numbers(line) {
                open.extend(numbers);
            } else if let Some(name) = function(line) {
                for number in open.drain(..) {
                    let shown = Shown { name: name.to_owned(), file: file.clone() };
                    index.entry(number).or_default().push(shown);
                }
            }
        }
        assert!(open.is_empty(), "{file}: F{open:?} without a test");
    }
    index
}

fn write_fault(page: &mut String, fault: &Fault, tests: &[Shown]) {
    let Fault { number, what, must_hold, not_shown } = fault;
    let written = writeln!(page, "\n### F{number}: {what}\n\n{must_hold}.\n");
    written.expect("a text takes everything");
    for Shown { name, file } in tests {
        let stem = file.rsplit('/').next().unwrap_or(file);
        writeln!(page, "- `{name}` ([{stem}](../../{file}))").expect("a text takes everything");
    }
    if let Some(reason) = not_shown {
        let gap = if tests.is_empty() { "" } else { "\n" };
        writeln!(page, "{gap}Not shown: {reason}").expect("a text takes everything");
    }
}

fn render(index: &Index) -> String {
    let mut page = HEAD.to_owned();
    for (title, faults) in PARTS {
        writeln!(page, "\n## {title}").expect("a text takes everything");
        for fault in faults {
            write_fault(&mut page, fault, index.get(&fault.number).map_or(&[], Vec::as_slice));
        }
    }
    page
}

#[test]
fn the_page_is_as_the_tests_say() {
    assert_recorded(&render(&index()), "docs/reference/faults.md");
}

#[test]
fn every_fault_is_shown_or_has_a_reason_and_none_is_unknown() {
    let index = index();
    let all: Vec<&Fault> = PARTS.iter().flat_map(|(_, faults)| faults.iter()).collect();
    let numbers: Vec<u8> = all.iter().map(|fault| fault.number).collect();
    assert_eq!(numbers, (1..=90).collect::<Vec<u8>>());
    for fault in all {
        let shown = index.contains_key(&fault.number);
        assert!(shown || fault.not_shown.is_some(), "F{} has neither a test nor a reason", fault.number);
    }
    let unknown: Vec<_> = index.keys().filter(|number| !numbers.contains(number)).collect();
    assert!(unknown.is_empty(), "tests name faults that are not listed: {unknown:?}");
}
