//! A password that stops being valid while a relay is connected.

use std::time::Duration;

use backstop_tests::program::Broker;
use backstop_tests::scene::{PATIENCE, Scene};
use backstop_tests::{servers, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// `guest:guest` in base64.
const ADMINISTRATOR: &str = "Z3Vlc3Q6Z3Vlc3Q=";

/// Asks RabbitMQ's management API.
async fn api(method: &str, path: &str, body: &str) {
    let address = servers::required("BACKSTOP_TEST_RABBITMQ_API").replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.expect("the API listens");
    let request = format!(
        "{method} /api/{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {ADMINISTRATOR}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
}

async fn set_password(user: &str, password: &str) {
    api("PUT", &format!("users/{user}"), &format!(r#"{{"password":"{password}","tags":""}}"#)).await;
}

/// F47: the password of the relay's user at RabbitMQ changes, and the relay has to connect again: it waits, is not
/// ready, shows no password, and goes on when the password is valid again.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_at_rabbitmq_is_refused_for_a_while() {
    let _turn = servers::together().await;
    let (user, password) = (servers::unique("user"), "first-secret");
    set_password(&user, password).await;
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    api("PUT", &format!("permissions/%2f/{user}"), all).await;
    let url = servers::amqp_url().replace("guest:guest@", &format!("{user}:{password}@"));
    let scene = Scene::with_amqp(Broker::RabbitMq, "password", &url).await;
    let mut relay = scene.ready_relay().await;
    scene.commit(100).await;
    scene.drained().await;

    set_password(&user, "second-secret").await;
    scene.network.broker.cut();
    scene.network.broker.resume();
    scene.commit(500).await;
    wait::until("the relay is not ready", PATIENCE, || async { !relay.is_ready().await }).await;
    wait::until("its log says why", PATIENCE, || {
        let said = relay.log().contains("check user and password of the AMQP URL");
        std::future::ready(said)
    })
    .await;
    assert_eq!(scene.backlog().await, Some(500), "nothing is taken for sent");
    set_password(&user, password).await;
    let paused = scene.flows_again().await;
    assert!(paused < Duration::from_secs(20), "rows stood still for {paused:?}");
    wait::until("the relay is ready", PATIENCE, || relay.is_ready()).await;
    assert!(relay.program.is_running(), "nobody had to start it again");
    assert!(!relay.log().contains(password), "the password is in the log");
    scene.settle().await;
    api("DELETE", &format!("users/{user}"), "").await;
}
