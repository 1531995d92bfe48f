//! `docs/reference/security.md` says which test shows which case. It is made from the tests' names:
//! `s20_dns_rebinding_is_refused` shows S20.
//!
//! `BACKSTOP_RECORD=1 cargo test -p backstop-tests --test security page` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backstop_tests::index::{assert_recorded, function, sources};

use crate::list::{CASES, Case};

const HEAD: &str = "# Attacks and mistakes, and the tests that show what becomes of them

What hostile or clumsy peers, rows, callers and configuration may do to the relay, and what must hold then. Cases that
do not touch the relay, or that no test can show, say why. Names of tests begin with the number of their case, and this
page is made from them; `BACKSTOP_RECORD=1 cargo test -p backstop-tests --test security page` makes it anew.

How connections are secured: [the guide](../guides/security.md).
";

/// Tests by the numbers of cases, each with its file.
type Index = BTreeMap<u8, Vec<(String, String)>>;

/// The number that a test's name begins with.
fn number(name: &str) -> Option<u8> {
    let (number, rest) = name.strip_prefix('s')?.split_once('_')?;
    (number.len() == 2 && !rest.is_empty()).then(|| number.parse().ok())?
}

fn index() -> Index {
    let mut index = Index::new();
    for (file, text) in sources() {
        let mut is_test = false;
        for line in text.lines() {
            if line.trim().starts_with("#[test]") || line.trim().starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(name) = function(line) {
                if let Some(number) = number(name).filter(|_| is_test) {
                    index.entry(number).or_default().push((name.to_owned(), file.clone()));
                }
                is_test = false;
            }
        }
    }
    index
}

fn write_case(page: &mut String, case: &Case, tests: &[(String, String)]) {
    let Case { number, what, must_hold, not_shown } = case;
    writeln!(page, "\n## S{number}: {what}\n\n{must_hold}.\n").expect("a text takes everything");
    for (name, file) in tests {
        let stem = file.rsplit('/').next().unwrap_or(file);
        writeln!(page, "- `{name}` ([{stem}](../../{file}))").expect("a text takes everything");
    }
    if let Some(reason) = not_shown {
        let gap = if tests.is_empty() { "" } else { "\n" };
        writeln!(page, "{gap}Not shown: {reason}").expect("a text takes everything");
    }
}

#[test]
fn the_page_is_as_the_tests_say() {
    let (index, mut page) = (index(), HEAD.to_owned());
    for case in &CASES {
        write_case(&mut page, case, index.get(&case.number).map_or(&[], Vec::as_slice));
    }
    assert_recorded(&page, "docs/reference/security.md");
}

#[test]
fn every_case_is_shown_or_has_a_reason_and_none_is_unknown() {
    let index = index();
    let numbers: Vec<u8> = CASES.iter().map(|case| case.number).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<u8>>());
    for case in &CASES {
        let shown = index.contains_key(&case.number);
        assert!(shown || case.not_shown.is_some(), "S{} has neither a test nor a reason", case.number);
    }
    let unknown: Vec<_> = index.keys().filter(|number| !numbers.contains(number)).collect();
    assert!(unknown.is_empty(), "tests name cases that are not listed: {unknown:?}");
}
