//! What may break around a running relay, each with the oracle at its end.
//!
//! `docs/reference/faults.md` lists which test shows which fault, here and elsewhere; `list` and `consumers` hold the faults themselves. These tests stop,
//! kill and misconfigure the servers that `tests/servers` runs, so nothing else may use those meanwhile.

mod alarms;
mod consumers;
mod credentials;
mod links;
mod list;
mod outages;
mod page;
mod pauses;
mod permissions;
mod restarts;
mod soak;
mod sqlite;
