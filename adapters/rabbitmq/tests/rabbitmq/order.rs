//! In which order what one source leaves comes to the next one.

use std::ops::Range;
use std::time::Duration;

use backstop_core::message::Destination;
use backstop_core::sink::Sink;
use backstop_core::source::{Received, Settlement, Source};
use backstop_rabbitmq::{RabbitSettlement, RabbitSink, RabbitSource, declare_ordered_queue, delete_queue};
use futures_util::StreamExt;

use crate::support::{Client, envelope, receive, settings, text, unique, url, within};

/// What a race might leave in order by luck.
const ROUNDS: usize = 5;

/// Unsettled messages at once.
const PREFETCH: u16 = 10;

/// Longer than what is given back stays away.
const DRAIN: Duration = Duration::from_millis(800);

fn source(queue: &str) -> RabbitSource {
    RabbitSource::consume(&url(), queue).door(false).prefetch(PREFETCH).build().unwrap()
}

/// A queue with a single active consumer and that many messages.
async fn filled(count: usize) -> String {
    let queue = unique("order");
    declare_ordered_queue(&settings(), &queue).await.unwrap();
    let sink = RabbitSink::new(settings());
    for body in numbers(0..count) {
        sink.publish(&Destination::new(&queue), envelope(&body, None, &body)).await.unwrap();
    }
    queue
}

fn numbers(range: Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn settle(received: Received<RabbitSettlement>) -> String {
    let body = text(&received);
    received.settlement.settle();
    body
}

/// The next `count` messages of a source, which are settled as they come.
async fn settled(source: &mut RabbitSource, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        bodies.extend(receive(source, 1).await.into_iter().map(settle));
    }
    bodies
}

/// What comes next in the queue, in its order; then the queue is deleted.
async fn left(queue: String, count: usize) -> Vec<String> {
    let mut next = source(&queue);
    let bodies = settled(&mut next, count).await;
    next.close().await.unwrap();
    assert_eq!(Client::connect().await.count(&queue).await, 0);
    delete_queue(&settings(), &queue).await.unwrap();
    bodies
}

#[tokio::test]
async fn a_stop_that_drops_what_runs_after_what_waits_leaves_everything_in_order() {
    for _ in 0..ROUNDS {
        let queue = filled(3).await;
        let mut stopping = source(&queue);
        let mut waiting = receive(&mut stopping, 3).await;
        let mut running = waiting.remove(0);
        assert!(running.settlement.begin());
        drop(waiting);
        drop(running);
        stopping.close().await.unwrap();
        assert_eq!(left(queue, 3).await, numbers(0..3));
    }
}

#[tokio::test]
async fn a_source_that_is_dropped_leaves_everything_in_order_but_what_is_settled_after_it() {
    for _ in 0..ROUNDS {
        let queue = filled(4).await;
        let mut crashing = source(&queue);
        let mut waiting = receive(&mut crashing, 4).await;
        let mut running = waiting.remove(0);
        assert!(running.settlement.begin());
        drop(crashing);
        settle(waiting.pop().unwrap());
        drop(waiting);
        drop(running);
        assert_eq!(left(queue, 3).await, numbers(0..3));
    }
}

#[tokio::test]
async fn what_stands_by_gets_everything_in_order_after_a_long_drain() {
    handed_over(async |stopping, waiting| {
        drop(waiting);
        tokio::time::sleep(DRAIN).await;
        stopping.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_stands_by_gets_everything_in_order_once_nothing_of_a_dropped_source_is_at_work() {
    handed_over(async |crashing, mut waiting| {
        drop(crashing);
        drop(waiting.split_off(1));
        tokio::time::sleep(DRAIN).await;
    })
    .await;
}

/// Has one source leave, with unsettled messages and more of them on their way, while another consumer stands by.
async fn handed_over(leave: impl AsyncFnOnce(RabbitSource, Vec<Received<RabbitSettlement>>)) {
    let (all, finished) = (3 * usize::from(PREFETCH), 3);
    let queue = filled(all).await;
    let mut leaving = source(&queue);
    let mut waiting = receive(&mut leaving, PREFETCH.into()).await;
    let client = Client::connect().await;
    let standing_by = client.subscribe(&queue).await;
    // As handlers end the broker sends more, which nobody reads.
    waiting.drain(..finished).for_each(|received| drop(settle(received)));
    client.ready(&queue, u32::try_from(all - finished).unwrap() - u32::from(PREFETCH)).await;
    leave(leaving, waiting).await;
    let bodies = standing_by.take(all - finished).map(|delivery| delivery.unwrap().data);
    let bodies = bodies.map(|body| String::from_utf8(body).unwrap()).collect::<Vec<_>>();
    assert_eq!(within("what is left", bodies).await, numbers(finished..all));
    delete_queue(&settings(), &queue).await.unwrap();
}

#[tokio::test]
async fn what_is_given_back_while_the_source_is_read_comes_again_in_order() {
    let queue = filled(3).await;
    let mut source = source(&queue);
    let mut received = receive(&mut source, 3).await;
    for at in [1, 1, 0] {
        drop(received.remove(at));
    }
    assert_eq!(settled(&mut source, 3).await, numbers(0..3));
    source.close().await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}
