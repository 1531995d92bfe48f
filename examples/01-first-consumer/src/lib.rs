//! The first consumer
