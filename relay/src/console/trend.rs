//! Is it still happening? New letters of the last two hours, as bars of five minutes.

use backstop_core::ledger::LetterMinute;
use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use maud::{Markup, html};

use super::parts::{grouped, letters_in_words};

/// Minutes of one bar.
const WIDTH: i64 = 5;
/// Bars: two hours, the last one still growing.
const BARS: usize = 24;

/// Letters by bar, and when the first bar begins.
struct Bars {
    begin: DateTime<Utc>,
    letters: [u64; BARS],
}

impl Bars {
    fn new(minutes: &[LetterMinute], now: DateTime<Utc>) -> Self {
        let width = TimeDelta::minutes(WIDTH);
        let last = now.duration_trunc(width).unwrap_or(now);
        let begin = last - width * (BARS as i32 - 1);
        let mut letters = [0; BARS];
        for minute in minutes {
            // Another clock may be ahead by some minutes: what died in the future died just now.
            let bar = ((minute.at - begin).num_minutes().div_euclid(WIDTH)).min(BARS as i64 - 1);
            if let Ok(bar) = usize::try_from(bar) {
                letters[bar] += minute.letters;
            }
        }
        Self { begin, letters }
    }

    /// When a bar begins.
    fn at(&self, bar: usize) -> String {
        (self.begin + TimeDelta::minutes(WIDTH) * bar as i32).format("%H:%M").to_string()
    }

    /// The same in words, for those who do not see it.
    fn said(&self) -> String {
        let sum: u64 = self.letters.iter().sum();
        let most = (0..BARS).max_by_key(|bar| (self.letters[*bar], std::cmp::Reverse(*bar))).unwrap_or(0);
        let last = self.letters.iter().rposition(|letters| *letters > 0).unwrap_or(0);
        // The last bar has hardly begun after a border.
        let end = match last + 2 >= BARS {
            true => "still coming".to_owned(),
            false => format!("the last before {} UTC", self.at(last + 1)),
        };
        let (new, most, at) = (letters_in_words(sum), grouped(self.letters[most]), self.at(most));
        format!("{new} in two hours, at most {most} in five minutes (from {at} UTC); {end}")
    }
}

/// The plot, and the same as a table.
pub(super) fn plot(minutes: &[LetterMinute]) -> Markup {
    let bars = Bars::new(minutes, Utc::now());
    let most = bars.letters.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return html! { p.more { "No new letters in the last two hours." } };
    }
    let filled = || bars.letters.iter().enumerate().filter(|(_, letters)| **letters > 0);
    html! {
        figure.trend {
            p.most aria-hidden="true" { "most in five minutes: " (grouped(most)) }
            svg viewBox="0 0 240 48" preserveAspectRatio="none" aria-hidden="true" {
                @for y in [0, 24, 48] { line class="grid" x1="0" x2="240" y1=(y) y2=(y) {} }
                @for (bar, letters) in filled() {
                    // Whatever is there is to be seen.
                    @let height = (*letters as f64 / most as f64 * 48.0).max(1.0);
                    rect x=(bar * 10 + 1) y=(format!("{:.2}", 48.0 - height)) width="8" height=(format!("{height:.2}")) {}
                }
            }
            div.axis aria-hidden="true" { span { (bars.at(0)) " UTC" } span { (bars.at(BARS / 2)) } span { "now" } }
            figcaption { (bars.said()) "." }
            details { summary { "Show as a table" }
                table.aff { thead { tr { th scope="col" { "Five minutes from (UTC)" } th.r scope="col" { "New letters" } } }
                    tbody { @for (bar, letters) in filled() { tr { th scope="row" { (bars.at(bar)) } td.r { (grouped(*letters)) } } } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-01-02T{text}Z").parse().expect("a time")
    }

    fn bars(minutes: &[(&str, u64)], now: &str) -> Bars {
        let minute = |(time, letters): &(&str, u64)| LetterMinute { at: at(time), letters: *letters };
        Bars::new(&minutes.iter().map(minute).collect::<Vec<_>>(), at(now))
    }

    #[test]
    fn minutes_fall_into_bars_of_five_and_none_is_lost() {
        let minutes = [
            ("01:26:00", 9),
            ("01:30:00", 1),
            ("01:34:00", 2),
            ("01:35:00", 4),
            ("03:26:00", 8),
            ("03:31:00", 16),
        ];
        let bars = bars(&minutes, "03:27:30");
        assert_eq!((bars.at(0), bars.at(BARS - 1)), ("01:30".to_owned(), "03:25".to_owned()));
        assert_eq!(bars.letters[..3], [3, 4, 0]);
        assert_eq!(bars.letters[BARS - 1], 24, "one clock is ahead of the other");
        assert_eq!(bars.letters.iter().sum::<u64>(), 31, "what is older than the first bar is left out");
    }

    #[test]
    fn words_say_whether_it_is_over() {
        let over = bars(&[("02:51:00", 12), ("03:02:00", 12), ("03:09:00", 3)], "03:24:10");
        let said =
            "27 letters in two hours, at most 12 in five minutes (from 02:50 UTC); the last before 03:10 UTC";
        assert_eq!(over.said(), said);
        let growing = bars(&[("02:51:00", 1), ("03:23:00", 1_200)], "03:24:10");
        let said = "1,201 letters in two hours, at most 1,200 in five minutes (from 03:20 UTC); still coming";
        assert_eq!(growing.said(), said);
        let border = bars(&[("03:24:00", 1)], "03:25:01");
        assert_eq!(
            border.said(),
            "1 letter in two hours, at most 1 in five minutes (from 03:20 UTC); still coming"
        );
    }

    #[test]
    fn a_plot_has_a_bar_and_a_row_for_each_five_minutes_with_letters() {
        let now = Utc::now();
        let minute = |ago, letters| LetterMinute { at: now - TimeDelta::minutes(ago), letters };
        let shown = plot(&[minute(60, 1), minute(30, 1_000_000), minute(0, 7)]).into_string();
        assert_eq!((shown.matches("<rect").count(), shown.matches("<td").count()), (3, 3));
        assert!(shown.contains("height=\"48.00\"") && shown.contains("height=\"1.00\""), "{shown}");
        assert!(!shown.contains("style="), "the policy forbids it: {shown}");
        assert!(plot(&[]).into_string().contains("No new letters"));
    }
}
