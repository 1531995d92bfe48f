//! What sqlx leaves out of a connection is set by the pool. Alone in its program: it looks at all connections of it.

#![cfg(target_os = "linux")]

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

#[tokio::test]
async fn connections_of_the_pool_do_not_wait_for_acknowledgements() {
    let url = std::env::var("BACKSTOP_TEST_POSTGRES_URL")
        .expect("BACKSTOP_TEST_POSTGRES_URL is not set; run: eval \"$(tests/servers env)\"");
    let options: PgConnectOptions = url.parse().expect("a URL");
    let _bare = options.connect().await.expect("PostgreSQL answers");
    let bare = backstop_postgres::set_nodelay(options.get_port());
    assert_eq!(bare, 1, "sqlx sets the option by itself: backstop-nodelay can go");

    let pool = backstop_postgres::open(&url).await.expect("PostgreSQL answers");
    let _pooled = pool.acquire().await.expect("PostgreSQL answers");
    assert_eq!(backstop_postgres::set_nodelay(options.get_port()), 0);
}
