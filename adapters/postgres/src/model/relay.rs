//! Relays: each may stop between any two steps, and go on when another is the owner.

use std::collections::VecDeque;

use super::database::{Id, key_of};
use super::{Flaw, Harm, Scene, Step, World};
use crate::progress::{Before, Progress};

/// Rows that are read and not published; at this many, reading waits.
const BUFFER: usize = 2;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Relay {
    pub(super) term: Option<Term>,
    /// Where reading stood in the term before; kept by [`Flaw::NoReset`] alone.
    kept: Option<Progress>,
}

/// What a relay knows while it believes to be the owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) token: u8,
    pub(super) progress: Progress,
    /// What was looked at for the next read.
    pub(super) looked: Option<Before>,
    /// Who held locks at the look before; used by [`Flaw::HoldersBefore`] alone.
    holders: Vec<String>,
    /// The highest number read; used by [`Flaw::BareCursor`] alone.
    pub(super) cursor: i64,
    /// The server that was read last.
    pub(super) server: u8,
    /// Read, to be published.
    pub(super) held: VecDeque<(i64, Id)>,
    /// Published, to be deleted.
    pub(super) confirmed: Vec<(i64, Id)>,
    /// Refused, to be buried.
    pub(super) refused: Option<(i64, Id)>,
}

impl Term {
    fn new(token: u8, server: u8) -> Self {
        Self {
            token,
            progress: Progress::new(),
            looked: None,
            holders: Vec::new(),
            cursor: 0,
            server,
            held: VecDeque::new(),
            confirmed: Vec::new(),
            refused: None,
        }
    }

    /// Whether the relay has the row in hand, and will settle it.
    pub(super) fn has(&self, id: Id) -> bool {
        self.held.iter().chain(&self.confirmed).chain(&self.refused).any(|(_, other)| *other == id)
    }

    pub(super) fn has_work(&self) -> bool {
        !self.held.is_empty() || !self.confirmed.is_empty() || self.refused.is_some()
    }
}

impl Relay {
    /// One of several that need no lease.
    pub(super) fn worker() -> Self {
        Self { term: Some(Term::new(0, 0)), kept: None }
    }

    pub(super) fn stop(&mut self) {
        self.term = None;
    }

    /// The connection breaks. Whoever reads finds out, and begins again without what was confirmed.
    pub(super) fn break_off(&mut self) {
        if let Some(term) = self.term.as_mut().filter(|term| term.looked.is_some()) {
            *term = Term::new(term.token, term.server);
        }
    }

    fn term(&mut self) -> &mut Term {
        self.term.as_mut().expect("only a relay with a term goes on")
    }
}

impl World {
    pub(super) fn steps_of_relay(&self, scene: &Scene, r: usize, steps: &mut Vec<Step>) {
        let Some(term) = &self.relays[r].term else {
            if !self.database.lease.live {
                steps.push(Step::Acquire(r));
            }
            return;
        };
        let worker = scene.has(Flaw::SkipLocked);
        let owner = worker || self.database.is_owner(r, term.token);
        if owner && (worker || self.database.lease.live) {
            match term.looked {
                Some(_) => steps.push(Step::Read(r)),
                None if term.held.len() < BUFFER => steps.push(Step::Look(r)),
                None => {}
            }
        }
        if !term.held.is_empty() {
            steps.push(Step::Publish(r));
            if self.left.refusals > 0 && term.refused.is_none() {
                steps.push(Step::Refuse(r));
            }
        }
        if !term.confirmed.is_empty() {
            steps.push(Step::Delete(r));
        }
        if term.refused.is_some() {
            steps.push(Step::Bury(r));
        }
        if !owner || (!worker && !self.database.lease.live) {
            steps.push(Step::Notice(r));
        }
        if self.left.crashes > 0 {
            steps.push(Step::Crash(r));
        }
    }

    pub(super) fn acquire(&mut self, scene: &Scene, r: usize) {
        let lease = &mut self.database.lease;
        lease.token += 1;
        (lease.owner, lease.live) = (Some(r), true);
        let mut term = Term::new(lease.token, self.database.server);
        if scene.has(Flaw::NoReset)
            && let Some(kept) = self.relays[r].kept.take()
        {
            term.progress = kept;
        }
        self.relays[r].term = Some(term);
    }

    pub(super) fn look(&mut self, scene: &Scene, r: usize) {
        let (last, server) = (scene.sequence.then_some(self.database.last), self.database.server);
        let term = self.relays[r].term();
        let told = if scene.has(Flaw::ServerBySequence) { 0 } else { server };
        term.progress.meet(&told.to_string(), last);
        term.server = server;
        let ask = !term.progress.gaps.is_empty();
        let asked = if scene.has(Flaw::HoldersBefore) {
            let holders = self.holders(scene);
            std::mem::replace(&mut self.relays[r].term().holders, holders)
        } else if ask {
            self.holders(scene)
        } else {
            Vec::new()
        };
        let term = self.relays[r].term();
        let ripe = term.progress.gaps.observe(asked);
        term.looked = Some(Before { last, ripe });
    }

    pub(super) fn read(&mut self, scene: &Scene, r: usize) {
        let rows = match scene.flaw {
            Some(Flaw::BareCursor) => self.read_by_cursor(scene, r),
            Some(Flaw::SkipLocked) => self.read_unlocked(r),
            _ => self.read_by_progress(scene, r),
        };
        let kept = scene.has(Flaw::NoReset).then(|| self.relays[r].term().progress.clone());
        self.relays[r].kept = kept;
        let term = self.relays[r].term();
        term.looked = None;
        term.held.extend(rows);
        while !scene.publishes_apart() && !self.relays[r].term().held.is_empty() {
            self.publish(r);
        }
        if !scene.publishes_apart() && !scene.deletes_apart {
            self.delete(scene, r);
        }
    }

    fn read_by_progress(&mut self, scene: &Scene, r: usize) -> Vec<(i64, Id)> {
        let term = self.relays[r].term.as_mut().expect("a relay that reads has a term");
        let before = term.looked.expect("it has looked");
        let found = self.database.claim(&term.progress, scene.limit, scene.has(Flaw::DirtyRead));
        let names: Vec<_> = found.rows.iter().map(|(number, id)| (*number, id.to_string())).collect();
        let rows: Vec<_> = names.iter().map(|(number, name)| (*number, name.as_str())).collect();
        term.progress.advance(&rows, found.cut, before);
        term.progress.gaps.renumber();
        found.rows
    }

    fn read_by_cursor(&mut self, scene: &Scene, r: usize) -> Vec<(i64, Id)> {
        let term = self.relays[r].term.as_mut().expect("a relay that reads has a term");
        let beyond = self.database.visible(false).filter(|(number, _)| *number > term.cursor);
        let rows: Vec<_> = beyond.take(scene.limit).collect();
        term.cursor = rows.last().map_or(term.cursor, |(number, _)| *number);
        rows
    }

    fn read_unlocked(&mut self, r: usize) -> Vec<(i64, Id)> {
        let in_hand =
            |id: Id| self.relays.iter().filter_map(|relay| relay.term.as_ref()).any(|term| term.has(id));
        let rows = self.database.visible(false).find(|(_, id)| !in_hand(*id)).into_iter().collect();
        self.relays[r].term().progress = Progress::new();
        rows
    }

    pub(super) fn publish(&mut self, r: usize) {
        let term = self.relays[r].term();
        let Some((number, id)) = term.held.pop_front() else { return };
        term.confirmed.push((number, id));
        let key = usize::from(key_of(id));
        if self.published & (1 << id) == 0 && self.placeless & (1 << id) == 0 {
            if id < self.newest[key] {
                self.harm = Some(Harm::OutOfOrder);
            }
            self.newest[key] = self.newest[key].max(id);
        }
        if self.database.committed & (1 << id) == 0 {
            self.harm = Some(Harm::Uncommitted);
        }
        self.published |= 1 << id;
    }

    pub(super) fn refuse(&mut self, r: usize) {
        self.left.refusals -= 1;
        let term = self.relays[r].term();
        term.refused = term.held.pop_front();
        if let Some((_, id)) = term.refused {
            self.placeless |= 1 << id;
        }
    }

    pub(super) fn delete(&mut self, scene: &Scene, r: usize) {
        for (number, id) in std::mem::take(&mut self.relays[r].term().confirmed) {
            let gone = self.database.remove(number, id, scene.has(Flaw::DeleteByNumber));
            if gone.is_some_and(|id| self.published & (1 << id) == 0) {
                self.harm = Some(Harm::Lost);
            }
        }
    }

    pub(super) fn bury(&mut self, scene: &Scene, r: usize) {
        let term = self.relays[r].term();
        let (token, Some((number, id))) = (term.token, term.refused.take()) else { return };
        if !self.database.is_owner(r, token) && !scene.has(Flaw::NoFence) {
            self.relays[r].stop();
            return;
        }
        if self.database.remove(number, id, false).is_none() {
            return;
        }
        self.database.dead.push(id);
        let owner = self.database.lease.owner.filter(|owner| *owner != r);
        let of_owner = owner.and_then(|owner| self.relays[owner].term.as_ref());
        if of_owner.is_some_and(|term| self.database.is_owner(owner.unwrap_or(r), term.token) && term.has(id))
        {
            self.harm = Some(Harm::BuriedByStranger);
        }
    }
}
