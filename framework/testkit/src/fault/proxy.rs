//! A TCP proxy that can be cut, frozen, stranded, slowed down or made to damage what it carries.

mod carry;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use carry::{Lane, Rewriting, Side, carry, carry_frames};

/// What the proxy does with what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Keeps connections open and passes nothing on.
    Frozen,
    /// Accepts nobody.
    Cut,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Grows with every cut: connections of an earlier one end.
    cuts: u64,
    /// Grows each time: connections of an earlier one neither pass anything on nor end.
    strands: u64,
    /// How long each piece takes, and how many bytes pass in a second; `None` for as fast as can be.
    slow: Option<(Duration, u32)>,
    /// After how many bytes from that side a connection is cut.
    cut_after: Option<(Side, usize)>,
    /// After how many bytes from the server one is damaged, and what is done to it.
    flip_after: Option<(usize, u8)>,
}

/// Forwards connections from a port of its own on 127.0.0.1 to a target. Dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

/// What a connection is carried with.
#[derive(Debug, Clone)]
struct Way {
    target: String,
    rewriting: Option<Rewriting>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, such as `127.0.0.1:5432`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Self::on(listener, Way { target: target.into(), rewriting: None })
    }

    /// The same before a Kafka broker that advertises `broker`, an address such as `127.0.0.1:9092`. Clients go to
    /// the address that a broker advertises, so the proxy puts its own in place of it.
    ///
    /// # Errors
    /// When no port can be had, or the host of `broker` is not `127.0.0.1`.
    pub async fn before_kafka(broker: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let rewriting = Rewriting::new(broker, listener.local_addr()?)?;
        Self::on(listener, Way { target: broker.to_string(), rewriting: Some(rewriting) })
    }

    fn on(listener: TcpListener, way: Way) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state =
            State { mode: Mode::Forward, cuts: 0, strands: 0, slow: None, cut_after: None, flip_after: None };
        let state = Arc::new(watch::Sender::new(state));
        let accepting = tokio::spawn(accept(listener, way, state.clone()));
        Ok(Self { address, state, accepting })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection, and every new one at once, until [`resume`](Proxy::resume).
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Cut;
            state.cuts += 1;
        });
    }

    /// Passes nothing on in either direction and closes nothing, as a lost route does, until
    /// [`resume`](Proxy::resume).
    pub fn freeze(&self) {
        self.state.send_modify(|state| state.mode = Mode::Frozen);
    }

    /// Leaves the connections that there are half open, as a firewall that forgot them does: nothing passes on them
    /// ever again, and they do not end. New ones are forwarded.
    pub fn strand(&self) {
        self.state.send_modify(|state| state.strands += 1);
    }

    /// Lets each piece of up to 16 KiB take `latency`, and no more than `bytes_per_second` pass in each direction of a
    /// connection, until [`resume`](Proxy::resume).
    pub fn slow(&self, latency: Duration, bytes_per_second: u32) {
        self.state.send_modify(|state| state.slow = Some((latency, bytes_per_second)));
    }

    /// Cuts every connection when it has carried `bytes` more from its client, wherever in a frame that is, until
    /// [`resume`](Proxy::resume).
    pub fn cut_after(&self, bytes: usize) {
        self.state.send_modify(|state| state.cut_after = Some((Side::Client, bytes)));
    }

    /// The same for what comes from the server: its answers end in the middle.
    pub fn cut_answers_after(&self, bytes: usize) {
        self.state.send_modify(|state| state.cut_after = Some((Side::Server, bytes)));
    }

    /// Flips the bits of `mask` in one byte from the server: on every connection the one that comes after `bytes` more,
    /// until [`resume`](Proxy::resume).
    pub fn flip_after(&self, bytes: usize, mask: u8) {
        self.state.send_modify(|state| state.flip_after = Some((bytes, mask)));
    }

    /// Forwards again, as fast as can be. Connections that were frozen go on with what had piled up.
    pub fn resume(&self) {
        self.state.send_modify(|state| {
            state.mode = Mode::Forward;
            state.slow = None;
            state.cut_after = None;
            state.flip_after = None;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, way: Way, state: Arc<watch::Sender<State>>) {
    // An error of accept concerns that one client.
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let states = state.subscribe();
        let now = *states.borrow();
        if now.mode != Mode::Cut {
            tokio::spawn(serve(client, way.clone(), states, now));
        }
    }
}

/// Carries one connection until either side ends it or the proxy cuts it.
async fn serve(client: TcpStream, way: Way, states: watch::Receiver<State>, began: State) {
    let mut cut = states.clone();
    let exhausted = Notify::new();
    let carrying = async {
        let Ok(server) = TcpStream::connect(way.target).await else { return };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let lane = |side| Lane::new(side, states.clone(), began.strands, &exhausted);
        let upwards = carry(from_client, to_server, lane(Side::Client));
        match way.rewriting {
            Some(rewriting) => {
                let downwards = carry_frames(from_server, to_client, lane(Side::Server), rewriting);
                tokio::join!(upwards, downwards);
            }
            None => {
                tokio::join!(upwards, carry(from_server, to_client, lane(Side::Server)));
            }
        }
    };
    tokio::select! {
        () = carrying => {}
        () = exhausted.notified() => {}
        _ = cut.wait_for(|state| state.cuts != began.cuts) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// A server that sends back what it is sent, and a proxy before it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        Proxy::start(address.to_string()).await.expect("a port")
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.expect("the proxy listens")
    }

    async fn exchange(stream: &mut TcpStream) -> io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn bytes_are_forwarded_both_ways() {
        let proxy = echo().await;
        assert_eq!(exchange(&mut connect(&proxy).await).await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_until_resumed() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        exchange(&mut stream).await.expect("an answer");
        proxy.cut();
        assert!(exchange(&mut stream).await.is_err());
        if let Ok(mut refused) = TcpStream::connect(proxy.address()).await {
            assert!(exchange(&mut refused).await.is_err());
        }
        proxy.resume();
        assert!(exchange(&mut stream).await.is_err(), "what was cut stays cut");
        assert_eq!(exchange(&mut connect(&proxy).await).await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn a_frozen_connection_goes_on_later() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        exchange(&mut stream).await.expect("an answer");
        proxy.freeze();
        stream.write_u8(9).await.expect("it is taken");
        assert!(
            timeout(Duration::from_millis(100), stream.read_u8()).await.is_err(),
            "passed on while frozen"
        );
        proxy.resume();
        assert_eq!(stream.read_u8().await.expect("an answer"), 9);
    }

    #[tokio::test]
    async fn a_dropped_proxy_cuts() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        exchange(&mut stream).await.expect("an answer");
        drop(proxy);
        assert!(exchange(&mut stream).await.is_err());
    }

    #[tokio::test]
    async fn a_stranded_connection_stays_silent_and_a_new_one_works() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        exchange(&mut stream).await.expect("an answer");
        proxy.strand();
        proxy.resume();
        let silent = timeout(Duration::from_millis(100), exchange(&mut stream)).await;
        assert!(silent.is_err(), "it neither answers nor ends");
        assert_eq!(exchange(&mut connect(&proxy).await).await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn whoever_is_left_by_a_stranded_connection_does_not_hear_of_it() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let proxy = Proxy::start(address.to_string()).await.expect("a port");
        let mut client = connect(&proxy).await;
        let (mut server, _) = listener.accept().await.expect("a client");
        client.write_u8(7).await.expect("it is taken");
        assert_eq!(server.read_u8().await.expect("it came"), 7);
        proxy.strand();
        drop(client);
        let heard = timeout(Duration::from_millis(100), server.read_u8()).await;
        assert!(heard.is_err(), "it neither hears anything nor ends");
        drop(proxy);
        assert!(server.read_u8().await.is_err(), "it ends with the proxy");
    }

    #[tokio::test]
    async fn a_slow_connection_takes_its_time() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.slow(Duration::from_millis(50), 1_000_000);
        let began = tokio::time::Instant::now();
        exchange(&mut stream).await.expect("an answer");
        assert!(began.elapsed() >= Duration::from_millis(100), "both ways");
    }

    #[tokio::test]
    async fn a_connection_is_cut_between_two_bytes() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.cut_after(3);
        stream.write_all(b"12345").await.expect("it is taken");
        let mut back = Vec::new();
        // It may end by a reset; what came before counts.
        let _ = stream.read_to_end(&mut back).await;
        assert!(b"123".starts_with(&back[..]), "{back:?}");
    }

    #[tokio::test]
    async fn an_answer_is_cut_between_two_bytes() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.cut_answers_after(3);
        stream.write_all(b"12345").await.expect("it is taken");
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back).await;
        assert!(b"123".starts_with(&back[..]), "{back:?}");
    }

    #[tokio::test]
    async fn one_byte_of_an_answer_is_damaged() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.flip_after(5, 0x80);
        for expected in [b"1234", b"1\xb234", b"1234"] {
            stream.write_all(b"1234").await.expect("it is taken");
            let mut back = [0; 4];
            stream.read_exact(&mut back).await.expect("an answer");
            assert_eq!(&back, expected);
        }
        proxy.resume();
        assert_eq!(exchange(&mut stream).await.expect("an answer"), 7);
    }

    #[tokio::test]
    async fn an_advertised_address_is_replaced_wherever_frames_are_cut() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let broker = listener.local_addr().expect("an address");
        let mut frame = b"\x0a127.0.0.1\0\0".to_vec();
        frame.extend(broker.port().to_be_bytes());
        let answer = frame.clone();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_u32(answer.len() as u32).await.expect("written");
            for byte in answer {
                stream.write_u8(byte).await.expect("written");
                tokio::task::yield_now().await;
            }
        });
        let proxy = Proxy::before_kafka(broker).await.expect("a port");
        let mut stream = connect(&proxy).await;
        let mut got = vec![0; 4 + frame.len()];
        stream.read_exact(&mut got).await.expect("an answer");
        assert!(got.ends_with(&proxy.address().port().to_be_bytes()), "{got:?}");
    }
}
