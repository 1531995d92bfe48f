//! Held messages that share transactions.

use backstop_core::Via;
use backstop_core::held::{HeadCharge, Heads, HeldMessage, HeldMessages, Holding};
use backstop_core::held_run::{ClaimedRun, RunChoice, RunClaim};
use backstop_core::inbox::{CommitError, Inbox, Standing};

use super::StoreHarness;
use super::sample::*;
use crate::conformance::{eventually, needs};

fn redriven(key: &str, id: &str) -> Sample {
    Sample { via: Via::Door, ..sample(key, id) }
}

/// Takes messages in that have not failed here, each by its key and id.
async fn import<S: HeldMessages>(store: &S, messages: &[(&str, &str)]) {
    for (key, id) in messages {
        let holding = store.import(redriven(key, id).new_held()).await.expect("it is taken in");
        assert_eq!(holding, Holding::Stored);
    }
}

async fn try_run<S: HeldMessages>(store: &S, choice: RunChoice<'_>) -> Option<ClaimedRun<S::Tx>> {
    match store.claim_run(CONSUMER, limits(), choice).await.expect("the database answers") {
        RunClaim::Shared(run) => Some(run),
        RunClaim::Apart(_) | RunClaim::Nothing => None,
    }
}

async fn run_of<S: HeldMessages>(store: &S, most: usize) -> ClaimedRun<S::Tx> {
    eventually(|| try_run(store, RunChoice { most, apart: &[] })).await
}

/// Key and id of each message, those of one key in their order.
fn ids(members: &[HeldMessage]) -> Vec<String> {
    let id = |member: &HeldMessage| {
        let id = member.envelope.headers.get_str("ce_id").unwrap_or_default();
        format!("{} {id}", String::from_utf8_lossy(&member.ordering_key))
    };
    let mut ids: Vec<(Vec<u8>, String)> =
        members.iter().map(|member| (member.ordering_key.clone(), id(member))).collect();
    ids.sort_by(|left, right| left.0.cmp(&right.0));
    ids.into_iter().map(|(_, id)| id).collect()
}

fn charges(members: &[HeldMessage]) -> Vec<HeadCharge> {
    members.iter().map(HeldMessage::spent_charge).collect()
}

/// Heads and what is behind them run in one transaction, which commits all of it.
pub async fn a_run_commits_together<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    import(&store, &[("tea", "3"), ("tea", "1"), ("milk", "4"), ("tea", "2")]).await;
    let mut run = run_of(&store, 10).await;
    assert_eq!(ids(&run.members), ["milk 4", "tea 3", "tea 1", "tea 2"]);
    assert_eq!(run.standings, [Standing::Fresh; 4]);
    assert!(run.members.iter().all(|member| member.via == Via::Door && member.crashes == 0));
    harness.write_effect(&mut run.tx, "tea").await;
    store.finish_run(CONSUMER, run.tx, &run.members, &[]).await.expect("the commit is proved");
    assert_eq!((harness.effects("tea").await, held_count(&store, CONSUMER).await), (1, 0));
    for (key, id) in [("tea", "1"), ("tea", "2"), ("tea", "3"), ("milk", "4")] {
        assert!(is_handled(&store, &sample(key, id)).await, "{id}");
    }
}

/// A rollback leaves nothing but the charges, and those can be taken back together.
pub async fn a_run_rolls_back_together<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    import(&store, &[("tea", "1"), ("tea", "2"), ("milk", "3")]).await;
    let mut run = run_of(&store, 10).await;
    harness.write_effect(&mut run.tx, "tea").await;
    store.rollback(run.tx).await;
    assert_eq!(harness.effects("tea").await, 0);
    assert!(!is_handled(&store, &sample("tea", "1")).await);
    assert!(try_claim(&store, CONSUMER).await.is_none(), "charged heads are left alone for a while");
    store.acquit_heads(CONSUMER, &charges(&run.members)).await.expect("taken back");
    let again = run_of(&store, 10).await;
    assert_eq!(ids(&again.members), ["milk 3", "tea 1", "tea 2"]);
    store.finish_run(CONSUMER, again.tx, &again.members, &[]).await.expect("the commit is proved");
}

/// Each message of a run that died is doubtful, those too that ran behind others.
pub async fn a_run_that_dies_is_charged_to_each<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    import(&store, &[("tea", "1"), ("tea", "2")]).await;
    drop(run_of(&store, 10).await);
    for id in ["1", "2"] {
        let claimed = claim(&store).await;
        assert_eq!(
            (claimed.head.message_key.clone(), claimed.head.crashes),
            (sample("tea", id).message_key, 1)
        );
        store.finish(CONSUMER, claimed.tx, &claimed.head).await.expect("the commit is proved");
    }
    let sound = store.claim(CONSUMER, limits(), Heads::Sound).await.expect("the database answers");
    assert!(sound.is_none());
}

/// What there was no time for is given back, due and uncharged, and in its order.
pub async fn a_run_that_is_cut_short_gives_back_the_rest<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    import(&store, &[("tea", "1"), ("tea", "2"), ("tea", "3")]).await;
    let mut run = run_of(&store, 10).await;
    let (done, left) = run.members.split_at(1);
    let keys: Vec<_> = left.iter().map(|member| &member.message_key).collect();
    store.withdraw(&mut run.tx, CONSUMER, &keys).await.expect("they are taken out");
    store.finish_run(CONSUMER, run.tx, done, left).await.expect("the commit is proved");
    assert!(is_handled(&store, &sample("tea", "1")).await);
    assert!(!is_handled(&store, &sample("tea", "2")).await);
    let again = run_of(&store, 10).await;
    assert_eq!(ids(&again.members), ["tea 2", "tea 3"]);
    store.finish_run(CONSUMER, again.tx, &again.members, &[]).await.expect("the commit is proved");
}

/// A message that failed, or that is to run by itself, is in no run, and nothing behind it is.
pub async fn a_run_ends_before_what_is_to_run_alone<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    hold(&store, &sample("milk", "1")).await;
    import(&store, &[("milk", "2"), ("tea", "3"), ("tea", "4"), ("tea", "5")]).await;
    let run = run_of(&store, 10).await;
    assert_eq!(ids(&run.members), ["tea 3", "tea 4", "tea 5"]);
    let (second, numbers) = (run.members[1].n, charges(&run.members));
    store.rollback(run.tx).await;
    store.acquit_heads(CONSUMER, &numbers).await.expect("taken back");
    let choice = RunChoice { most: 10, apart: &[second] };
    let run = eventually(|| try_run(&store, choice)).await;
    assert_eq!(ids(&run.members), ["tea 3"]);
    store.finish_run(CONSUMER, run.tx, &run.members, &[]).await.expect("the commit is proved");
    assert!(try_run(&store, choice).await.is_none(), "nothing overtakes it");
    run_head(&store, &sample("milk", "1")).await;
    run_head(&store, &sample("tea", "4")).await;
    let run = run_of(&store, 10).await;
    assert_eq!(ids(&run.members), ["milk 2", "tea 5"]);
    store.rollback(run.tx).await;
}

/// Many keys have an equal share of a run, and one key may have the whole.
pub async fn keys_share_a_run<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    let store = harness.store();
    import(&store, &[("tea", "1"), ("tea", "2"), ("tea", "3"), ("milk", "4"), ("milk", "5")]).await;
    let run = run_of(&store, 3).await;
    assert_eq!(ids(&run.members), ["milk 4", "tea 1"]);
    store.finish_run(CONSUMER, run.tx, &run.members, &[]).await.expect("the commit is proved");
    run_head(&store, &sample("tea", "2")).await;
    run_head(&store, &sample("milk", "5")).await;
    import(&store, &[("tea", "6"), ("tea", "7")]).await;
    let run = run_of(&store, 2).await;
    assert_eq!(ids(&run.members), ["tea 3", "tea 6"]);
    store.rollback(run.tx).await;
}

/// Two instances have different keys, and one that is at work is not disturbed.
pub async fn runs_of_instances_are_apart<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    needs!(H::CAPABILITIES, concurrent_writers);
    let (first, second) = (harness.store(), harness.store());
    import(&first, &[("tea", "1"), ("tea", "2")]).await;
    let run = run_of(&first, 10).await;
    import(&second, &[("milk", "3"), ("tea", "4")]).await;
    let other = run_of(&second, 10).await;
    assert_eq!(ids(&other.members), ["milk 3"], "of the other key somebody has the head");
    assert!(try_claim(&second, CONSUMER).await.is_none());
    first.finish_run(CONSUMER, run.tx, &run.members, &[]).await.expect("the commit is proved");
    second.finish_run(CONSUMER, other.tx, &other.members, &[]).await.expect("the commit is proved");
    run_head(&second, &sample("tea", "4")).await;
}

/// A message that the inbox knows is shown as such, and ends with the run.
pub async fn a_run_knows_what_was_handled<H: StoreHarness>(harness: &H) {
    needs!(H::CAPABILITIES, runs);
    needs!(H::CAPABILITIES, handler_can_commit);
    let store = harness.store();
    import(&store, &[("tea", "1"), ("tea", "2")]).await;
    let mut run = run_of(&store, 10).await;
    let keys = [&run.members[1].message_key];
    store.withdraw(&mut run.tx, CONSUMER, &keys).await.expect("it is taken out");
    harness.raw_commit(&mut run.tx).await;
    let outcome = store.finish_run(CONSUMER, run.tx, &run.members, &[]).await;
    assert!(matches!(outcome, Err(CommitError::EndedByHandler(_))), "{outcome:?}");
    assert_eq!(held_count(&store, CONSUMER).await, 2, "nothing is lost with it");
    store.acquit_heads(CONSUMER, &charges(&run.members)).await.expect("taken back");
    let again = run_of(&store, 10).await;
    assert_eq!(again.standings, [Standing::Duplicate, Standing::Fresh]);
    store.finish_run(CONSUMER, again.tx, &again.members, &[]).await.expect("the commit is proved");
    assert_eq!(held_count(&store, CONSUMER).await, 0);
}
