//! Parts of pages: numbers, times, sums.

use backstop_core::ledger::{COUNT_LIMIT, Letter, LetterStatus, Outcome};
use backstop_core::report::{cut, escaped};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use maud::{Markup, html};

use super::icons::state;
use crate::desk::State;
use crate::desk::filter::FilterQuery;

/// A number with a thin sign between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number that opens what it counts. A zero opens nothing.
pub(super) fn counted(number: u64, href: &str) -> Markup {
    html! {
        @if number == 0 { b { "0" } }
        @else { a.n href=(href) data-count=(number) { (grouped(number)) } }
    }
}

/// A count of letters that may have been cut short.
pub(super) fn total(number: u64, exact: bool) -> String {
    if exact || number <= COUNT_LIMIT { grouped(number) } else { format!("{}+", grouped(COUNT_LIMIT)) }
}

/// The list of the letters that are meant.
pub(super) fn letters_of(filter: &FilterQuery) -> String {
    format!("/dead-letters?{}", filter.query())
}

/// The address of a group.
pub(super) fn group_of(fingerprint: &str) -> String {
    let name: String = url::form_urlencoded::byte_serialize(fingerprint.as_bytes()).collect();
    format!("/groups/{}", name.replace('+', "%20"))
}

/// A term of a sum.
pub(super) struct Term {
    pub(super) number: u64,
    /// What opens its letters; `None` where no filter names them.
    pub(super) href: Option<String>,
    pub(super) label: Markup,
}

/// A whole and its parts, which add up.
pub(super) fn sum(label: &str, whole: &Term, parts: &[Term]) -> Markup {
    html! {
        ul.sum aria-label=(label) data-sum=(whole.number) {
            li { span.op {} (term(whole)) }
            @for (at, part) in parts.iter().enumerate() {
                li data-term=(part.number) { span.op { (if at == 0 { "=" } else { "+" }) } (term(part)) }
            }
        }
    }
}

fn term(term: &Term) -> Markup {
    html! {
        span.v {
            @match &term.href {
                Some(href) => (counted(term.number, href)),
                None => b { (grouped(term.number)) },
            }
            span { (term.label) }
        }
    }
}

/// So many letters, in words.
pub(super) fn letters_in_words(letters: u64) -> String {
    if letters == 1 { "1 letter".to_owned() } else { format!("{} letters", grouped(letters)) }
}

/// How long, in the largest unit that fits.
pub(super) fn span_of(time: TimeDelta) -> String {
    let seconds = time.num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A time, told by how long ago it was.
pub(super) fn ago(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(machine(at)) title=(exact(at)) { (span_of(Utc::now() - at)) " ago" } }
}

/// A time to the second.
pub(super) fn at(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(machine(at)) { (exact(at)) } }
}

/// A time for programs; HTML knows no more than milliseconds.
fn machine(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn exact(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Text from a stranger: cut, and with control, bidirectional and zero-width characters as escapes.
pub(super) fn safe(text: &str, max: usize) -> String {
    cut(&escaped(text), max)
}

/// A text that may not be known.
pub(super) fn known(text: Option<&str>) -> Markup {
    html! { @match text { Some(text) => (safe(text, 300)), None => span.muted { "unknown" } } }
}

/// A name of a thing, in type of its own.
pub(super) fn name(text: Option<&str>) -> Markup {
    html! { @match text { Some(text) => span.id { (safe(text, 200)) }, None => span.muted { "unknown" } } }
}

/// Whether a group is still failing.
pub(super) fn failing(failing: State) -> Markup {
    match failing {
        State::Growing => state("up", "bad", "growing"),
        State::Quiet(since) => state("quiet", "", format!("quiet {}", span_of(since))),
    }
}

/// Where a letter stands.
pub(super) fn standing(letter: &Letter) -> Markup {
    match (letter.status, letter.outcome) {
        (LetterStatus::Open, Some(Outcome::Silent)) => state("silent", "warn", "open, silent"),
        (LetterStatus::Open, _) => state("open", "", "open"),
        (LetterStatus::Redriving, Some(Outcome::Silent)) => state("silent", "warn", "silent"),
        (LetterStatus::Redriving, _) => state("run", "act", "redriving"),
        (LetterStatus::Resolved, _) => state("ok", "good", "resolved"),
        (LetterStatus::Discarded, _) => state("gone", "", "discarded"),
        (LetterStatus::Superseded, _) => state("bad", "bad", "failed again"),
        (other, _) => html! { (other.as_str()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 2_000].map(letters_in_words), ["1 letter", "2,000 letters"]);
        assert_eq!((total(10_001, false), total(10_001, true)), ("10,000+".into(), "10,001".into()));
    }

    #[test]
    fn s19_and_s40_what_a_stranger_wrote_is_text() {
        let shown = known(Some("<script>\u{202e}\u{200b}\u{1b}[31m")).into_string();
        assert_eq!(shown, "&lt;script&gt;\\u{202e}\\u{200b}\\u{1b}[31m");
        assert_eq!(group_of("a/b c?"), "/groups/a%2Fb%20c%3F");
    }
}
