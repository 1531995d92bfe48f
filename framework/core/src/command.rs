//! Commands that come in through a consumer's door.
//!
//! A command is a message with the header [`COMMAND`](names::COMMAND), no body, and the identity of the message that it
//! is about in [`MESSAGE_KEY`](names::MESSAGE_KEY). It counts at doors only: elsewhere the header is an ordinary one.

use crate::dead_letter::generation;
use crate::held_keys::Ending;
use crate::identity::MessageKey;
use crate::message::{Envelope, Headers};
use crate::names;

/// Characters of an unknown command that are shown.
const MAX_SHOWN: usize = 64;

/// What somebody wants of a message that a consumer holds or has given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What.
    pub ending: Ending,
    /// How often the message must have been redriven, so that a command which comes late, or twice, does not reach a
    /// later failure; any number where it is `None`.
    pub generation: Option<u32>,
}

/// A door's message says that it is a command, and nobody knows which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the command {name:?} is not known")]
pub struct UnknownCommand {
    name: String,
}

impl Command {
    /// The command that a door's message is; `None` where it is a redriven message.
    ///
    /// # Errors
    /// When it is a command of another version, or none of ours.
    pub fn of(headers: &Headers) -> Option<Result<Self, UnknownCommand>> {
        let name = headers.get(names::COMMAND)?;
        let known = headers.get_str(names::COMMAND).and_then(Ending::parse);
        let stated = headers.get(names::REDRIVE_GENERATION).map(|_| generation(headers));
        Some(match known {
            Some(ending) => Ok(Self { ending, generation: stated }),
            None => {
                Err(UnknownCommand { name: String::from_utf8_lossy(name).chars().take(MAX_SHOWN).collect() })
            }
        })
    }

    /// The message to send through the door. `key` is the ordering key of the message that the command is about, so that
    /// it stays behind what was sent of that key before.
    pub fn envelope(&self, message_key: &MessageKey, key: Option<bytes::Bytes>) -> Envelope {
        let mut headers = Headers::default();
        headers.append(names::COMMAND, self.ending.as_str());
        headers.append(names::MESSAGE_KEY, message_key.as_str().to_owned());
        if let Some(generation) = self.generation {
            headers.append(names::REDRIVE_GENERATION, generation.to_string());
        }
        Envelope { key, headers, body: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_are_written() {
        let key = MessageKey::new("/orders", b"1");
        for ending in Ending::ALL {
            for generation in [None, Some(0), Some(7)] {
                let command = Command { ending, generation };
                let envelope = command.envelope(&key, None);
                assert_eq!(Command::of(&envelope.headers), Some(Ok(command)));
                assert_eq!(envelope.headers.get_str(names::MESSAGE_KEY), Some(key.as_str()));
            }
        }
    }

    #[test]
    fn what_is_no_command_is_told_from_what_is_an_unknown_one() {
        let mut headers = Headers::default();
        assert_eq!(Command::of(&headers), None);
        headers.append(names::COMMAND, "explode");
        let unknown = Command::of(&headers).expect("a command").expect_err("an unknown one");
        assert_eq!(unknown.to_string(), "the command \"explode\" is not known");
    }
}
