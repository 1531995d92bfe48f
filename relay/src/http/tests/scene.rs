//! A ledger with letters of every kind.

use backstop_core::ledger::{Change, Letter, LetterFilter};
use backstop_core::{Envelope, Headers};
use chrono::{TimeDelta, Utc};

use super::Running;

/// What is in every body, and must not be seen unless it is asked for.
pub(super) const BODY: &str = "card 4111-1111";
/// The value of a header whose name announces a secret.
pub(super) const SECRET: &str = "hunter2hunter2";

/// A letter of the stock consumer, which failed `minutes` ago.
pub(super) fn letter(n: u32, fingerprint: &str, error: &str, minutes: i64) -> Letter {
    let mut headers = Headers::default();
    headers.append("x-region", if n.is_multiple_of(2) { "eu" } else { "us" });
    headers.append("x-api-token", SECRET);
    let envelope = Envelope {
        key: Some(format!("order-{}", n % 7).into()),
        headers,
        body: Some(format!("{{\"n\":{n},\"pay\":\"{BODY}\"}}").into()),
    };
    let mut letter = Letter::new(format!("letter-{fingerprint}-{n:03}"), "orders.stock.dlq", envelope);
    letter.message_key = Some(format!("/orders|{fingerprint}-{n}"));
    letter.consumer = Some("stock".into());
    letter.place = Some(if n.is_multiple_of(3) { "orders.amended" } else { "orders.placed" }.into());
    letter.door = Some("orders.stock.redrive".into());
    letter.reason = Some("permanent".into());
    letter.class = Some("permanent".into());
    letter.error_type = Some("shop::Refused".into());
    letter.error = Some(error.into());
    letter.fingerprint = Some(fingerprint.into());
    letter.dead_at = Some(Utc::now() - TimeDelta::minutes(minutes));
    letter
}

/// Three groups: 12 that are quiet, 5 that grow, and 3 of a stranger, without a door, one of which is on hold; and of the
/// first, two that were discarded.
pub(super) async fn fill(server: &Running) {
    let mut letters: Vec<Letter> =
        (0..14).map(|n| letter(n, "f1", "no warehouse <b>here</b>\u{202e}", 50)).collect();
    letters.extend((0..5).map(|n| letter(n, "f2", "gateway timed out", 1)));
    letters.extend((0..3).map(|n| {
        let mut letter = letter(n, "f3", "unknown schema", 3_000);
        letter.door = None;
        letter
    }));
    server.ledger.record(&letters).await.expect("recorded");
    let of = |n: u32, group: &str| LetterFilter::of_ids(&[format!("letter-{group}-{n:03}")]);
    for n in [0, 1] {
        let discard = Change::Discard { because: "twice".into() };
        server.ledger.change(&of(n, "f1"), &discard, 1).await.expect("changed");
    }
    let hold = Change::Hold { because: "case 7".into() };
    server.ledger.change(&of(0, "f3"), &hold, 1).await.expect("changed");
}
