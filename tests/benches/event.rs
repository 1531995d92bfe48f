//! The events that are sent, and what must hold of them when they come back.

/// Ordering keys.
pub(crate) const KEYS: usize = 1_000;

/// Bytes of a payload.
pub(crate) const PAYLOAD: usize = 256;

/// Time of every event, 2026-01-01T00:00:00.123456Z, as PostgreSQL counts it.
pub(crate) const MICROS_SINCE_2000: i64 = 820540800123456;

/// Key of the event `n`.
pub(crate) fn key(n: usize) -> String {
    format!("key-{}", n % KEYS)
}

/// Payload of the event `n`: JSON that begins with its number; the rest is hexadecimal noise, so that it shrinks
/// about as much as real events do.
pub(crate) fn payload(n: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let mut text = format!("{{\"n\":\"{n:09}\",\"pad\":\"");
    while text.len() < PAYLOAD - 2 {
        text.push(char::from(b"0123456789abcdef"[random.usize(..16)]));
    }
    text.push_str("\"}");
    text.into_bytes()
}

/// Id of the event `n`.
pub(crate) fn id(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// A payload as handlers read it.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Body {
    n: String,
}

impl Body {
    /// The number.
    pub(crate) fn number(&self) -> Result<usize, std::num::ParseIntError> {
        self.n.parse()
    }
}

/// The number in a payload.
pub(crate) fn number(payload: &[u8]) -> Option<usize> {
    std::str::from_utf8(payload.get(6..15)?).ok()?.parse().ok()
}

/// Looks at what has come back: nothing lost, and the first publications of a key in their order.
#[derive(Debug)]
pub(crate) struct Check {
    events: Vec<Event>,
    expected: usize,
    distinct: usize,
    twice: usize,
    last: Vec<Option<usize>>,
    overtaken: usize,
    strange: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    NotOurs,
    Awaited,
    Seen,
}

impl Check {
    /// Expects those events.
    pub(crate) fn new(expected: impl IntoIterator<Item = usize>) -> Self {
        let mut events = Vec::new();
        let mut count = 0;
        for n in expected {
            events.resize(events.len().max(n + 1), Event::NotOurs);
            events[n] = Event::Awaited;
            count += 1;
        }
        let last = vec![None; KEYS];
        Self { events, expected: count, distinct: 0, twice: 0, last, overtaken: 0, strange: 0 }
    }

    /// Takes in one message, in the broker's order of its key.
    pub(crate) fn see(&mut self, id: &[u8], payload: &[u8]) {
        let ours = number(payload).filter(|n| self::id(*n).as_bytes() == id);
        let event = ours.and_then(|n| Some((n, self.events.get_mut(n)?)));
        match event {
            None | Some((_, Event::NotOurs)) => self.strange += 1,
            Some((_, Event::Seen)) => self.twice += 1,
            Some((n, event)) => {
                *event = Event::Seen;
                self.distinct += 1;
                let last = &mut self.last[n % KEYS];
                self.overtaken += usize::from(last.is_some_and(|last| n < last));
                *last = Some(n);
            }
        }
    }

    /// How many came more than once, where that may be.
    ///
    /// # Errors
    /// When something was lost, came out of order, or was never sent.
    pub(crate) fn at_least_once(&self) -> Result<usize, String> {
        let lost = self.expected - self.distinct;
        let found = format!(
            "{} distinct, lost {lost}, out of order {}, twice {}, not ours {}",
            self.distinct, self.overtaken, self.twice, self.strange
        );
        eprintln!("  read back: {found}");
        if lost + self.overtaken + self.strange == 0 { Ok(self.twice) } else { Err(found) }
    }

    /// The same where nothing happened that would excuse that one comes twice.
    ///
    /// # Errors
    /// As [`at_least_once`](Check::at_least_once), and when something came twice.
    pub(crate) fn once(&self) -> Result<(), String> {
        match self.at_least_once()? {
            0 => Ok(()),
            twice => Err(format!("{twice} messages came twice")),
        }
    }
}
