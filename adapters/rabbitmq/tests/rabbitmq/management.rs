//! The management API of the real broker.

use backstop_core::FaultKind;
use backstop_rabbitmq::RabbitManagement;
use lapin::options::QueueDeleteOptions;
use lapin::types::AMQPValue;

use crate::support::{Client, api, settings, unique, within};

#[tokio::test]
async fn queues_are_listed_and_streams_left_out() {
    let client = Client::connect().await;
    let (queue, stream) = (unique("listed/ü"), unique("stream"));
    client.declare(&queue, &[]).await;
    client.declare(&stream, &[("x-queue-type", AMQPValue::LongString("stream".into()))]).await;
    let management = RabbitManagement::new(settings(), &api()).unwrap();
    within("the queue in the list", async {
        loop {
            let queues = management.queues().await.unwrap();
            assert!(!queues.contains(&stream), "messages cannot be taken from a stream");
            if queues.contains(&queue) {
                break;
            }
        }
    })
    .await;
    for name in [queue, stream] {
        client.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_with_a_remedy() {
    let api = api();
    let cases = [
        (api.replace("://", "://guest:wrong@"), FaultKind::Denied, "check user and password"),
        (format!("{api}/elsewhere"), FaultKind::Missing, "the path of the management URL"),
        ("http://127.0.0.1:1".to_owned(), FaultKind::Unreachable, "host and port"),
    ];
    for (url, kind, hint) in cases {
        let error = RabbitManagement::new(settings(), &url).unwrap().queues().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{url}: {error}");
        assert!(error.hint().is_some_and(|told| told.contains(hint)), "{url}: {:?}", error.hint());
        assert!(!format!("{error} {error:?}").contains("wrong@"), "{error:?}");
    }
}
