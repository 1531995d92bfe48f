//! AMQP's typed header values: as readable text, and exactly, as JSON.

use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Value, json};

/// Tables and arrays inside each other, at most; deeper ones are kept as text only.
const MAX_DEPTH: usize = 16;

/// What a header shows whose value is nested too deeply to be kept.
const TOO_DEEP: &str = "(nested too deeply)";

/// The value as a header shows it.
pub(crate) fn text(value: &AMQPValue) -> Vec<u8> {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().to_vec(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().to_vec(),
        other => match readable(other, MAX_DEPTH) {
            Some(Value::String(text)) => text.into_bytes(),
            Some(value) => value.to_string().into_bytes(),
            None => TOO_DEEP.into(),
        },
    }
}

fn readable(value: &AMQPValue, depth: usize) -> Option<Value> {
    Some(match value {
        AMQPValue::Boolean(value) => json!(value),
        AMQPValue::ShortShortInt(value) => json!(value),
        AMQPValue::ShortShortUInt(value) => json!(value),
        AMQPValue::ShortInt(value) => json!(value),
        AMQPValue::ShortUInt(value) => json!(value),
        AMQPValue::LongInt(value) => json!(value),
        AMQPValue::LongUInt(value) => json!(value),
        AMQPValue::LongLongInt(value) => json!(value),
        AMQPValue::Timestamp(value) => json!(value),
        AMQPValue::Float(value) => json!(value.to_string()),
        AMQPValue::Double(value) => json!(value.to_string()),
        AMQPValue::DecimalValue(value) => json!(decimal(*value)),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::LongString(text) => json!(text.to_string()),
        AMQPValue::ByteArray(bytes) => json!(hex(bytes.as_slice())),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(array) => {
            let depth = depth.checked_sub(1)?;
            Value::Array(array.as_slice().iter().map(|item| readable(item, depth)).collect::<Option<_>>()?)
        }
        AMQPValue::FieldTable(table) => {
            let depth = depth.checked_sub(1)?;
            let pairs =
                table.into_iter().map(|(name, item)| Some((name.to_string(), readable(item, depth)?)));
            Value::Object(pairs.collect::<Option<_>>()?)
        }
    })
}

/// The number with its point where the scale says.
fn decimal(value: DecimalValue) -> String {
    let scale = usize::from(value.scale);
    let digits = format!("{:0>width$}", value.value, width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
}

/// The value with its type, so that [`restore`] gives the same back; `None` where it is nested too deeply.
pub(crate) fn exact(value: &AMQPValue) -> Option<Value> {
    exact_within(value, MAX_DEPTH)
}

fn exact_within(value: &AMQPValue, depth: usize) -> Option<Value> {
    Some(match value {
        AMQPValue::Boolean(value) => json!({ "t": value }),
        AMQPValue::ShortShortInt(value) => json!({ "b": value }),
        AMQPValue::ShortShortUInt(value) => json!({ "B": value }),
        AMQPValue::ShortInt(value) => json!({ "s": value }),
        AMQPValue::ShortUInt(value) => json!({ "u": value }),
        AMQPValue::LongInt(value) => json!({ "I": value }),
        AMQPValue::LongUInt(value) => json!({ "i": value }),
        AMQPValue::LongLongInt(value) => json!({ "l": value }),
        AMQPValue::Timestamp(value) => json!({ "T": value }),
        // bits, because JSON knows no NaN
        AMQPValue::Float(value) => json!({ "f": value.to_bits() }),
        AMQPValue::Double(value) => json!({ "d": value.to_bits() }),
        AMQPValue::DecimalValue(value) => json!({ "D": [value.scale, value.value] }),
        AMQPValue::ShortString(text) => json!({ "S": text.as_str() }),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => json!({ "S": text }),
            Err(_) => json!({ "Sx": hex(text.as_bytes()) }),
        },
        AMQPValue::ByteArray(bytes) => json!({ "x": hex(bytes.as_slice()) }),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(array) => {
            let depth = depth.checked_sub(1)?;
            let items = array.as_slice().iter().map(|item| exact_within(item, depth));
            json!({ "A": items.collect::<Option<Vec<_>>>()? })
        }
        AMQPValue::FieldTable(table) => {
            let depth = depth.checked_sub(1)?;
            let pairs =
                table.into_iter().map(|(name, item)| Some((name.to_string(), exact_within(item, depth)?)));
            json!({ "F": pairs.collect::<Option<Map<_, _>>>()? })
        }
    })
}

/// Takes back what [`exact`] wrote; `None` for anything else.
pub(crate) fn restore(value: &Value) -> Option<AMQPValue> {
    restore_within(value, MAX_DEPTH)
}

fn restore_within(value: &Value, depth: usize) -> Option<AMQPValue> {
    if value.is_null() {
        return Some(AMQPValue::Void);
    }
    let (tag, value) = value.as_object().filter(|object| object.len() == 1)?.iter().next()?;
    Some(match tag.as_str() {
        "t" => AMQPValue::Boolean(value.as_bool()?),
        "b" => AMQPValue::ShortShortInt(value.as_i64()?.try_into().ok()?),
        "B" => AMQPValue::ShortShortUInt(value.as_u64()?.try_into().ok()?),
        "s" => AMQPValue::ShortInt(value.as_i64()?.try_into().ok()?),
        "u" => AMQPValue::ShortUInt(value.as_u64()?.try_into().ok()?),
        "I" => AMQPValue::LongInt(value.as_i64()?.try_into().ok()?),
        "i" => AMQPValue::LongUInt(value.as_u64()?.try_into().ok()?),
        "l" => AMQPValue::LongLongInt(value.as_i64()?),
        "T" => AMQPValue::Timestamp(value.as_u64()?),
        "f" => AMQPValue::Float(f32::from_bits(value.as_u64()?.try_into().ok()?)),
        "d" => AMQPValue::Double(f64::from_bits(value.as_u64()?)),
        "D" => {
            let (scale, value) = (value.get(0)?.as_u64()?, value.get(1)?.as_u64()?);
            AMQPValue::DecimalValue(DecimalValue {
                scale: scale.try_into().ok()?,
                value: value.try_into().ok()?,
            })
        }
        "S" => AMQPValue::LongString(LongString::from(value.as_str()?)),
        "Sx" => AMQPValue::LongString(LongString::from(unhex(value.as_str()?)?)),
        "x" => AMQPValue::ByteArray(unhex(value.as_str()?)?.into()),
        "A" => {
            let depth = depth.checked_sub(1)?;
            let items = value.as_array()?.iter().map(|item| restore_within(item, depth));
            AMQPValue::FieldArray(FieldArray::from(items.collect::<Option<Vec<_>>>()?))
        }
        "F" => {
            let depth = depth.checked_sub(1)?;
            let mut table = FieldTable::default();
            for (name, item) in value.as_object()? {
                table.insert(ShortString::try_new(name.as_str()).ok()?, restore_within(item, depth)?);
            }
            AMQPValue::FieldTable(table)
        }
        _ => return None,
    })
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((nibble(*pair.first()?)? << 4) | nibble(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One value of every type that RabbitMQ knows.
    pub(crate) fn every_type() -> Vec<AMQPValue> {
        let mut table = FieldTable::default();
        table.insert("count".into(), AMQPValue::LongLongInt(-7));
        table.insert("raw".into(), AMQPValue::LongString(vec![0xff, 0].into()));
        table.insert("empty".into(), AMQPValue::FieldTable(FieldTable::default()));
        let array = vec![AMQPValue::Boolean(true), AMQPValue::FieldTable(table.clone()), AMQPValue::Void];
        vec![
            AMQPValue::Boolean(true),
            AMQPValue::ShortShortInt(-1),
            AMQPValue::ShortShortUInt(255),
            AMQPValue::ShortInt(i16::MIN),
            AMQPValue::ShortUInt(u16::MAX),
            AMQPValue::LongInt(i32::MIN),
            AMQPValue::LongUInt(u32::MAX),
            AMQPValue::LongLongInt(i64::MIN),
            AMQPValue::Float(1.5),
            AMQPValue::Double(-0.1),
            AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 12345 }),
            AMQPValue::Timestamp(u64::MAX),
            AMQPValue::ByteArray(vec![1, 0, 0xff].into()),
            AMQPValue::FieldTable(table),
            AMQPValue::FieldArray(array.into()),
            AMQPValue::FieldArray(FieldArray::default()),
        ]
    }

    fn nested(levels: usize) -> AMQPValue {
        (0..levels).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(vec![inner].into()))
    }

    #[test]
    fn every_type_comes_back() {
        for value in every_type() {
            let json = exact(&value).expect("valid").to_string();
            assert_eq!(restore(&serde_json::from_str(&json).expect("valid")), Some(value), "{json}");
        }
        let nan = restore(&exact(&AMQPValue::Double(f64::NAN)).expect("valid"));
        assert!(matches!(nan, Some(AMQPValue::Double(value)) if value.is_nan()));
    }

    #[test]
    fn texts_are_readable() {
        let text = |value| String::from_utf8(text(&value)).expect("valid");
        assert_eq!(text(AMQPValue::LongInt(-5)), "-5");
        assert_eq!(text(AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 })), "0.05");
        assert_eq!(text(AMQPValue::DecimalValue(DecimalValue { scale: 0, value: 5 })), "5");
        assert_eq!(text(AMQPValue::FieldArray(vec![AMQPValue::Boolean(true)].into())), "[true]");
    }

    #[test]
    fn deep_nesting_is_cut_off_both_ways() {
        assert!(exact(&nested(MAX_DEPTH)).is_some());
        assert_eq!(exact(&nested(MAX_DEPTH + 1)), None);
        assert_eq!(text(&nested(100)), TOO_DEEP.as_bytes());
        let deep = (0..100).fold(Value::Null, |inner, _| json!({ "A": [inner] }));
        assert_eq!(restore(&deep), None);
    }

    #[test]
    fn nonsense_is_not_restored() {
        for text in [r#"{"b":300}"#, r#"{"z":1}"#, "5", r#"{"x":"0g"}"#, r#"{"x":"abc"}"#, r#"{"b":1,"B":1}"#]
        {
            assert_eq!(restore(&serde_json::from_str(text).expect("valid")), None, "{text}");
        }
    }
}
