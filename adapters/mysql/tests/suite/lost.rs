//! Connections that are lost while a transaction ends.

use backstop_core::FaultKind;
use backstop_core::inbox::{CommitError, Inbox};
use backstop_mysql::MySqlInbox;
use sqlx::Executor;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{CONSUMER, Db, fresh, key, until, url};

/// The string that commits.
const COMMIT: &str = "COMMIT AND";

/// The string that Backstop rolls back with, and no handler.
const ROLLBACK: &str = "ROLLBACK AND";

/// Whether the server hears of the statement at which the connection is cut.
#[derive(Clone, Copy, PartialEq)]
enum Heard {
    Yes,
    No,
}

/// Forwards connections to `server`, and cuts each at the first statement that contains `at`; the port.
async fn proxy(server: String, at: &'static str, heard: Heard) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, server.clone(), at, heard));
        }
    });
    port
}

async fn forward(client: TcpStream, server: String, at: &str, heard: Heard) {
    let server = TcpStream::connect(server).await.expect("the server");
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        let chunk = &buffer[..read];
        let cut = chunk.windows(at.len()).any(|window| window == at.as_bytes());
        if cut {
            back.abort();
            if heard == Heard::No {
                return;
            }
        }
        if to_server.write_all(chunk).await.is_err() || cut {
            break;
        }
    }
    back.abort();
}

/// An inbox whose connections are cut.
async fn inbox(db: &Db, at: &'static str, heard: Heard) -> MySqlInbox {
    let options: MySqlConnectOptions = url().parse().expect("a URL");
    let server = format!("{}:{}", options.get_host(), options.get_port());
    let options = options.host("127.0.0.1").port(proxy(server, at, heard).await).database(&db.schema);
    let options = options.ssl_mode(MySqlSslMode::Disabled);
    let pool = MySqlPoolOptions::new().connect_with(options).await.expect("connected");
    MySqlInbox::with_tables(pool, db.tables.clone())
}

#[tokio::test]
async fn a_connection_that_is_lost_inside_commit_leaves_all_or_nothing() {
    for heard in [Heard::Yes, Heard::No] {
        let db = Db::new().await;
        db.run("CREATE TABLE effect (n int NOT NULL)").await;
        let inbox = inbox(&db, COMMIT, heard).await;
        let mut tx = fresh(&inbox, "1").await;
        tx.execute("INSERT INTO effect VALUES (1)").await.expect("written");
        let error = inbox.commit(tx).await.expect_err("no answer");
        assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
        let expected = heard == Heard::Yes;
        until("the server has ended the transaction", || async {
            db.inbox().is_handled(CONSUMER, &key("1")).await.expect("asked") == expected
        })
        .await;
        assert_eq!(db.number("SELECT COUNT(*) FROM effect").await, i64::from(expected));
        db.drop().await;
    }
}

/// A lost connection tells nothing of what the handler did: nobody is to blame for it.
#[tokio::test]
async fn a_connection_that_is_lost_after_a_swallowed_rollback_says_that_it_does_not_know() {
    for at in [ROLLBACK, "SELECT EXISTS"] {
        let db = Db::new().await;
        let inbox = inbox(&db, at, Heard::No).await;
        let mut tx = fresh(&inbox, "1").await;
        // As a deadlock does whose error the handler swallows.
        tx.execute("ROLLBACK").await.expect("rolled back");
        let error = inbox.commit(tx).await.expect_err("no answer");
        assert!(matches!(error, CommitError::Unknown(_)), "{at}: {error:?}");
        assert_eq!(error.error().kind(), FaultKind::Unreachable, "{at}: {error:?}");
        assert!(!db.inbox().is_handled(CONSUMER, &key("1")).await.expect("asked"));
        db.drop().await;
    }
}
