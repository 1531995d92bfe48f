//! What a user may not do, and what an operator does to its connections.

use backstop_core::FaultKind;
use backstop_core::message::Destination;
use backstop_core::sink::{PublishError, Scope, Sink};
use backstop_rabbitmq::{RabbitSettings, RabbitSink, declare_exchange, declare_queue, delete_queue};

use crate::support::{ask, cut_connections, envelope, settings, unique, url, within};

/// A user of its own, with that permission to write; none at all for `None`.
struct User {
    name: String,
}

impl User {
    fn new(write: Option<&str>) -> Self {
        let name = unique("user");
        ask("PUT", &format!("/api/users/{name}"), r#"{"password":"secret","tags":""}"#);
        if let Some(write) = write {
            let permissions = format!(r#"{{"configure":"","write":"{write}","read":""}}"#);
            ask("PUT", &format!("/api/permissions/%2f/{name}"), &permissions);
        }
        Self { name }
    }

    fn settings(&self) -> RabbitSettings {
        RabbitSettings::parse(&url().replace("guest:guest@", &format!("{}:secret@", self.name))).unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        ask("DELETE", &format!("/api/users/{}", self.name), "");
    }
}

async fn refused(sink: &RabbitSink, destination: &Destination) -> PublishError {
    sink.publish(destination, envelope("1", None, "x")).await.unwrap_err()
}

/// The exchanges beside it go on.
#[tokio::test]
async fn an_exchange_that_may_not_be_written_to_is_the_destinations_fault() {
    let (queue, allowed, denied) = (unique("queue"), unique("allowed"), unique("denied"));
    declare_queue(&settings(), &queue).await.unwrap();
    for exchange in [&allowed, &denied] {
        declare_exchange(&settings(), exchange, "fanout", &queue, "").await.unwrap();
    }
    let user = User::new(Some(&allowed));
    let sink = RabbitSink::new(user.settings());
    let error = refused(&sink, &Destination::exchange(&denied, "")).await;
    assert_eq!((error.scope(), error.error().kind()), (Scope::Destination, FaultKind::Denied), "{error}");
    assert!(error.error().hint().unwrap().contains("set_permissions"), "{error:?}");
    sink.publish(&Destination::exchange(&allowed, ""), envelope("2", None, "x")).await.unwrap();
    delete_queue(&settings(), &queue).await.unwrap();
}

/// F47: told from an outage.
#[tokio::test]
async fn a_vhost_that_may_not_be_entered_is_the_brokers_fault() {
    let user = User::new(None);
    let error = refused(&RabbitSink::new(user.settings()), &Destination::new("q")).await;
    assert_eq!((error.scope(), error.error().kind()), (Scope::Broker, FaultKind::Denied), "{error}");
}

/// F35: closed with a reason.
#[tokio::test]
async fn a_connection_that_is_closed_by_an_operator_is_the_brokers_fault() {
    let queue = unique("closed");
    declare_queue(&settings(), &queue).await.unwrap();
    let name = unique("connection");
    let sink = RabbitSink::new(settings().connection_name(&name));
    let destination = Destination::new(&queue);
    let failure = async {
        loop {
            if let Err(error) = sink.publish(&destination, envelope("1", None, "x")).await {
                break error;
            }
        }
    };
    let (error, ()) = within("the failure", async { tokio::join!(failure, cut_connections(&name)) }).await;
    assert_eq!((error.scope(), error.error().kind()), (Scope::Broker, FaultKind::Unreachable), "{error}");
    sink.publish(&destination, envelope("2", None, "x")).await.expect("it comes back by itself");
    delete_queue(&settings(), &queue).await.unwrap();
}
