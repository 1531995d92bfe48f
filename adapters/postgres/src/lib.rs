//! Outbox, inbox, held messages and dead-letter ledger on postgres
