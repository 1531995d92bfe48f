use std::path::Path;
use std::sync::atomic::Ordering;

use backstop_core::Envelope;
use backstop_core::ledger::{Change, Letter, LetterFilter};
use backstop_testkit::memory::Store;

use super::*;
use crate::config::ArchiveConfig;
use crate::gated::Gated;

/// Every letter's time is over as soon as it is closed and the ledger's clock has moved on.
fn config(archive: Option<&Path>) -> RetentionConfig {
    let at_once = Some(Duration::ZERO);
    RetentionConfig {
        resolved: at_once,
        discarded: at_once,
        superseded: at_once,
        open: None,
        archive: archive.map(|folder| ArchiveConfig::Folder(folder.to_owned())),
        s3: None,
        without_archive: archive.is_none(),
    }
}

fn new(ledger: Arc<dyn Ledger>, config: RetentionConfig) -> Retention {
    Retention::new(ledger, "letters", config).expect("a sound place")
}

async fn ledger(letters: usize) -> Arc<Store> {
    let ledger = Arc::new(Store::default());
    let yesterday = ledger.time().await.expect("told") - TimeDelta::days(1);
    let letters: Vec<Letter> = (0..letters)
        .map(|n| {
            let envelope = Envelope { body: Some(n.to_string().into()), ..Envelope::default() };
            let mut letter = Letter::new(format!("{n:05}"), "orders.stock.dlq", envelope);
            letter.dead_at = Some(yesterday);
            letter
        })
        .collect();
    ledger.record(&letters).await.expect("recorded");
    ledger
}

async fn discard(ledger: &Store, ids: &[&str]) {
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    let filter = if ids.is_empty() { LetterFilter::default() } else { LetterFilter::of_ids(&ids) };
    let change = Change::Discard { because: "test".to_owned() };
    ledger.change(&filter, &change, u32::MAX).await.expect("discarded");
    ledger.advance(Duration::from_millis(1));
}

async fn left(ledger: &Store) -> u64 {
    ledger.count(&LetterFilter::default()).await.expect("counted")
}

async fn pass(retention: &Retention) -> Passed {
    let passed = retention.pass(&CancellationToken::new()).await.expect("passed");
    passed.into_iter().find(|passed| passed.status == LetterStatus::Discarded).expect("one of each status")
}

#[tokio::test]
async fn what_is_over_is_archived_and_then_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = ledger(3).await;
    discard(&ledger, &["00000", "00002"]).await;
    let retention = new(ledger.clone(), config(Some(folder.path())));
    let passed = pass(&retention).await;
    assert_eq!((passed.deleted, passed.archives.len()), (2, 1));
    let manifest = &passed.archives[0];
    assert_eq!((manifest.letters, &*manifest.first_id, &*manifest.last_id), (2, "00000", "00002"));
    let path = folder.path().join(&manifest.file);
    assert_eq!(crate::archive::verify(&path).expect("verified").as_ref(), Some(manifest));
    assert_eq!(left(&ledger).await, 1);
    let again = pass(&retention).await;
    assert_eq!(
        (again.deleted, again.archives.len()),
        (0, 0),
        "nothing is left, and no empty archive is made"
    );
}

/// Letters may be so large that as many of them do not come in time: fewer do.
#[tokio::test(start_paused = true)]
async fn letters_that_do_not_come_in_time_are_asked_for_in_smaller_batches() {
    let ledger = ledger(3).await;
    discard(&ledger, &[]).await;
    let (gated, asked) = Gated::silent(ledger.clone(), "expired", false);
    let passed = pass(&new(gated, config(None))).await;
    assert!(asked.load(Ordering::SeqCst));
    assert_eq!((passed.deleted, left(&ledger).await), (3, 0));
}

#[tokio::test]
async fn an_archive_that_cannot_be_written_deletes_nothing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let ledger = ledger(2).await;
    discard(&ledger, &[]).await;
    let retention = new(ledger.clone(), config(Some(&file.path().join("below"))));
    let failure = retention.pass(&CancellationToken::new()).await.expect_err("a file is no folder");
    assert!(failure.to_string().contains("cannot be written"), "{failure}");
    assert_eq!(left(&ledger).await, 2);
}

#[tokio::test]
async fn many_letters_go_in_several_batches() {
    let ledger = ledger(1_203).await;
    discard(&ledger, &[]).await;
    let passed = pass(&new(ledger.clone(), config(None))).await;
    assert_eq!((passed.deleted, passed.archives.len(), left(&ledger).await), (1_203, 0, 0));
}

#[tokio::test]
async fn a_relay_does_it_until_it_is_stopped() {
    let ledger = ledger(2).await;
    discard(&ledger, &[]).await;
    let retention = new(ledger.clone(), config(None));
    let (stop, owner) = (CancellationToken::new(), OwnerSettings::default());
    let running = tokio::spawn(retention.run(owner, stop.clone()));
    let gone = async {
        while left(&ledger).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("deleted in time");
    stop.cancel();
    running.await.expect("no panic");
}

async fn soon(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(EVERY * 2, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_ledger_is_asked_again_and_keeps_nobody_from_ending() {
    for (call, each_time) in
        ["time", "expired", "purge", "write_audit"].map(|call| [(call, false), (call, true)]).concat()
    {
        let ledger = ledger(2).await;
        discard(&ledger, &[]).await;
        let (gated, asked) = Gated::silent(ledger.clone(), call, each_time);
        let (stop, owner) = (CancellationToken::new(), OwnerSettings::default());
        let retention = new(gated, config(None));
        let running = tokio::spawn(retention.run(owner, stop.clone()));
        soon(call, async || asked.load(Ordering::SeqCst)).await;
        if !each_time {
            soon(call, async || left(&ledger).await == 0).await;
        }
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), running).await;
        ended.expect("it ends").expect("no panic");
    }
}
