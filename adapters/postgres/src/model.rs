//! Every order of steps that a few writers and relays can take, tried out.
//!
//! The reader's own [`Progress`](crate::progress::Progress) runs inside: what it keeps and decides is the code that is
//! shipped. Around it are the server as the reader's statements see it ([`database`]), writers that take each step of a
//! transaction apart ([`writer`]) and relays that read, publish, delete and bury, and may stop between any two of those
//! ([`relay`]). The [`rules`] are what the outbox promises. A [`Flaw`] replaces one decision of the design by another
//! that looks as good; each is caught, with a short way to the harm.
//!
//! Left out: the queue inside a publisher (publishing is one step, and a relay that stopped in between is one that
//! publishes late); reading again after a pause; the merging of gaps beyond ten thousand.

mod database;
mod relay;
mod rules;
mod tests;
mod writer;

use std::hash::Hash;

use stateright::{Model, Property};

use database::Database;
use relay::Relay;
use writer::Writer;

/// A decision of the design, replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Reading goes on at the highest number that was read.
    BareCursor,
    /// A gap waits for transactions that have an id, as a snapshot's `xmin` does.
    GapsByXmin,
    /// A gap waits for those who held locks before the read that showed it.
    HoldersBefore,
    /// Reads see what is not committed.
    DirtyRead,
    /// Burials do not look at the lease.
    NoFence,
    /// Both relays read, each what the other has not locked.
    SkipLocked,
    /// Confirmed rows are deleted by number alone.
    DeleteByNumber,
    /// A new owner reads on where it stood when it was the owner before.
    NoReset,
    /// A server that took over is known by its sequence alone, if that stands lower.
    ServerBySequence,
    /// A prepared transaction that comes back under another name is taken for a new one.
    NewNames,
    /// Writers take numbers before they hold a lock: not a flaw of the reader, but what its contract forbids.
    NumbersAhead,
}

/// What happens, and how often at most.
#[derive(Debug, Clone)]
struct Scene {
    flaw: Option<Flaw>,
    /// The key of each writer's rows. Those of one key serialise.
    writers: Vec<u8>,
    /// Transactions of each writer.
    transactions: u8,
    /// Numbers that the sequence gives, on each server.
    numbers: i64,
    relays: usize,
    /// Rows of one read.
    limit: usize,
    /// Whether the reader may read the sequence.
    sequence: bool,
    savepoints: bool,
    prepared: bool,
    /// Whether rows that are published stay for a while.
    deletes_apart: bool,
    /// Leases that run out.
    expiries: u8,
    /// Relays that die.
    crashes: u8,
    /// Rows that are refused by the broker.
    refusals: u8,
    /// Servers that are lost, and replaced by one that lags behind.
    failovers: u8,
}

impl Scene {
    /// One relay that never fails, and writers with these keys.
    fn claiming(writers: &[u8], numbers: i64) -> Self {
        Self {
            flaw: None,
            writers: writers.to_vec(),
            transactions: 1,
            numbers,
            relays: 1,
            limit: 16,
            sequence: true,
            savepoints: false,
            prepared: false,
            deletes_apart: false,
            expiries: 0,
            crashes: 0,
            refusals: 0,
            failovers: 0,
        }
    }

    fn with(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }

    /// Whether it makes a difference that a number is taken and the row not written. Nobody sees the row before it is
    /// committed, so only to who looks at transaction ids.
    fn inserts_apart(&self) -> bool {
        matches!(self.flaw, Some(Flaw::GapsByXmin | Flaw::NumbersAhead))
    }

    /// Whether it makes a difference that a row is read and not published: not while the relay goes on for ever.
    fn publishes_apart(&self) -> bool {
        self.expiries + self.crashes + self.refusals + self.failovers > 0 || self.has(Flaw::SkipLocked)
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

/// A harm that cannot be told from a state alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Harm {
    /// A committed row is gone, and was not published.
    Lost,
    /// A row came before an earlier one of its key.
    OutOfOrder,
    /// A row was published, and its transaction had not committed.
    Uncommitted,
    /// A row was buried by one relay, while another is the owner and has it in hand.
    BuriedByStranger,
}

/// A moment of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    database: Database,
    writers: Vec<Writer>,
    relays: Vec<Relay>,
    /// Ids that were published, as bits.
    published: u64,
    /// Ids whose place in the order does not count, as bits: the broker refused them once, or the server that took over
    /// lacks them, and a relay that has them in hand may publish them yet.
    placeless: u64,
    /// The highest id of each key among first publications.
    newest: [u8; 2],
    harm: Option<Harm>,
    left: Left,
}

/// What may still happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Left {
    expiries: u8,
    crashes: u8,
    refusals: u8,
    failovers: u8,
}

/// What happens next, to the writer or relay of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Begins, locks what is shared by the writers of its key, and then the outbox, which an INSERT does first.
    Begin(usize),
    /// Locks the outbox again after a savepoint that was rolled back to.
    Lock(usize),
    /// Takes a number, which an INSERT does next; and writes the row, unless that is a step.
    Number(usize),
    /// Gets a transaction id if it has none, and writes the row.
    Insert(usize),
    /// Goes back to a savepoint before the first INSERT.
    RollbackTo(usize),
    Prepare(usize),
    Commit(usize),
    Rollback(usize),
    /// Takes the lease, and begins at the lowest row.
    Acquire(usize),
    /// Reads the sequence and the locks.
    Look(usize),
    Read(usize),
    Publish(usize),
    /// The broker refuses a row for good.
    Refuse(usize),
    Delete(usize),
    Bury(usize),
    /// Finds out that the lease is lost.
    Notice(usize),
    Crash(usize),
    /// The lease runs out.
    Expire,
    /// A server takes over that has seen the numbers up to this one, and perhaps not the last change of the lease.
    Failover {
        last: i64,
        lease: bool,
    },
}

impl Model for Scene {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            database: Database::default(),
            writers: vec![Writer::Idle { left: self.transactions }; self.writers.len()],
            relays: vec![Relay::default(); self.relays],
            published: 0,
            placeless: 0,
            newest: [0; 2],
            harm: None,
            left: Left {
                expiries: self.expiries,
                crashes: self.crashes,
                refusals: self.refusals,
                failovers: self.failovers,
            },
        };
        match self.flaw {
            Some(Flaw::SkipLocked) => world.relays.fill(Relay::worker()),
            _ => world.acquire(self, 0),
        }
        vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for writer in 0..world.writers.len() {
            world.steps_of_writer(self, writer, steps);
        }
        for relay in 0..world.relays.len() {
            world.steps_of_relay(self, relay, steps);
        }
        if world.left.expiries > 0 && world.database.lease.live {
            steps.push(Step::Expire);
        }
        if world.left.failovers > 0 {
            for last in 0..=world.database.last {
                steps.push(Step::Failover { last, lease: true });
                steps.push(Step::Failover { last, lease: false });
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(self, step);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        rules::all()
    }
}

impl World {
    fn take(&mut self, scene: &Scene, step: Step) {
        match step {
            Step::Begin(w) => self.begin(scene, w),
            Step::Lock(w) => self.lock(w),
            Step::Number(w) => self.number(scene, w),
            Step::Insert(w) => self.insert(scene, w),
            Step::RollbackTo(w) => self.rollback_to(w),
            Step::Prepare(w) => self.prepare(w),
            Step::Commit(w) => self.commit(w),
            Step::Rollback(w) => self.rollback(w),
            Step::Acquire(r) => self.acquire(scene, r),
            Step::Look(r) => self.look(scene, r),
            Step::Read(r) => self.read(scene, r),
            Step::Publish(r) => self.publish(r),
            Step::Refuse(r) => self.refuse(r),
            Step::Delete(r) => self.delete(scene, r),
            Step::Bury(r) => self.bury(scene, r),
            Step::Notice(r) => self.relays[r].stop(),
            Step::Crash(r) => {
                self.left.crashes -= 1;
                self.relays[r].stop();
            }
            Step::Expire => {
                self.left.expiries -= 1;
                self.database.lease.live = false;
            }
            Step::Failover { last, lease } => self.fail_over(last, lease),
        }
    }

    /// Another server goes on. Connections break: transactions end, a read that is under way fails, and its reader
    /// begins again. Nobody else need notice.
    fn fail_over(&mut self, last: i64, lease: bool) {
        self.left.failovers -= 1;
        self.writers.iter_mut().for_each(Writer::break_off);
        let lost = self.database.visible(false).filter(|(number, _)| *number > last);
        self.placeless |= lost.fold(0, |bits, (_, id)| bits | 1 << id);
        self.database.fail_over(last, lease);
        self.relays.iter_mut().for_each(Relay::break_off);
    }
}
