//! Every failure that a publish may end with: how far it reaches, and a test that brings it about.
//!
//! The section on RabbitMQ of `docs/reference/errors.md` is made from this list;
//! `BACKSTOP_RECORD=1 cargo test -p backstop-rabbitmq --lib taxonomy` makes it anew.

use backstop_testkit::page::section;
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::{Failure, adapter_error, timed_out};

type Entry = (&'static str, Failure, Result<&'static str, &'static str>);

const ANYWHERE: &str = "…";

fn closed(kind: impl Into<AMQPErrorKind>, text: &str) -> lapin::Error {
    lapin::ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
}

/// The connection, or the way to it, is the matter.
fn connection(kind: impl Into<AMQPErrorKind>, text: &str) -> Failure {
    Failure::broker(&adapter_error("no connection", closed(kind, text)))
}

fn channel(kind: impl Into<AMQPErrorKind>) -> Failure {
    Failure::of_channel(ANYWHERE, closed(kind, ""))
}

/// Failures, each with the test that shows it, or the reason why none does.
fn entries() -> Vec<Entry> {
    [of_messages(), of_connections()].concat()
}

fn of_messages() -> Vec<Entry> {
    use AMQPSoftError::{ACCESSREFUSED, NOTFOUND, PRECONDITIONFAILED, RESOURCELOCKED};
    vec![
        (
            "returned: no queue takes it",
            Failure::unroutable(ANYWHERE),
            Ok("publisher: returned_messages_are_told_from_stored_ones"),
        ),
        (
            "nack: a queue is full",
            Failure::refused(ANYWHERE),
            Ok("sink: a_full_queue_is_the_destinations_fault"),
        ),
        (
            "404 NOT_FOUND: no such exchange",
            channel(NOTFOUND),
            Ok("publisher: a_missing_exchange_fails_only_what_goes_there"),
        ),
        (
            "403 ACCESS_REFUSED: no write permission",
            channel(ACCESSREFUSED),
            Ok("permissions: an_exchange_that_may_not_be_written_to_is_the_destinations_fault"),
        ),
        (
            "405 RESOURCE_LOCKED",
            channel(RESOURCELOCKED),
            Err("a publish locks nothing; brokers send it for exclusive queues"),
        ),
        (
            "406 PRECONDITION_FAILED: too large",
            channel(PRECONDITIONFAILED),
            Ok("sink: what_cannot_be_sent_is_the_messages_fault_and_harms_no_other"),
        ),
    ]
}

fn of_connections() -> Vec<Entry> {
    use AMQPHardError::{CONNECTIONFORCED, INTERNALERROR, INVALIDPATH, NOTALLOWED};
    use AMQPSoftError::ACCESSREFUSED;
    let lost = lapin::Error::from(lapin::ErrorKind::MissingHeartbeatError);
    vec![
        (
            "403 ACCESS_REFUSED: login",
            connection(ACCESSREFUSED, "Login was refused"),
            Ok("sink: a_wrong_password_is_denied_and_not_shown"),
        ),
        (
            "530 NOT_ALLOWED: no such vhost",
            connection(NOTALLOWED, "vhost x not found"),
            Ok("sink: a_missing_vhost_is_named"),
        ),
        (
            "530 NOT_ALLOWED: no permission on the vhost",
            connection(NOTALLOWED, "access to vhost refused"),
            Ok("permissions: a_vhost_that_may_not_be_entered_is_the_brokers_fault"),
        ),
        ("402 INVALID_PATH", connection(INVALIDPATH, ""), Err("RabbitMQ answers 530")),
        (
            "320 CONNECTION_FORCED",
            connection(CONNECTIONFORCED, ""),
            Ok("permissions: a_connection_that_is_closed_by_an_operator_is_the_brokers_fault"),
        ),
        ("541 INTERNAL_ERROR", connection(INTERNALERROR, ""), Err("it would take a defect of the broker")),
        (
            "connection lost",
            Failure::broker(&adapter_error("no connection", lost)),
            Ok("recovery: what_is_under_way_when_the_connection_goes_fails_as_unknown"),
        ),
        (
            "no answer in time: alarm, overload",
            Failure::broker(&timed_out("no confirm")),
            Ok("alarm: while_the_broker_blocks_what_is_given_up_fails_and_no_connection_is_left_behind"),
        ),
    ]
}

#[test]
fn the_page_lists_every_failure() {
    let row = |(what, failure, shown): &Entry| {
        let shown = match shown {
            Ok(test) => format!("`{test}`"),
            Err(why) => format!("not shown: {why}"),
        };
        let hint = failure.hint.as_deref().unwrap_or("–");
        format!("| {what} | {} | {:?} | {hint} | {shown} |", failure.scope, failure.kind)
    };
    let head = ["| failure | scope | kind | remedy | shown by |", "|---|---|---|---|---|"].map(str::to_owned);
    let rows: Vec<String> = head.into_iter().chain(entries().iter().map(row)).collect();
    section("docs/reference/errors.md", "rabbitmq", &rows.join("\n"));
}

#[test]
fn the_tests_that_are_named_exist() {
    for (what, _, shown) in entries() {
        let Ok(named) = shown else { continue };
        let (file, test) = named.split_once(": ").expect("a file and a test");
        let path = format!("{}/tests/rabbitmq/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).expect(&path);
        assert!(source.contains(&format!("fn {test}(")), "{what}: {named}");
    }
}
