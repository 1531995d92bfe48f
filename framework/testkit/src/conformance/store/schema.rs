//! The schema: applied once, taken back, checked.

use backstop_core::schema::{Schema, Severity};

use super::StoreHarness;
use crate::conformance::needs;

async fn applied(schema: &dyn Schema) -> Vec<i64> {
    schema.applied().await.expect("the database answers")
}

/// Versions grow by one, and a fresh store has all of them.
pub async fn every_step_is_applied<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let schema = harness.schema().expect("the capabilities promise one");
    let versions: Vec<i64> = schema.migrations().iter().map(|step| step.version).collect();
    assert!(!versions.is_empty());
    assert!(versions.windows(2).all(|pair| pair[1] == pair[0] + 1), "{versions:?}");
    assert_eq!(applied(&*schema).await, versions);
}

/// Migrating again changes nothing.
pub async fn migrate_twice_is_once<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let schema = harness.schema().expect("the capabilities promise one");
    assert_eq!(schema.migrate().await.expect("nothing to do"), [0; 0]);
}

/// Steps can be taken back, newest first, and applied again.
pub async fn steps_are_taken_back<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let schema = harness.schema().expect("the capabilities promise one");
    let versions = applied(&*schema).await;
    let newest_first: Vec<i64> = versions.iter().rev().copied().collect();
    assert_eq!(schema.revert(versions[0] - 1).await.expect("taken back"), newest_first);
    assert_eq!(applied(&*schema).await, [0; 0]);
    assert_eq!(schema.migrate().await.expect("applied"), versions);
    assert_eq!(applied(&*schema).await, versions);
}

/// Two that migrate at once apply every step once.
pub async fn two_at_once_are_safe<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let (one, two) = (harness.schema(), harness.schema());
    let (one, two) = (one.expect("promised"), two.expect("promised"));
    let versions = applied(&*one).await;
    one.revert(versions[0] - 1).await.expect("taken back");
    let (first, second) = futures_util::future::join(one.migrate(), two.migrate()).await;
    let mut all = [first.expect("applied"), second.expect("applied")].concat();
    all.sort_unstable();
    assert_eq!(all, versions);
}

/// The check of a complete database finds no error.
pub async fn a_complete_schema_passes_the_check<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let schema = harness.schema().expect("the capabilities promise one");
    let findings = schema.check().await.expect("the database answers");
    assert!(!findings.is_empty(), "a check that looks at nothing");
    let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// The check of a database without tables names what is missing and how to mend it.
pub async fn a_missing_schema_is_named<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, schema);
    let schema = harness.schema().expect("the capabilities promise one");
    let versions = applied(&*schema).await;
    schema.revert(versions[0] - 1).await.expect("taken back");
    let findings = schema.check().await.expect("the database answers");
    let error = findings.iter().find(|finding| finding.severity == Severity::Error);
    assert!(error.is_some_and(|finding| finding.remedy.is_some()), "{findings:?}");
}
