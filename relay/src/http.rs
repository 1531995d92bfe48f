//! What the relay answers over HTTP: `/live`, `/ready`, `/metrics`, the API below `/api/v1` and the console's pages.
//!
//! `/live` and `/ready` are for probes, which have no token and call by address: they say nothing but a state.

mod guard;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;
use tracing::{debug, info, warn};

use crate::config::HttpConfig;
use crate::desk::Desk;
use crate::exit::{Exit, Failure};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::{api, console};
use guard::{Guard, Peer};

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a connection may be used. Callers who keep theirs busy, or never read an answer, do not take a probe's seat
/// for longer.
const CONNECTION: Duration = Duration::from_secs(60);
/// The largest body of a request, in bytes.
const BODY: usize = 64 << 10;
/// The pause after a connection could not be accepted, mostly for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A server that listens and does not yet answer.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Router,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(crate) async fn bind(config: &HttpConfig, jobs: Jobs, desk: Desk) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            let what = format!("cannot listen on {}: {error}", config.listen);
            Failure::new(Exit::Failed, what, "choose another address with listen in [http]")
        };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        info!(%address, "HTTP: /live, /ready, /metrics, /api/v1 and the console");
        Ok(Self { listener, router: router(config, address, jobs, desk)? })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`. Requests under way are then cut off: probes ask again.
    pub async fn run(self, stop: CancellationToken) {
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept(&self.listener, &seats) => accepted,
            };
            let Some((stream, peer, seat)) = accepted else { continue };
            let peer = Extension(Peer(peer.ip()));
            let (router, stop) = (self.router.clone().layer(peer), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = answer(stream, router) => {}
                }
                drop(seat);
            });
        }
    }
}

async fn accept(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let seat = seats.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, seat)),
        Err(error) => {
            warn!(%error, "cannot accept an HTTP connection");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD).keep_alive_timeout(HEAD);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = tokio::time::sleep(CONNECTION) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(ANSWER, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "an HTTP connection ended early"),
        Err(_) => debug!("an HTTP connection was cut off"),
    }
}

#[derive(Debug, Clone)]
struct Shared {
    jobs: Jobs,
    metrics: Arc<Metrics>,
}

fn router(config: &HttpConfig, address: SocketAddr, jobs: Jobs, desk: Desk) -> Result<Router, Failure> {
    let metrics = Arc::new(Metrics::new(jobs.clone())?);
    let guard = Arc::new(Guard::new(config, address));
    let desk = Arc::new(desk);
    let guarded = Router::new()
        .route("/metrics", get(self::metrics))
        .with_state(Shared { jobs: jobs.clone(), metrics: metrics.clone() })
        .nest("/api/v1", api::routes().with_state(desk.clone()))
        .merge(console::routes().with_state(desk))
        .layer(middleware::from_fn_with_state(guard, guard::check));
    Ok(Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .merge(guarded)
        .layer(RequestBodyLimitLayer::new(BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, ANSWER))
        .with_state(Shared { jobs, metrics }))
}

/// Whether the process can answer at all. A job that ends ends the process, so there is no more to look at.
async fn live() -> Response {
    (fresh(), Json(json!({ "status": "live" }))).into_response()
}

/// Whether every job does what it is for.
async fn ready(State(shared): State<Shared>) -> Response {
    let reports = shared.jobs.reports();
    let ready = reports.iter().all(|report| report.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ready" } else { "not ready" };
    (status, fresh(), Json(json!({ "status": word, "outboxes": reports }))).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.render().await {
        Ok(text) => {
            (fresh(), [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => {
            warn!(%error, "cannot show metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn fresh() -> [(axum::http::HeaderName, &'static str); 2] {
    [(CACHE_CONTROL, "no-store"), (axum::http::header::X_CONTENT_TYPE_OPTIONS, "nosniff")]
}

#[cfg(test)]
mod tests;
