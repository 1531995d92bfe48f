//! Several event types on one topic.

use std::future::Future;

use crate::codec::{Codec, Json, Undecoded};
use crate::delivery::Delivery;
use crate::error::HandlerError;
use crate::handler::Handler;

/// What to do with a message whose kind has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrouted {
    /// Count it as handled.
    Skip,
    /// Quarantine it, so that somebody sees it. The default.
    DeadLetter,
}

/// A handler that passes each message to the handler of its kind.
///
/// Routes are a list of types: no boxing, and each route decodes only its own messages.
///
/// ```
/// use backstop_core::{Delivery, Handler, HandlerError, Router, Unrouted};
///
/// struct Placed;
/// impl Handler<()> for Placed {
///     type Message = String;
///     async fn handle(&self, _: &Delivery<String>, _: &mut ()) -> Result<(), HandlerError> { Ok(()) }
/// }
/// struct Cancelled;
/// impl Handler<()> for Cancelled {
///     type Message = u64;
///     async fn handle(&self, _: &Delivery<u64>, _: &mut ()) -> Result<(), HandlerError> { Ok(()) }
/// }
///
/// let router = Router::new().on("order.placed", Placed).on("order.cancelled", Cancelled).otherwise(Unrouted::Skip);
/// # fn is_handler<H: Handler<()>>(_: H) {}
/// # is_handler(router);
/// ```
#[derive(Debug, Clone)]
pub struct Router<R = End, C = Json> {
    routes: R,
    codec: C,
    otherwise: Unrouted,
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl Router {
    /// No routes yet, JSON bodies, unrouted messages are quarantined.
    pub fn new() -> Self {
        Self { routes: End, codec: Json, otherwise: Unrouted::DeadLetter }
    }
}

impl<R, C> Router<R, C> {
    /// Sends messages of `kind` to `handler`. Of two routes with one kind the later wins.
    pub fn on<H>(self, kind: impl Into<String>, handler: H) -> Router<Route<H, R>, C> {
        let routes = Route { kind: kind.into(), handler, rest: self.routes };
        Router { routes, codec: self.codec, otherwise: self.otherwise }
    }

    /// Sets what happens to other kinds. Defaults to [`Unrouted::DeadLetter`].
    #[must_use]
    pub fn otherwise(mut self, otherwise: Unrouted) -> Self {
        self.otherwise = otherwise;
        self
    }

    /// Sets how bodies are read. Defaults to [`Json`].
    pub fn codec<D>(self, codec: D) -> Router<R, D> {
        Router { routes: self.routes, codec, otherwise: self.otherwise }
    }
}

impl<Tx, R, C> Handler<Tx> for Router<R, C>
where
    Tx: Send,
    R: Routes<Tx, C>,
    C: Send + Sync + 'static,
{
    type Message = Undecoded;

    async fn handle(&self, delivery: &Delivery<Undecoded>, tx: &mut Tx) -> Result<(), HandlerError> {
        let kind = delivery.message().kind.as_str();
        match self.routes.dispatch(kind, &self.codec, delivery, tx).await {
            Some(result) => result,
            None if self.otherwise == Unrouted::Skip => Ok(()),
            None => Err(HandlerError::permanent(NoRoute { kind: kind.to_owned() })),
        }
    }
}

/// A message's kind has no route.
#[derive(Debug, thiserror::Error)]
#[error("no route for messages of kind {kind:?}")]
struct NoRoute {
    kind: String,
}

/// The end of a list of routes.
#[derive(Debug, Clone, Copy)]
pub struct End;

/// One route and the rest of the list.
#[derive(Debug, Clone)]
pub struct Route<H, R> {
    kind: String,
    handler: H,
    rest: R,
}

/// A list of routes; implemented by [`Route`] and [`End`] alone.
pub trait Routes<Tx, C>: Send + Sync + 'static {
    /// Runs the handler of `kind`; `None` where there is none.
    fn dispatch(
        &self,
        kind: &str,
        codec: &C,
        delivery: &Delivery<Undecoded>,
        tx: &mut Tx,
    ) -> impl Future<Output = Option<Result<(), HandlerError>>> + Send;
}

impl<Tx: Send, C: Sync> Routes<Tx, C> for End {
    async fn dispatch(
        &self,
        _: &str,
        _: &C,
        _: &Delivery<Undecoded>,
        _: &mut Tx,
    ) -> Option<Result<(), HandlerError>> {
        None
    }
}

impl<Tx, C, H, R> Routes<Tx, C> for Route<H, R>
where
    Tx: Send,
    H: Handler<Tx>,
    R: Routes<Tx, C>,
    C: Codec<H::Message>,
{
    async fn dispatch(
        &self,
        kind: &str,
        codec: &C,
        delivery: &Delivery<Undecoded>,
        tx: &mut Tx,
    ) -> Option<Result<(), HandlerError>> {
        if self.kind != kind {
            return self.rest.dispatch(kind, codec, delivery, tx).await;
        }
        Some(match codec.decode(delivery.message()) {
            Ok(body) => self.handler.handle(&delivery.with_body(body), tx).await,
            Err(error) => Err(HandlerError::undecodable(error)),
        })
    }
}
