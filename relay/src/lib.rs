//! The relay: drains a transactional outbox into a broker, collects dead letters into a searchable ledger, and
//! redrives them.
//!
//! The program `backstop-relay` is this library's [`start`]. It runs as a sidecar or on its own; one of several
//! instances owns an outbox or a ledger at a time, by a lease in the database.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`], [`output`], [`exit`] | the command line, what it prints, and how it ends |
//! | [`config`], [`secret`] | the configuration file, and how secrets stay secret |
//! | [`database`], [`broker`] | stores, publishers, sinks and sources, as the configuration chooses them |
//! | [`owner`], [`pump`] | the lease, and outbox rows on their way to the broker |
//! | [`standing`] | what the owner of an outbox tells of itself, beside its lease |
//! | [`collector`], [`letters`], [`dialects`] | dead letters from the broker into the ledger, whoever wrote them |
//! | [`redact`], [`encryption`] | what of letters is not kept, and what only with a key |
//! | `edit` | a copy of a letter with another body, in its place |
//! | [`archive`], [`retention`] | letters whose time in the ledger is over |
//! | [`redrive`] | letters from the ledger back to their consumer |
//! | `rules` | redrives that the relay makes by itself, where somebody wrote it |
//! | [`receipts`] | what consumers say of redriven letters and of themselves |
//! | [`replay`] | a part of a Kafka topic, sent once more |
//! | [`jobs`], [`http`], [`metrics`] | how the jobs stand, and who is told |
//! | [`supervise`], [`logging`] | tasks, signals and logs of a running relay |

pub mod archive;
pub mod broker;
pub mod cli;
pub mod collector;
pub mod config;
pub mod database;
pub mod dialects;
pub mod encryption;
pub mod exit;
pub mod http;
pub mod jobs;
mod letter_file;
pub mod letters;
pub mod logging;
pub mod metrics;
mod notify;
pub mod output;
pub mod owner;
pub mod pump;
pub mod receipts;
pub mod redact;
pub mod redrive;
pub mod replay;
pub mod retention;
pub mod routes;
pub mod secret;
pub mod standing;
pub mod supervise;

mod api;
mod ask;
mod audit;
mod commands;
mod console;
mod demo;
mod desk;
mod edit;
mod first_letters;
#[cfg(test)]
mod gated;
mod patience;
mod portion;
mod rules;
mod tls;

pub use cli::start;
