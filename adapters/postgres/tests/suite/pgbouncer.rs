//! A PgBouncer of its own for a test, in front of the tests' PostgreSQL.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use url::Url;

/// Ends with the test.
pub(crate) struct PgBouncer {
    pub(crate) url: String,
    pub(crate) knows_prepared_statements: bool,
    process: Child,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one in that `pool_mode`, and waits until it listens.
    pub(crate) async fn start(mode: &str) -> Self {
        let program = PathBuf::from(std::env::var_os("BACKSTOP_TEST_PGBOUNCER").expect(
            "BACKSTOP_TEST_PGBOUNCER is not set; install pgbouncer and run: eval \"$(tests/servers env)\"",
        ));
        let knows_prepared_statements = knows_prepared_statements(&program);
        let mut url = Url::parse(&crate::support::url()).expect("a URL");
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pgbouncer.ini");
        let prepared = if knows_prepared_statements { "max_prepared_statements = 100\n" } else { "" };
        let ini = format!(
            "[databases]\n* = host={} port={} user={} password={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
             ignore_startup_parameters = extra_float_digits,options\n{prepared}",
            url.host_str().expect("a host"),
            url.port().unwrap_or(5432),
            url.username(),
            url.password().unwrap_or_default(),
        );
        std::fs::write(&file, ini).expect("written");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("readable");
        let mut command = Command::new(program);
        // It refuses to run as root.
        if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
            command.args(["-u", "nobody"]);
        }
        let process =
            command.arg(&file).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("PgBouncer");
        url.set_port(Some(port)).expect("a URL with a host");
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { url: url.into(), knows_prepared_statements, process, _folder: folder }
    }
}

fn knows_prepared_statements(program: &PathBuf) -> bool {
    let told = Command::new(program).arg("--version").output().expect("PgBouncer");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let version = told.split_whitespace().nth(1).expect("a version");
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(21))
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
