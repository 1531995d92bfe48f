//! The servers that `tests/servers` brings up.

/// A setting that `tests/servers env` prints.
///
/// # Panics
/// When it is not set: a test whose server is missing fails, it does not skip.
pub fn required(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set; run: eval \"$(tests/servers env)\""),
    }
}

/// URL of PostgreSQL.
pub fn postgres_url() -> String {
    required("BACKSTOP_TEST_POSTGRES_URL")
}

/// Bootstrap servers of Kafka.
pub fn kafka() -> String {
    required("BACKSTOP_TEST_KAFKA")
}

/// URL of RabbitMQ.
pub fn amqp_url() -> String {
    required("BACKSTOP_TEST_AMQP_URL")
}

/// A name that no other test has.
pub fn unique(stem: &str) -> String {
    format!("{stem}-{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// Runs `tests/servers` with these arguments.
///
/// # Panics
/// When it fails.
pub fn control(arguments: &[&str]) {
    let script = required("BACKSTOP_TEST_SERVERS");
    let output =
        std::process::Command::new(&script).args(arguments).output().expect("the script can be started");
    assert!(
        output.status.success(),
        "{script} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
