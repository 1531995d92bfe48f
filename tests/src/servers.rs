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

/// Runs `tests/servers` without keeping the test's own tasks from their work.
///
/// # Panics
/// When it fails.
pub async fn controlled(arguments: &'static [&'static str]) {
    tokio::task::spawn_blocking(|| control(arguments)).await.expect("it does not panic");
}

/// A turn at the servers, until it is dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "its lock ends with it")] std::fs::File);

/// Waits until no test has the servers for itself. For tests that need them to be left alone.
///
/// # Panics
/// When no file can be locked.
pub async fn together() -> Turn {
    turn(std::fs::File::lock_shared).await
}

/// Waits until no other test is at the servers, and keeps it so. For tests that stop them or make them misbehave.
///
/// # Panics
/// When no file can be locked.
pub async fn alone() -> Turn {
    turn(std::fs::File::lock).await
}

/// The lock is a file beside the script, so that it counts for tests in other processes, too.
async fn turn(lock: fn(&std::fs::File) -> std::io::Result<()>) -> Turn {
    let script = required("BACKSTOP_TEST_SERVERS");
    let locking = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(script)?;
        lock(&file)?;
        Ok::<_, std::io::Error>(file)
    });
    Turn(locking.await.expect("locking does not panic").expect("the script can be locked"))
}
