//! Archives in a bucket of S3, or of what speaks its protocol.
//!
//! An archive is written to a file that has no name, so that nothing of it is left when the relay is killed, and goes into
//! the bucket from there. The store takes each request only if its content has the SHA-256 that is signed with it; when the
//! object is there and has its size, its manifest is put beside it.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstop_core::schema::Finding;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, HeaderValue, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig,
};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::trouble::{deepest, failure, is_unknown};
use super::{Manifest, place};
use crate::config::{BucketUrl, S3Config, Unusable};
use crate::exit::{Exit, Failure};

/// What goes in one request, and lies in memory, in bytes. What is larger goes in parts of it, which S3 does not take smaller.
const PART: u64 = 5 << 20;
/// Parts of one object; S3 takes 10,000.
const MAX_PARTS: u64 = 9_000;
/// The largest manifest that is read, in bytes. They have less than a thousandth of it.
const MAX_MANIFEST: u64 = 1 << 20;
/// How long connecting may take, and a request with its answer: a part goes through in that at 30 kB a second.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(180);
/// How often a request is made again that the store could not carry out, and until when.
const RETRIES: usize = 3;
const RETRY: Duration = Duration::from_secs(180);
/// How long taking back what was begun may take.
const LAST: Duration = Duration::from_secs(5);
const WRITTEN: &str = "cannot be written to";
/// The remedy where the store does not let anybody look.
const UNSEEN: &str = "allow s3:GetObject on the bucket's objects; where that object was removed, s3:ListBucket as well, or start \
                      the relay again";

/// A bucket, and what names in it begin with.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    url: BucketUrl,
    /// The last archive that was put there and could not be looked at.
    unseen: Arc<Mutex<Option<Path>>>,
}

/// Without the client, which holds credentials.
impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Objects").field(&self.url.to_string()).finish()
    }
}

impl Objects {
    /// The bucket. Nobody is asked yet whether it is there.
    ///
    /// # Errors
    /// When what is configured cannot be right, or the system's certificates cannot be read.
    pub fn open(url: &BucketUrl, s3: &S3Config) -> Result<Self, Failure> {
        if let Some(Unusable { what, hint }) = s3.unusable_endpoint() {
            return Err(Failure::new(Exit::Configuration, format!("{url}: its endpoint {what}"), hint));
        }
        crate::tls::choose_ring();
        let store = builder(url, s3).build().map_err(|error| {
            let hint = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together; the system needs certificates of \
                        authorities";
            Failure::new(Exit::Configuration, format!("{url} cannot be used: {}", deepest(&error)), hint)
        })?;
        Ok(Self { store: Arc::new(store), url: url.clone(), unseen: Arc::default() })
    }

    /// Puts an archive there, and then its manifest. What fails before the manifest is there leaves an archive without one at
    /// worst. `stop` ends it.
    ///
    /// # Errors
    /// When the store does not take it; letters must not be deleted then.
    pub async fn put(
        &self,
        archive: File,
        manifest: &Manifest,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut begun = None;
        let put = tokio::select! {
            biased;
            put = self.put_both(archive, manifest, &mut begun) => put,
            () = stop.cancelled() => Err(self.cut_off()),
        };
        if let (Err(_), Some(upload)) = (&put, begun) {
            self.take_back(upload).await;
        }
        put
    }

    async fn put_both(
        &self,
        mut archive: File,
        manifest: &Manifest,
        begun: &mut Option<Box<dyn MultipartUpload>>,
    ) -> Result<(), Failure> {
        self.look_again().await?;
        let at = self.at(&manifest.file)?;
        archive.rewind().map_err(|error| place::unwritten(&error))?;
        let mut archive = tokio::fs::File::from_std(archive);
        if manifest.bytes <= PART {
            let content = read(&mut archive, manifest.bytes).await?;
            self.create(&at, content.into()).await
        } else {
            let upload =
                begun.insert(self.store.put_multipart(&at).await.map_err(|error| self.unwritten(&error))?);
            self.put_parts(upload.as_mut(), archive, manifest.bytes).await
        }?;
        *begun = None;
        self.arrived(&at, manifest).await?;
        let text = manifest.to_json().map_err(|error| place::unwritten(&error))?;
        self.create(&self.at(&Manifest::name_for(&manifest.file))?, text.into()).await
    }

    /// Looks at the archive that could not be looked at last time, before another one is put there: as long as that is so, each
    /// pass would leave one more, whose letters stay in the ledger.
    async fn look_again(&self) -> Result<(), Failure> {
        let Some(at) = self.unseen(|unseen| unseen.clone()) else { return Ok(()) };
        match self.store.head(&at).await {
            Err(error) if !matches!(error, Error::NotFound { .. }) => Err(self.unlooked(&at, &error)),
            Ok(_) | Err(_) => {
                self.unseen(|unseen| *unseen = None);
                Ok(())
            }
        }
    }

    fn unseen<T>(&self, change: impl FnOnce(&mut Option<Path>) -> T) -> T {
        change(&mut self.unseen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether the whole archive is there.
    async fn arrived(&self, at: &Path, manifest: &Manifest) -> Result<(), Failure> {
        let size = match self.store.head(at).await {
            Ok(found) => found.size,
            Err(error) => {
                self.unseen(|unseen| *unseen = Some(at.clone()));
                return Err(self.unlooked(at, &error));
            }
        };
        if size == manifest.bytes {
            return Ok(());
        }
        let what = format!("{}/{} has {size} bytes in place of {}", self.url, manifest.file, manifest.bytes);
        let hint = "look for who else writes there; the relay tries again by itself";
        Err(Failure::new(Exit::Failed, what, hint))
    }

    /// Puts an object that is not there yet. A store that cannot make sure of that is trusted with the name, which is random.
    async fn create(&self, at: &Path, content: PutPayload) -> Result<(), Failure> {
        match self.store.put_opts(at, content.clone(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(error) if is_unknown(&error) => {
                self.store.put(at, content).await.map(drop).map_err(|error| self.unwritten(&error))
            }
            // The client asks again where it has lost the answer.
            Err(Error::AlreadyExists { .. }) if self.is_there(at, &content).await => Ok(()),
            Err(error) => Err(self.unwritten(&error)),
        }
    }

    /// Whether the object holds exactly that.
    async fn is_there(&self, at: &Path, content: &PutPayload) -> bool {
        let Ok(answer) = self.store.get(at).await else { return false };
        let expected = content.content_length();
        if answer.meta.size != expected as u64 {
            return false;
        }
        answer.bytes().await.is_ok_and(|found| found == content.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// One after another: a second part beside it would take its memory and gain little.
    async fn put_parts(
        &self,
        upload: &mut dyn MultipartUpload,
        mut archive: tokio::fs::File,
        bytes: u64,
    ) -> Result<(), Failure> {
        let part = PART.max(bytes.div_ceil(MAX_PARTS));
        let mut left = bytes;
        while left > 0 {
            let content = read(&mut archive, part.min(left)).await?;
            left = left.saturating_sub(part);
            upload.put_part(content.into()).await.map_err(|error| self.unwritten(&error))?;
        }
        upload.complete().await.map(drop).map_err(|error| self.unwritten(&error))
    }

    /// Parts that were sent would be kept, and paid for, until somebody removes them.
    async fn take_back(&self, mut upload: Box<dyn MultipartUpload>) {
        let why = match timeout(LAST, upload.abort()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => failure(&self.url, "keeps an unfinished upload", &error).to_string(),
            Err(_) => "the store has not answered in time".to_owned(),
        };
        warn!(bucket = %self.url, cause = why, "an unfinished upload may be left; a lifecycle rule of the bucket can remove such");
    }

    /// Reads an archive into a file that has no name, and compares it with its manifest; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not what the manifest says.
    pub async fn fetch(&self, name: &str) -> Result<(File, Option<Manifest>), Failure> {
        let manifest = self.manifest(name).await?;
        let at = self.at(name)?;
        let unread = |error| failure(&self.url, &format!("does not give {name}"), &error);
        let size = self.store.head(&at).await.map_err(unread)?.size;
        let mut file = place::unnamed().map_err(|error| place::unwritten(&error))?;
        let mut from = 0;
        while from < size {
            let to = size.min(from + PART);
            // In portions, so that each comes in time, however large the whole is.
            let content = self.store.get_range(&at, from..to).await.map_err(unread)?;
            let written = move || file.write_all(&content).map(|()| file);
            file = place::blocking(written).await?;
            from = to;
        }
        let proven = move || {
            file.rewind()?;
            if let Some(manifest) = &manifest {
                manifest.prove(&mut file)?;
                file.rewind()?;
            }
            Ok((file, manifest))
        };
        let proven =
            tokio::task::spawn_blocking(proven).await.map_err(io::Error::other).and_then(|proven| proven);
        proven.map_err(|error| {
            let what = format!("{}/{name}: {error}", self.url);
            Failure::new(
                Exit::Failed,
                what,
                "use an object that `dead-letters archive` or the relay put there",
            )
        })
    }

    async fn manifest(&self, name: &str) -> Result<Option<Manifest>, Failure> {
        let name = Manifest::name_for(name);
        let unread = |error| failure(&self.url, &format!("does not give {name}"), &error);
        let answer = match self.store.get(&self.at(&name)?).await {
            Ok(answer) if answer.meta.size <= MAX_MANIFEST => answer,
            Ok(_) => return Err(no_manifest(&self.url, &name, "it is too large")),
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(unread(error)),
        };
        let text = answer.bytes().await.map_err(unread)?;
        let manifest = serde_json::from_slice(&text);
        manifest.map(Some).map_err(|error| no_manifest(&self.url, &name, &error.to_string()))
    }

    /// Begins an upload, takes it back, and looks for it: that needs the rights that an archive needs, and leaves nothing.
    ///
    /// # Errors
    /// When the store does not let it happen in time, or there is no room for temporary files.
    pub async fn probe(&self, patience: Duration) -> Result<Finding, Failure> {
        place::blocking(|| place::unnamed().map(drop)).await?;
        let mut begun = None;
        let probed = timeout(patience, self.probe_rights(&mut begun)).await;
        if let Some(upload) = begun {
            self.take_back(upload).await;
        }
        probed.unwrap_or_else(|_| {
            let what = format!("no answer within {} s", patience.as_secs());
            Err(Failure::new(Exit::Failed, what, "check the endpoint, and the way to it"))
        })
    }

    async fn probe_rights(&self, begun: &mut Option<Box<dyn MultipartUpload>>) -> Result<Finding, Failure> {
        let at = self.at(&format!("backstop-check-{}", uuid::Uuid::new_v4().simple()))?;
        let upload = self.store.put_multipart(&at).await.map_err(|error| self.unwritten(&error))?;
        let aborted = begun.insert(upload).abort().await;
        *begun = None;
        aborted.map_err(|error| failure(&self.url, "keeps an unfinished upload", &error))?;
        match self.store.head(&at).await {
            Ok(_) | Err(Error::NotFound { .. }) => {
                Ok(Finding::fine("archive", format!("{} takes uploads", self.url)))
            }
            Err(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => {
                let detail = format!("{} takes uploads, and forbids a look at what is not there", self.url);
                let remedy = "make sure of s3:GetObject, without which letters stay; with s3:ListBucket the store says what \
                              is missing, and this is certain";
                Ok(Finding::warning("archive", detail, remedy))
            }
            Err(error) => Err(self.unlooked(&at, &error)),
        }
    }

    /// The object of that name, below the prefix as it is written: the client would write some characters another way.
    fn at(&self, name: &str) -> Result<Path, Failure> {
        Path::parse(format!("{}/{name}", self.url.prefix)).map_err(|error| {
            let what = format!("{}/{name} is nothing that an object can be called: {error}", self.url);
            Failure::new(Exit::Configuration, what, "check the prefix and the name")
        })
    }

    fn unwritten(&self, error: &Error) -> Failure {
        failure(&self.url, WRITTEN, error)
    }

    /// Whoever has just written there, and may not look, lacks another right than those for writing.
    fn unlooked(&self, at: &Path, error: &Error) -> Failure {
        let cannot = format!("does not show {}", at.filename().unwrap_or_default());
        let failure = failure(&self.url, &cannot, error);
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Failure::new(Exit::Failed, failure.to_string(), UNSEEN)
            }
            _ => failure,
        }
    }

    fn cut_off(&self) -> Failure {
        let what = format!("{} {WRITTEN}: the relay stops", self.url);
        Failure::new(Exit::Failed, what, "start it again: it archives the letters then")
    }
}

fn no_manifest(url: &BucketUrl, name: &str, why: &str) -> Failure {
    let what = format!("{url}/{name} is no manifest: {why}");
    Failure::new(Exit::Failed, what, "restore it; without it nothing says whether the archive is whole")
}

fn builder(url: &BucketUrl, s3: &S3Config) -> AmazonS3Builder {
    let agent = HeaderValue::from_static(concat!("backstop-relay/", env!("CARGO_PKG_VERSION")));
    let client = ClientOptions::new()
        .with_user_agent(agent)
        .with_allow_http(s3.is_plain())
        .with_connect_timeout(CONNECT)
        .with_timeout(ANSWER);
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
    // A bucket under Object Lock takes nothing without a checksum of its own beside the signed one.
    let builder = AmazonS3Builder::new()
        .with_bucket_name(&url.bucket)
        .with_client_options(client)
        .with_retry(retry)
        .with_checksum_algorithm(Checksum::SHA256);
    let keys = s3.secret_access_key.as_ref().map(|secret| secret.expose().to_owned());
    let said = [
        (AmazonS3ConfigKey::Endpoint, s3.endpoint.clone()),
        (AmazonS3ConfigKey::Region, s3.region.clone()),
        (AmazonS3ConfigKey::AccessKeyId, s3.access_key_id.clone()),
        (AmazonS3ConfigKey::SecretAccessKey, keys),
    ];
    let said = said.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let credentials = s3.credentials.iter().filter_map(|(variable, value)| {
        Some((variable.to_ascii_lowercase().parse().ok()?, value.expose().to_owned()))
    });
    said.chain(credentials).fold(builder, |builder, (key, value)| builder.with_config(key, value))
}

/// The next bytes of a file, no more than a part.
async fn read(archive: &mut tokio::fs::File, bytes: u64) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    archive.take(bytes).read_to_end(&mut content).await.map_err(|error| place::unwritten(&error))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S3 takes no smaller parts than 5 MiB, so that the time decides how slow the way may be.
    #[test]
    fn a_part_comes_through_a_slow_way_in_time() {
        assert_eq!(PART, 5 << 20);
        assert!(PART / ANSWER.as_secs() <= 30_000, "bytes a second");
        assert!(RETRY >= ANSWER, "a part that was lost goes once more");
    }
}
