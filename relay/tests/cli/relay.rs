//! Runs the built program in a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A directory with a configuration file `relay.toml`.
pub(crate) struct Relay {
    directory: TempDir,
    env: Vec<(String, String)>,
}

/// What a run printed, and its exit code.
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl Ran {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The two lines of standard error.
    #[track_caller]
    pub(crate) fn lines(&self) -> [&str; 2] {
        let lines: Vec<&str> = self.stderr.lines().collect();
        lines.try_into().unwrap_or_else(|_| panic!("two lines expected: {}", self.stderr))
    }
}

impl Relay {
    pub(crate) fn new(config: &str) -> Self {
        let relay = Self { directory: tempfile::tempdir().expect("a directory"), env: Vec::new() };
        relay.write("relay.toml", config);
        relay
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).expect("written");
    }

    pub(crate) fn with_env(&self, name: &str, value: &str) -> Self {
        let copy = Self::new("");
        for entry in std::fs::read_dir(self.directory.path()).expect("readable").flatten() {
            std::fs::copy(entry.path(), copy.directory.path().join(entry.file_name())).expect("copied");
        }
        let env = self.env.iter().cloned().chain([(name.to_owned(), value.to_owned())]).collect();
        Self { env, ..copy }
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstop-relay"));
        command.args(args.split_whitespace()).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env_remove("BACKSTOP_LOG").env("BACKSTOP_CONFIG", "relay.toml");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, args: &str) -> Ran {
        let output = self.command(args).output().expect("started");
        Ran {
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
            code: output.status.code().expect("an exit code"),
        }
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it, for `while_running` to look on, and ends it by SIGTERM.
    pub(crate) fn run_while(&self, args: &str, while_running: impl FnOnce()) -> Ran {
        let child =
            self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let pid = child.id().to_string();
        // Read meanwhile, lest it waits for somebody to read.
        let output = std::thread::spawn(move || child.wait_with_output().expect("ended"));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(while_running));
        let sent = Command::new("kill").args(["-s", "TERM", &pid]).status();
        let output = output.join().expect("no panic");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        if let Err(panic) = seen {
            eprintln!("{stderr}");
            std::panic::resume_unwind(panic);
        }
        assert!(sent.expect("kill").success(), "it had ended: {stderr}");
        Ran { stdout, stderr, code: output.status.code().expect("an exit code") }
    }

    /// Runs it until a line of standard error holds `mark`, sends the signal, and waits for its end.
    pub(crate) fn run_until(&self, args: &str, mark: &str, signal: &str) -> Ran {
        let mut child =
            self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut stderr = String::new();
        while !stderr.contains(mark) {
            let read = log.read_line(&mut stderr).expect("readable");
            assert!(read > 0, "it ended without {mark:?}: {stderr}");
        }
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
        log.read_to_string(&mut stderr).expect("readable");
        let output = child.wait_with_output().expect("ended");
        let stdout = String::from_utf8(output.stdout).expect("UTF-8");
        Ran { stdout, stderr, code: output.status.code().expect("an exit code") }
    }
}

/// A name that no other test has.
pub(crate) fn unique() -> String {
    format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

pub(crate) fn postgres() -> String {
    required("BACKSTOP_TEST_POSTGRES_URL")
}

pub(crate) fn mysql() -> String {
    required("BACKSTOP_TEST_MYSQL_URL")
}

pub(crate) fn amqp() -> String {
    required("BACKSTOP_TEST_AMQP_URL")
}

pub(crate) fn kafka() -> String {
    required("BACKSTOP_TEST_KAFKA")
}

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run: eval \"$(tests/servers env)\""))
}
