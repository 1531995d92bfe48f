//! Transactions that write to the outbox, step by step.

use super::database::Row;
use super::{Flaw, Scene, Step, World};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Writer {
    /// Between transactions, of which so many are left.
    Idle {
        left: u8,
    },
    Open(Open),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Open {
    left: u8,
    /// Holds a lock on the outbox.
    locked: bool,
    /// Taken, and not written yet.
    number: Option<i64>,
    /// Has a transaction id.
    pub(super) xid: bool,
    prepared: bool,
}

impl Writer {
    /// The connection breaks. What is prepared is lost with the server that takes over.
    pub(super) fn break_off(&mut self) {
        if let Self::Open(open) = self {
            *self = Self::Idle { left: open.left };
        }
    }

    fn open(&mut self) -> &mut Open {
        match self {
            Self::Open(open) => open,
            Self::Idle { .. } => unreachable!("only what is open goes on"),
        }
    }
}

impl World {
    pub(super) fn steps_of_writer(&self, scene: &Scene, w: usize, steps: &mut Vec<Step>) {
        let open = match &self.writers[w] {
            Writer::Idle { left } => {
                let more = *left > 0 && self.database.last < scene.numbers;
                if more && !self.is_key_locked(scene, scene.writers[w]) {
                    steps.push(Step::Begin(w));
                }
                return;
            }
            Writer::Open(open) => open,
        };
        let more = self.database.last < scene.numbers && open.number.is_none() && !open.prepared;
        if more && open.locked {
            steps.push(Step::Number(w));
        }
        if more && !open.locked && !scene.has(Flaw::NumbersAhead) {
            steps.push(Step::Lock(w));
        }
        if scene.has(Flaw::NumbersAhead) && !open.locked {
            steps.push(if open.number.is_some() { Step::Lock(w) } else { Step::Number(w) });
        }
        if open.locked && open.number.is_some() {
            steps.push(Step::Insert(w));
        }
        if scene.savepoints && open.locked && !open.prepared {
            steps.push(Step::RollbackTo(w));
        }
        let between = open.number.is_none();
        if scene.prepared && between && open.xid && !open.prepared {
            steps.push(Step::Prepare(w));
        }
        if between && open.xid {
            steps.push(Step::Commit(w));
        }
        // A transaction that does nothing might as well not begin.
        if !between || open.xid || !more {
            steps.push(Step::Rollback(w));
        }
    }

    /// Whether another transaction has the row that the writers of the key share.
    fn is_key_locked(&self, scene: &Scene, key: u8) -> bool {
        let mut others = self.writers.iter().zip(&scene.writers);
        others.any(|(writer, other)| *other == key && matches!(writer, Writer::Open(_)))
    }

    pub(super) fn begin(&mut self, scene: &Scene, w: usize) {
        if let Writer::Idle { left } = self.writers[w] {
            let locked = !scene.has(Flaw::NumbersAhead);
            self.writers[w] = Writer::Open(Open { left: left - 1, locked, ..Open::default() });
        }
    }

    pub(super) fn lock(&mut self, w: usize) {
        self.writers[w].open().locked = true;
    }

    pub(super) fn number(&mut self, scene: &Scene, w: usize) {
        self.database.last += 1;
        self.writers[w].open().number = Some(self.database.last);
        if !scene.inserts_apart() {
            self.insert(scene, w);
        }
    }

    pub(super) fn insert(&mut self, scene: &Scene, w: usize) {
        let open = self.writers[w].open();
        open.xid = true;
        if let Some(number) = open.number.take() {
            let id = self.database.id(number, scene.writers[w]);
            self.database.rows.insert(number, Row { id, of: Some(w) });
        }
    }

    pub(super) fn rollback_to(&mut self, w: usize) {
        let open = self.writers[w].open();
        (open.locked, open.number) = (false, None);
        self.database.rows.retain(|_, row| row.of != Some(w));
    }

    pub(super) fn prepare(&mut self, w: usize) {
        self.writers[w].open().prepared = true;
    }

    pub(super) fn commit(&mut self, w: usize) {
        for row in self.database.rows.values_mut().filter(|row| row.of == Some(w)) {
            row.of = None;
            self.database.committed |= 1 << row.id;
        }
        self.writers[w].break_off();
    }

    pub(super) fn rollback(&mut self, w: usize) {
        self.database.rows.retain(|_, row| row.of != Some(w));
        self.writers[w].break_off();
    }

    /// Who holds a lock on the outbox, by name. After a restart a prepared transaction has another name: a model in
    /// which each gets it at once tries that, too.
    pub(super) fn holders(&self, scene: &Scene) -> Vec<String> {
        let mut holders = Vec::new();
        for (w, writer) in self.writers.iter().enumerate() {
            let Writer::Open(open) = writer else { continue };
            let holds = if scene.has(Flaw::GapsByXmin) { open.xid } else { open.locked };
            if holds {
                holders.push(match open.prepared {
                    false => format!("{w}/{}", open.left),
                    true if scene.has(Flaw::NewNames) => format!("7/{w}{}", open.left),
                    true => format!("-1/{w}{}", open.left),
                });
            }
        }
        holders
    }
}
