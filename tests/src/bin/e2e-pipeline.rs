//! A pipeline of the tests in a process of its own: `e2e-pipeline '<configuration as JSON>'`.

use backstop_tests::pipeline::PipelineConfig;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info").init();
    let config = std::env::args().nth(1).ok_or("the configuration is missing")?;
    let config: PipelineConfig = serde_json::from_str(&config)?;
    config.run(backstop::shutdown_signal()).await?;
    Ok(())
}
