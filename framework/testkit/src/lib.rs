//! In-memory adapter, conformance suite, fault points and ledger oracle for adapters and applications
