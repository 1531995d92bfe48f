//! A child process that dies at a crash point.

use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// The variable that names the crash point: `name`, or `name:3` for the third pass.
pub const CRASH_AT: &str = "BACKSTOP_CRASH_AT";

/// Why a child did not die where it was to.
#[derive(Debug)]
pub enum CrashError {
    /// It could not be started or waited for.
    Io(io::Error),
    /// It ended otherwise, or died elsewhere; with the end of what it wrote to standard error.
    EndedOtherwise(ExitStatus, String),
    /// It was still running after the limit, and was killed.
    StillRunning(Duration),
}

impl fmt::Display for CrashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("the child process could not be run"),
            Self::EndedOtherwise(status, stderr) => {
                write!(f, "the child process did not die at its crash point: {status}\n{stderr}")
            }
            Self::StillRunning(limit) => write!(f, "the child process was still running after {limit:?}"),
        }
    }
}

impl std::error::Error for CrashError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::EndedOtherwise(..) | Self::StillRunning(_) => None,
        }
    }
}

/// Runs `command` with the crash point set, until it dies there.
///
/// The program must be built with the feature `crash-points` of `backstop-core`. Its standard error is read here;
/// the child is killed when the returned future is dropped.
///
/// # Errors
/// When it does not die at that point within `limit`.
pub async fn run_until_crash(mut command: Command, point: &str, limit: Duration) -> Result<(), CrashError> {
    command.env(CRASH_AT, point).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(CrashError::Io)?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| CrashError::StillRunning(limit))?
        .map_err(CrashError::Io)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let name = point.split_once(':').map_or(point, |(name, _)| name);
    let announced = stderr.lines().any(|line| line.strip_prefix("crash point ") == Some(name));
    if announced && !output.status.success() {
        return Ok(());
    }
    let last: Vec<&str> = stderr.lines().rev().take(20).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(CrashError::EndedOtherwise(output.status, last.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_child_that_dies_at_its_point_is_recognised() {
        let script = r#"echo "crash point ${BACKSTOP_CRASH_AT%:*}" >&2; kill -ABRT $$"#;
        run_until_crash(shell(script), "relay.published:2", LIMIT).await.expect("it died there");
    }

    #[tokio::test]
    async fn a_child_that_ends_otherwise_is_told() {
        for script in ["echo fine >&2", "echo other >&2; kill -ABRT $$", "echo 'crash point b' >&2; exit 1"] {
            let error = run_until_crash(shell(script), "a", LIMIT).await.expect_err("it did not die there");
            assert!(matches!(error, CrashError::EndedOtherwise(..)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_child_that_goes_on_is_killed() {
        let limit = Duration::from_millis(50);
        let error = run_until_crash(shell("exec sleep 60"), "a", limit).await.expect_err("it goes on");
        assert!(matches!(error, CrashError::StillRunning(_)), "{error}");
    }
}
