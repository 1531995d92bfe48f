//! Every example prints what its `expected.txt` says.

use std::path::Path;
use std::process::Command;

#[test]
fn examples_print_what_they_say() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(&examples).expect("the examples are there") {
        let folder = entry.expect("a readable folder").path();
        let Ok(expected) = std::fs::read_to_string(folder.join("expected.txt")) else { continue };
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        let program = backstop_tests::program::binary(&format!("example-{name}"));
        let output =
            Command::new(&program).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{name}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen} examples");
}

/// The sizes that the README names.
#[test]
fn examples_are_short() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for entry in std::fs::read_dir(&examples).expect("the examples are there") {
        let source = entry.expect("a readable folder").path().join("src/main.rs");
        let lines = std::fs::read_to_string(&source).expect("an example has a main.rs").lines().count();
        let limit = if source.to_string_lossy().contains("/01-") { 40 } else { 80 };
        assert!(lines < limit, "{} has {lines} lines", source.display());
    }
}
