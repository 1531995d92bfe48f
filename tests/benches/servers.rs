//! Where the servers are.

use crate::Outcome;

/// Addresses, from the environment that `tests/servers env` prints.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    pub(crate) postgres: String,
    pub(crate) mariadb: String,
    pub(crate) kafka: String,
    pub(crate) amqp: String,
}

impl Servers {
    /// Reads the addresses.
    pub(crate) fn from_environment() -> Outcome<Self> {
        Ok(Self {
            postgres: required("BACKSTOP_TEST_POSTGRES_URL")?,
            mariadb: required("BACKSTOP_TEST_MYSQL_URL")?,
            kafka: required("BACKSTOP_TEST_KAFKA")?,
            amqp: required("BACKSTOP_TEST_AMQP_URL")?,
        })
    }
}

fn required(name: &str) -> Outcome<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("{name} is not set; run: eval \"$(tests/servers env)\"").into())
}

/// A name that nobody else uses; good for databases, topics and queues.
pub(crate) fn unique(stem: &str) -> String {
    format!("bench_{stem}_{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}
