//! Leases: which of several instances owns a job, by the database's clock.

use std::time::Duration;

use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;

/// The longest lease. One that ends later was written by a clock that has been set back since, and is taken to have
/// ended: nobody should wait for hours because a server's clock was wrong.
pub const LONGEST: Duration = Duration::from_secs(600);

/// A lease that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What is leased.
    pub name: String,
    /// Who holds it.
    pub owner: String,
    /// Grows with every change of owner: whoever writes shows it, and a stale owner is refused.
    pub token: i64,
}

/// A lease as somebody sees it who does not want it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The lease, with its owner.
    pub lease: Lease,
    /// How long it lasts unless it is renewed, by the database's clock.
    pub remaining: Duration,
    /// What an owner of the lease told of itself last, which may have been another one; `None` where none ever did.
    pub report: Option<OwnerReport>,
}

/// What an owner tells of itself, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerReport {
    /// Opaque; the token of its author belongs into it.
    pub text: String,
    /// How old it is, by the database's clock.
    pub age: Duration,
}

/// Grants leases. Object-safe: the relay's configuration chooses the database.
pub trait Leases: Send + Sync {
    /// Takes, or renews, the lease `name` for `owner`, for up to [`LONGEST`]; `None` while another owner has it.
    ///
    /// A renewal is one round trip: it must come in time over a link that takes seconds.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        owner: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Option<Lease>, AdapterError>>;

    /// Gives the lease back, so that another owner need not wait for its end. A lease that is no longer ours is left
    /// alone.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), AdapterError>>;

    /// Keeps what the owner tells of itself beside its lease, for whoever asks for the [`holder`](Leases::holder).
    /// It stays there for the next owner, until that one tells something itself. Nothing is kept of one whose lease it no
    /// longer is, nor, as by default, where nobody asks.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn report<'a>(&'a self, _lease: &'a Lease, _text: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Who holds the lease `name`; `None` while nobody does. Changes nothing.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Holder>, AdapterError>>;
}
