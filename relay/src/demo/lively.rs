//! `--keep-running`: the shop goes on, some of its orders cannot be paid, and the console is open.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::demo::Scene;
use crate::demo::shop::Order;
use crate::demo::story::Story;
use crate::exit::{Exit, Failure};

/// The pause between two orders.
const EVERY: Duration = Duration::from_millis(400);
/// What has no tax rate, so that nobody can pay for it. Every third order is of the first until [`SOLD_OUT`], so that one
/// group of dead letters ends and the other grows.
const UNTAXED: [&str; 2] = ["voucher", "gift hamper"];
/// From so many orders on nobody orders vouchers any more.
const SOLD_OUT: u32 = 60;

/// An address on this machine that nobody listens on: the usual one of a relay, if it is free.
pub(super) fn free_address() -> Result<SocketAddr, Failure> {
    let usual = SocketAddr::from(([127, 0, 0, 1], 8642));
    let listener = TcpListener::bind(usual).or_else(|_| TcpListener::bind("127.0.0.1:0"));
    let found = listener.and_then(|listener| listener.local_addr());
    found.map_err(|error| {
        let what = format!("cannot listen on 127.0.0.1: {error}");
        Failure::new(Exit::Failed, what, "look for a rule that forbids it")
    })
}

/// Places orders until somebody stops the demo.
pub(super) async fn go_on(story: &Story, events: u32, scene: &Scene) -> Result<(), Failure> {
    if let Some(http) = &scene.context.config.http {
        story.line(format!("7. The shop goes on. The console is open at http://{}/", http.listen))?;
        story.line(
            "   Vouchers and gift hampers have no tax rate yet, so that their orders become dead letters.",
        )?;
        story.line("   Stop it with Ctrl-C.")?;
    }
    // The number after the last was rolled back.
    for (nth, number) in (events + 2..).enumerate() {
        let nth = u32::try_from(nth).unwrap_or(u32::MAX);
        let item = match nth {
            nth if nth % 3 == 0 && nth < SOLD_OUT => Some(UNTAXED[0]),
            nth if nth % 10 == 5 => Some(UNTAXED[1]),
            _ => None,
        };
        match item {
            Some(item) => scene.shop.place_item(Order(number), item).await?,
            None => scene.shop.place(Order(number)).await?,
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}
