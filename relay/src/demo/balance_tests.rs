use backstop_core::schema::Schema;
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::demo::shop::{Order, REPEATED};

impl Balance {
    /// A ledger that balances.
    pub(in crate::demo) fn balanced_for_tests() -> Self {
        Self {
            placed: 30,
            sent: 33,
            handled: 30,
            duplicates_absorbed: 3,
            dead_letters: 1,
            redriven: 1,
            poisoned: 1,
            handled_after_redrive: 1,
            ..Self::default()
        }
    }
}

#[test]
fn every_broken_promise_is_a_fault() {
    let good = Balance::balanced_for_tests();
    assert_eq!(good.faults(), [""; 0]);
    assert_eq!(Balance { duplicates_absorbed: 9, ..good.clone() }.faults(), [""; 0], "at least once");
    let broken = [
        Balance::default(),
        Balance { lost: 1, ..good.clone() },
        Balance { twice: 1, ..good.clone() },
        Balance { never_placed: 1, ..good.clone() },
        Balance { out_of_order: 1, ..good.clone() },
        Balance { left_in_outbox: 1, ..good.clone() },
        Balance { dead_letters: 2, redriven: 2, handled_after_redrive: 2, ..good.clone() },
        Balance { dead_letters: 0, redriven: 0, handled_after_redrive: 0, ..good.clone() },
        Balance { redriven: 0, handled_after_redrive: 0, ..good.clone() },
        Balance { handled_after_redrive: 0, ..good.clone() },
        Balance { duplicates_absorbed: 2, ..good.clone() },
    ];
    for balance in broken {
        assert_eq!(balance.faults().len(), 1, "{balance:?}");
    }
}

struct Setup {
    shop: Shop,
    relay: Database,
    _directory: TempDir,
}

async fn setup() -> Setup {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("x.db");
    let config = format!("[database]\nurl = \"sqlite:{}\"\n", file.display());
    let config = Config::parse(&config, &crate::config::Environment::default()).expect("sound");
    let relay = Database::create(&config.database).await.expect("created");
    Schema::migrate(&*relay.schema).await.expect("migrated");
    let shop = Shop::open(&file.to_string_lossy()).await.expect("opened");
    Setup { shop, relay, _directory: directory }
}

impl Setup {
    async fn sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.shop.pool()).await.expect("sound");
    }

    async fn read(&self) -> Balance {
        Balance::read(&self.shop, &self.relay, 3).await.expect("read")
    }
}

#[tokio::test]
async fn the_ledger_is_read_from_the_tables() {
    let setup = setup().await;
    for number in 1..=30 {
        setup.shop.place(Order(number)).await.expect("placed");
    }
    setup.shop.place_and_roll_back(Order(31)).await.expect("rolled back");
    for order in REPEATED {
        setup.shop.send_again(order).await.expect("sent");
    }
    let none = setup.read().await;
    assert_eq!((none.placed, none.sent, none.left_in_outbox), (30, 33, 33));
    assert_eq!((none.handled, none.lost, none.poisoned), (0, 30, 1));

    setup.sql("DELETE FROM backstop_outbox").await;
    setup
        .sql(
            "INSERT INTO payments (order_id, customer, cents, attempt, via) \
             SELECT id, customer, cents, 1, 'live' FROM orders WHERE item <> 'gift card' ORDER BY number;
             INSERT INTO payments (order_id, customer, cents, attempt, via) \
             SELECT id, customer, cents, 1, 'door' FROM orders WHERE item = 'gift card'",
        )
        .await;
    let all = setup.read().await;
    let good = Balance { dead_letters: 0, redriven: 0, ..Balance::balanced_for_tests() };
    assert_eq!(all, good, "the redriven order is late, and that is no fault");

    setup.sql("UPDATE payments SET via = 'live' WHERE via = 'door'").await;
    assert_eq!(setup.read().await.out_of_order, 1);
    setup.sql("INSERT INTO payments SELECT NULL, order_id, customer, cents, 1, 'live' FROM payments WHERE n = 1").await;
    assert_eq!((setup.read().await.twice, setup.read().await.lost), (1, 0));
    setup.sql("DELETE FROM payments WHERE order_id = 'order-3'").await;
    assert_eq!((setup.read().await.handled, setup.read().await.lost), (29, 1));
    setup.sql("INSERT INTO payments VALUES (NULL, 'order-31', 'ada', 1, 1, 'live')").await;
    assert_eq!((setup.read().await.handled, setup.read().await.never_placed), (29, 1));
}
