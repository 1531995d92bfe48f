//! The router that a service mounts.

use std::net::SocketAddr;

use backstop::{RunState, http};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::steered::{Mode, Run, Scene};

/// Serves what consumers tell below `/backstop`.
async fn serve(run: &Run) -> SocketAddr {
    let app = axum::Router::new().nest("/backstop", http::router([run.handle.clone()]));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Status and body.
async fn get(address: SocketAddr, path: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET /backstop{path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).expect("JSON"))
}

#[tokio::test]
async fn a_consumer_that_runs_is_live_and_ready_and_tells_its_state() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    let address = serve(&run).await;
    scene.publish_over(3, 0..30);
    scene.until("it runs", || scene.applied() == 30 && scene.is_settled()).await;
    assert_eq!(get(address, "/live").await.0, 200);
    let (status, ready) = get(address, "/ready").await;
    assert_eq!((status, &ready[0]["state"], &ready[0]["problem"]), (200, &"running".into(), &Value::Null));
    let (status, state) = get(address, "/state").await;
    let consumer = &state[0];
    assert_eq!(
        (status, &consumer["consumer"], &consumer["state"]),
        (200, &"stock".into(), &"running".into())
    );
    assert_eq!((&consumer["lag"], &consumer["counters"]["handled"]), (&0.into(), &30.into()));
    assert_eq!(consumer["breaker"]["state"], "closed");
    assert_eq!((&consumer["partitions"][0]["place"], &consumer["in_flight"]), (&"orders".into(), &0.into()));

    run.handle.pause();
    let (status, ready) = get(address, "/ready").await;
    assert_eq!((status, &ready[0]["state"]), (200, &"paused".into()), "as somebody wants it to be");
    run.stop().await;
    assert_eq!(get(address, "/ready").await.0, 503, "it takes nothing any more");
    assert_eq!(get(address, "/live").await.0, 200, "and a restart would not help");
}

#[tokio::test]
async fn an_open_breaker_is_live_and_not_ready() {
    let scene = Scene::new();
    let run = scene.start(Mode::Transactional(1));
    let address = serve(&run).await;
    scene.until("it runs", || run.handle.state() == RunState::Running).await;
    scene.store.set_unreachable(true);
    scene.until("it opens", || run.handle.state() == RunState::BreakerOpen).await;
    assert_eq!(get(address, "/live").await.0, 200);
    let (status, ready) = get(address, "/ready").await;
    assert_eq!((status, &ready[0]["problem"]), (503, &"its breaker is open: the database is down".into()));
    assert_eq!(get(address, "/state").await.1[0]["breaker"]["cause"], "database");
    run.stop().await;
}

#[tokio::test]
async fn a_handler_that_hangs_is_not_live() {
    let scene = Scene::new();
    scene.hang(0);
    let run = scene.start_stalled_after(Mode::Plain, std::time::Duration::from_millis(100));
    let address = serve(&run).await;
    scene.publish_over(1, 0..1);
    scene.until("it is noticed", || run.handle.health().is_err()).await;
    let (status, live) = get(address, "/live").await;
    let problem = live[0]["problem"].as_str().expect("a text");
    assert!(status == 503 && problem.contains("offset 0") && problem.contains("key \"key-0\""), "{problem}");
    assert_eq!(get(address, "/state").await.1[0]["stalled"]["message"]["attempt"], 1);
}
