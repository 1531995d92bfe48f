//! What hostile peers and rows may do to a relay.
//!
//! `docs/reference/security.md` lists the cases and the tests that show them; their names begin with the case's number,
//! here and in every crate. `list` holds the cases themselves.

mod impostors;
mod list;
mod lock;
mod page;
mod rows;
mod wire;
