//! Headers as one binary column.
//!
//! Names are text, but values are any bytes or null, order counts and names may repeat: JSON holds none of that
//! without detours. The column is a version byte (1), then for each header the length of its name as a big-endian
//! u32, the name, the length of its value as a big-endian i32 (-1 for null), and the value.

use bytes::Bytes;

use crate::adapter_error::{AdapterError, FaultKind};
use crate::message::Headers;

const VERSION: u8 = 1;

/// The column for these headers.
///
/// # Errors
/// When a name or value is longer than 2 GiB.
pub fn encode(headers: &Headers) -> Result<Vec<u8>, AdapterError> {
    let mut column = Vec::with_capacity(1 + headers.size() + 8 * headers.len());
    column.push(VERSION);
    for (name, value) in headers.iter() {
        column.extend(length(name.len())?.to_be_bytes());
        column.extend(name.as_bytes());
        match value {
            Some(value) => {
                column.extend(length(value.len())?.to_be_bytes());
                column.extend(value);
            }
            None => column.extend((-1_i32).to_be_bytes()),
        }
    }
    Ok(column)
}

/// The headers of this column.
///
/// # Errors
/// When the column is damaged, or a newer version wrote it.
pub fn decode(column: Vec<u8>) -> Result<Headers, AdapterError> {
    let mut rest = Bytes::from(column);
    let damaged = || AdapterError::new(FaultKind::Invalid, "a headers column is damaged");
    if take(&mut rest, 1).as_deref() != Some(&[VERSION]) {
        return Err(AdapterError::new(FaultKind::Invalid, "a headers column has an unknown version")
            .with_hint("use at least the version of Backstop that wrote it"));
    }
    let mut headers = Headers::default();
    while !rest.is_empty() {
        let name = sized(&mut rest).flatten().ok_or_else(damaged)?;
        let name = std::str::from_utf8(&name).map_err(|_| damaged())?.to_owned();
        match sized(&mut rest).ok_or_else(damaged)? {
            Some(value) => headers.append(name, value),
            None => headers.append_null(name),
        }
    }
    Ok(headers)
}

fn length(bytes: usize) -> Result<i32, AdapterError> {
    i32::try_from(bytes).map_err(|_| AdapterError::new(FaultKind::Invalid, "a header is longer than 2 GiB"))
}

/// A length and as many bytes; the inner `None` is a null.
fn sized(rest: &mut Bytes) -> Option<Option<Bytes>> {
    let length: [u8; 4] = take(rest, 4)?.as_ref().try_into().ok()?;
    match i32::from_be_bytes(length) {
        -1 => Some(None),
        length => take(rest, usize::try_from(length).ok()?).map(Some),
    }
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= rest.len()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_to_the_letter() {
        let mut headers = Headers::default();
        headers.append("b", vec![0xff, 0, 1]);
        headers.append("a", "");
        headers.append_null("a");
        headers.append("b", "again");
        headers.append("", "no name");
        assert_eq!(decode(encode(&headers).expect("short")).expect("sound"), headers);
        assert_eq!(decode(encode(&Headers::default()).expect("short")).expect("sound"), Headers::default());
    }

    #[test]
    fn s14_damage_is_an_error_and_not_a_panic() {
        let mut headers = Headers::default();
        headers.append("name", "value");
        let sound = encode(&headers).expect("short");
        for end in (0..sound.len()).filter(|end| *end != 1) {
            assert!(decode(sound[..end].to_vec()).is_err(), "cut at {end}");
        }
        assert!(decode(vec![9]).is_err());
        assert!(decode(vec![1, 0xff, 0xff, 0xff, 0xfe]).is_err());
        assert!(decode(vec![1, 0x7f, 0xff, 0xff, 0xff]).is_err());
        // What wraps around in 32 bits would be read back as something shorter.
        for large in [1 << 31, (1 << 32) + 7, usize::MAX] {
            assert!(length(large).is_err(), "{large}");
        }
    }
}
