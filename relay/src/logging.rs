//! The log on standard error: one event a line, without secrets.

use std::io::{self, Write};
use std::sync::Arc;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::audit;
use crate::exit::{Exit, Failure};
use crate::secret::Scrubber;

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Sends the log of this process to standard error from now on. A log that is there already stays. The filter holds for
/// all but the audit log.
///
/// # Errors
/// When `filter` cannot be understood.
pub fn init(format: LogFormat, filter: &str, scrubber: Scrubber) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("the log filter cannot be understood: {error}"),
            "use a level such as info, or a filter such as info,backstop_relay=debug",
        )
    })?;
    let audit = format!("{}=info", audit::TARGET).parse().expect("a constant that tests use");
    let filter = filter.add_directive(audit);
    let writer = Scrubbing { scrubber: Arc::new(scrubber) };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer);
    // An application that embeds the relay may have a subscriber of its own, which then has the say.
    let _ = match format {
        LogFormat::Human => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Writes events to standard error, each scrubbed and in one line.
#[derive(Clone)]
struct Scrubbing {
    scrubber: Arc<Scrubber>,
}

impl<'a> MakeWriter<'a> for Scrubbing {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Scrubbing {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = one_line(&String::from_utf8_lossy(event), &self.scrubber);
        io::stderr().lock().write_all(text.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The event without secrets; line ends inside it, which could forge an event, are escaped.
fn one_line(event: &str, scrubber: &Scrubber) -> String {
    let text = scrubber.scrub(event.strip_suffix('\n').unwrap_or(event));
    format!("{}\n", text.replace('\r', "\\r").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_one_line_without_secrets() {
        let event = "INFO read a://u:pw@h\nINFO forged\r\n";
        assert_eq!(one_line(event, &Scrubber::default()), "INFO read a://u:***@h\\nINFO forged\\r\n");
    }
}
