//! The steps of the demo, one after another: each waits for what it tells, and tells what the tables say.

use backstop_core::ledger::{Guard, LetterFilter, LetterStatus};

use crate::broker;
use crate::commands::{self, database};
use crate::demo::Scene;
use crate::demo::payments::{ATTEMPTS, CONSUMER, Failed, Payments, RETRY_AFTER};
use crate::demo::shop::{FLAKY, MEND, Order, POISON, REPEATED, Shop, TOPIC};
use crate::demo::story::Story;
use crate::exit::Failure;
use crate::redrive::{Plan, new_redrive, send_all};

/// Takes all steps and tells them.
pub(super) async fn take(
    story: &Story,
    events: u32,
    scene: &Scene,
    payments: &mut Payments,
) -> Result<(), Failure> {
    place(story, events, &scene.shop).await?;
    let sent = u64::from(events) + REPEATED.len() as u64;
    publish(story, sent, scene).await?;
    retry(story, &scene.shop, payments).await?;
    absorb(story, events, &scene.shop, payments).await?;
    bury(story, events, scene).await?;
    bring_back(story, events, scene).await
}

async fn place(story: &Story, events: u32, shop: &Shop) -> Result<(), Failure> {
    for number in 1..=events {
        story.stage(format!("placing order {number} of {events}"));
        shop.place(Order(number)).await?;
    }
    let cancelled = Order(events + 1);
    shop.place_and_roll_back(cancelled).await?;
    for order in REPEATED {
        shop.send_again(order).await?;
    }
    let repeated = REPEATED.map(Order::id).join(", ");
    story
        .line(format!("1. Placed {events} orders, each in one transaction with its event in the outbox."))?;
    story.line(format!(
        "   {} was rolled back, and its event with it: nobody will hear of it.",
        cancelled.id()
    ))?;
    story.line(format!("   Sent again with the same id, after a missed answer: {repeated}."))
}

async fn publish(story: &Story, sent: u64, scene: &Scene) -> Result<(), Failure> {
    let outbox = &scene.relay.outbox;
    let gone = async || Ok(sent.saturating_sub(outbox.status().await.map_err(database)?.pending));
    story.until("events to leave the outbox", sent, gone).await?;
    story.line(format!("2. The relay published {sent} events to topic {TOPIC} and emptied the outbox."))?;
    story.line("   The payment service joins its group and checks its topics, which takes some seconds.")
}

async fn retry(story: &Story, shop: &Shop, payments: &mut Payments) -> Result<(), Failure> {
    let mut told = 0;
    let customer = FLAKY.customer();
    let paid = async || {
        // Counted first, so that every failure before the last payment is told.
        let paid = shop.paid_by(customer).await?.len() as u64;
        while let Ok(failed) = payments.failures.try_recv() {
            tell_failure(story, &failed, told == 0)?;
            told += 1;
        }
        Ok(paid)
    };
    story.until(&format!("payments by {customer}"), Order::count_of(customer), paid).await?;
    let paid: Vec<String> = shop.paid_by(customer).await?.into_iter().map(in_words).collect();
    story.line(format!("   Then {customer}'s orders were paid, in this order: {}.", paid.join(", ")))
}

fn tell_failure(story: &Story, failed: &Failed, first: bool) -> Result<(), Failure> {
    let Failed { order, customer, attempt, error } = failed;
    let (lead, aside) = match first {
        true => ("3.", format!("; {customer}'s later orders wait, others go on")),
        false => ("  ", String::new()),
    };
    let after = RETRY_AFTER.as_millis();
    story.line(format!(
        "{lead} {order} failed: {error} ({attempt} of {ATTEMPTS}), again in {after} ms{aside}."
    ))
}

fn in_words((order, attempt): (String, u32)) -> String {
    if attempt > 1 { format!("{order} (attempt {attempt})") } else { order }
}

async fn absorb(story: &Story, events: u32, shop: &Shop, payments: &Payments) -> Result<(), Failure> {
    let copies = REPEATED.len() as u64;
    let absorbed = async || Ok(payments.counters().duplicates);
    story.until("copies to come to the inbox", copies, absorbed).await?;
    let healthy = u64::from(events) - 1;
    story.until("payments", healthy, async || paid_orders(shop).await).await?;
    let absorbed = payments.counters().duplicates;
    story.line(format!("4. The inbox absorbed {absorbed} copies: their orders are paid once."))
}

async fn paid_orders(shop: &Shop) -> Result<u64, Failure> {
    shop.count("SELECT count(DISTINCT order_id) FROM payments").await
}

/// The poison message becomes a dead letter in the relay's ledger.
async fn bury(story: &Story, events: u32, scene: &Scene) -> Result<(), Failure> {
    let (ledger, filter) = (scene.relay.ledger().map_err(database)?, open_letters());
    let collected = async || ledger.count(&filter).await.map_err(database);
    story.until("dead letters in the ledger", 1, collected).await?;
    let letters = ledger.list(&filter, None, 1).await.map_err(database)?;
    let letter = letters.into_iter().next().expect("a letter was counted just now, and nobody else moves it");
    let (poison, next) = (POISON.id(), POISON.next().id());
    let error = letter.error.as_deref().unwrap_or("no error");
    let reason = letter.reason.as_deref().unwrap_or("no reason");
    let paid = paid_orders(&scene.shop).await?;
    story.line(format!("5. {poison} cannot be paid: {error}. Trying again would not help ({reason})."))?;
    story.line(format!(
        "   It is a dead letter now, and stopped nobody: {paid} of {events} are paid, {next} too."
    ))?;
    story.line(format!("   The relay collected it from {} as {}.", letter.found_in, letter.id))
}

fn open_letters() -> LetterFilter {
    LetterFilter {
        consumer: Some(CONSUMER.to_owned()),
        status: Some(LetterStatus::Open),
        ..LetterFilter::default()
    }
}

/// The cause is mended and the letter redriven.
async fn bring_back(story: &Story, events: u32, scene: &Scene) -> Result<(), Failure> {
    story.stage("mending and redriving");
    scene.shop.mend().await?;
    let ledger = scene.relay.ledger().map_err(database)?;
    let (guard, keys) = (Guard::default(), scene.context.keys());
    let plan = Plan::make(&*ledger, &open_letters(), &guard, &keys).await.map_err(database)?;
    let sink = broker::sink(scene.context.broker()?).map_err(|error| Failure::broker(&error))?;
    let new = new_redrive(open_letters(), Guard::default());
    let owner = commands::redrive::owner(&scene.context);
    let redriven = send_all(ledger.clone(), sink, &new, owner).await;
    let redriven = redriven.map_err(|trouble| commands::redrive::failure(&trouble))?;
    story.until("payments", u64::from(events), async || paid_orders(&scene.shop).await).await?;
    let resolved = LetterFilter::of_status(LetterStatus::Resolved);
    let told = async || ledger.count(&resolved).await.map_err(database);
    story.until("receipts", redriven.letters().sent(), told).await?;
    let door = plan.groups.first().and_then(|group| group.target.as_deref()).unwrap_or("no door");
    let paid = scene.shop.paid_by(POISON.customer()).await?.into_iter().map(in_words);
    story.line(format!("6. Mended: {MEND}."))?;
    let sent = redriven.letters().sent();
    story.line(format!(
        "   Redrove {sent} letter through {door}, under its old id, and its receipt resolved it."
    ))?;
    let (customer, paid) = (POISON.customer(), paid.collect::<Vec<_>>().join(", "));
    story.line(format!("   Now {customer}'s orders are paid, too: {paid}.\n"))
}
