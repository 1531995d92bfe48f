//! Backlogs that a running relay finds from one moment to the next.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::database::Database;
use crate::outbox::{Backlog, Outbox as _};

/// Commits rows at once; how long a relay that runs takes for them.
pub(crate) async fn wave(database: &Database, backlog: &Backlog) -> Outcome<Duration> {
    database.fill(backlog).await?;
    let committed = Instant::now();
    database.gone(database.last_seq().await?).await?;
    Ok(committed.elapsed())
}

/// Rows a second of those who took so long for `rows` each.
pub(crate) fn rate(rows: usize, taken: &[Duration]) -> f64 {
    (rows * taken.len()) as f64 / taken.iter().map(Duration::as_secs_f64).sum::<f64>()
}
