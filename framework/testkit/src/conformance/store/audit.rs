//! The audit log: it grows, in order, and tells what never ended.

use backstop_core::ledger::{AuditFilter, AuditStep, Ledger, NewAuditEntry};

use super::StoreHarness;

fn entry(deed: &str, step: AuditStep) -> NewAuditEntry {
    NewAuditEntry {
        deed: deed.to_owned(),
        step,
        who: "ann".to_owned(),
        role: "operator".to_owned(),
        origin: "console, 10.0.0.7".to_owned(),
        action: "letters.discard".to_owned(),
        object: "fingerprint=f1".to_owned(),
        redrive: None,
        letters: None,
        because: Some("it's \"old\" \\ 🍵".to_owned()),
        error: None,
    }
}

async fn write(ledger: &dyn Ledger, entry: &NewAuditEntry) {
    ledger.write_audit(entry).await.expect("the database answers");
}

async fn read(ledger: &dyn Ledger, filter: &AuditFilter, limit: u32) -> Vec<NewAuditEntry> {
    let entries = ledger.read_audit(filter, limit).await.expect("the database answers");
    assert!(entries.windows(2).all(|pair| pair[0].n > pair[1].n && pair[0].at >= pair[1].at), "{entries:?}");
    entries.into_iter().map(|entry| entry.entry).collect()
}

/// What is written comes back, newest first, page by page, and every field of the filter narrows.
pub async fn the_audit_log_is_read_by_pages<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let first = entry("1", AuditStep::Done);
    let second = NewAuditEntry {
        who: "bob".to_owned(),
        action: "redrive.start".to_owned(),
        redrive: Some("job 7".to_owned()),
        letters: Some(4_000),
        ..entry("2", AuditStep::Done)
    };
    let third = NewAuditEntry { error: Some("no".to_owned()), ..entry("3", AuditStep::Refused) };
    for entry in [&first, &second, &third] {
        write(&*ledger, entry).await;
    }
    let all = AuditFilter::default();
    assert_eq!(read(&*harness.ledger(), &all, 10).await, [third.clone(), second.clone(), first.clone()]);
    let page = ledger.read_audit(&all, 2).await.expect("the database answers");
    let older = AuditFilter { before: Some(page[1].n), ..all.clone() };
    assert_eq!(read(&*ledger, &older, 2).await, std::slice::from_ref(&first));
    let by = |action: Option<&str>, who: Option<&str>, redrive: Option<&str>| AuditFilter {
        before: None,
        action: action.map(str::to_owned),
        who: who.map(str::to_owned),
        redrive: redrive.map(str::to_owned),
    };
    assert_eq!(read(&*ledger, &by(Some("letters."), None, None), 10).await, [third, first]);
    assert_eq!(read(&*ledger, &by(None, Some("bob"), None), 10).await, std::slice::from_ref(&second));
    assert_eq!(read(&*ledger, &by(None, None, Some("job 7")), 10).await, [second]);
    for none in [by(Some("%"), None, None), by(None, Some("b"), None), by(None, None, Some("job"))] {
        assert_eq!(read(&*ledger, &none, 10).await, []);
    }
}

/// An action is shown once: as it ended, or that it began where nobody knows how it ended.
pub async fn what_ended_hides_its_beginning<H: StoreHarness>(harness: &H) {
    let ledger = harness.ledger();
    let (begun, done) = (entry("1", AuditStep::Begun), entry("1", AuditStep::Done));
    write(&*ledger, &begun).await;
    assert_eq!(read(&*ledger, &AuditFilter::default(), 10).await, [begun]);
    write(&*ledger, &entry("2", AuditStep::Begun)).await;
    write(&*ledger, &done).await;
    assert_eq!(read(&*ledger, &AuditFilter::default(), 10).await, [done, entry("2", AuditStep::Begun)]);
}
