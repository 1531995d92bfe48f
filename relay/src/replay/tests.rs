use backstop_core::Headers;

use super::*;

fn origin() -> Origin {
    Origin::Kafka { topic: "orders".into(), partition: 2, offset: 17, timestamp: Some(99) }
}

fn envelope() -> Envelope {
    let headers: Headers = [
        ("ce_id", Some("7")),
        ("ce_source", Some("/orders")),
        (names::MESSAGE_KEY, Some("/victim|1")),
        (names::ORIGINAL_TOPIC, Some("payments")),
        (names::CORRELATION_ID, Some("c")),
    ]
    .into_iter()
    .collect();
    Envelope { key: Some("k".into()), headers, body: None }
}

fn door(again: bool) -> Target {
    Target::Door { group: "stock".into(), again }
}

#[test]
fn another_topic_gets_messages_to_the_letter() {
    let target = Target::Topic("orders.copy".into());
    assert_eq!(target.topic("orders"), "orders.copy");
    assert_eq!(target.envelope(envelope(), &origin(), "r1"), envelope());
}

#[test]
fn a_door_believes_nothing_that_a_stranger_wrote() {
    let sent = door(false).envelope(envelope(), &origin(), "r1");
    assert_eq!(door(false).topic("orders"), "orders.stock.redrive");
    let (_, identity) = cloudevents::decode(sent.clone(), &origin(), Via::Door, None);
    assert_eq!(identity.key().map(MessageKey::as_str), Some("/orders|7"), "as it was live");
    assert_eq!(backstop_core::dead_letter::origin_at_door(&sent.headers, "orders"), Some(origin()));
    assert_eq!(sent.headers.get_str(names::CORRELATION_ID), Some("c"));
    assert_eq!((sent.key, sent.body), (envelope().key, None));
}

#[test]
fn again_means_an_identity_of_this_replay() {
    let key = |replay: &str| {
        let sent = door(true).envelope(envelope(), &origin(), replay);
        cloudevents::decode(sent, &origin(), Via::Door, None).1.key().cloned().expect("a key")
    };
    assert_ne!(key("r1"), MessageKey::new("/orders", b"7"));
    assert_ne!(key("r1"), key("r2"));
    assert_eq!(key("r1"), key("r1"), "one that is gone on with is the same replay");
}

#[test]
fn replayed_messages_want_no_receipt() {
    let sent = door(false).envelope(envelope(), &origin(), "r1");
    assert!(!backstop_core::Receipt::is_wanted(&sent.headers));
}

#[tokio::test(start_paused = true)]
async fn the_pace_is_even_and_bounded() {
    let mut pace = Pace::new(Some(1_000));
    assert_eq!(pace.at_once(), 100);
    let began = Instant::now();
    for _ in 0..50 {
        pace.after(100).await;
    }
    let took = began.elapsed();
    assert!((4.9..5.2).contains(&took.as_secs_f64()), "{took:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let began = Instant::now();
    for _ in 0..10 {
        pace.after(100).await;
    }
    assert!(began.elapsed() > Duration::from_millis(700), "a pause is not made up for by a burst");
    assert_eq!(Pace::new(None).at_once(), CHUNK);
    assert_eq!(Pace::new(Some(3)).at_once(), 1);
}

#[test]
fn offsets_are_read_or_named() {
    let parse =
        |texts: &[&str]| parse_offsets(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(parse(&["0:5", "3:0"]), Ok(BTreeMap::from([(0, 5), (3, 0)])));
    for bad in ["", "5", "a:1", "1:", "-1:3", "1:-3"] {
        assert_eq!(parse(&[bad]), Err(bad.to_owned()));
    }
}
