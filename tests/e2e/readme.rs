//! What the README says of itself.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).expect("the README is there")
}

/// The text from that heading to the next one.
fn section<'a>(readme: &'a str, heading: &str) -> &'a str {
    let after = readme.split_once(&format!("\n## {heading}\n")).expect("the heading is there").1;
    after.split("\n## ").next().unwrap_or(after)
}

#[test]
fn quick_start_and_tests_are_one_command_each() {
    let readme = readme();
    for (heading, command) in
        [("Quick start", "cargo run -p backstop-relay -- demo"), ("Run the tests", "tests/run")]
    {
        let blocks: Vec<&str> = section(&readme, heading).split("```").skip(1).step_by(2).collect();
        assert_eq!(blocks, [format!("sh\n{command}\n")], "{heading}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let readme = readme();
    let targets = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local: Vec<&str> = targets.filter(|target| !target.contains("://")).collect();
    assert!(local.len() > 10, "links are found: {local:?}");
    for target in local {
        assert!(root().join(target).exists(), "{target} is not there");
    }
}

/// The README's promises name the tests that hold them.
#[test]
fn every_promise_is_held_by_a_test() {
    let readme = readme();
    let table = section(&readme, "What is promised, boundary by boundary");
    let rows: Vec<&str> = table.lines().filter(|line| line.contains('→')).collect();
    assert_eq!(rows.len(), 7);
    for row in rows {
        let held_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        assert!(held_by.contains(".rs)"), "{row}");
    }
}

#[test]
fn it_fits_on_a_few_screens() {
    assert!(readme().lines().count() < 150);
}
