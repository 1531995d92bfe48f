//! The broker and the database in memory show what every adapter shows.

mod database {
    backstop_testkit::store_conformance!(backstop_testkit::conformance::MemoryStore);
}

mod messaging {
    backstop_testkit::broker_conformance!(backstop_testkit::conformance::MemoryBroker);
}
