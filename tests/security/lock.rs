//! What Cargo.lock holds, against advisories that a lower version falls under.

use std::path::Path;

/// Crates with the lowest version that no advisory speaks of.
const AT_LEAST: [(&str, [u64; 3]); 9] = [
    ("sqlx", [0, 8, 1]),
    ("rustls", [0, 23, 45]),
    ("rustls-webpki", [0, 103, 13]),
    ("bytes", [1, 11, 1]),
    ("tokio", [1, 44, 2]),
    ("tracing-subscriber", [0, 3, 20]),
    ("h2", [0, 4, 16]),
    ("ring", [0, 17, 12]),
    ("slab", [0, 4, 11]),
];

/// Crates that are not to be there: `rsa` leaks keys by time and has no mended version, the others are unmaintained or
/// unsound.
const ABSENT: [&str; 5] = ["rsa", "serde_yml", "rustls-pemfile", "backoff", "bincode"];

/// Every package of the lock file with its version.
fn locked() -> Vec<(String, [u64; 3])> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let text = std::fs::read_to_string(path).expect("the lock file is there");
    let value = |line: &str, key: &str| {
        Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.trim_end_matches('"').to_owned())
    };
    let mut packages = Vec::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(found) = value(line, "name") {
            name = found;
        } else if let Some(version) = value(line, "version") {
            packages.push((name.clone(), numbers(&version)));
        }
    }
    packages
}

fn numbers(version: &str) -> [u64; 3] {
    let plain = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = plain.split('.').map(|part| part.parse().expect("a number"));
    [(); 3].map(|()| parts.next().expect("three numbers"))
}

#[test]
fn s14_no_crate_is_one_that_advisories_speak_of() {
    let packages = locked();
    for (name, least) in AT_LEAST {
        let found: Vec<_> = packages.iter().filter(|(other, _)| other == name).collect();
        assert!(!found.is_empty(), "{name} is not in the lock file any more: remove it here");
        for (_, version) in found {
            assert!(*version >= least, "{name} {version:?} is below {least:?}");
        }
    }
    let unwanted: Vec<_> = packages.iter().filter(|(name, _)| ABSENT.contains(&name.as_str())).collect();
    assert!(unwanted.is_empty(), "{unwanted:?}");
}
