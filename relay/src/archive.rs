//! Archives of dead letters: JSON Lines, compressed, and with each a manifest that proves what it holds.
//!
//! They go to a folder or to a bucket, and in both the manifest comes last. So what has a manifest is whole.

mod folder;
mod objects;
mod place;
mod trouble;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use backstop_core::ledger::{Expired, Expiry};
use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use folder::{InFolder, verify};
pub use objects::Objects;
pub(crate) use place::blocking;
pub use place::{Draft, Place};

use crate::letter_file::Line;

/// How names of archives end.
const LETTERS: &str = ".jsonl.gz";
/// How names of manifests end.
const MANIFEST: &str = ".manifest.json";

/// What a manifest says of its archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the archive's file.
    pub file: String,
    /// Name of the ledger.
    pub ledger: String,
    /// Status of the letters.
    pub status: String,
    /// They died before this time, and nothing happened to them since.
    pub before: DateTime<Utc>,
    /// When the archive was written.
    pub written_at: DateTime<Utc>,
    /// How many letters it holds.
    pub letters: u64,
    /// The first of them that the ledger took.
    pub first_id: String,
    /// The last.
    pub last_id: String,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Of an archive that holds nothing yet, under a name that no other has.
    pub fn new(ledger: &str, expiry: &Expiry) -> Self {
        let (now, suffix) = (Utc::now(), uuid::Uuid::new_v4().simple().to_string());
        let name = format!("{ledger}-{}-{}-{}", expiry.status, now.format("%Y%m%dT%H%M%SZ"), &suffix[..8]);
        Self {
            file: format!("{name}{LETTERS}"),
            ledger: ledger.to_owned(),
            status: expiry.status.to_string(),
            before: expiry.before,
            written_at: now,
            letters: 0,
            first_id: String::new(),
            last_id: String::new(),
            bytes: 0,
            sha256: String::new(),
        }
    }

    /// The name of the manifest that belongs to an archive of that name.
    pub fn name_for(archive: &str) -> String {
        format!("{}{MANIFEST}", archive.strip_suffix(LETTERS).unwrap_or(archive))
    }

    /// As it is stored.
    ///
    /// # Errors
    /// None that is known: a manifest is plain data.
    pub fn to_json(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Compares an archive with what the manifest says of it.
    ///
    /// # Errors
    /// When it cannot be read, or is another one.
    pub fn prove(&self, archive: &mut impl Read) -> io::Result<()> {
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        if bytes != self.bytes || digits(hash) != self.sha256 {
            let what = "it is not the file that its manifest was written for";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}

/// An archive that is being written to a file.
#[derive(Debug)]
pub struct Archive {
    manifest: Manifest,
    out: GzEncoder<BufWriter<Hashing>>,
}

impl Archive {
    /// Begins it in an empty file.
    pub fn begin(file: File, manifest: Manifest) -> Self {
        let out = BufWriter::with_capacity(1 << 16, Hashing { file, hash: Sha256::new(), bytes: 0 });
        Self { manifest, out: GzEncoder::new(out, Compression::default()) }
    }

    /// Adds letters.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn add(&mut self, letters: Vec<Expired>) -> io::Result<()> {
        for expired in letters {
            let manifest = &mut self.manifest;
            manifest.last_id.clone_from(&expired.letter.id);
            if manifest.letters == 0 {
                manifest.first_id.clone_from(&expired.letter.id);
            }
            manifest.letters += 1;
            serde_json::to_writer(&mut self.out, &Line::with_history(expired))?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// When that fails; letters must not be deleted then.
    pub fn close(self) -> io::Result<(File, Manifest)> {
        let out = self.out.finish()?;
        let Hashing { file, hash, bytes } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok((file, Manifest { bytes, sha256: digits(hash), ..self.manifest }))
    }
}

fn digits(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file, and the hash of what was written to it.
#[derive(Debug)]
struct Hashing {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
