//! What the outbox promises, and what the model must have come across for the promises to mean something.

use stateright::Property;

use super::database::Id;
use super::relay::Term;
use super::writer::Writer;
use super::{Flaw, Harm, Scene, World};
use crate::progress::Progress;

pub(super) const SKIPPED: &str = "every committed row is in hand or will be read";
pub(super) const LOST: &str = "no committed row goes unpublished";
pub(super) const ORDER: &str = "first publications of a key are in order";
pub(super) const COMMITTED: &str = "only committed rows are published";
pub(super) const FENCED: &str = "nobody buries what the owner has in hand";
pub(super) const DRAINS: &str = "once the writers are done, the owner reads everything and no gap is left";

pub(super) fn all() -> Vec<Property<Scene>> {
    let mut rules = vec![
        Property::always(SKIPPED, |scene, world: &World| {
            world.owners().all(|term| !world.skips(scene, term))
        }),
        Property::always(LOST, |_, world: &World| world.harm != Some(Harm::Lost)),
        Property::always(ORDER, |_, world: &World| world.harm != Some(Harm::OutOfOrder)),
        Property::always(COMMITTED, |_, world: &World| world.harm != Some(Harm::Uncommitted)),
        Property::always(FENCED, |_, world: &World| world.harm != Some(Harm::BuriedByStranger)),
        Property::always(DRAINS, |scene, world: &World| world.owners().all(|term| world.drains(scene, term))),
    ];
    rules.extend(sights());
    rules
}

/// What must have been seen where nothing is flawed.
fn sights() -> [Property<Scene>; 7] {
    [
        Property::sometimes("a gap is open", |_, world: &World| {
            world.owners().any(|term| world.rows_seen(term) && !term.progress.gaps.is_empty())
        }),
        Property::sometimes("a gap is closed", |_, world: &World| {
            world
                .owners()
                .any(|term| (2..=world.database.last).any(|number| term.progress.gaps.is_closed(number)))
        }),
        Property::sometimes("a row comes after a higher one", |scene, world: &World| {
            let mut rows = world.database.visible(false);
            scene.writers.len() == 1
                || rows.any(|(_, id)| world.published & (1 << id) == 0 && world.published >> id > 0)
        }),
        Property::sometimes("a relay goes on while another is the owner", |scene, world: &World| {
            scene.expiries == 0 || world.terms().any(|(_, term)| term.has_work() && world.is_stale(term))
        }),
        Property::sometimes("a relay would bury while another is the owner", |scene, world: &World| {
            scene.refusals == 0
                || world.terms().any(|(_, term)| term.refused.is_some() && world.is_stale(term))
        }),
        Property::sometimes(
            "a server takes over and passes the old numbers before it is read",
            |scene, world: &World| {
                scene.failovers == 0
                    || world.owners().any(|term| {
                        let frontier = term.progress.frontier;
                        term.server != world.database.server
                            && frontier > 0
                            && frontier <= world.database.last
                    })
            },
        ),
        Property::sometimes("everything is published and deleted", |_, world: &World| {
            let done = world.writers.iter().all(|writer| *writer == Writer::Idle { left: 0 });
            done && world.published.count_ones() >= 2 && world.database.rows.is_empty()
        }),
    ]
}

impl World {
    fn terms(&self) -> impl Iterator<Item = (usize, &Term)> {
        self.relays.iter().enumerate().filter_map(|(r, relay)| Some((r, relay.term.as_ref()?)))
    }

    /// The relay that is the owner.
    fn owners(&self) -> impl Iterator<Item = &Term> {
        self.terms().filter(|(r, term)| self.database.is_owner(*r, term.token)).map(|(_, term)| term)
    }

    fn is_stale(&self, term: &Term) -> bool {
        self.owners().any(|owner| !std::ptr::eq(owner, term))
    }

    fn rows_seen(&self, term: &Term) -> bool {
        term.progress.frontier > 0
    }

    /// Whether a row that is there is neither in hand nor one that a read will bring. A reader that has not looked
    /// since another server took over does not know better yet.
    fn skips(&self, scene: &Scene, term: &Term) -> bool {
        let Progress { frontier, gaps, ahead, .. } = &term.progress;
        let (numbers, ids) = ahead.names();
        let mut rows = self.database.visible(false);
        let to_come = |number: i64, id: Id| match number > *frontier {
            _ if scene.has(Flaw::BareCursor) => number > term.cursor,
            true => {
                !numbers.iter().zip(&ids).any(|(other, name)| *other == number && **name == id.to_string())
            }
            false => gaps.is_open(number),
        };
        term.server == self.database.server && rows.any(|(number, id)| !term.has(id) && !to_come(number, id))
    }

    /// Whether reading comes to an end with every row read and every gap closed. Only asked when nobody else has
    /// anything left to do.
    fn drains(&self, scene: &Scene, term: &Term) -> bool {
        let done = self.writers.iter().all(|writer| *writer == Writer::Idle { left: 0 });
        if !done || term.looked.is_some() || term.server != self.database.server || term.has_work() {
            return true;
        }
        let mut rest = self.database.clone();
        let mut term = term.clone();
        for _ in 0..3 + rest.rows.len() {
            let ripe = term.progress.gaps.observe(Vec::new());
            let found = rest.claim(&term.progress, scene.limit, false);
            let names: Vec<_> = found.rows.iter().map(|(number, id)| (*number, id.to_string())).collect();
            let rows: Vec<_> = names.iter().map(|(number, name)| (*number, name.as_str())).collect();
            let before = crate::progress::Before { last: scene.sequence.then_some(rest.last), ripe };
            term.progress.advance(&rows, found.cut, before);
            for (number, id) in found.rows {
                rest.remove(number, id, false);
            }
        }
        rest.rows.is_empty() && term.progress.gaps.is_empty()
    }
}
