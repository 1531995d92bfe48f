//! The tests of the workspace, by what their source says of them: pages of the reference are made from it.

use std::path::{Path, PathBuf};

/// Where tests are.
const PLACES: [&str; 4] = ["adapters", "framework", "relay", "tests"];

/// The folder of the workspace.
///
/// # Panics
/// Never: this crate is in it.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the crate is in the workspace").to_owned()
}

/// Every source file, by its path from the root, with its text, in order.
///
/// # Panics
/// When one is not text.
pub fn sources() -> Vec<(String, String)> {
    let (root, mut files) = (root(), Vec::new());
    PLACES.iter().for_each(|place| walk(&root.join(place), &mut files));
    files.sort();
    let named = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a source file is text");
        let name = path.strip_prefix(&root).expect("it is below").to_string_lossy().replace('\\', "/");
        (name, text)
    };
    files.into_iter().map(named).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // Migrations are reached through links, and build output is not ours.
        if path.is_symlink() || path.ends_with("target") {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The name of a function that is declared on this line.
pub fn function(line: &str) -> Option<&str> {
    let line = line.trim().trim_start_matches("pub ").trim_start_matches("async ");
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// Compares a page with the one that is recorded below `docs`, or records it when `BACKSTOP_RECORD` is set.
///
/// # Panics
/// When they differ.
pub fn assert_recorded(page: &str, name: &str) {
    let path = root().join(name);
    if std::env::var_os("BACKSTOP_RECORD").is_some() {
        std::fs::create_dir_all(path.parent().expect("in docs")).expect("a folder");
        std::fs::write(&path, page).expect("the page can be written");
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let first = page.lines().zip(recorded.lines()).find(|(now, then)| now != then);
    assert!(page == recorded, "{name} is out of date, first at {first:?}; record it as its head says");
}
