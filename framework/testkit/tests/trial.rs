//! The trial finds handlers that are wrong, says where, and lets those pass that are right.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use backstop::{Delivery, ErrorClass, GroupCommit, Handler, HandlerError, Message, Outgoing, RetryPolicy};
use backstop_testkit::memory::MemoryTx;
use backstop_testkit::trial::{Effect, Report, Step};
use backstop_testkit::{Outside, TestConsumer};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
}

fn order(id: &str, key: &str) -> Message {
    let order = Order { item: format!("tea of {id}") };
    Message::new("order.placed").id(id).source("/tests").key(key.to_owned()).json(&order).expect("plain data")
}

fn orders() -> Vec<Message> {
    [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b")].map(|(id, key)| order(id, key)).into()
}

fn of<H: Handler<MemoryTx, Message = Order>>(
    start: impl Fn(Outside) -> H + Send + Sync + 'static,
) -> TestConsumer<H> {
    TestConsumer::new(start).events(orders())
}

/// Writes through its transaction, and asks others to act by its outbox.
struct Right;

impl Handler<MemoryTx> for Right {
    type Message = Order;

    async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
        let reserved = tx.get("reserved").and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
        tx.put("reserved", (reserved + 1).to_string());
        tx.apply(format!("reserve {}", delivery.body().item));
        tx.enqueue(Outgoing::to("invoices", Message::new("invoice.due")));
        Ok(())
    }
}

/// The findings of a report that must have some.
fn found(report: &Report) -> Vec<String> {
    assert!(!report.findings().is_empty(), "nothing was found in {} runs", report.runs());
    report.findings().iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_right_handler_passes_whatever_befalls_it() {
    let report = of(|_| Right).disturb().await;
    report.assert_exactly_once();
    // Five messages, and at least the four steps of each, killed and interrupted; three fates of five commits.
    assert!(report.runs() > 2 * 20 + 3 * 5, "{report}");
}

/// With several threads and a clock that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_handler_passes_in_real_time() {
    of(|_| Right).crash_everywhere().await.assert_exactly_once();
}

#[tokio::test(start_paused = true)]
async fn a_right_handler_passes_in_groups_and_with_failures() {
    /// Fails at its first attempt, and for good where it is told to.
    struct Failing;

    impl Handler<MemoryTx> for Failing {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            let id = &delivery.message().id;
            tx.apply(format!("reserve {id}"));
            match id.as_str() {
                "b2" => Err(HandlerError::permanent("nobody knows this item")),
                "a1" if delivery.attempt() == 1 => Err(HandlerError::transient("the shelf is locked")),
                _ => Ok(()),
            }
        }
    }

    let report = of(|_| Failing)
        .dead("b2")
        .configure(|consumer| {
            consumer
                .retry(ErrorClass::Transient, RetryPolicy::fixed(Duration::from_secs(1)))
                .group_commit(GroupCommit::up_to(8))
        })
        .disturb()
        .await;
    report.assert_exactly_once();
}

/// An effect outside of the transaction comes twice when the process dies between it and the commit.
#[tokio::test(start_paused = true)]
async fn an_effect_outside_of_the_transaction_is_found() {
    struct Charges(Outside);

    impl Handler<MemoryTx> for Charges {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            self.0.effect(&delivery.message().id, "charge the card");
            tx.apply("reserve");
            Ok(())
        }
    }

    let test = of(Charges);
    test.undisturbed().await.assert_exactly_once();
    let report = test.crash_everywhere().await;
    let findings = found(&report);
    // Of each of the five orders: after the effect itself, and after the handler.
    assert_eq!(findings.len(), 10, "{report}");
    assert_eq!(
        findings[0],
        "killed after something was done outside (pass 1), a1:\n  twice: a1 (charge the card, outside)"
    );
    assert!(findings[1].starts_with("killed after the handler returned (pass 1), a1:"), "{report}");
    found(&test.lose_commits().await);
    let interrupted = test.interrupt_everywhere().await;
    assert!(found(&interrupted)[0].starts_with("database gone after"), "{interrupted}");
}

/// The same with an idempotency key is right.
#[tokio::test(start_paused = true)]
async fn an_effect_with_an_idempotency_key_passes() {
    struct Charges(Outside);

    impl Handler<MemoryTx> for Charges {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            self.0.effect_once(&delivery.message().id, "charge the card");
            tx.apply("reserve");
            Ok(())
        }
    }

    of(Charges).disturb().await.assert_exactly_once();
}

/// A handler that remembers in memory what it has done forgets it with the process.
#[tokio::test(start_paused = true)]
async fn idempotency_in_memory_is_found() {
    struct Remembers {
        outside: Outside,
        done: Mutex<HashSet<String>>,
    }

    impl Remembers {
        fn done(&self) -> MutexGuard<'_, HashSet<String>> {
            self.done.lock().expect("not poisoned")
        }
    }

    impl Handler<MemoryTx> for Remembers {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            let id = &delivery.message().id;
            if self.done().insert(id.clone()) {
                self.outside.effect(id, "send an e-mail");
            }
            tx.apply("reserve");
            Ok(())
        }
    }

    let test = of(|outside| Remembers { outside, done: Mutex::default() });
    // As long as the process lives it is right: also when its database does not answer.
    test.interrupt_everywhere().await.assert_exactly_once();
    let report = test.crash_everywhere().await;
    assert!(found(&report)[0].contains("twice: a1 (send an e-mail, outside)"), "{report}");
}

/// A number kept in the process begins anew with it, though every write is in the transaction.
#[tokio::test(start_paused = true)]
async fn a_counter_in_memory_is_found() {
    #[derive(Default)]
    struct Counts(AtomicU32);

    impl Handler<MemoryTx> for Counts {
        type Message = Order;

        async fn handle(&self, _: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            tx.put("orders", (self.0.fetch_add(1, Ordering::SeqCst) + 1).to_string());
            Ok(())
        }
    }

    let report = of(|_| Counts::default()).crash_everywhere().await;
    // Wherever it dies before its last message, fewer are counted; once the last one is handled it does not matter.
    assert!(found(&report).iter().all(|finding| finding.ends_with(", undisturbed \"5\"")), "{report}");
}

/// A task of the handler's own is not waited for: it comes late, and is lost with the process.
#[tokio::test(start_paused = true)]
async fn key_order_broken_by_a_task_of_its_own_is_found() {
    struct Spawns(Outside);

    impl Handler<MemoryTx> for Spawns {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, _: &mut MemoryTx) -> Result<(), HandlerError> {
            let (outside, id) = (self.0.clone(), delivery.message().id.clone());
            tokio::spawn(async move {
                let slow = if id == "a1" { 30 } else { 10 };
                tokio::time::sleep(Duration::from_millis(slow)).await;
                outside.effect(id, "tell the warehouse");
            });
            Ok(())
        }
    }

    let test = of(Spawns).linger(Duration::from_secs(1));
    let report = test.crash_everywhere().await;
    assert_eq!(report.runs(), 1, "there is nothing to compare with: {report}");
    let expected = "undisturbed:\n  out of order: a1 (tell the warehouse, outside)";
    assert_eq!(found(&report), [expected]);

    let in_order = TestConsumer::new(Spawns).linger(Duration::from_secs(1)).event(order("b1", "b"));
    in_order.undisturbed().await.assert_exactly_once();
    let report = in_order.crash_everywhere().await;
    assert!(found(&report).iter().any(|finding| finding.contains("lost: b1")), "{report}");
}

#[tokio::test(start_paused = true)]
async fn an_event_without_an_effect_is_lost_and_a_letter_is_unexpected() {
    struct Picky;

    impl Handler<MemoryTx> for Picky {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            match delivery.message().id.as_str() {
                "a2" => Ok(()),
                "b1" => Err(HandlerError::permanent("not mine")),
                _ => {
                    tx.apply("reserve");
                    Ok(())
                }
            }
        }
    }

    let report = of(|_| Picky).undisturbed().await;
    let expected = "undisturbed:\n  lost: a2\n  dead, and not expected to be: b1";
    assert_eq!(found(&report), [expected]);
}

#[tokio::test(start_paused = true)]
async fn every_step_is_a_point_once() {
    let mut running = of(|_| Right).start().await;
    running.deliver(order("a1", "a"));
    running.done().await.expect("it is handled");
    let steps: Vec<_> = running.points().into_iter().map(|point| (point.step, point.pass)).collect();
    let expected = [Step::Received, Step::Begun, Step::Handled, Step::Committed, Step::Settled];
    assert_eq!(steps, expected.map(|step| (step, 1)));
}

/// Step by step: a failure waits for its time, a crash does not lose it, and the clock is the test's.
#[tokio::test(start_paused = true)]
async fn a_test_goes_step_by_step() {
    struct Late(Outside);

    impl Handler<MemoryTx> for Late {
        type Message = Order;

        async fn handle(&self, delivery: &Delivery<Order>, tx: &mut MemoryTx) -> Result<(), HandlerError> {
            if delivery.attempt() == 1 {
                return Err(HandlerError::transient("not yet"));
            }
            tx.apply(self.0.now().format("at %H:%M").to_string());
            Ok(())
        }
    }

    let begins: DateTime<Utc> = "2030-01-01T08:00:00Z".parse().expect("a date");
    let policy = RetryPolicy::fixed(Duration::from_secs(120)).max_attempts(3);
    let test = TestConsumer::new(Late)
        .configure(move |consumer| consumer.retry(ErrorClass::Transient, policy.clone()))
        .clock(begins)
        .patience(Duration::from_secs(600));
    let mut running = test.start().await;
    running.deliver(order("a1", "a"));
    running.advance(Duration::from_secs(60)).await;
    assert_eq!(running.effects().await, [], "it waits for its next attempt");
    running.crash().await;
    running.done().await.expect("its time comes");
    let effects = running.effects().await;
    assert_eq!(effects, [Effect::new("a1", "at 08:02")]);
    assert!(running.letters().is_empty() && running.now() > begins);
    running.stop().await.expect("an orderly end");
}
