//! Archives in a folder.
//!
//! A file is written under another name, and has its own once everything of it is on the disk; its manifest comes last.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backstop_core::ledger::{Expired, Expiry};

use super::{Archive, Manifest};

/// How names of files end that are being written.
const UNFINISHED: &str = ".part";
/// How old they are when their writer is gone.
const ABANDONED: Duration = Duration::from_secs(86_400);

/// An archive that is being written to a folder. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub struct InFolder {
    folder: PathBuf,
    name: String,
    archive: Option<Archive>,
}

impl InFolder {
    /// Begins an archive in that folder, which is made where it is missing. Only their owner may read its files: they
    /// hold what messages carried.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn begin(folder: &Path, ledger: &str, expiry: &Expiry) -> io::Result<Self> {
        make(folder)?;
        sweep(folder, ledger)?;
        let manifest = Manifest::new(ledger, expiry);
        let name = manifest.file.clone();
        let archive = Archive::begin(create(&unfinished(folder, &name))?, manifest);
        Ok(Self { folder: folder.to_owned(), name, archive: Some(archive) })
    }

    /// Adds letters.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn add(&mut self, letters: Vec<Expired>) -> io::Result<()> {
        self.archive.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.add(letters)
    }

    /// Brings everything to the disk; then the archive has its name, and its manifest.
    ///
    /// # Errors
    /// When that fails; letters must not be deleted then.
    pub fn finish(mut self) -> io::Result<Manifest> {
        let (_, manifest) = self.archive.take().ok_or(io::ErrorKind::BrokenPipe)?.close()?;
        self.name_it(&self.name)?;
        let name = Manifest::name_for(&self.name);
        let mut file = create(&unfinished(&self.folder, &name))?;
        file.write_all(&manifest.to_json()?)?;
        file.sync_all()?;
        self.name_it(&name)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(manifest)
    }

    fn name_it(&self, name: &str) -> io::Result<()> {
        fs::rename(unfinished(&self.folder, name), self.folder.join(name))
    }
}

impl Drop for InFolder {
    fn drop(&mut self) {
        for name in [&self.name, &Manifest::name_for(&self.name)] {
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

/// Whether archives can be written to that folder, or to one that is made there. It leaves nothing.
///
/// # Errors
/// When they cannot.
pub(super) fn probe(folder: &Path) -> io::Result<()> {
    let there =
        folder.ancestors().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
    let nearest = there.into_iter().find(|above| above.exists()).unwrap_or(folder);
    tempfile::tempfile_in(nearest).map(drop)
}

/// Compares an archive with the manifest beside it; `None` where there is none.
///
/// # Errors
/// When either cannot be read, or the archive is not what the manifest says.
pub fn verify(archive: &Path) -> io::Result<Option<Manifest>> {
    let name = archive.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let text = match fs::read(archive.with_file_name(Manifest::name_for(name))) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let manifest: Manifest = serde_json::from_slice(&text)?;
    manifest.prove(&mut File::open(archive)?)?;
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

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use backstop_core::Envelope;
    use backstop_core::ledger::{Letter, LetterEvent, LetterStatus};
    use chrono::Utc;
    use flate2::bufread::MultiGzDecoder;

    use super::*;
    use crate::letter_file::Line;

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
        drop(InFolder::begin(folder.path(), "dl", &expiry()).expect("begun"));
        assert_eq!(names(folder.path()), ["dl-b.part", "dl-d.jsonl.gz", "other-c.part"]);
    }

    #[test]
    fn an_archive_has_its_letters_their_history_and_a_manifest() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("made/here");
        let mut archive = InFolder::begin(&folder, "dead-letters", &expiry()).expect("begun");
        archive.add(vec![expired("a"), expired("b")]).expect("added");
        archive.add(vec![expired("c")]).expect("added");
        let manifest = archive.finish().expect("finished");
        assert_eq!((manifest.letters, &*manifest.first_id, &*manifest.last_id), (3, "a", "c"));
        assert_eq!(names(&folder), [manifest.file.clone(), Manifest::name_for(&manifest.file)]);
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
        let mut archive = InFolder::begin(folder.path(), "dead-letters", &expiry()).expect("begun");
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
        let mut archive = InFolder::begin(folder.path(), "dead-letters", &expiry()).expect("begun");
        archive.add(vec![expired("a")]).expect("added");
        assert_eq!(names(folder.path()).len(), 1);
        drop(archive);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn looking_whether_a_folder_can_be_written_to_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        probe(folder.path()).expect("it can");
        probe(&folder.path().join("made/here")).expect("it can be made");
        assert_eq!(names(folder.path()), [""; 0]);
        File::create(folder.path().join("file")).expect("created");
        probe(&folder.path().join("file/below")).expect_err("a file is no folder");
    }
}
