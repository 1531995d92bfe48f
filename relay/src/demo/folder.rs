//! Where the demo keeps its database and the relay's configuration.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use url::Url;

use crate::demo::payments::{CONSUMER, RECEIPTS};
use crate::exit::{Exit, Failure};

const DATABASE: &str = "shop.sqlite";
const CONFIG: &str = "relay.toml";

/// A folder, temporary unless somebody named one.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
}

impl Folder {
    /// Makes the folder, and an empty database file in it that nobody had before.
    pub(super) fn make(named: Option<&Path>) -> Result<Self, Failure> {
        let (path, temporary) = match named {
            Some(path) => {
                fs::create_dir_all(path).map_err(|error| unusable(path, &error))?;
                (path.to_owned(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("backstop-demo-").tempdir();
                let made = made.map_err(|error| unusable(&std::env::temp_dir(), &error))?;
                (made.path().to_owned(), Some(made))
            }
        };
        let path = path.canonicalize().map_err(|error| unusable(&path, &error))?;
        let folder = Self { path, temporary };
        let file = folder.database();
        OpenOptions::new().write(true).create_new(true).open(&file).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::new(
                Exit::Usage,
                format!("{} is there already, from an earlier demo", file.display()),
                "name another folder, or remove this one",
            ),
            _ => unusable(&file, &error),
        })?;
        Ok(folder)
    }

    /// Whether it goes away when all is well.
    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// The SQLite file.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// The relay's configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Writes the relay's configuration, as an operator would.
    pub(super) fn configure(
        &self,
        brokers: &str,
        letters: &str,
        console: Option<SocketAddr>,
    ) -> Result<(), Failure> {
        let file = self.config();
        // Nothing of the demo opens its consumer's breaker: the rule is there to be looked at.
        let lively = console.map(|address| {
            format!(
                "\n[[dead_letters.rules]]\nname = \"payments-back\"\nafter = \"breaker-closed\"\nconsumer = \"{CONSUMER}\"\n\n\
                 [http]\nlisten = \"{address}\"\n"
            )
        });
        let lively = lively.unwrap_or_default();
        let text = format!(
            "# The relay of the demo. Its broker lived in the demo's process; the database has everything else.\n\
             [database]\nurl = \"sqlite://{}\"\n\n\
             [broker]\nkind = \"kafka\"\nbrokers = [\"{brokers}\"]\n\n\
             [dead_letters]\nenabled = true\nsources = [\"{letters}\"]\nreceipts = [\"{RECEIPTS}\"]\n{lively}",
            self.url_path()?
        );
        fs::write(&file, text).map_err(|error| unusable(&file, &error))
    }

    /// The database's path as a URL has it, with the dollar signs that the configuration would read as variables.
    fn url_path(&self) -> Result<String, Failure> {
        let url = Url::from_file_path(self.database()).map_err(|()| {
            let what = format!("{} is no absolute path", self.path.display());
            Failure::new(Exit::Usage, what, "name another folder")
        })?;
        Ok(url.path().replace('$', "$$"))
    }

    /// Lets a temporary folder stay.
    pub(super) fn keep(self) {
        if let Some(temporary) = self.temporary {
            let _path = temporary.keep();
        }
    }
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the demo cannot use {}: {error}", path.display()),
        "name a folder that can be written to with --folder",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn odd_names_survive_the_configuration() {
        let outer = tempfile::tempdir().expect("a directory");
        let folder = Folder::make(Some(&outer.path().join("a $b \"c\" ?d#e%20"))).expect("made");
        folder.configure("127.0.0.1:1", "orders.payments.dlq", None).expect("written");
        let config = Config::load(&folder.config(), &crate::config::Environment::default()).expect("sound");
        let options = backstop_sqlite::options(config.database.url.expose()).expect("a URL");
        assert_eq!(options.get_filename(), folder.database());
    }

    #[test]
    fn a_database_that_is_there_is_left_alone() {
        let outer = tempfile::tempdir().expect("a directory");
        Folder::make(Some(outer.path())).expect("made").keep();
        let failure = Folder::make(Some(outer.path())).expect_err("refused");
        assert_eq!(failure.exit(), Exit::Usage);
    }
}
