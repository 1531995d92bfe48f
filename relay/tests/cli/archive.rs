//! Archives in a bucket: what is there before letters are deleted, and what becomes of them when it is not.

use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::Envelope;
use backstop_core::ledger::{Change, Expiry, Ledger as _, Letter, LetterFilter, LetterStatus};
use backstop_core::schema::Severity;
use backstop_relay::archive::{Archive, Manifest, Objects, verify};
use backstop_relay::config::{ArchiveConfig, BucketUrl, RetentionConfig, S3Config};
use backstop_relay::exit::{Exit, Failure};
use backstop_relay::retention::{Passed, Retention};
use backstop_relay::secret::Secret;
use backstop_testkit::memory::Store;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::bucket::{Answer, Authority, BUCKET, Bucket, KEY, SECRET};
use crate::letters::with_letters_and;
use crate::relay::Relay;

/// Archives of this ledger are below `shop/old` in the bucket.
const PREFIX: &str = "shop/old";

fn s3(bucket: &Bucket) -> S3Config {
    S3Config {
        endpoint: Some(bucket.endpoint()),
        access_key_id: Some(KEY.to_owned()),
        secret_access_key: Some(Secret::new(SECRET)),
        ..S3Config::default()
    }
}

fn url() -> BucketUrl {
    BucketUrl { bucket: BUCKET.to_owned(), prefix: PREFIX.to_owned() }
}

fn retention(ledger: &Arc<Store>, url: BucketUrl, s3: S3Config) -> Retention {
    let at_once = Some(Duration::ZERO);
    let config = RetentionConfig {
        resolved: at_once,
        discarded: at_once,
        superseded: at_once,
        open: None,
        archive: Some(ArchiveConfig::Bucket(url)),
        s3: Some(s3),
        without_archive: false,
    };
    Retention::new(ledger.clone(), "letters", config).expect("a sound bucket")
}

/// A ledger with letters of these bodies, whose time is over.
async fn ledger(bodies: Vec<String>) -> Arc<Store> {
    let ledger = Arc::new(Store::default());
    let yesterday = ledger.time().await.expect("told") - Duration::from_secs(86_400);
    let letters = bodies.into_iter().enumerate().map(|(n, body)| {
        let envelope = Envelope { body: Some(body.into()), ..Envelope::default() };
        let mut letter = Letter::new(format!("{n:05}"), "orders.stock.dlq", envelope);
        letter.dead_at = Some(yesterday);
        letter
    });
    ledger.record(&letters.collect::<Vec<_>>()).await.expect("recorded");
    let change = Change::Discard { because: "test".to_owned() };
    ledger.change(&LetterFilter::default(), &change, u32::MAX).await.expect("discarded");
    ledger.advance(Duration::from_millis(1));
    ledger
}

fn small(letters: usize) -> Vec<String> {
    (0..letters).map(|n| n.to_string()).collect()
}

async fn left(ledger: &Store) -> u64 {
    ledger.count(&LetterFilter::default()).await.expect("counted")
}

async fn pass(retention: &Retention) -> Result<Passed, Failure> {
    let passed = retention.pass(&CancellationToken::new()).await?;
    Ok(passed
        .into_iter()
        .find(|passed| passed.status == LetterStatus::Discarded)
        .expect("one of each status"))
}

/// What was asked of objects, without queries.
fn asked(bucket: &Bucket) -> Vec<String> {
    let prefix = format!("/{BUCKET}/{PREFIX}/");
    bucket.seen().into_iter().map(|line| line.replace(&prefix, "")).collect()
}

#[tokio::test]
async fn an_archive_is_whole_in_the_bucket_before_its_manifest_is_and_letters_go_after_both() {
    let bucket = Bucket::start();
    let ledger = ledger(small(3)).await;
    let passed = pass(&retention(&ledger, url(), s3(&bucket))).await.expect("passed");
    assert_eq!((passed.deleted, passed.archives.len(), left(&ledger).await), (3, 1, 0));
    let manifest = &passed.archives[0];
    assert_eq!((manifest.letters, &*manifest.first_id, &*manifest.last_id), (3, "00000", "00002"));
    let name = Manifest::name_for(&manifest.file);
    let expected = [
        format!("PUT {} create", manifest.file),
        format!("HEAD {}", manifest.file),
        format!("PUT {name} create"),
    ];
    assert_eq!(asked(&bucket), expected);
    assert_eq!(bucket.names(PREFIX), [manifest.file.clone(), name]);
    let file = bucket.file(&format!("{PREFIX}/{}", manifest.file));
    assert_eq!(verify(&file).expect("verified").as_ref(), Some(manifest));
}

/// The archive or its manifest, the store or the way to it: whatever fails, the letters stay, and the next pass has them.
#[tokio::test]
async fn what_fails_before_the_manifest_is_there_leaves_the_letters_in_the_ledger() {
    let bucket = Bucket::start();
    let ledger = ledger(small(2)).await;
    let retention = retention(&ledger, url(), s3(&bucket));
    let archive: fn(&str) -> bool = |line| line.starts_with("PUT") && line.contains(".jsonl.gz");
    let manifest: fn(&str) -> bool = |line| line.contains(".manifest.json");
    let head: fn(&str) -> bool = |line| line.starts_with("HEAD");
    for (which, answer, objects, expected) in [
        (archive, Answer::Error(500, "InternalError"), 0, "InternalError: because"),
        (archive, Answer::Error(403, "AccessDenied"), 0, "AccessDenied: because"),
        (archive, Answer::Error(400, "ExpiredToken"), 0, "ExpiredToken: because"),
        (archive, Answer::Cut, 0, "cannot be written to"),
        (head, Answer::Error(403, ""), 1, "403"),
        (head, Answer::Size(1), 2, "has 1 bytes in place of"),
        (manifest, Answer::Error(503, "SlowDown"), 3, "SlowDown: because"),
        (manifest, Answer::Cut, 4, "cannot be written to"),
    ] {
        bucket.answer(which, answer);
        let failure = pass(&retention).await.expect_err("it fails");
        let text = failure.to_string();
        assert!(text.starts_with("s3://letters/shop/old") && text.contains(expected), "{answer:?}: {text}");
        assert!(failure.complaints()[0].hint.is_some(), "{text}");
        assert_eq!(left(&ledger).await, 2, "{answer:?}");
        let names = bucket.names(PREFIX);
        assert_eq!(names.iter().filter(|name| name.ends_with(".jsonl.gz")).count(), objects, "{answer:?}");
        assert_eq!(names.len(), objects, "no manifest: {names:?}");
    }
    bucket.recover();
    assert_eq!(pass(&retention).await.expect("passed").deleted, 2);
    assert_eq!(
        bucket.names(PREFIX).len(),
        6,
        "archives without a manifest stay for whoever looks after the bucket"
    );
}

/// Who may write and not look would leave another archive with each pass.
#[tokio::test]
async fn an_archive_that_cannot_be_looked_at_is_followed_by_no_other() {
    let bucket = Bucket::start();
    let ledger = ledger(small(2)).await;
    let retention = retention(&ledger, url(), s3(&bucket));
    bucket.answer(|line| line.starts_with("HEAD"), Answer::Error(403, ""));
    for _ in 0..3 {
        let failure = pass(&retention).await.expect_err("it may not look");
        assert!(
            failure.to_string().starts_with("s3://letters/shop/old does not show letters-discarded-"),
            "{failure}"
        );
        let hint = failure.complaints()[0].hint.clone().expect("a hint");
        assert!(hint.starts_with("allow s3:GetObject"), "{hint}");
        assert_eq!((bucket.names(PREFIX).len(), left(&ledger).await), (1, 2));
    }
    // Somebody removes what was not followed by a manifest.
    bucket.recover();
    std::fs::remove_file(bucket.file(&format!("{PREFIX}/{}", bucket.names(PREFIX)[0]))).expect("removed");
    assert_eq!(pass(&retention).await.expect("passed").deleted, 2);
    assert_eq!(bucket.names(PREFIX).len(), 2);
}

/// The client asks again, and hears that the object is there already: it is its own.
#[tokio::test]
async fn an_answer_that_is_lost_fails_no_archive() {
    let bucket = Bucket::start();
    let ledger = ledger(small(2)).await;
    bucket.answer(|line| line.ends_with(" create"), Answer::Lost);
    let passed = pass(&retention(&ledger, url(), s3(&bucket))).await.expect("passed");
    assert_eq!((passed.deleted, bucket.names(PREFIX).len()), (2, 2));
}

/// Amazon's answer, under Object Lock, to content whose checksum is in its signature alone.
#[tokio::test]
async fn a_bucket_under_object_lock_takes_archives() {
    let bucket = Bucket::start();
    bucket.answer(|line| line.contains(" unchecked"), Answer::Error(400, "InvalidRequest"));
    for bodies in [small(2), large()] {
        let ledger = ledger(bodies).await;
        let passed = pass(&retention(&ledger, url(), s3(&bucket))).await.expect("passed");
        assert_eq!((left(&ledger).await, passed.archives.len()), (0, 1));
    }
    assert_eq!(bucket.names(PREFIX).len(), 4);
}

/// However it ends, a look at the bucket leaves nothing there.
#[tokio::test]
async fn a_look_at_the_bucket_that_comes_to_no_end_leaves_no_upload() {
    let bucket = Bucket::start();
    let objects = Objects::open(&url(), &s3(&bucket)).expect("a sound bucket");
    let patience = Duration::from_secs(60);
    bucket.answer(|line| line.starts_with("HEAD"), Answer::Error(403, ""));
    let found = objects.probe(patience).await.expect("it takes uploads");
    assert!(found.severity == Severity::Warning && found.remedy.expect("a remedy").contains("s3:GetObject"));
    bucket.recover();
    assert_eq!(objects.probe(patience).await.expect("it takes uploads").severity, Severity::Fine);

    assert_eq!(bucket.unfinished(), [""; 0]);
    bucket.answer(|line| line.starts_with("DELETE"), Answer::Silence);
    bucket.seen();
    let look = objects.probe(Duration::from_secs(2));
    let mend = async {
        while !bucket.seen().iter().any(|line| line.starts_with("DELETE")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(bucket.unfinished(), [""; 0]);
        bucket.recover();
    };
    let (found, ()) = tokio::join!(look, mend);
    assert!(found.expect_err("no answer").to_string().contains("no answer within 2 s"));
    assert_eq!(bucket.unfinished(), [""; 0]);
}

/// Bodies that compression makes no smaller, more than go in one request.
fn large() -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..13).map(|_| std::iter::repeat_with(|| random.alphanumeric()).take(1 << 20).collect()).collect()
}

#[tokio::test]
async fn a_large_archive_goes_in_parts_which_are_taken_back_when_one_fails() {
    let bucket = Bucket::start();
    let ledger = ledger(large()).await;
    let retention = retention(&ledger, url(), s3(&bucket));
    bucket.answer(|line| line.contains("partNumber=2"), Answer::Error(403, "AccessDenied"));
    let failure = pass(&retention).await.expect_err("it fails");
    assert!(failure.to_string().contains("AccessDenied"), "{failure}");
    assert_eq!((left(&ledger).await, bucket.names(PREFIX), bucket.unfinished()), (13, vec![], vec![]));
    let seen = bucket.seen();
    assert!(seen.iter().any(|line| line.contains("partNumber=1")), "{seen:?}");
    assert!(
        seen.last().is_some_and(|line| line.starts_with("DELETE") && line.contains("uploadId")),
        "{seen:?}"
    );

    bucket.recover();
    let passed = pass(&retention).await.expect("passed");
    assert_eq!((passed.deleted, left(&ledger).await, bucket.unfinished()), (13, 0, vec![]));
    let seen = bucket.seen();
    assert_eq!(seen.iter().filter(|line| line.contains("partNumber")).count(), 2, "{seen:?}");
    assert!(seen.last().is_some_and(|line| line.contains(".manifest.json")), "{seen:?}");
    let manifest = &passed.archives[0];
    assert!(manifest.bytes > 5 << 20, "{} bytes go in one request", manifest.bytes);
    let file = bucket.file(&format!("{PREFIX}/{}", manifest.file));
    assert_eq!(verify(&file).expect("verified").as_ref(), Some(manifest));

    let objects = Objects::open(&url(), &s3(&bucket)).expect("a sound bucket");
    let (mut fetched, found) = objects.fetch(&manifest.file).await.expect("fetched");
    let mut content = Vec::new();
    fetched.read_to_end(&mut content).expect("read");
    assert!(
        found.as_ref() == Some(manifest) && content == std::fs::read(&file).expect("there"),
        "as it is there"
    );
}

#[tokio::test]
async fn a_relay_that_stops_takes_back_what_it_has_sent_of_an_archive() {
    let bucket = Bucket::start();
    let ledger = ledger(large()).await;
    let retention = retention(&ledger, url(), s3(&bucket));
    bucket.answer(|line| line.contains("partNumber=2"), Answer::Silence);
    let stop = CancellationToken::new();
    let stopping = async {
        while bucket.unfinished().is_empty()
            || !bucket.seen().iter().any(|line| line.contains("partNumber=2"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let both = async { tokio::join!(retention.pass(&stop), stopping) };
    let (passed, ()) = tokio::time::timeout(Duration::from_secs(120), both).await.expect("it ends");
    assert!(passed.expect_err("cut off").to_string().contains("the relay stops"));
    assert_eq!((left(&ledger).await, bucket.names(PREFIX), bucket.unfinished()), (13, vec![], vec![]));
}

/// An archive of no letters, as it is put.
fn archive() -> (std::fs::File, Manifest) {
    let expiry = Expiry { status: LetterStatus::Resolved, before: chrono::Utc::now() };
    let file = tempfile::tempfile().expect("a file");
    Archive::begin(file, Manifest::new("letters", &expiry)).close().expect("closed")
}

#[tokio::test]
async fn nothing_is_overwritten() {
    let bucket = Bucket::start();
    let ledger = ledger(small(1)).await;
    let retention = retention(&ledger, url(), s3(&bucket));
    pass(&retention).await.expect("passed");
    let again = Letter::new("again", "orders.stock.dlq", Envelope::default());
    ledger.record(&[again]).await.expect("recorded");
    let change = Change::Discard { because: "test".to_owned() };
    ledger.change(&LetterFilter::default(), &change, u32::MAX).await.expect("discarded");
    ledger.advance(Duration::from_secs(1));
    pass(&retention).await.expect("passed");
    assert_eq!(bucket.names(PREFIX).len(), 4, "two archives with their manifests");

    let objects = Objects::open(&url(), &s3(&bucket)).expect("a sound bucket");
    let (file, manifest) = archive();
    let taken = bucket.file(&format!("{PREFIX}/{}", manifest.file));
    std::fs::write(&taken, "somebody else's").expect("written");
    let failure = objects.put(file, &manifest, &CancellationToken::new()).await.expect_err("it is taken");
    assert!(failure.to_string().contains("PreconditionFailed"), "{failure}");
    assert_eq!(std::fs::read_to_string(&taken).expect("there"), "somebody else's");
}

/// What a prefix is in the configuration, it is in the bucket, where rights and lifecycles go by it.
#[tokio::test]
async fn a_prefix_stays_as_it_is_written() {
    let bucket = Bucket::start();
    for prefix in ["old~1/köln", "a b/50% [new]", ""] {
        let url = BucketUrl { prefix: prefix.to_owned(), ..url() };
        let passed =
            pass(&retention(&ledger(small(1)).await, url.clone(), s3(&bucket))).await.expect("passed");
        let manifest = &passed.archives[0];
        let file = bucket.file(format!("{prefix}/{}", manifest.file).trim_start_matches('/'));
        assert_eq!(verify(&file).expect("verified").as_ref(), Some(manifest), "{prefix}");
        let objects = Objects::open(&url, &s3(&bucket)).expect("a sound bucket");
        assert_eq!(
            objects.fetch(&manifest.file).await.expect("fetched").1.as_ref(),
            Some(manifest),
            "{prefix}"
        );
    }
}

#[tokio::test]
async fn a_store_that_cannot_refuse_to_overwrite_is_written_to_all_the_same() {
    let bucket = Bucket::start();
    bucket.answer(|line| line.ends_with(" create"), Answer::Error(501, "NotImplemented"));
    let ledger = ledger(small(1)).await;
    let passed = pass(&retention(&ledger, url(), s3(&bucket))).await.expect("passed");
    let file = bucket.file(&format!("{PREFIX}/{}", passed.archives[0].file));
    assert_eq!(verify(&file).expect("verified").as_ref(), passed.archives.first());
}

#[tokio::test]
async fn a_bucket_that_is_missing_and_a_store_that_is_away_are_told_apart() {
    let bucket = Bucket::start();
    let ledger = ledger(small(1)).await;
    let missing = BucketUrl { bucket: "other".to_owned(), prefix: String::new() };
    let failure = pass(&retention(&ledger, missing, s3(&bucket))).await.expect_err("there is none");
    assert_eq!(failure.to_string(), "s3://other cannot be written to: NoSuchBucket: because");
    let hint = "make the bucket, or name another in [dead_letters.retention] archive";
    assert_eq!(failure.complaints()[0].hint.as_deref(), Some(hint));

    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", free.local_addr().expect("an address"));
    drop(free);
    let away = S3Config { endpoint: Some(endpoint), ..s3(&bucket) };
    let failure = pass(&retention(&ledger, url(), away)).await.expect_err("nobody is there");
    assert!(failure.to_string().contains("Connection refused"), "{failure}");
    let hint = failure.complaints()[0].hint.clone().expect("a hint");
    assert!(hint.starts_with("check endpoint"), "{hint}");
    assert_eq!((failure.exit(), left(&ledger).await), (Exit::Failed, 1));
}

#[tokio::test]
async fn what_is_read_back_is_compared_with_its_manifest() {
    let bucket = Bucket::start();
    let objects = Objects::open(&url(), &s3(&bucket)).expect("a sound bucket");
    let (file, manifest) = archive();
    objects.put(file, &manifest, &CancellationToken::new()).await.expect("put");
    let (_, found) = objects.fetch(&manifest.file).await.expect("fetched");
    assert_eq!(found, Some(manifest.clone()));

    let path = bucket.file(&format!("{PREFIX}/{}", manifest.file));
    let mut changed = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
    changed.seek(std::io::SeekFrom::End(-1)).expect("sought");
    changed.write_all(&[1]).expect("changed");
    let failure = objects.fetch(&manifest.file).await.expect_err("it was changed");
    assert!(failure.to_string().contains("not the file that its manifest was written for"), "{failure}");

    std::fs::write(path.with_file_name(Manifest::name_for(&manifest.file)), "{}").expect("written");
    let failure = objects.fetch(&manifest.file).await.expect_err("the manifest says nothing");
    assert!(failure.to_string().contains("is no manifest"), "{failure}");
    let failure = objects.fetch("other.jsonl.gz").await.expect_err("there is none");
    assert!(failure.to_string().contains("does not give other.jsonl.gz"), "{failure}");
}

/// A ledger of six letters with an archive in the bucket, which the environment says how to reach.
fn relay(bucket: &Bucket, secret: &str) -> (Relay, backstop_kafka::MockBroker) {
    let (relay, broker) = with_letters_and(&format!(
        "[dead_letters]\nenabled = true\nsources = [\"orders.stock.dlq\"]\n[dead_letters.retention]\n\
         archive = \"s3://{BUCKET}/{PREFIX}\"\ndiscarded = \"1s\"\n[dead_letters.retention.s3]\nendpoint = \"{}\"\n",
        bucket.endpoint()
    ));
    let relay = relay.with_env("AWS_ACCESS_KEY_ID", KEY).with_env("AWS_SECRET_ACCESS_KEY", secret);
    (relay, broker)
}

/// What `check` says of the archive.
fn finding(relay: &Relay) -> serde_json::Value {
    let findings = relay.run("check --output json").json()["findings"].clone();
    let findings = findings.as_array().expect("a list").clone();
    findings.into_iter().find(|finding| finding["subject"] == "archive").expect("one of the archive")
}

#[test]
fn letters_go_to_the_bucket_and_come_back() {
    let bucket = Bucket::start();
    let (relay, _broker) = relay(&bucket, SECRET);
    assert_eq!(finding(&relay)["detail"], "s3://letters/shop/old takes uploads");
    assert_eq!((bucket.names(PREFIX), bucket.unfinished()), (vec![], vec![]), "looking leaves nothing");
    assert_eq!(relay.run("dead-letters discard --fingerprint f-card --because test --yes").code, 0);
    let until = Instant::now() + Duration::from_secs(60);
    let file = loop {
        // A second after the last thing that happened to them, their time is over.
        let passed = relay.run("dead-letters archive --output json").json()["passed"].clone();
        let files =
            passed.as_array().into_iter().flatten().filter_map(|it| it["archives"][0]["file"].as_str());
        if let Some(file) = files.map(str::to_owned).next() {
            break file;
        }
        assert!(Instant::now() < until, "nothing is archived: {passed}");
    };
    assert_eq!(relay.run("dead-letters list --status all --output json").json()["matching"], 4);
    let import = format!("dead-letters import s3://{BUCKET}/{PREFIX}/{file}");
    let ran = relay.run(&import);
    let expected = "2 letters read, 2 of them new; the file is as its manifest says\n";
    assert_eq!((ran.code, ran.stdout.as_str()), (0, expected), "{}", ran.stderr);
    let shown = relay.run("dead-letters show letter-6 --reveal --output json").json();
    assert_eq!(
        (&shown["letter"]["status"], &shown["content"]["body"]),
        (&json!("discarded"), &json!("card 4111"))
    );
    std::fs::write(bucket.file(&format!("{PREFIX}/{file}")), "changed").expect("written");
    let ran = relay.run(&import);
    assert!(ran.code == 1 && ran.stderr.contains("its manifest was written for"), "{}", ran.stderr);
    for (address, code) in [("s3://", 2), ("gs://letters/a", 2), ("s3://letters", 1)] {
        assert_eq!(relay.run(&format!("dead-letters import {address}")).code, code, "{address}");
    }
}

#[test]
fn a_wrong_secret_is_told_and_not_shown() {
    let bucket = Bucket::start();
    let wrong = "Wr0ng-secret-of-the-store";
    let (relay, _broker) = relay(&bucket, wrong);
    let found = finding(&relay);
    assert_eq!(found["severity"], "error");
    let detail = found["detail"].as_str().expect("a text");
    assert!(
        detail.starts_with("s3://letters/shop/old cannot be written to: SignatureDoesNotMatch"),
        "{detail}"
    );
    assert!(
        found["remedy"].as_str().is_some_and(|remedy| remedy.contains("AWS_SECRET_ACCESS_KEY")),
        "{found}"
    );
    for command in ["check", "--log trace dead-letters import s3://letters/shop/a.jsonl.gz", "config print"] {
        let ran = relay.run(command);
        assert!(
            !ran.stdout.contains(wrong) && !ran.stderr.contains(wrong),
            "{command}: {}{}",
            ran.stdout,
            ran.stderr
        );
    }
}

#[test]
fn a_store_behind_tls_must_prove_who_it_is() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let bucket = Bucket::over_tls(&authority);
    let (relay, _broker) = relay(&bucket, SECRET);
    let found = finding(&relay.with_env("SSL_CERT_FILE", &authority.certificate()));
    assert_eq!(found["detail"], "s3://letters/shop/old takes uploads");
    let found = finding(&relay.with_env("SSL_CERT_FILE", &stranger.certificate()));
    let detail = found["detail"].as_str().expect("a text");
    assert!(found["severity"] == "error" && detail.contains("certificate"), "{detail}");
    assert!(found["remedy"].as_str().is_some_and(|remedy| remedy.contains("SSL_CERT_FILE")), "{found}");
}

#[test]
fn half_of_the_credentials_is_told_before_anybody_is_asked() {
    let bucket = Bucket::start();
    let (relay, _broker) = with_letters_and(&format!(
        "[dead_letters.retention]\narchive = \"s3://{BUCKET}\"\n[dead_letters.retention.s3]\nendpoint = \"{}\"\n",
        bucket.endpoint()
    ));
    let ran = relay.with_env("AWS_ACCESS_KEY_ID", KEY).run("dead-letters archive");
    let [error, hint] = ran.lines();
    assert_eq!((ran.code, error), (3, "error: s3://letters cannot be used: Missing SecretAccessKey"));
    assert!(hint.starts_with("hint: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together"), "{hint}");
    assert_eq!(bucket.seen(), [""; 0]);
}
