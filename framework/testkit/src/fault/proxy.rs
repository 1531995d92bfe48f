//! A TCP proxy that can be cut or frozen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

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
}

/// Forwards connections from a port of its own on 127.0.0.1 to a target. Dropping it cuts everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, such as `127.0.0.1:5432`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(watch::Sender::new(State { mode: Mode::Forward, cuts: 0 }));
        let accepting = tokio::spawn(accept(listener, target.into(), state.clone()));
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

    /// Forwards again. Connections that were frozen go on with what had piled up.
    pub fn resume(&self) {
        self.state.send_modify(|state| state.mode = Mode::Forward);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, state: Arc<watch::Sender<State>>) {
    // An error of accept concerns that one client.
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let states = state.subscribe();
        let now = *states.borrow();
        if now.mode != Mode::Cut {
            tokio::spawn(serve(client, target.clone(), states, now.cuts));
        }
    }
}

/// Carries one connection until either side ends it or the proxy cuts it.
async fn serve(client: TcpStream, target: String, states: watch::Receiver<State>, cuts: u64) {
    let mut cut = states.clone();
    let carrying = async {
        let Ok(server) = TcpStream::connect(target).await else { return };
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(carry(from_client, to_server, states.clone()), carry(from_server, to_client, states));
    };
    tokio::select! {
        () = carrying => {}
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

/// Copies one direction; every piece waits while the proxy is frozen.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut states: watch::Receiver<State>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || states.wait_for(|state| state.mode == Mode::Forward).await.is_err() {
            break;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
}
