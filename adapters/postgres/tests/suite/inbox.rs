//! The inbox and held messages: one transaction for each message, one effect, kept order.

mod chain;
mod commit;
mod held;
