//! What an error of SQLite means for the message that was being handled.

use std::error::Error;

use backstop_core::report::cut;
use backstop_core::{AdapterError, Disposition, ErrorClass, Explained, FaultKind};

use crate::error::{code, extended};

/// Longest text of facts.
const MAX_FACTS: usize = 300;

/// Extended codes of violated constraints, with their names.
const CONSTRAINTS: [(i32, &str); 7] = [
    (275, "SQLITE_CONSTRAINT_CHECK"),
    (787, "SQLITE_CONSTRAINT_FOREIGNKEY"),
    (1299, "SQLITE_CONSTRAINT_NOTNULL"),
    (1555, "SQLITE_CONSTRAINT_PRIMARYKEY"),
    (1811, "SQLITE_CONSTRAINT_TRIGGER"),
    (2067, "SQLITE_CONSTRAINT_UNIQUE"),
    (3091, "SQLITE_CONSTRAINT_DATATYPE"),
];

/// What the error means, if it is one of sqlx or of this adapter.
pub(crate) fn explain(error: &(dyn Error + 'static)) -> Option<Explained> {
    if let Some(error) = error.downcast_ref::<AdapterError>() {
        // Where the file is at fault and not the message, the cause says so.
        return (error.kind() == FaultKind::Invalid).then(|| fail(ErrorClass::Permanent));
    }
    let error = error.downcast_ref::<sqlx::Error>()?;
    match error {
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Io(_) => return Some(fail(ErrorClass::Unavailable)),
        _ => {}
    }
    let extended = extended(error)?;
    let message = error.as_database_error().map_or("", |error| error.message());
    Some(Explained { disposition: disposition(extended), facts: Some(facts(extended, message)) })
}

fn fail(class: ErrorClass) -> Explained {
    Explained { disposition: Some(Disposition::Fail(class)), facts: None }
}

/// Damage to the file (CORRUPT, NOTADB) hits every message alike: it is an outage, not a reason to give messages up.
fn disposition(extended: i32) -> Option<Disposition> {
    let class = match extended & 0xff {
        code::BUSY | code::LOCKED => return Some(Disposition::Conflict),
        code::IOERR
        | code::FULL
        | code::READONLY
        | code::CANTOPEN
        | code::NOMEM
        | code::PERM
        | code::AUTH
        | code::CORRUPT
        | code::NOTADB => ErrorClass::Unavailable,
        code::TOOBIG | code::MISMATCH | code::RANGE => ErrorClass::Permanent,
        code::INTERRUPT => ErrorClass::Transient,
        code::CONSTRAINT => match extended {
            275 | 1299 | 3091 => ErrorClass::Permanent,
            787 | 1555 | 2067 => ErrorClass::Transient,
            _ => return None,
        },
        _ => return None,
    };
    Some(Disposition::Fail(class))
}

/// Names that SQLite gives: the code, and the columns or the constraint of a violation. Values are never part of
/// these messages.
fn facts(extended: i32, message: &str) -> String {
    let name = CONSTRAINTS.iter().find(|(code, _)| *code == extended).map(|(_, name)| *name);
    let Some(name) = name else {
        return format!("code={extended}");
    };
    match message.split_once(" constraint failed: ") {
        Some((_, what)) => cut(&format!("code={name} of={}", what.trim()), MAX_FACTS),
        None => format!("code={name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_disposition() {
        let class = |extended| disposition(extended).map(Disposition::class);
        assert_eq!(disposition(5), Some(Disposition::Conflict));
        assert_eq!(disposition(517), Some(Disposition::Conflict), "SQLITE_BUSY_SNAPSHOT");
        assert_eq!(class(2067), Some(ErrorClass::Transient));
        assert_eq!(class(787), Some(ErrorClass::Transient));
        assert_eq!(class(1299), Some(ErrorClass::Permanent));
        assert_eq!(class(275), Some(ErrorClass::Permanent));
        assert_eq!(class(1811), None, "what a trigger means is the application's business");
        for unavailable in [10, 13, 8, 14, 11, 26, 522, 1032] {
            assert_eq!(class(unavailable), Some(ErrorClass::Unavailable), "{unavailable}");
        }
        assert_eq!(class(20), Some(ErrorClass::Permanent));
        assert_eq!(class(1), None);
    }

    #[test]
    fn facts_name_columns() {
        assert_eq!(
            facts(2067, "UNIQUE constraint failed: stock.sku, stock.shop"),
            "code=SQLITE_CONSTRAINT_UNIQUE of=stock.sku, stock.shop"
        );
        assert_eq!(facts(787, "FOREIGN KEY constraint failed"), "code=SQLITE_CONSTRAINT_FOREIGNKEY");
        assert_eq!(facts(1, "no such table: t"), "code=1");
        assert!(facts(275, &format!("CHECK constraint failed: {}", "x".repeat(9_000))).len() <= MAX_FACTS);
    }
}
