//! Files that are read whole, up to a limit: a device or a log that was named by mistake has no end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest configuration file, in bytes.
pub(super) const MAX_CONFIG: u64 = 1024 * 1024;
/// The largest file with a secret, in bytes: a certificate's key with its chain is far below it.
pub(super) const MAX_SECRET: u64 = 64 * 1024;

/// The text of the file.
///
/// # Errors
/// When it cannot be read, is not UTF-8 or is longer than `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} KiB", limit >> 10),
        ));
    }
    Ok(text)
}
