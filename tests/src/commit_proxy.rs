//! A TCP proxy before PostgreSQL that cuts connections inside COMMIT.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

/// When the connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The server never sees the COMMIT: it rolls back.
    BeforeServer,
    /// The server commits, and nobody hears of it.
    AfterServer,
}

/// Cuts every so many commits.
#[derive(Debug)]
pub struct CommitProxy {
    url: String,
    cuts: Arc<AtomicU64>,
}

const COMMIT: &[u8] = b"COMMIT AND CHAIN";

impl CommitProxy {
    /// Listens before the server that `url` names, and cuts one of `every` commits.
    ///
    /// # Panics
    /// When there is no free port, or the URL names none.
    pub async fn start(url: &str, cut: Cut, every: u64) -> Self {
        let (before, after) = url.rsplit_once('@').expect("user@host in the URL");
        let (address, rest) = after.split_once('/').expect("host/database in the URL");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("it is bound");
        let (commits, cuts) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let server = address.to_owned();
        let counted = cuts.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, commits, cuts) = (server.clone(), commits.clone(), counted.clone());
                tokio::spawn(async move { forward(client, &server, cut, every, &commits, &cuts).await });
            }
        });
        Self { url: format!("{before}@{own}/{rest}"), cuts }
    }

    /// The way through this proxy.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// How many commits were cut off.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn forward(
    client: TcpStream,
    server: &str,
    cut: Cut,
    every: u64,
    commits: &AtomicU64,
    cuts: &AtomicU64,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        // Either side closing ends the connection.
        let _ = copy(&mut from_server, &mut to_client).await;
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        let chunk = &buffer[..read];
        let commit = chunk.windows(COMMIT.len()).any(|window| window == COMMIT);
        if commit && commits.fetch_add(1, Ordering::SeqCst) % every == every - 1 {
            cuts.fetch_add(1, Ordering::SeqCst);
            // Nothing more goes back to the client, whatever the server answers.
            back.abort();
            if cut == Cut::AfterServer {
                let _ = to_server.write_all(chunk).await;
            }
            return;
        }
        if to_server.write_all(chunk).await.is_err() {
            return;
        }
    }
    back.abort();
}
