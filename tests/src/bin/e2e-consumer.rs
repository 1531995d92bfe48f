//! A consumer of the tests in a process of its own: `e2e-consumer '<configuration as JSON>'`.

use backstop_tests::program::ConsumerConfig;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info,lapin=off").init();
    let config = std::env::args().nth(1).ok_or("the configuration is missing")?;
    let config: ConsumerConfig = serde_json::from_str(&config)?;
    config.run(backstop::shutdown_signal()).await?;
    Ok(())
}
