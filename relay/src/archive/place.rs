//! Where archives go: a folder, or a bucket.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use backstop_core::ledger::{Expired, Expiry};
use backstop_core::schema::Finding;
use tokio_util::sync::CancellationToken;

use super::{Archive, InFolder, Manifest, Objects, folder};
use crate::config::{ArchiveConfig, RetentionConfig, S3Config};
use crate::exit::{Exit, Failure};

/// Where archives go.
#[derive(Debug, Clone)]
pub enum Place {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket.
    Objects(Objects),
}

/// An archive that is being written. Dropped before its end, it leaves nothing.
#[derive(Debug)]
pub enum Draft {
    /// To a folder.
    Folder(InFolder),
    /// To a file without a name, for a bucket.
    Objects(Archive, Objects),
}

impl Place {
    /// The place that the configuration names; `None` where letters are deleted without an archive.
    ///
    /// # Errors
    /// When a bucket is configured as it cannot be.
    pub fn of(config: &RetentionConfig) -> Result<Option<Self>, Failure> {
        Ok(match &config.archive {
            None => None,
            Some(ArchiveConfig::Folder(folder)) => Some(Self::Folder(folder.clone())),
            Some(ArchiveConfig::Bucket(url)) => {
                let usual = S3Config::default();
                Some(Self::Objects(Objects::open(url, config.s3.as_ref().unwrap_or(&usual))?))
            }
        })
    }

    /// Begins an archive of a ledger. Takes its time with files.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn begin(&self, ledger: &str, expiry: &Expiry) -> io::Result<Draft> {
        Ok(match self {
            Self::Folder(folder) => Draft::Folder(InFolder::begin(folder, ledger, expiry)?),
            Self::Objects(objects) => {
                let archive = Archive::begin(unnamed()?, Manifest::new(ledger, expiry));
                Draft::Objects(archive, objects.clone())
            }
        })
    }

    /// Whether archives can be written there; `patience` is how long a bucket may take. It leaves nothing.
    ///
    /// # Errors
    /// When they cannot.
    pub async fn probe(&self, patience: Duration) -> Result<Finding, Failure> {
        match self {
            Self::Objects(objects) => objects.probe(patience).await,
            Self::Folder(folder) => {
                let tried = folder.clone();
                blocking(move || folder::probe(&tried)).await?;
                Ok(Finding::fine("archive", format!("{} can be written to", folder.display())))
            }
        }
    }
}

impl Draft {
    /// Adds letters. Takes its time with files.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn add(&mut self, letters: Vec<Expired>) -> io::Result<()> {
        match self {
            Self::Folder(archive) => archive.add(letters),
            Self::Objects(archive, _) => archive.add(letters),
        }
    }

    /// Brings everything to its place, and the manifest last. `stop` ends it where it may take long.
    ///
    /// # Errors
    /// When that fails; letters must not be deleted then.
    pub async fn finish(self, stop: &CancellationToken) -> Result<Manifest, Failure> {
        match self {
            Self::Folder(archive) => blocking(move || archive.finish()).await,
            Self::Objects(archive, objects) => {
                let (file, manifest) = blocking(move || archive.close()).await?;
                objects.put(file, &manifest, stop).await?;
                Ok(manifest)
            }
        }
    }
}

/// A file that nobody else can open, and that is gone when it is closed, however the process ends.
pub(super) fn unnamed() -> io::Result<File> {
    tempfile::tempfile()
}

/// Work with files, beside the others' work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done).map_err(|error| unwritten(&error))
}

/// Files of an archive cannot be written.
pub(super) fn unwritten(error: &io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the archive of dead letters cannot be written: {error}"),
        "check the folder that [dead_letters.retention] archive names, or for a bucket that of temporary files, TMPDIR, and \
         its room",
    )
}
