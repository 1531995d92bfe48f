//! What an error of PostgreSQL means for the message whose handler ran into it.

use std::error::Error;

use backstop_core::{Disposition, ErrorClass, Explained};
use sqlx::postgres::PgDatabaseError;

use crate::failure::database_error;

/// What `error` means, if it is one of sqlx.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> Option<Explained> {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return match database_error(error) {
            Some(error) => Some(explain_database(error)),
            None => Some(Explained { disposition: outside_the_server(error), facts: None }),
        };
    }
    error.downcast_ref::<PgDatabaseError>().map(explain_database)
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

fn explain_database(error: &PgDatabaseError) -> Explained {
    let fields = [
        ("schema", error.schema()),
        ("table", error.table()),
        ("column", error.column()),
        ("constraint", error.constraint()),
    ];
    let facts: Vec<String> = std::iter::once(format!("sqlstate={}", error.code()))
        .chain(fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))))
        .collect();
    Explained { disposition: by_code(error.code()), facts: Some(facts.join(" ")) }
}

fn by_code(code: &str) -> Option<Disposition> {
    let class = match code {
        "40001" | "40P01" | "55P03" => return Some(Disposition::Conflict),
        // A missing parent or a rival row may come and go; time limits and cancelled statements too.
        "23503" | "23505" | "57014" | "25P03" | "25P02" => ErrorClass::Transient,
        // A standby, or a primary that lost its role.
        "25006" => ErrorClass::Unavailable,
        "23502" | "23514" => ErrorClass::Permanent,
        _ => match code.get(..2)? {
            "08" | "53" => ErrorClass::Unavailable,
            "57" if code.starts_with("57P0") => ErrorClass::Unavailable,
            "22" => ErrorClass::Permanent,
            _ => return None,
        },
    };
    Some(Disposition::Fail(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_meaning() {
        let fail = |class| Some(Disposition::Fail(class));
        for (code, meaning) in [
            ("40001", Some(Disposition::Conflict)),
            ("40P01", Some(Disposition::Conflict)),
            ("55P03", Some(Disposition::Conflict)),
            ("23505", fail(ErrorClass::Transient)),
            ("23503", fail(ErrorClass::Transient)),
            ("23502", fail(ErrorClass::Permanent)),
            ("23514", fail(ErrorClass::Permanent)),
            ("22P02", fail(ErrorClass::Permanent)),
            ("08006", fail(ErrorClass::Unavailable)),
            ("57P01", fail(ErrorClass::Unavailable)),
            ("53300", fail(ErrorClass::Unavailable)),
            ("25006", fail(ErrorClass::Unavailable)),
            ("57014", fail(ErrorClass::Transient)),
            ("42601", None),
        ] {
            assert_eq!(by_code(code), meaning, "{code}");
        }
    }

    #[test]
    fn a_pool_that_gives_nothing_is_unavailable() {
        let explained = explain(&sqlx::Error::PoolTimedOut).expect("ours");
        assert_eq!(explained.disposition, Some(Disposition::Fail(ErrorClass::Unavailable)));
        assert_eq!(explain(&std::fmt::Error), None);
    }
}
