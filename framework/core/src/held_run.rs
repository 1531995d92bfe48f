//! Held messages that share a transaction.
//!
//! What is promised of a held message holds as if it were alone: those of one key run in their order, one that waits
//! behind another that failed does not run, and a run that dies is charged to each of its messages.

use crate::held::HeldMessage;
use crate::inbox::Standing;

/// Bytes of headers and bodies after which a run takes no further message.
pub const RUN_BYTES: usize = 4 * 1024 * 1024;

/// Which held messages may share a transaction.
#[derive(Debug, Clone, Copy)]
pub struct RunChoice<'a> {
    /// So many at most.
    pub most: usize,
    /// Messages that are to run by themselves, by their numbers: nothing behind them runs before that either.
    pub apart: &'a [i64],
}

/// Held messages, claimed inside one open transaction.
#[derive(Debug)]
pub struct ClaimedRun<Tx> {
    /// The transaction that locks them; lent to one handler after another.
    pub tx: Tx,
    /// The messages, those of one key one behind the other. None of them has failed before.
    pub members: Vec<HeldMessage>,
    /// What the inbox says of each: [`Standing::Fresh`] or [`Standing::Duplicate`], which is finished without running the handler.
    pub standings: Vec<Standing>,
}

/// What came of the claim of a run.
#[derive(Debug)]
pub enum RunClaim<Tx> {
    /// The messages are charged and locked, and the inbox rows of those that are fresh are written.
    Shared(ClaimedRun<Tx>),
    /// Somebody else is at one of these, by their numbers: claim them one by one. Nothing is written.
    Apart(Vec<i64>),
    /// Nothing that could share a transaction is due.
    Nothing,
}
