//! Drains a transactional outbox into a broker, collects dead letters and redrives them.

use std::process::ExitCode;

fn main() -> ExitCode {
    backstop_relay::start(std::env::args_os())
}
