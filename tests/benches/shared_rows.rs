//! Handlers of different keys that write the same rows under group commit, beside handlers whose rows are their own, and
//! beside a transaction for each message.
//!
//! Rows stay locked until the whole group commits. Even where every message takes its rows in the same order a group
//! does not, so that deadlocks are part of what is measured, and what the consumer does about them; where messages do not,
//! they meet without groups too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use backstop::{Delivery, GroupCommit, Handler, HandlerError};
use backstop_postgres::PgTx;

use crate::consumer::{Began, CREDIT, Work, check_order, create_account, handle_all, source};
use crate::event::{self, KEYS};
use crate::grouped::GROUP;
use crate::report::{Figure, median};
use crate::servers::unique;
use crate::{Bench, Outcome, kafka};

/// Accounts that all keys share.
const SHARED: usize = 20;

/// Whose rows are written.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// The one of the message's key, twice.
    Own,
    /// Two that others write too, the lower one first.
    Rising,
    /// Two that others write too.
    AnyOrder,
}

/// How rows are shared, and what share of the messages single transactions are tried with: the server takes a second to
/// notice a deadlock, and in any order there are few messages between two of them.
const SHARING: [(Rows, &str, usize); 2] =
    [(Rows::Rising, "in rising order", 1), (Rows::AnyOrder, "in any order", 100)];

impl Rows {
    /// The accounts that a message is for, in the order in which they are written.
    fn of(self, n: usize) -> [usize; 2] {
        let mut random = fastrand::Rng::with_seed(n as u64);
        let (one, further) = (random.usize(..SHARED), random.usize(1..SHARED));
        let other = (one + further) % SHARED;
        match self {
            Self::Own => [n % KEYS; 2],
            Self::Rising => [one.min(other), one.max(other)],
            Self::AnyOrder => [one, other],
        }
    }
}

/// Measures all of it, round by round.
pub(crate) async fn run(bench: &mut Bench) -> Outcome<()> {
    create_account(bench).await?;
    let (all, rounds) = (bench.sizes.shared, bench.sizes.rounds);
    let (mut own, mut shared): (Vec<f64>, [[Vec<f64>; 2]; 2]) = Default::default();
    for round in 1..=rounds {
        eprintln!("shared rows, round {round} of {rounds}");
        own.push(consume(bench, all, Rows::Own, GROUP).await?);
        for ((rows, _, part), [single, grouped]) in SHARING.into_iter().zip(&mut shared) {
            single.push(consume(bench, all.div_ceil(part), rows, 1).await?);
            grouped.push(consume(bench, all, rows, GROUP).await?);
        }
    }
    let own = median(&own);
    bench.push(Figure::new("group commit, two updates of an own row", own, "messages/s"));
    for ((_, name, _), rates) in SHARING.into_iter().zip(shared) {
        let [single, grouped] = rates.map(|rates| median(&rates));
        let name = format!("group commit, two of {SHARED} rows {name}");
        let grouped = Figure::new(name, grouped, "messages/s");
        bench.push(grouped.clone().beside("one transaction each", single));
        bench.push(grouped.beside("own rows", own).ratio_at_least(0.5));
    }
    Ok(())
}

/// Adds one to both accounts of the message.
struct CreditBoth {
    rows: Rows,
    began: Began,
}

impl Handler<PgTx> for CreditBoth {
    type Message = event::Body;

    async fn handle(&self, delivery: &Delivery<event::Body>, tx: &mut PgTx) -> Result<(), HandlerError> {
        self.began.get_or_init(Instant::now);
        for account in self.rows.of(delivery.body().number()?) {
            sqlx::query(CREDIT).bind(event::key(account)).execute(&mut **tx).await?;
        }
        Ok(())
    }
}

/// The consumer reads a whole topic, with so many messages in one transaction at most; messages a second.
async fn consume(bench: &Bench, messages: usize, rows: Rows, group: usize) -> Outcome<f64> {
    let topic = unique("shared");
    kafka::create_topic(&bench.servers, &topic).await?;
    kafka::produce(&bench.servers, &topic, messages).await?;
    let work = Work { groups: GroupCommit::up_to(group), ..Work::of(messages) };
    let began = Began::default();
    let handler = CreditBoth { rows, began: Arc::clone(&began) };
    let rate = handle_all(bench, source(bench, &topic), handler, &began, work).await?;
    kafka::delete_topics(&bench.servers, &[&topic]).await?;
    check_sums(bench, messages, rows).await?;
    check_order(bench, messages).await?;
    Ok(rate)
}

/// Every account has got what its messages say.
async fn check_sums(bench: &Bench, messages: usize, rows: Rows) -> Outcome<()> {
    let mut expected = vec![0; KEYS];
    (0..messages).flat_map(|n| rows.of(n)).for_each(|account| expected[account] += 1);
    let found: Vec<(String, i64)> =
        sqlx::query_as("SELECT key, n FROM account").fetch_all(&bench.database.pool).await?;
    let sums: HashMap<String, i64> = found.into_iter().collect();
    let wrong = (0..KEYS).filter(|account| sums.get(&event::key(*account)) != Some(&expected[*account]));
    match wrong.count() {
        0 => Ok(()),
        wrong => Err(format!("{wrong} accounts do not have what their messages say").into()),
    }
}
