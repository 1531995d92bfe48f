//! The log on standard error: one event a line, without secrets.

use std::io::{self, Write};
use std::sync::Arc;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use backstop_core::report::is_unprintable;

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

/// The event without secrets. Line ends inside it, which could forge an event, and what a terminal would act upon are
/// escaped, so that a JSON text stays one.
fn one_line(event: &str, scrubber: &Scrubber) -> String {
    let text = scrubber.scrub(event.strip_suffix('\n').unwrap_or(event));
    let mut line = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        match character {
            '\r' => line.push_str("\\r"),
            '\n' => line.push_str("\\n"),
            // All of them are below U+10000.
            odd if is_unprintable(odd) => line.push_str(&format!("\\u{:04x}", u32::from(odd))),
            plain => line.push(plain),
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a subscriber of that format writes of an event with `odd` in its message and its fields.
    fn logged(format: LogFormat, odd: &str) -> String {
        let events = Events::default();
        let writer = {
            let events = events.clone();
            move || events.clone()
        };
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(writer);
        let emit = || tracing::warn!(key = odd, shown = %odd, debugged = ?odd, "message with {odd}");
        match format {
            LogFormat::Human => tracing::subscriber::with_default(log.finish(), emit),
            LogFormat::Json => {
                tracing::subscriber::with_default(log.json().flatten_event(true).finish(), emit)
            }
        }
        let written = events.0.lock().expect("nobody panicked").clone();
        String::from_utf8(written).expect("text")
    }

    #[derive(Clone, Default)]
    struct Events(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Events {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").extend(event);
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn s18_an_event_stays_one_printable_line_in_either_format() {
        let odd = "k\u{1b}[2J\u{9b}31m\r\nINFO forged\u{202e}\u{7f}\u{200b}\t\u{85}";
        for format in [LogFormat::Human, LogFormat::Json] {
            let line = one_line(&logged(format, odd), &Scrubber::default());
            let body = line.strip_suffix('\n').expect("one line end");
            assert!(!body.contains(is_unprintable), "{body:?}");
            if format == LogFormat::Json {
                let event: serde_json::Value = serde_json::from_str(body).expect("still JSON");
                assert_eq!(event["key"], odd);
            }
        }
    }

    #[test]
    fn s28_a_password_with_quotes_is_not_logged_in_either_format() {
        let password = "S3\"cr\\et\u{1}ü";
        let mut scrubber = Scrubber::default();
        scrubber.learn(password);
        for format in [LogFormat::Human, LogFormat::Json] {
            let line = one_line(&logged(format, password), &scrubber);
            assert!(!line.contains("S3") && line.contains(crate::secret::MASK), "{line}");
        }
    }

    #[test]
    fn s18_an_event_stays_one_line_without_secrets() {
        let event = "INFO read a://u:pw@h\nINFO forged\r\n";
        assert_eq!(one_line(event, &Scrubber::default()), "INFO read a://u:***@h\\nINFO forged\\r\n");
    }
}
