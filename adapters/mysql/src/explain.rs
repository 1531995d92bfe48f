//! What an error of MySQL or MariaDB means for the message whose handler ran into it.

use std::error::Error;

use backstop_core::{Disposition, ErrorClass, Explained};
use sqlx::mysql::MySqlDatabaseError;

use crate::failure::{database_error, errors, is_read_only};

/// What `error` means, if it is one of sqlx.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> Option<Explained> {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return match database_error(error) {
            Some(error) => Some(explain_database(error)),
            None => Some(Explained { disposition: outside_the_server(error), facts: None }),
        };
    }
    error.downcast_ref::<MySqlDatabaseError>().map(explain_database)
}

fn outside_the_server(error: &sqlx::Error) -> Option<Disposition> {
    let class = match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => ErrorClass::Unavailable,
        sqlx::Error::Encode(_) | sqlx::Error::InvalidArgument(_) => ErrorClass::Permanent,
        _ => return None,
    };
    Some(Disposition::Fail(class))
}

fn explain_database(error: &MySqlDatabaseError) -> Explained {
    let disposition = if is_read_only(error) {
        Some(Disposition::Fail(ErrorClass::Unavailable))
    } else {
        by_number(error.number(), error.code())
    };
    Explained { disposition, facts: Some(facts(error.number(), error.code(), error.message())) }
}

/// Whether the server has no room, is going away, or has thrown the connection out.
pub(crate) fn is_outage(number: u16) -> bool {
    matches!(
        number,
        // disk, memory and table space
        1021 | 1037 | 1038 | 1041 | 1114
        // connections
        | 1040 | 1129 | 1203 | 1226
        // a node of a cluster that is not ready, shutdown, kill
        | 1047 | 1053 | 1079 | 1927 | 3168 | 4031
        // the connection
        | 1152 | 1158..=1161 | 1184 | 2006 | 2013
    )
}

fn by_number(number: u16, sqlstate: Option<&str>) -> Option<Disposition> {
    let class = match number {
        errors::DEADLOCK | errors::LOCK_TIMEOUT | errors::LOCKED | errors::CHANGED_ROW => {
            return Some(Disposition::Conflict);
        }
        // A missing parent or a rival row may come and go; time limits and cancelled statements too.
        1022 | errors::DUPLICATE | 1216 | 1217 | 1451 | 1452 | 1586 | 1317 | 1969 | 3024 => {
            ErrorClass::Transient
        }
        number if is_outage(number) => ErrorClass::Unavailable,
        // No value, none that fits, or none that a CHECK takes. MariaDB's 4025 has another meaning in MySQL.
        errors::TOO_LARGE | 1048 | 1264 | 1265 | 1292 | 1364 | 1366 | 1406 | 1690 | 3819 => {
            ErrorClass::Permanent
        }
        4025 if sqlstate == Some("23000") => ErrorClass::Permanent,
        _ => match sqlstate?.get(..2)? {
            "08" => ErrorClass::Unavailable,
            "22" => ErrorClass::Permanent,
            _ => return None,
        },
    };
    Some(Disposition::Fail(class))
}

/// Number, SQLSTATE and names. The server gives names inside its message only; values in it are left alone.
fn facts(number: u16, sqlstate: Option<&str>, message: &str) -> String {
    let column = || between(message, "olumn '", "'");
    let (name, value) = match number {
        errors::DUPLICATE | 1022 | 1586 => ("constraint", between_last(message, "for key '", "'")),
        1216 | 1217 | 1451 | 1452 => ("constraint", between_last(message, "CONSTRAINT `", "`")),
        4025 => ("constraint", between(message, "CONSTRAINT `", "`")),
        3819 => ("constraint", between(message, "Check constraint '", "'")),
        1364 => ("column", between(message, "Field '", "'")),
        1048 | 1264 | 1265 | 1292 | 1366 | 1406 => ("column", column()),
        errors::NO_TABLE => ("table", between(message, "Table '", "'")),
        errors::NO_COLUMN => ("column", column()),
        _ => ("", None),
    };
    let sqlstate = sqlstate.map(|state| format!(" sqlstate={state}")).unwrap_or_default();
    let named = value.map(|value| format!(" {name}={value}")).unwrap_or_default();
    format!("errno={number}{sqlstate}{named}")
}

fn between<'a>(message: &'a str, before: &str, after: &str) -> Option<&'a str> {
    message.split_once(before)?.1.split_once(after).map(|(name, _)| name)
}

/// The same for the last occurrence: a value that somebody chose may come before it.
fn between_last<'a>(message: &'a str, before: &str, after: &str) -> Option<&'a str> {
    message.rsplit_once(before)?.1.split_once(after).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_meaning() {
        let fail = |class| Some(Disposition::Fail(class));
        for (number, sqlstate, meaning) in [
            (1213, "40001", Some(Disposition::Conflict)),
            (1205, "HY000", Some(Disposition::Conflict)),
            (1062, "23000", fail(ErrorClass::Transient)),
            (1452, "23000", fail(ErrorClass::Transient)),
            (1969, "70100", fail(ErrorClass::Transient)),
            (1048, "23000", fail(ErrorClass::Permanent)),
            (1364, "HY000", fail(ErrorClass::Permanent)),
            (1406, "22001", fail(ErrorClass::Permanent)),
            (3819, "HY000", fail(ErrorClass::Permanent)),
            (4025, "23000", fail(ErrorClass::Permanent)),
            (4025, "HY000", None),
            (1040, "08004", fail(ErrorClass::Unavailable)),
            (1053, "08S01", fail(ErrorClass::Unavailable)),
            (1114, "HY000", fail(ErrorClass::Unavailable)),
            (1064, "42000", None),
        ] {
            assert_eq!(by_number(number, Some(sqlstate)), meaning, "{number} {sqlstate}");
        }
    }

    #[test]
    fn names_are_facts_and_values_are_not() {
        for (number, message, expected) in [
            (1062, "Duplicate entry 'for key 'x'' for key 'stock.sku'", "constraint=stock.sku"),
            (1048, "Column 'sku' cannot be null", "column=sku"),
            (1364, "Field 'sku' doesn't have a default value", "column=sku"),
            (1406, "Data too long for column 'sku' at row 1", "column=sku"),
            (4025, "CONSTRAINT `enough` failed for `shop`.`stock`", "constraint=enough"),
            (3819, "Check constraint 'enough' is violated.", "constraint=enough"),
            (
                1452,
                "Cannot add or update a child row: a foreign key constraint fails (`d`.`c`, CONSTRAINT `c_p` FOREIGN \
                 KEY (`n`) REFERENCES `p` (`n`))",
                "constraint=c_p",
            ),
        ] {
            let facts = facts(number, Some("23000"), message);
            assert_eq!(facts, format!("errno={number} sqlstate=23000 {expected}"));
        }
    }

    #[test]
    fn a_pool_that_gives_nothing_is_unavailable() {
        let explained = explain(&sqlx::Error::PoolTimedOut).expect("ours");
        assert_eq!(explained.disposition, Some(Disposition::Fail(ErrorClass::Unavailable)));
        assert_eq!(explain(&std::fmt::Error), None);
    }
}
