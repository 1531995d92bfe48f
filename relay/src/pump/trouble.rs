//! What keeps a pump from its work for longer than a passing fault would, although it runs or stands by.

use backstop_core::FaultKind;
use tokio::time::Instant;

use super::engine::Engine;
use super::status::Trouble;

impl Engine {
    /// Destinations that are missing or denied are no trouble of this kind: they are told of as paused, and a relay that
    /// waits for a topic is as ready as it can be. One that cannot be reached is, unless the broker confirms others.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        let for_long = |since: Instant| since + self.settings.stall_after <= self.now;
        let is_unreachable = |kind| kind == FaultKind::Unreachable;
        if self.term.is_none() && self.lease_errors.borrow().is_some() {
            return Some(Trouble::Lease);
        }
        if self.writes.since().is_some_and(for_long) {
            return Some(Trouble::Deletes);
        }
        let mut faults = self.pauses.destinations().filter_map(|pause| pause.fault.as_ref());
        let is_silent = for_long(self.last_published) && faults.any(|fault| is_unreachable(fault.kind));
        is_silent.then_some(Trouble::Broker)
    }
}
