//! The service of the demo: a shop whose orders and events commit together, and what its tables say afterwards.

use backstop::{Message, Outgoing};
use backstop_sqlite::SqliteOutbox;
use serde::{Deserialize, Serialize};
use sqlx::{Sqlite, SqlitePool, Transaction};

use crate::commands::database;
use crate::exit::{Exit, Failure};

/// Where the shop's events go.
pub(super) const TOPIC: &str = "orders";
/// Orders that the demo needs at least: its special ones are among the first.
pub(crate) const FEWEST_EVENTS: u32 = 30;

/// The order for which the payment gateway times out a few times.
pub(super) const FLAKY: Order = Order(17);
/// The order that cannot be paid before somebody mends the tax rates; the next one is of the same customer.
pub(super) const POISON: Order = Order(24);
/// Orders whose events are sent twice.
pub(super) const REPEATED: [Order; 3] = [Order(5), Order(8), Order(11)];

/// Customers without a story of their own.
const CUSTOMERS: [&str; 8] = ["ada", "ben", "cleo", "dan", "gail", "hugo", "iris", "jon"];
const ITEMS: [&str; 4] = ["tea", "coffee", "cocoa", "sugar"];
/// What has no tax rate at first.
const GIFT_CARD: &str = "gift card";

/// `payments` has no unique constraint, so that an effect that is applied twice shows.
const TABLES: &str = "
CREATE TABLE orders (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, customer TEXT NOT NULL, item TEXT NOT NULL, cents INTEGER NOT NULL
) STRICT;
CREATE TABLE tax_rates (item TEXT PRIMARY KEY, percent INTEGER NOT NULL) STRICT;
INSERT INTO tax_rates VALUES ('tea', 7), ('coffee', 7), ('cocoa', 7), ('sugar', 7);
CREATE TABLE payments (
    n INTEGER PRIMARY KEY AUTOINCREMENT, order_id TEXT NOT NULL, customer TEXT NOT NULL, cents INTEGER NOT NULL,
    attempt INTEGER NOT NULL, via TEXT NOT NULL
) STRICT;
CREATE INDEX payments_customer ON payments (customer, n);
";

/// How the tax rates are mended.
pub(super) const MEND: &str = "INSERT INTO tax_rates VALUES ('gift card', 0)";

/// An order, told by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order(pub(super) u32);

/// The event of an order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OrderPlaced {
    pub(super) order: String,
    pub(super) customer: String,
    pub(super) item: String,
    pub(super) cents: i64,
}

impl Order {
    pub(super) fn id(self) -> String {
        format!("order-{}", self.0)
    }

    /// The order after this one.
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The ordering key: events of one customer are handled one after another.
    pub(super) fn customer(self) -> &'static str {
        match self.0 {
            17..=19 => "eve",
            24..=25 => "finn",
            number => CUSTOMERS[number as usize % CUSTOMERS.len()],
        }
    }

    /// How many of the fewest orders are this customer's.
    pub(super) fn count_of(customer: &str) -> u64 {
        (1..=FEWEST_EVENTS).filter(|number| Self(*number).customer() == customer).count() as u64
    }

    fn item(self) -> &'static str {
        if self == POISON { GIFT_CARD } else { ITEMS[self.0 as usize % ITEMS.len()] }
    }

    fn placed(self, item: &str) -> OrderPlaced {
        let cents = 300 + i64::from(self.0 % 7) * 50;
        OrderPlaced { order: self.id(), customer: self.customer().to_owned(), item: item.to_owned(), cents }
    }

    /// The event; its id is the order's, so that a producer that sends it again does not make another event of it.
    fn event(self, item: &str) -> Result<Outgoing, Failure> {
        let message = Message::new("order.placed").id(self.id()).source("/shop").key(self.customer());
        let message = message.json(&self.placed(item)).map_err(|error| own(&error))?;
        Ok(Outgoing::to(TOPIC, message))
    }
}

/// The shop and its database.
#[derive(Debug, Clone)]
pub(super) struct Shop {
    pool: SqlitePool,
}

impl Shop {
    /// Opens the file and makes the shop's tables; Backstop's are there already.
    pub(super) async fn open(file: &str) -> Result<Self, Failure> {
        let pool = backstop_sqlite::open(file).await.map_err(database)?;
        sqlx::raw_sql(TABLES).execute(&pool).await.map_err(|error| own(&error))?;
        Ok(Self { pool })
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Order and event in one transaction.
    pub(super) async fn place(&self, order: Order) -> Result<(), Failure> {
        self.place_item(order, order.item()).await
    }

    /// An order of something else than its number says.
    pub(super) async fn place_item(&self, order: Order, item: &str) -> Result<(), Failure> {
        let tx = self.begin_order(order, item).await?;
        tx.commit().await.map_err(|error| own(&error))
    }

    /// The same, but the transaction is rolled back.
    pub(super) async fn place_and_roll_back(&self, order: Order) -> Result<(), Failure> {
        let tx = self.begin_order(order, order.item()).await?;
        tx.rollback().await.map_err(|error| own(&error))
    }

    async fn begin_order(&self, order: Order, item: &str) -> Result<Transaction<'_, Sqlite>, Failure> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| own(&error))?;
        let event = order.event(item)?;
        let OrderPlaced { order: id, customer, item, cents } = order.placed(item);
        sqlx::query("INSERT INTO orders VALUES (?, ?, ?, ?, ?)")
            .bind(order.0)
            .bind(id)
            .bind(customer)
            .bind(item)
            .bind(cents)
            .execute(&mut *tx)
            .await
            .map_err(|error| own(&error))?;
        SqliteOutbox::default().enqueue(&mut tx, event).await.map_err(database)?;
        Ok(tx)
    }

    /// The event of an order once more, as a producer sends it that missed the answer the first time.
    pub(super) async fn send_again(&self, order: Order) -> Result<(), Failure> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|error| own(&error))?;
        SqliteOutbox::default().enqueue(&mut tx, order.event(order.item())?).await.map_err(database)?;
        tx.commit().await.map_err(|error| own(&error))
    }

    /// Gives gift cards a tax rate.
    pub(super) async fn mend(&self) -> Result<(), Failure> {
        sqlx::query(MEND).execute(&self.pool).await.map(drop).map_err(|error| own(&error))
    }

    /// A number that the database knows.
    pub(super) async fn count(&self, sql: &'static str) -> Result<u64, Failure> {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await.map_err(|error| own(&error))?;
        Ok(count.unsigned_abs())
    }

    /// Ids of a customer's paid orders, with the attempt that paid them, in the order in which they were paid.
    pub(super) async fn paid_by(&self, customer: &str) -> Result<Vec<(String, u32)>, Failure> {
        sqlx::query_as("SELECT order_id, attempt FROM payments WHERE customer = ? ORDER BY n")
            .bind(customer)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| own(&error))
    }
}

/// A failure of the shop's own statements.
fn own(error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Exit::Failed,
        format!("the demo's shop cannot go on: {error}"),
        "check that the folder has space and can be written to",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_orders_are_among_the_fewest_and_keep_out_of_each_others_way() {
        let special = [&REPEATED[..], &[FLAKY, FLAKY.next(), FLAKY.next().next(), POISON, POISON.next()]];
        assert!(special.concat().iter().all(|order| order.0 <= FEWEST_EVENTS));
        assert_eq!((Order::count_of(FLAKY.customer()), Order::count_of(POISON.customer())), (3, 2));
        assert!(REPEATED.iter().all(|order| CUSTOMERS.contains(&order.customer())));
    }
}
