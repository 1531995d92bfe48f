//! The database in memory as a table of charges.

use backstop_core::charges::Charges;
use backstop_core::{AdapterError, MessageKey};

use super::store::Store;

impl Store {
    /// How many messages that are not held are charged.
    pub fn charged(&self) -> usize {
        self.shared.look(|data| data.charges.len())
    }
}

impl Charges for Store {
    async fn charges(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        self.shared.look(|data| {
            data.reachable()?;
            let charges = data.charges.get(&(consumer.to_owned(), message_key.clone()));
            Ok(charges.copied().unwrap_or_default())
        })
    }

    async fn charge(&self, consumer: &str, message_key: &MessageKey) -> Result<u32, AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            let charges = data.charges.entry((consumer.to_owned(), message_key.clone())).or_default();
            *charges += 1;
            Ok(*charges - 1)
        })
    }

    async fn acquit(&self, consumer: &str, message_key: &MessageKey, up_to: u32) -> Result<(), AdapterError> {
        self.shared.change(|data| {
            data.reachable()?;
            let message = (consumer.to_owned(), message_key.clone());
            if data.charges.get(&message).is_some_and(|charges| *charges <= up_to) {
                data.charges.remove(&message);
            }
            Ok(())
        })
    }
}
