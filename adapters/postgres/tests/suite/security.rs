//! TLS and client certificates against a real PostgreSQL: what gets in, and what is told of what does not.

use std::error::Error;
use std::time::{Duration, Instant};

use backstop_core::schema::Schema;
use backstop_core::{AdapterError, FaultKind, Message, Outgoing};
use backstop_postgres::{PgOutbox, PgSchema, PgTables};
use sqlx::AssertSqlSafe;
use tokio::net::{TcpListener, TcpStream};

/// How soon a refusal must be told.
const PROMPT: Duration = Duration::from_secs(5);
const PASSWORD: &str = "not-the-passw0rd";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}

fn file(name: &str) -> String {
    format!("{}/{name}", variable("BACKSTOP_TEST_TLS"))
}

/// A URL that verifies the server by our own authority.
fn verified(user: &str, server: &str) -> String {
    format!("postgres://{user}@{server}/backstop?sslmode=verify-full&sslrootcert={}", file("ca.pem"))
}

/// A login by a password, which this account may send over TLS only.
fn with_password(password: &str) -> String {
    verified(&format!("backstop_tls:{password}"), &variable("BACKSTOP_TEST_POSTGRES_TLS"))
}

/// A login by that certificate.
fn with_certificate(name: &str) -> String {
    let url = verified(&variable("BACKSTOP_TEST_TLS_USER"), &variable("BACKSTOP_TEST_POSTGRES_TLS"));
    format!("{url}&sslcert={}&sslkey={}", file(&format!("{name}.pem")), file(&format!("{name}.key")))
}

/// Migrates, writes to the outbox and reads it, all over TLS.
async fn gets_in(url: &str) {
    let pool = backstop_postgres::open(url).await.unwrap_or_else(|error| panic!("{}", told(&error)));
    let over_tls: bool = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&pool)
        .await
        .expect("an answer");
    assert!(over_tls);
    let name = format!("tls_{}", uuid::Uuid::new_v4().simple());
    let tables = PgTables::in_schema(&name).expect("a name");
    PgSchema::new(pool.clone(), tables.clone()).migrate().await.expect("migrated");
    let mut tx = pool.begin().await.expect("begun");
    let outgoing = Outgoing::to("orders", Message::new("order.placed"));
    PgOutbox::with_tables(&tables).enqueue(&mut tx, outgoing).await.expect("written");
    tx.commit().await.expect("committed");
    let count = format!("SELECT count(*) FROM {name}.backstop_outbox");
    let written: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&pool).await.expect("read");
    assert_eq!(written, 1);
    sqlx::raw_sql(AssertSqlSafe(format!("DROP SCHEMA {name} CASCADE")))
        .execute(&pool)
        .await
        .expect("dropped");
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
    let error = backstop_postgres::open(url).await.expect_err("refused");
    let told = told(&error);
    assert_eq!(error.kind(), FaultKind::Denied, "{told}");
    assert!(error.hint().is_some_and(|told| told.contains(hint)) && told.contains(cause), "{told}");
    assert!(!told.contains(PASSWORD), "{told}");
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_password_over_verified_tls_gets_in() {
    gets_in(&with_password(&variable("BACKSTOP_TEST_TLS_PASSWORD"))).await;
}

#[tokio::test]
async fn a_client_certificate_gets_in_without_a_password() {
    gets_in(&with_certificate("client")).await;
}

#[tokio::test]
async fn s30_an_authority_that_signed_nothing_is_refused() {
    let url = with_password(PASSWORD).replace("/ca.pem", "/stranger-ca.pem");
    refused(&url, "sslrootcert", "UnknownIssuer").await;
}

#[tokio::test]
async fn s30_a_host_that_the_certificate_does_not_name_is_refused() {
    let address = elsewhere(variable("BACKSTOP_TEST_POSTGRES_TLS")).await;
    refused(&verified(&format!("backstop_tls:{PASSWORD}"), &address), "names the host", "not valid for name")
        .await;
}

#[tokio::test]
async fn s31_a_missing_client_certificate_is_refused() {
    let url = verified(&variable("BACKSTOP_TEST_TLS_USER"), &variable("BACKSTOP_TEST_POSTGRES_TLS"));
    refused(&url, "sslcert", "client certificate").await;
}

#[tokio::test]
async fn s31_an_expired_client_certificate_is_refused() {
    refused(&with_certificate("expired"), "valid now", "CertificateExpired").await;
}

#[tokio::test]
async fn s31_a_client_certificate_of_a_stranger_is_refused() {
    refused(&with_certificate("stranger"), "sslcert", "UnknownCA").await;
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    refused(&with_password(PASSWORD), "password", "password authentication failed").await;
}

#[tokio::test]
async fn s32_an_account_that_must_use_tls_is_refused_without() {
    let url = with_password(PASSWORD).replace("verify-full", "disable");
    refused(&url, "sslmode", "no encryption").await;
}
