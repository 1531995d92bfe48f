//! TLS and client certificates against a real MariaDB: what gets in, and what is told of what does not.

use std::error::Error;
use std::time::{Duration, Instant};

use backstop_core::schema::Schema;
use backstop_core::{AdapterError, FaultKind, Message, Outgoing};
use backstop_mysql::{MySqlOutbox, MySqlSchema, MySqlTables};
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::net::{TcpListener, TcpStream};

/// How soon a refusal must be told.
const PROMPT: Duration = Duration::from_secs(5);
const PASSWORD: &str = "not-the-passw0rd";
/// Of the accounts that the tests make.
const RIGHT: &str = "the-passw0rd";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

fn file(name: &str) -> String {
    format!("{}/{name}", variable("BACKSTOP_TEST_TLS"))
}

/// The server by the name that its certificate has.
fn server() -> String {
    let url = variable("BACKSTOP_TEST_MYSQL_URL");
    let port = url.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()).expect("a port");
    format!("localhost:{port}")
}

/// An account that must use TLS, and perhaps a certificate, removed at the end.
struct Account {
    admin: MySqlPool,
    name: String,
}

impl Account {
    /// `require` is what MariaDB demands of it.
    async fn new(require: &str) -> Self {
        let admin =
            backstop_mysql::open(&variable("BACKSTOP_TEST_MYSQL_URL")).await.expect("MariaDB answers");
        let name = format!("u_{}", &uuid::Uuid::new_v4().simple().to_string()[..18]);
        let account = Self { admin, name };
        let name = &account.name;
        let host = "'127.0.0.1'";
        account.run(&format!("CREATE USER {name}@{host} IDENTIFIED BY '{RIGHT}' {require}")).await;
        account.run(&format!("CREATE DATABASE {name}")).await;
        account.run(&format!("GRANT ALL ON {name}.* TO {name}@{host}")).await;
        account
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.admin).await.expect(sql);
    }

    /// A URL that verifies the server by our own authority.
    fn url(&self, password: &str, server: &str) -> String {
        let (name, authority) = (&self.name, file("ca.pem"));
        format!("mysql://{name}:{password}@{server}/{name}?ssl-mode=VERIFY_IDENTITY&ssl-ca={authority}")
    }

    fn with_certificate(&self, name: &str) -> String {
        let url = self.url(RIGHT, &server());
        format!("{url}&ssl-cert={}&ssl-key={}", file(&format!("{name}.pem")), file(&format!("{name}.key")))
    }

    async fn drop(self) {
        let name = &self.name;
        self.run(&format!("DROP DATABASE {name}")).await;
        self.run(&format!("DROP USER {name}@'127.0.0.1'")).await;
    }
}

/// Migrates, writes to the outbox and reads it, all over TLS.
async fn gets_in(url: &str) {
    let pool = backstop_mysql::open(url).await.unwrap_or_else(|error| panic!("{}", told(&error)));
    let (_, cipher): (String, String) =
        sqlx::query_as("SHOW SESSION STATUS LIKE 'Ssl_cipher'").fetch_one(&pool).await.expect("an answer");
    assert!(!cipher.is_empty(), "over TLS");
    let tables = MySqlTables::default();
    MySqlSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
    let mut tx = pool.begin().await.expect("begun");
    let outgoing = Outgoing::to("orders", Message::new("order.placed"));
    MySqlOutbox::with_tables(&tables).enqueue(&mut tx, outgoing).await.expect("written");
    tx.commit().await.expect("committed");
    let written: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM backstop_outbox").fetch_one(&pool).await.expect("read");
    assert_eq!(written, 1);
    pool.close().await;
}

/// Forwards to `server` from an address that its certificate does not name.
async fn elsewhere(server: String) -> String {
    let listener = TcpListener::bind(("127.0.0.2", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address.to_string()
}

/// Everything that an error tells.
fn told(error: &AdapterError) -> String {
    let mut text = format!("{error} | {:?} | {error:?}", error.hint());
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(" | {error}");
        cause = error.source();
    }
    text
}

/// Denied soon, with that hint and those words of the cause, and without a secret.
async fn refused(url: &str, hint: &str, cause: &str) {
    let begun = Instant::now();
    let error = backstop_mysql::open(url).await.expect_err("refused");
    let told = told(&error);
    assert_eq!(error.kind(), FaultKind::Denied, "{told}");
    assert!(error.hint().is_some_and(|told| told.contains(hint)) && told.contains(cause), "{told}");
    assert!(!told.contains(PASSWORD) && !told.contains(RIGHT), "{told}");
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_password_over_verified_tls_gets_in() {
    let account = Account::new("REQUIRE SSL").await;
    gets_in(&account.url(RIGHT, &server())).await;
    account.drop().await;
}

#[tokio::test]
async fn s31_a_client_certificate_of_our_own_authority_gets_in_and_none_other() {
    let account = Account::new("REQUIRE X509").await;
    gets_in(&account.with_certificate("client")).await;
    refused(&account.url(RIGHT, &server()), "ssl-cert", "Access denied").await;
    refused(&account.with_certificate("expired"), "valid now", "CertificateExpired").await;
    refused(&account.with_certificate("stranger"), "ssl-cert", "UnknownCA").await;
    account.drop().await;
}

#[tokio::test]
async fn s30_an_authority_that_signed_nothing_is_refused() {
    let account = Account::new("REQUIRE SSL").await;
    let url = account.url(PASSWORD, &server());
    refused(&url.replace("/ca.pem", "/stranger-ca.pem"), "ssl-ca", "UnknownIssuer").await;
    account.drop().await;
}

#[tokio::test]
async fn s30_a_host_that_the_certificate_does_not_name_is_refused() {
    let account = Account::new("REQUIRE SSL").await;
    let address = elsewhere(server()).await;
    refused(&account.url(PASSWORD, &address), "names the host", "not valid for name").await;
    account.drop().await;
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let account = Account::new("REQUIRE SSL").await;
    refused(&account.url(PASSWORD, &server()), "password", "Access denied").await;
    account.drop().await;
}

#[tokio::test]
async fn s32_an_account_that_must_use_tls_is_refused_without() {
    let account = Account::new("REQUIRE SSL").await;
    let url = account.url(RIGHT, &server()).replace("VERIFY_IDENTITY", "DISABLED");
    refused(&url, "ssl-mode", "Access denied").await;
    account.drop().await;
}
