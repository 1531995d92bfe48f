//! `config print`

use crate::commands::Context;
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) fn print(context: &Context) -> Result<Exit, Failure> {
    if context.is_json() {
        output::json(&context.config)?;
    } else {
        let text = toml::to_string(&context.config).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("cannot print the configuration: {error}"),
                "use --output json",
            )
        })?;
        output::line(text.trim_end())?;
    }
    Ok(Exit::Ok)
}
