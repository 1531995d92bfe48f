//! What is held of one key, in statements.
//!
//! The order of the key is asked for by what only its index knows, and its digest by a range that is one value: where most
//! rows are of one key, a planner that sees an equality reads the whole table for a message of any other key, or all rows in
//! the order of their numbers, since it takes every key for a common one.

/// The number of the first held message of a key, or null. The arguments are SQL: consumer, place and ordering key.
macro_rules! elder {
    ($consumer:literal, $place:literal, $key:literal) => {
        concat!(
            "(SELECT l.n FROM {held} AS l WHERE l.consumer = ",
            $consumer,
            " AND l.place = ",
            $place,
            " AND sha256(l.ordering_key) BETWEEN sha256(",
            $key,
            ") AND sha256(",
            $key,
            ") ORDER BY sha256(l.ordering_key), l.n LIMIT 1)"
        )
    };
}

pub(crate) use elder;
