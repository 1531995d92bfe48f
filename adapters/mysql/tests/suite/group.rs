//! Groups whose keys change while their inbox rows are written: at READ COMMITTED each statement sees another moment.

use std::time::Duration;

use backstop_core::held::{Heads, HeldMessages, Holding};
use backstop_core::inbox::{GroupAdmission, Inbox, Limits, Standing};
use backstop_mysql::MySqlTx;

use crate::common::{CONSUMER, Db, envelope, failure, fresh_of, key, limits, new_held, origin, unit};

/// Long enough for a group to wait until the test lets it go on.
const PATIENT: Limits = Limits { lock: Duration::from_secs(20), handler: Duration::from_secs(20) };

/// Admits messages, each of an ordering key and an id, while "k" is held. Its last held message is handled when the rows
/// before that of `between` are written, and no later one.
async fn admit_while_released(
    db: &Db,
    messages: &[(&'static str, &'static str)],
    between: &str,
) -> GroupAdmission<MySqlTx> {
    let inbox = db.inbox();
    let (held, body, from) = (key("held"), envelope("held"), origin(1));
    let message = new_held(unit("k", &held), &body, &from);
    let stored = inbox.hold(message, &failure(1, Duration::ZERO)).await.expect("held");
    assert_eq!(stored, Holding::Stored);
    let head = inbox.claim(CONSUMER, limits(), Heads::Sound).await.expect("asked").expect("due");
    // Another instance is at it, so that the group's statement waits for its row.
    let busy = fresh_of(&inbox, "other", between).await;
    let group = tokio::spawn({
        let (inbox, messages) = (inbox.clone(), messages.to_vec());
        async move {
            let keys: Vec<_> = messages.iter().map(|(_, id)| key(id)).collect();
            let units: Vec<_> =
                messages.iter().zip(&keys).map(|((ordering, _), key)| unit(ordering, key)).collect();
            inbox.begin_group(&units, PATIENT).await.expect("asked")
        }
    });
    db.until_waiting(1).await;
    inbox.finish(CONSUMER, head.tx, &head.head).await.expect("finished");
    inbox.rollback(busy).await;
    group.await.expect("joined")
}

#[tokio::test]
async fn a_message_whose_key_is_released_meanwhile_is_no_duplicate() {
    let db = Db::new().await;
    let admission = admit_while_released(&db, &[("k", "1"), ("other", "2")], "2").await;
    let GroupAdmission::Shared { tx, standings } = admission else { panic!("{admission:?}") };
    assert_eq!(standings, [Standing::Held, Standing::Fresh]);
    db.inbox().commit(tx).await.expect("committed");
    assert!(!db.inbox().is_handled(CONSUMER, &key("1")).await.expect("asked"));
    let alone = fresh_of(&db.inbox(), "k", "1").await;
    db.inbox().commit(alone).await.expect("it is handled by itself");
    db.drop().await;
}

#[tokio::test]
async fn a_message_does_not_overtake_one_that_was_refused_before_its_key_was_released() {
    let db = Db::new().await;
    let messages = [("k", "1"), ("other", "2"), ("k", "3")];
    let admission = admit_while_released(&db, &messages, "2").await;
    assert!(matches!(admission, GroupAdmission::Apart), "{admission:?}");
    for (ordering, id) in messages {
        assert!(!db.inbox().is_handled(CONSUMER, &key(id)).await.expect("asked"), "{id}");
        let alone = fresh_of(&db.inbox(), ordering, id).await;
        db.inbox().commit(alone).await.expect("the group holds no lock any more");
    }
    db.drop().await;
}

/// Rows are written in the order of their keys, which is not that of the messages.
#[tokio::test]
async fn a_later_message_may_be_refused_before_an_earlier_one_is_fresh() {
    let db = Db::new().await;
    let messages = [("k", "3"), ("other", "2"), ("k", "1"), ("k", "3")];
    let admission = admit_while_released(&db, &messages, "2").await;
    let GroupAdmission::Shared { tx, standings } = admission else { panic!("{admission:?}") };
    assert_eq!(standings, [Standing::Fresh, Standing::Fresh, Standing::Held, Standing::Duplicate]);
    db.inbox().commit(tx).await.expect("committed");
    db.drop().await;
}
