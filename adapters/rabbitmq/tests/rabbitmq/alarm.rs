//! A broker that blocks publishing. The real one does so for all its clients at once, so a forwarder says it instead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstop_core::message::Destination;
use backstop_core::sink::{Publisher, Scope};
use backstop_rabbitmq::{RabbitPublisher, declare_queue, delete_queue};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

use crate::logged::logged;
use crate::support::{broker, confirmed, settings, settings_through, submit, unique, within};

/// `connection.blocked` with the reason "low", and `connection.unblocked`, as whole frames.
const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x08\0\x0a\0\x3c\x03low\xce";
const UNBLOCKED: &[u8] = b"\x01\0\0\0\0\0\x04\0\x0a\0\x3d\xce";

/// Forwards to the broker, and tells its clients what it is given to say.
struct Forwarder {
    address: SocketAddr,
    say: broadcast::Sender<&'static [u8]>,
    connections: Arc<AtomicUsize>,
}

impl Forwarder {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let forwarder = Self {
            address: listener.local_addr().unwrap(),
            say: broadcast::Sender::new(8),
            connections: Arc::default(),
        };
        let (say, connections) = (forwarder.say.clone(), forwarder.connections.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(forward(client, say.subscribe()));
            }
        });
        forwarder
    }
}

async fn forward(client: TcpStream, mut said: broadcast::Receiver<&'static [u8]>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = TcpStream::connect(broker()).await.unwrap().into_split();
    let upwards = tokio::spawn(async move { copy(&mut from_client, &mut to_broker).await });
    let mut buffer = vec![0; 16 << 10];
    loop {
        // said only while the broker is silent, so that no frame is cut in two
        let written = tokio::select! {
            Ok(count @ 1..) = from_broker.read(&mut buffer) => to_client.write_all(&buffer[..count]).await,
            Ok(frame) = said.recv() => to_client.write_all(frame).await,
            else => break,
        };
        if written.is_err() {
            break;
        }
    }
    upwards.abort();
}

/// F36: at the publisher.
#[tokio::test]
async fn while_the_broker_blocks_what_is_given_up_fails_and_no_connection_is_left_behind() {
    let queue = unique("alarm");
    declare_queue(&settings(), &queue).await.unwrap();
    let forwarder = Forwarder::start().await;
    let settings_here = settings_through(forwarder.address)
        .heartbeat(Duration::from_secs(60))
        .connect_timeout(Duration::from_secs(1));
    let mut publisher = RabbitPublisher::builder(settings_here).channels(1).start().unwrap();
    let to = Destination::new(&queue);
    submit(&mut publisher, 0, &to, None);
    assert_eq!(confirmed(&mut publisher, 1).await[&0], None);

    let (blocked, listening) = logged("the broker takes no messages now");
    forwarder.say.send(BLOCKED).unwrap();
    within("the alarm to be noticed", blocked).await;
    drop(listening);
    for ticket in 1..=10 {
        submit(&mut publisher, ticket, &to, None);
    }
    publisher.abandon().await;
    assert!(confirmed(&mut publisher, 10).await.values().all(|scope| *scope == Some(Scope::Broker)));
    for ticket in 11..15 {
        submit(&mut publisher, ticket, &to, None);
        assert_eq!(confirmed(&mut publisher, 1).await[&ticket], Some(Scope::Broker), "ticket {ticket}");
    }
    assert_eq!(publisher.probe(&[]).await.len(), 1);

    forwarder.say.send(UNBLOCKED).unwrap();
    within("the publisher to go on", async {
        for ticket in 15.. {
            submit(&mut publisher, ticket, &to, None);
            if confirmed(&mut publisher, 1).await[&ticket].is_none() {
                return;
            }
        }
    })
    .await;
    assert_eq!(forwarder.connections.load(Ordering::SeqCst), 1);
    delete_queue(&settings(), &queue).await.unwrap();
}
