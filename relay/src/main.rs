//! Drains a transactional outbox into a broker, collects dead letters and redrives them.

use std::process::ExitCode;

/// For the driver of Kafka too, through `malloc`: it allocates several times for each message, and another thread frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    backstop_relay::start(std::env::args_os())
}
