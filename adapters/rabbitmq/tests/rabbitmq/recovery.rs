//! Connections are cut, as an operator or a broker that dies would.

use std::collections::HashSet;

use backstop_core::FaultKind;
use backstop_core::message::Destination;
use backstop_core::sink::{Scope, Sink};
use backstop_core::source::{Settlement, Source};
use backstop_rabbitmq::{RabbitPublisher, RabbitSink, RabbitSource, declare_queue, delete_queue};

use crate::support::{
    Client, confirmed, cut_connections, envelope, receive, settings, submit, text, unique, within,
};

/// F35: after the connection was lost.
#[tokio::test]
async fn a_sink_comes_back_by_itself() {
    let queue = unique("recovery");
    declare_queue(&settings(), &queue).await.unwrap();
    let sink = RabbitSink::new(settings().connection_name(queue.clone()));
    let to = Destination::new(&queue);
    sink.publish(&to, envelope("1", None, "1")).await.unwrap();
    cut_connections(&queue).await;
    within("the sink to come back", async {
        while let Err(error) = sink.publish(&to, envelope("2", None, "2")).await {
            assert_eq!(error.scope(), Scope::Broker, "{error}");
        }
    })
    .await;
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F66: after a reconnect.
#[tokio::test]
async fn a_lost_settlement_is_dropped_and_its_message_comes_again() {
    let queue = unique("recovery");
    declare_queue(&settings(), &queue).await.unwrap();
    let sink = RabbitSink::new(settings());
    for id in ["1", "2"] {
        sink.publish(&Destination::new(&queue), envelope(id, None, id)).await.unwrap();
    }
    let named = settings().connection_name(queue.clone());
    let mut source = RabbitSource::with_settings(named, &queue).door(false).build().unwrap();
    let mut stale = receive(&mut source, 2).await;
    cut_connections(&queue).await;
    let mut again = receive(&mut source, 2).await;
    again.sort_by_key(text);
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
    assert!(stale.iter_mut().all(|received| !received.settlement.begin()));
    assert!(again.iter_mut().all(|received| received.settlement.begin()));
    // same delivery tags, other channel: these must settle nothing
    for received in stale {
        received.settlement.settle();
    }
    let kept = again.pop().unwrap();
    again.remove(0).settlement.settle();
    drop(kept);
    source.close().await.unwrap();
    assert_eq!(Client::connect().await.drain(&queue, 1).await, ["2"]);
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F35, F66: again and again, under load.
#[tokio::test]
async fn nothing_is_lost_while_connections_are_cut() {
    const ROUND: u64 = 500;
    let queue = unique("recovery");
    declare_queue(&settings(), &queue).await.unwrap();
    let named = settings().connection_name(queue.clone());
    let mut publisher = RabbitPublisher::builder(named.clone()).start().unwrap();
    let mut source = RabbitSource::with_settings(named, &queue).door(false).build().unwrap();
    let to = Destination::new(&queue);
    let (cuts_done, cuts) = tokio::sync::watch::channel(false);
    let (published, mut total) = tokio::sync::watch::channel(None);

    // the way the relay goes about it: what is not confirmed is sent again, until it is
    let publish = async move {
        let mut first = 0;
        while !*cuts.borrow() {
            let mut missing: Vec<u64> = (first..first + ROUND).collect();
            first += ROUND;
            while !missing.is_empty() {
                for ticket in &missing {
                    submit(&mut publisher, *ticket, &to, Some(&format!("k{}", ticket % 40)));
                }
                let scopes = confirmed(&mut publisher, missing.len()).await;
                assert!(scopes.values().flatten().all(|scope| *scope == Scope::Broker));
                missing =
                    scopes.iter().filter(|(_, scope)| scope.is_some()).map(|(ticket, _)| *ticket).collect();
            }
        }
        published.send(Some(first)).unwrap();
    };
    let consume = async {
        let mut first_seen: Vec<u64> = Vec::new();
        let mut seen = HashSet::new();
        while total.borrow_and_update().is_none_or(|total| (seen.len() as u64) < total) {
            let batch = tokio::select! {
                batch = receive(&mut source, 1) => batch,
                _ = total.changed(), if total.borrow().is_none() => continue,
            };
            for received in batch {
                let ticket: u64 = text(&received).parse().unwrap();
                if seen.insert(ticket) {
                    first_seen.push(ticket);
                }
                received.settlement.settle();
            }
        }
        first_seen
    };
    let cut = async {
        for _ in 0..3 {
            cut_connections(&queue).await;
        }
        cuts_done.send(true).unwrap();
    };
    let ((), first_seen, ()) = tokio::join!(publish, consume, cut);
    for key in 0..40 {
        let of_key: Vec<_> = first_seen.iter().filter(|ticket| *ticket % 40 == key).collect();
        let late = of_key.windows(2).find(|pair| pair[0] > pair[1]);
        assert!(late.is_none(), "{late:?} of key {key} are first seen out of order");
    }
    // The last cut may meet the last settlements, of which it says so then.
    if let Err(error) = source.close().await {
        assert_eq!(error.kind(), FaultKind::Unreachable, "{error}");
    }
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F35: every confirmation comes, none hangs.
#[tokio::test]
async fn what_is_under_way_when_the_connection_goes_fails_as_unknown() {
    let queue = unique("recovery");
    declare_queue(&settings(), &queue).await.unwrap();
    let named = settings().connection_name(queue.clone());
    let mut publisher =
        RabbitPublisher::builder(named).channels(1).window_per_channel(200_000).start().unwrap();
    let to = Destination::new(&queue);
    submit(&mut publisher, 0, &to, None);
    confirmed(&mut publisher, 1).await;
    let mut next = 1;
    let mut failed = 0;
    let mut cut = std::pin::pin!(cut_connections(&queue));
    let mut is_cut = false;
    while failed == 0 {
        for ticket in next..next + 1_000 {
            submit(&mut publisher, ticket, &to, None);
        }
        next += 1_000;
        if !is_cut {
            tokio::select! {
                biased;
                () = &mut cut => is_cut = true,
                () = tokio::task::yield_now() => {}
            }
        }
        let scopes = confirmed(&mut publisher, 1_000).await;
        assert!(scopes.values().flatten().all(|scope| *scope == Scope::Broker));
        failed = scopes.values().flatten().count();
        if is_cut && failed == 0 {
            // It was cut between two batches.
            cut.set(cut_connections(&queue));
            is_cut = false;
        }
    }
    within("the publisher to come back", async {
        loop {
            submit(&mut publisher, next, &to, None);
            if confirmed(&mut publisher, 1).await[&next].is_none() {
                return;
            }
            next += 1;
        }
    })
    .await;
    delete_queue(&settings(), &queue).await.unwrap();
}

/// The publisher's tasks die with the runtime that they were started on.
///
/// F10: a task that dies is replaced, and its messages are told.
#[tokio::test]
async fn what_is_under_way_when_a_task_of_the_publisher_dies_fails_and_another_one_goes_on() {
    let queue = unique("recovery");
    declare_queue(&settings(), &queue).await.unwrap();
    let to = Destination::new(&queue);
    let doomed = std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap()).join().unwrap();
    let mut publisher = {
        let _inside = doomed.enter();
        let settings = settings().connect_timeout(std::time::Duration::from_secs(2));
        RabbitPublisher::builder(settings).channels(2).start().unwrap()
    };
    submit(&mut publisher, 0, &to, None);
    assert_eq!(confirmed(&mut publisher, 1).await[&0], None);
    doomed.shutdown_background();
    let mut next = 1;
    let stored = async {
        loop {
            for ticket in next..next + 50 {
                submit(&mut publisher, ticket, &to, Some(&format!("k{ticket}")));
            }
            let scopes = confirmed(&mut publisher, 50).await;
            assert!(scopes.keys().copied().eq(next..next + 50), "each is confirmed once");
            assert!(scopes.values().flatten().all(|scope| *scope == Scope::Broker));
            if scopes.values().all(Option::is_none) {
                return;
            }
            next += 50;
        }
    };
    within("the publisher to come back", stored).await;
    assert!(next > 1, "something was under way when the tasks died");
    delete_queue(&settings(), &queue).await.unwrap();
}
