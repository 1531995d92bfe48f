//! The adapter on real files: what each part promises, and what would break it.

mod commit;
mod common;
mod held;
mod ledger;
mod ledger_at_scale;
mod outbox;
mod schema;
mod trial;
