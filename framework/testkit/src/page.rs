//! Pages of this repository that are made from code: a test compares, and writes them anew when asked to.

use std::path::{Path, PathBuf};

/// Compares the part of a page between `<!-- name -->` and `<!-- /name -->` with `text`; with `BACKSTOP_RECORD` set in
/// the environment, puts it there.
///
/// # Panics
/// When the page, or the part of it, is not there, or differs.
pub fn section(page: &str, name: &str, text: &str) {
    let path = root().join(page);
    let whole = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (head, rest) = whole.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin}"));
    let (old, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no {end}"));
    let new = format!("\n{}\n\n", text.trim_end());
    if std::env::var_os("BACKSTOP_RECORD").is_some() {
        std::fs::write(&path, [head, &begin, &new, &end, tail].concat()).expect("written");
    } else {
        assert!(
            old == new,
            "{page} is not what the code says; record it anew with BACKSTOP_RECORD=1:\n{new}"
        );
    }
}

/// The folder of the workspace.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).expect("this crate is two folders below it").to_owned()
}
