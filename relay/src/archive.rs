//! Archives of dead letters: JSON Lines, compressed, in files of a folder; beside each a manifest that proves what it holds.
//!
//! A file is written under another name, and has its own once everything of it is on the disk; its manifest comes last. So
//! what has a manifest is whole.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backstop_core::ledger::{Expired, Expiry};
use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::letter_file::Line;

/// How names of archives end.
const LETTERS: &str = ".jsonl.gz";
/// How names of manifests end.
const MANIFEST: &str = ".manifest.json";
/// How names of files end that are being written.
const UNFINISHED: &str = ".part";
/// How old they are when their writer is gone.
const ABANDONED: Duration = Duration::from_secs(86_400);

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

/// An archive that is being written. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct Archive {
    folder: PathBuf,
    manifest: Manifest,
    out: Option<GzEncoder<BufWriter<Hashing>>>,
}

impl Archive {
    /// Begins an archive in that folder, which is made where it is missing. Only their owner may read its files: they
    /// hold what messages carried.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn begin(folder: &Path, ledger: &str, expiry: &Expiry) -> io::Result<Self> {
        make(folder)?;
        sweep(folder, ledger)?;
        let (now, suffix) = (Utc::now(), uuid::Uuid::new_v4().simple().to_string());
        let name = format!("{ledger}-{}-{}-{}", expiry.status, now.format("%Y%m%dT%H%M%SZ"), &suffix[..8]);
        let manifest = Manifest {
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
        };
        let file = create(&unfinished(folder, &manifest.file))?;
        let out = BufWriter::with_capacity(1 << 16, Hashing { file, hash: Sha256::new(), bytes: 0 });
        let out = Some(GzEncoder::new(out, Compression::default()));
        Ok(Self { folder: folder.to_owned(), manifest, out })
    }

    /// Adds letters.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn add(&mut self, letters: Vec<Expired>) -> io::Result<()> {
        let out = self.out.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        for expired in letters {
            let manifest = &mut self.manifest;
            manifest.last_id.clone_from(&expired.letter.id);
            if manifest.letters == 0 {
                manifest.first_id.clone_from(&expired.letter.id);
            }
            manifest.letters += 1;
            serde_json::to_writer(&mut *out, &Line::with_history(expired))?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Brings everything to the disk; then the archive has its name, and its manifest.
    ///
    /// # Errors
    /// When that fails; letters must not be deleted then.
    pub fn finish(mut self) -> io::Result<Manifest> {
        let out = self.out.take().ok_or(io::ErrorKind::BrokenPipe)?.finish()?;
        let Hashing { file, hash, bytes } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.manifest.bytes = bytes;
        self.manifest.sha256 = digits(hash);
        self.name_it(&self.manifest.file)?;
        let manifest = manifest_name(&self.manifest.file);
        let mut file = create(&unfinished(&self.folder, &manifest))?;
        serde_json::to_writer_pretty(&mut file, &self.manifest)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        self.name_it(&manifest)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(self.manifest.clone())
    }

    fn name_it(&self, name: &str) -> io::Result<()> {
        fs::rename(unfinished(&self.folder, name), self.folder.join(name))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        for name in [&self.manifest.file, &manifest_name(&self.manifest.file)] {
            // Missing where it was finished, which is as it should be.
            let _ = fs::remove_file(unfinished(&self.folder, name));
        }
    }
}

/// Makes the folder, durably.
fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(above)?.sync_all()
}

/// Removes what relays left that died while they wrote. A file that has not changed for a day is nobody's.
fn sweep(folder: &Path, ledger: &str) -> io::Result<()> {
    let (prefix, now) = (format!("{ledger}-"), SystemTime::now());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with(&prefix) && name.ends_with(UNFINISHED);
        if is_ours && now.duration_since(entry.metadata()?.modified()?).is_ok_and(|age| age > ABANDONED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Compares an archive with the manifest beside it; `None` where there is none.
///
/// # Errors
/// When either cannot be read, or the archive is not what the manifest says.
pub fn verify(archive: &Path) -> io::Result<Option<Manifest>> {
    let name = archive.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let text = match fs::read(archive.with_file_name(manifest_name(name))) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let manifest: Manifest = serde_json::from_slice(&text)?;
    let (mut file, mut hash, mut bytes) = (File::open(archive)?, Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    if (bytes, digits(hash)) != (manifest.bytes, manifest.sha256.clone()) {
        let what = "it is not the file that its manifest was written for";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Some(manifest))
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn unfinished(folder: &Path, name: &str) -> PathBuf {
    let mut unfinished = OsString::from(name);
    unfinished.push(UNFINISHED);
    folder.join(unfinished)
}

fn manifest_name(archive: &str) -> String {
    format!("{}{MANIFEST}", archive.strip_suffix(LETTERS).unwrap_or(archive))
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

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use backstop_core::Envelope;
    use backstop_core::ledger::{Letter, LetterEvent, LetterStatus};
    use flate2::bufread::MultiGzDecoder;

    use super::*;

    fn expiry() -> Expiry {
        Expiry { status: LetterStatus::Resolved, before: Utc::now() }
    }

    fn expired(id: &str) -> Expired {
        let body = Some(vec![0xff, 0x00].into());
        let letter = Letter::new(id, "orders.stock.dlq", Envelope { body, ..Envelope::default() });
        let event = LetterEvent { at: Utc::now(), what: "resolved".to_owned(), detail: None };
        Expired { letter, history: vec![event] }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_abandoned_is_swept_away_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, days) in [("dl-a.part", 2), ("dl-b.part", 0), ("other-c.part", 2), ("dl-d.jsonl.gz", 2)] {
            let file = File::create(folder.path().join(name)).expect("created");
            let changed = SystemTime::now() - ABANDONED * days;
            file.set_modified(changed).expect("set");
        }
        drop(Archive::begin(folder.path(), "dl", &expiry()).expect("begun"));
        assert_eq!(names(folder.path()), ["dl-b.part", "dl-d.jsonl.gz", "other-c.part"]);
    }

    #[test]
    fn an_archive_has_its_letters_their_history_and_a_manifest() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("made/here");
        let mut archive = Archive::begin(&folder, "dead-letters", &expiry()).expect("begun");
        archive.add(vec![expired("a"), expired("b")]).expect("added");
        archive.add(vec![expired("c")]).expect("added");
        let manifest = archive.finish().expect("finished");
        assert_eq!((manifest.letters, &*manifest.first_id, &*manifest.last_id), (3, "a", "c"));
        assert_eq!(names(&folder), [manifest.file.clone(), manifest_name(&manifest.file)]);
        let path = folder.join(&manifest.file);
        assert_eq!(verify(&path).expect("verified"), Some(manifest.clone()));
        assert_eq!(manifest.bytes, fs::metadata(&path).expect("there").len());
        let compressed = io::BufReader::new(File::open(&path).expect("there"));
        let lines: Vec<String> = io::BufReader::new(MultiGzDecoder::new(compressed))
            .lines()
            .collect::<Result<_, _>>()
            .expect("whole");
        assert!(lines[0].contains("\"what\":\"resolved\""), "{}", lines[0]);
        let keys = crate::encryption::Keyring::default();
        let letters: Option<Vec<Letter>> =
            lines.iter().map(|line| serde_json::from_str::<Line>(line).ok()?.letter(&keys).ok()).collect();
        let bodies: Vec<_> =
            letters.expect("letters").into_iter().map(|letter| letter.envelope.body).collect();
        assert_eq!(bodies, vec![Some(bytes::Bytes::from_static(&[0xff, 0x00])); 3]);
    }

    #[test]
    fn a_changed_archive_is_found_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = Archive::begin(folder.path(), "dead-letters", &expiry()).expect("begun");
        archive.add(vec![expired("a")]).expect("added");
        let path = folder.path().join(archive.finish().expect("finished").file);
        let mut bytes = fs::read(&path).expect("there");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert_eq!(verify(&path).expect_err("changed").kind(), io::ErrorKind::InvalidData);
        assert_eq!(verify(&folder.path().join("other.jsonl")).expect("no manifest"), None);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut archive = Archive::begin(folder.path(), "dead-letters", &expiry()).expect("begun");
        archive.add(vec![expired("a")]).expect("added");
        assert_eq!(names(folder.path()).len(), 1);
        drop(archive);
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
