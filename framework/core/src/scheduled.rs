//! Rows of an outbox that are to be published later.

use futures_core::future::BoxFuture;

use crate::adapter_error::AdapterError;
use crate::lease::Lease;

/// How many of the rows with these sizes, from the first on, have up to `bytes` together; the first may exceed it alone.
pub fn fitting(sizes: impl IntoIterator<Item = u64>, bytes: u64) -> usize {
    let mut total = 0_u64;
    let fits = sizes.into_iter().enumerate().take_while(|(place, size)| {
        total = total.saturating_add(*size);
        *place == 0 || total <= bytes
    });
    fits.count()
}

/// The scheduled rows of an outbox. Object-safe, like the [`OutboxStore`](crate::outbox::OutboxStore) to which it
/// belongs.
pub trait ScheduledRows: Send + Sync {
    /// Moves rows whose time has come by the database's clock into the outbox: the earliest first, up to `rows` of them
    /// and up to `bytes` together (one row may exceed it alone), with new numbers in that order and the ids that they
    /// have. They count as written now. All of them move, or none.
    ///
    /// Returns how many moved; `None` when something is due and the lease is no longer ours, and then nothing is moved.
    /// Cheap when nothing is due. Waits for nobody's locks but those of a takeover of the lease: a row that somebody
    /// else has locked is left for the next time.
    ///
    /// # Errors
    /// When the database cannot be asked.
    fn promote<'a>(
        &'a self,
        lease: &'a Lease,
        rows: u32,
        bytes: u64,
    ) -> BoxFuture<'a, Result<Option<u64>, AdapterError>>;
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn the_first_row_fits_always_and_the_rest_within_the_bound() {
        for (sizes, bytes, expected) in
            [(&[][..], 10, 0), (&[11, 1], 10, 1), (&[4, 6, 1], 10, 2), (&[0, 0, u64::MAX, 1], 10, 2)]
        {
            assert_eq!(fitting(sizes.iter().copied(), bytes), expected, "{sizes:?}");
        }
    }
}
