//! The consumer loop: inbox dedup, retries per error class, quarantine and settling around your handler
