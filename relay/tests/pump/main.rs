//! The pump's promises, on an outbox and a broker in memory and on paused time.

mod burials;
mod flow;
mod lease;
mod model;
mod promotions;
mod routes;
mod stall;
mod support;
mod trouble;
