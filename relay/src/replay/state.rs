//! How far a replay has come, and the file that remembers it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Target;

/// Largest file that is read.
const MAX_FILE: u64 = 4 << 20;

/// How far a replay has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The replay's id: part of the identities that it gives to messages.
    pub id: String,
    /// The topic that is read.
    pub topic: String,
    /// Where its messages go.
    pub target: Target,
    /// Messages that were sent.
    pub sent: u64,
    /// Offsets of each partition that are still to be read; an empty range is done.
    pub left: BTreeMap<i32, Range<i64>>,
}

impl State {
    pub(super) fn new(topic: &str, target: Target, left: BTreeMap<i32, Range<i64>>) -> Self {
        Self { id: Uuid::now_v7().to_string(), topic: topic.to_owned(), target, sent: 0, left }
    }

    /// Messages that are still to be sent, at most.
    pub fn messages_left(&self) -> u64 {
        self.left.values().map(|range| u64::try_from(range.end - range.start).unwrap_or(0)).sum()
    }
}

/// A file with the state of one replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile(PathBuf);

impl StateFile {
    /// The file of that name, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it holds; `None` where there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub fn read(&self) -> io::Result<Option<State>> {
        let length = match fs::metadata(&self.0) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > MAX_FILE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is too large for the state of a replay",
            ));
        }
        let state: State = serde_json::from_str(&fs::read_to_string(&self.0)?)?;
        if state.left.values().any(|range| range.start < 0 || range.end < range.start) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its offsets are none"));
        }
        Ok(Some(state))
    }

    /// Replaces what it holds, whole or not at all.
    pub(super) fn write(&self, state: &State) -> io::Result<()> {
        let mut beside = self.0.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_data()?;
        fs::rename(&beside, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let target = Target::Door { group: "stock".into(), again: true };
        let mut state = State::new("orders", target, BTreeMap::from([(0, 3..9), (1, 4..4)]));
        state.sent = 7;
        state
    }

    #[test]
    fn a_state_survives_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = StateFile::new(folder.path().join("replay.json"));
        assert_eq!(file.read().expect("read"), None);
        for _ in 0..2 {
            file.write(&state()).expect("written");
        }
        let read = file.read().expect("read").expect("there");
        assert_eq!((read.messages_left(), read.sent, read.left), (6, 7, state().left));
    }

    #[test]
    fn a_file_that_holds_something_else_is_not_taken_for_an_empty_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("replay.json");
        let backwards = serde_json::to_string(&state()).expect("JSON").replace("\"start\":3", "\"start\":30");
        for text in ["", "{}", "{\"id\":1}", &backwards] {
            fs::write(&path, text).expect("written");
            assert!(StateFile::new(&path).read().is_err(), "{text:?}");
        }
    }
}
