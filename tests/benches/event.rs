//! The events that are sent, and what must hold of them when they come back.

/// Ordering keys.
pub(crate) const KEYS: usize = 1_000;

/// Bytes of a payload.
pub(crate) const PAYLOAD: usize = 256;

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

/// Id of the event `n`, where the bench itself gives one.
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
    seen: Vec<bool>,
    distinct: usize,
    duplicates: usize,
    last: Vec<Option<usize>>,
    overtaken: usize,
    strange: usize,
}

impl Check {
    /// Expects the events 0 to `expected`.
    pub(crate) fn new(expected: usize) -> Self {
        Self {
            seen: vec![false; expected],
            distinct: 0,
            duplicates: 0,
            last: vec![None; KEYS],
            overtaken: 0,
            strange: 0,
        }
    }

    /// Takes in one message, in the broker's order of its key.
    pub(crate) fn see(&mut self, payload: &[u8]) {
        let Some(n) = number(payload).filter(|n| *n < self.seen.len()) else {
            self.strange += 1;
            return;
        };
        if std::mem::replace(&mut self.seen[n], true) {
            self.duplicates += 1;
            return;
        }
        self.distinct += 1;
        let last = &mut self.last[n % KEYS];
        self.overtaken += usize::from(last.is_some_and(|last| n < last));
        *last = Some(n);
    }

    /// What was found.
    ///
    /// # Errors
    /// When something was lost, came out of order, or was never sent.
    pub(crate) fn verdict(&self) -> Result<String, String> {
        let lost = self.seen.len() - self.distinct;
        let text = format!(
            "{} distinct, lost {lost}, out of order {}, twice {}, not ours {}",
            self.distinct, self.overtaken, self.duplicates, self.strange
        );
        if lost + self.overtaken + self.strange == 0 { Ok(text) } else { Err(text) }
    }
}
