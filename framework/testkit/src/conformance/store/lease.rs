//! Leases: one owner at a time, by the database's clock.

use std::time::Duration;

use backstop_core::lease::Lease;
use backstop_core::outbox::OutboxStore;

use super::StoreHarness;
use crate::conformance::eventually;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

async fn acquire(leases: &dyn OutboxStore, owner: &str, ttl: Duration) -> Option<Lease> {
    leases.acquire("relay", owner, ttl).await.expect("the database answers")
}

/// While one owner has the lease nobody else gets it.
pub async fn one_owner<H: StoreHarness>(harness: &H) {
    let (first, second) = (harness.outbox(), harness.outbox());
    let lease = acquire(&*first, "a", LONG).await.expect("it is free");
    assert_eq!((lease.name.as_str(), lease.owner.as_str()), ("relay", "a"));
    assert_eq!(acquire(&*second, "b", LONG).await, None);
}

/// Anybody may ask who has the lease and for how long; asking changes nothing.
pub async fn the_holder_is_told<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let holder = async || outbox.holder("relay").await.expect("the database answers");
    assert_eq!(holder().await, None);
    let lease = acquire(&*outbox, "a", LONG).await.expect("it is free");
    let held = holder().await.expect("it is held");
    assert_eq!(held.lease, lease);
    assert!(held.remaining <= LONG && held.remaining > LONG / 2, "{held:?}");
    assert_eq!(acquire(&*outbox, "a", LONG).await, Some(lease.clone()));
    outbox.release(&lease).await.expect("released");
    assert_eq!(holder().await, None);
}

/// What the owner tells of itself is there for whoever asks who it is; a stale owner is not heard.
pub async fn the_owner_is_heard<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let heard = async || {
        let holder = outbox.holder("relay").await.expect("the database answers").expect("it is held");
        holder.report.map(|report| (report.text, report.age < LONG))
    };
    let first = acquire(&*outbox, "a", SHORT).await.expect("it is free");
    let second = eventually(|| acquire(&*outbox, "b", LONG)).await;
    outbox.report(&first, "stale").await.expect("nothing to do");
    assert_eq!(heard().await, None);
    for text in ["{\"rate\": 7}", "a \u{1f4e6} and \"quotes\""] {
        outbox.report(&second, text).await.expect("kept");
        outbox.report(&first, "stale").await.expect("nothing to do");
        assert_eq!(heard().await, Some((text.to_owned(), true)));
    }
    acquire(&*outbox, "b", LONG).await.expect("renewed");
    assert!(heard().await.is_some(), "a renewal keeps it");
}

/// The owner renews its lease and keeps its token.
pub async fn renewal_keeps_the_token<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let lease = acquire(&*outbox, "a", LONG).await.expect("it is free");
    for _ in 0..3 {
        assert_eq!(acquire(&*outbox, "a", LONG).await, Some(lease.clone()));
    }
}

/// A lease that is renewed in time outlives its first term.
pub async fn renewal_prolongs<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    acquire(&*outbox, "a", SHORT).await.expect("it is free");
    acquire(&*outbox, "a", LONG).await.expect("it is ours");
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(acquire(&*outbox, "b", LONG).await, None);
}

/// After its end another owner takes the lease over, with a higher token; the first one is out.
///
/// F8: a new owner can be told from the old one.
pub async fn takeover_grows_the_token<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let first = acquire(&*outbox, "a", SHORT).await.expect("it is free");
    let second = eventually(|| acquire(&*outbox, "b", LONG)).await;
    assert!(second.token > first.token);
    assert_eq!(acquire(&*outbox, "a", LONG).await, None);
}

/// A lease that is given back is free at once.
pub async fn release_lets_the_next_in<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let first = acquire(&*outbox, "a", LONG).await.expect("it is free");
    outbox.release(&first).await.expect("given back");
    let second = acquire(&*outbox, "b", LONG).await.expect("it is free again");
    assert!(second.token > first.token, "a change of owner grows the token");
}

/// Giving back a lease that another has taken over changes nothing.
pub async fn a_late_release_changes_nothing<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    let first = acquire(&*outbox, "a", SHORT).await.expect("it is free");
    let second = eventually(|| acquire(&*outbox, "b", LONG)).await;
    outbox.release(&first).await.expect("nothing to do");
    assert_eq!(acquire(&*outbox, "c", LONG).await, None);
    assert_eq!(acquire(&*outbox, "b", LONG).await, Some(second));
}

/// Leases of different names have nothing to do with each other.
pub async fn names_are_independent<H: StoreHarness>(harness: &H) {
    let outbox = harness.outbox();
    acquire(&*outbox, "a", LONG).await.expect("it is free");
    for name in ["Relay", "relay ", "it's", "кофе"] {
        let other = outbox.acquire(name, "b", LONG).await.expect("the database answers");
        assert_eq!(other.expect("it is free").name, name);
    }
}

/// Of eight that ask at once, one gets it, each round with a higher token.
///
/// F7: every database.
pub async fn of_many_one_wins<H: StoreHarness>(harness: &H) {
    let contenders: Vec<_> = (0..8).map(|n| (n.to_string(), harness.outbox())).collect();
    let mut last = 0;
    for _ in 0..5 {
        let asked = contenders.iter().map(|(owner, outbox)| acquire(&**outbox, owner, LONG));
        let won: Vec<Lease> = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "{won:?}");
        assert!(won[0].token > last);
        last = won[0].token;
        contenders[0].1.release(&won[0]).await.expect("given back");
    }
}
