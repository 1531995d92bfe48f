//! Envelope to properties and body, and back. The mapping is described in [`properties`](crate::properties).

use std::collections::btree_map::{BTreeMap, Entry};

use backstop_core::sink::Scope;
use backstop_core::{Envelope, FaultKind, Headers};
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::properties as name;
use crate::typed;

/// Persistent, in AMQP's `delivery_mode`.
const PERSISTENT: u8 = 2;

/// The envelope of a delivery.
pub(crate) fn decode(properties: &BasicProperties, body: Vec<u8>) -> Envelope {
    let mut headers = Headers::default();
    decode_properties(properties, &mut headers);
    let mut exact = Map::new();
    let mut no_body = false;
    for (wire, value) in properties.headers().iter().flatten() {
        if wire.as_str() == name::NO_BODY && body.is_empty() {
            no_body = true;
            continue;
        }
        decode_header(&envelope_name(wire.as_str()), value, &mut headers, &mut exact);
    }
    if !exact.is_empty() {
        headers.append(name::TYPED, Value::Object(exact).to_string());
    }
    Envelope { key: None, headers, body: (!no_body).then(|| body.into()) }
}

fn decode_properties(properties: &BasicProperties, headers: &mut Headers) {
    let texts = [
        (name::CONTENT_TYPE, properties.content_type()),
        (name::CONTENT_ENCODING, properties.content_encoding()),
        (name::MESSAGE_ID, properties.message_id()),
        (name::TYPE, properties.kind()),
        (name::CORRELATION_ID, properties.correlation_id()),
        (name::REPLY_TO, properties.reply_to()),
        (name::EXPIRATION, properties.expiration()),
        (name::APP_ID, properties.app_id()),
        (name::USER_ID, properties.user_id()),
        (name::CLUSTER_ID, properties.cluster_id()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            headers.append(name, value.as_str().to_owned());
        }
    }
    let numbers = [
        (name::TIMESTAMP, *properties.timestamp()),
        (name::PRIORITY, properties.priority().map(u64::from)),
        (name::DELIVERY_MODE, properties.delivery_mode().map(u64::from)),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            headers.append(name, value.to_string());
        }
    }
}

fn envelope_name(wire: &str) -> String {
    if !wire.starts_with(name::PREFIX) || wire == name::ORIGINAL_USER_ID {
        return wire.to_owned();
    }
    if wire == name::ORIGINAL_EXPIRATION {
        return name::EXPIRATION.to_owned();
    }
    match name::PARKED.iter().find(|(_, parked)| *parked == wire) {
        Some((original, _)) => (*original).to_owned(),
        None => [name::ESCAPE, wire].concat(),
    }
}

fn decode_header(name: &str, value: &AMQPValue, headers: &mut Headers, exact: &mut Map<String, Value>) {
    match value {
        AMQPValue::LongString(text) => headers.append(name, text.as_bytes().to_vec()),
        AMQPValue::ShortString(text) => headers.append(name, text.as_str().to_owned()),
        AMQPValue::Void => headers.append_null(name),
        AMQPValue::FieldArray(array) if is_repetition(array.as_slice()) => {
            for item in array.as_slice() {
                decode_header(name, item, headers, exact);
            }
        }
        other => {
            headers.append(name, typed::text(other));
            if let Some(value) = typed::exact(other) {
                exact.insert(name.to_owned(), value);
            }
        }
    }
}

/// Whether the array stands for a header that is there more than once.
fn is_repetition(items: &[AMQPValue]) -> bool {
    items.len() > 1 && items.iter().all(|item| matches!(item, AMQPValue::LongString(_) | AMQPValue::Void))
}

/// The properties that carry an envelope's headers.
///
/// Fails with [`Scope::Message`] where AMQP cannot carry them.
pub(crate) fn encode(envelope: &Envelope) -> Result<BasicProperties, Failure> {
    let headers = &envelope.headers;
    let exact: Option<Map<String, Value>> =
        headers.get(name::TYPED).and_then(|json| serde_json::from_slice(json).ok());
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let mut table = BTreeMap::new();
    for (name, value) in headers.iter() {
        match name.strip_prefix(name::PREFIX) {
            Some(_) => {
                let exact = exact.as_ref().and_then(|exact| exact.get(name));
                properties = encode_pseudo(properties, &mut table, headers, name, value, exact)?;
            }
            None => {
                let wire = name::PARKED.iter().find(|(original, _)| *original == name);
                let value = encode_value(value, exact.as_ref().and_then(|exact| exact.get(name)));
                insert(&mut table, wire.map_or(name, |(_, parked)| parked), value)?;
            }
        }
    }
    if let Some(key) = &envelope.key
        && headers.get(PARTITION_KEY).is_none()
    {
        insert(&mut table, PARTITION_KEY, AMQPValue::LongString(LongString::from(key.to_vec())))?;
    }
    if envelope.body.is_none() {
        insert(&mut table, name::NO_BODY, AMQPValue::Boolean(true))?;
    }
    Ok(if table.is_empty() { properties } else { properties.with_headers(FieldTable::from(table)) })
}

/// CloudEvents' `partitionkey`, as AMQP has no key of its own.
pub(crate) const PARTITION_KEY: &str = "cloudEvents:partitionkey";

fn encode_pseudo(
    properties: BasicProperties,
    table: &mut BTreeMap<ShortString, AMQPValue>,
    headers: &Headers,
    name: &str,
    value: Option<&Bytes>,
    exact: Option<&Value>,
) -> Result<BasicProperties, Failure> {
    if let Some(wire) = name.strip_prefix(name::ESCAPE) {
        return insert(table, wire, encode_value(value, exact)).map(|()| properties);
    }
    let Some(value) = value else { return Ok(properties) };
    let text = || short(name, value);
    Ok(match name {
        name::CONTENT_TYPE => properties.with_content_type(text()?),
        name::CONTENT_ENCODING => properties.with_content_encoding(text()?),
        name::CORRELATION_ID => properties.with_correlation_id(text()?),
        name::REPLY_TO => properties.with_reply_to(text()?),
        name::APP_ID => properties.with_app_id(text()?),
        name::CLUSTER_ID => properties.with_cluster_id(text()?),
        name::PRIORITY => properties.with_priority(number(name, value)?),
        // too long for the property, but whole in the CloudEvents header
        name::MESSAGE_ID if text().is_err() && headers.get("cloudEvents:id").is_some() => properties,
        name::TYPE if text().is_err() && headers.get("cloudEvents:type").is_some() => properties,
        name::MESSAGE_ID => properties.with_message_id(text()?),
        name::TYPE => properties.with_type(text()?),
        // AMQP knows no time before 1970
        name::TIMESTAMP => match u64::try_from(number::<i128>(name, value)?) {
            Ok(seconds) => properties.with_timestamp(seconds),
            Err(_) => properties,
        },
        name::EXPIRATION | name::USER_ID | name::ORIGINAL_USER_ID => {
            let wire =
                if name == name::EXPIRATION { name::ORIGINAL_EXPIRATION } else { name::ORIGINAL_USER_ID };
            table.insert(wire.into(), AMQPValue::LongString(LongString::from(value.to_vec())));
            properties
        }
        _ => properties,
    })
}

/// The typed value, if the header still shows it; else the header as a string.
fn encode_value(value: Option<&Bytes>, exact: Option<&Value>) -> AMQPValue {
    let Some(value) = value else { return AMQPValue::Void };
    let restored = exact.and_then(typed::restore).filter(|restored| typed::text(restored) == *value);
    restored.unwrap_or_else(|| AMQPValue::LongString(LongString::from(value.to_vec())))
}

/// Adds a header; a name that is there already becomes an array.
fn insert(table: &mut BTreeMap<ShortString, AMQPValue>, name: &str, value: AMQPValue) -> Result<(), Failure> {
    let name = ShortString::try_new(name).map_err(|_| {
        Failure::new(
            Scope::Message,
            FaultKind::Invalid,
            "a header name is longer than 255 bytes, AMQP's limit",
        )
    })?;
    match table.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(value);
        }
        Entry::Occupied(mut entry) => match entry.get_mut() {
            AMQPValue::FieldArray(array) => array.push(value),
            first => {
                let both = vec![std::mem::replace(first, AMQPValue::Void), value];
                *first = AMQPValue::FieldArray(both.into());
            }
        },
    }
    Ok(())
}

fn short(name: &str, value: &Bytes) -> Result<ShortString, Failure> {
    let text = std::str::from_utf8(value).ok().and_then(|text| ShortString::try_new(text).ok());
    text.ok_or_else(|| {
        let what = format!("{name} is longer than 255 bytes or not UTF-8, which AMQP cannot carry");
        Failure::new(Scope::Message, FaultKind::Invalid, what)
    })
}

fn number<T: std::str::FromStr>(name: &str, value: &Bytes) -> Result<T, Failure> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        Failure::new(Scope::Message, FaultKind::Invalid, format!("{name} is not a number in range"))
    })
}

/// Bytes that the envelope's headers take in the frame of properties, at most.
pub(crate) fn header_size(envelope: &Envelope) -> usize {
    // name and value have lengths and a type of their own
    const OVERHEAD: usize = 16;
    let key = envelope.key.as_ref().map_or(0, Bytes::len);
    envelope.headers.size() + key + OVERHEAD * (envelope.headers.len() + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(properties: &BasicProperties, body: &[u8]) -> (Envelope, BasicProperties) {
        let envelope = decode(properties, body.to_vec());
        let encoded = encode(&envelope).expect("valid");
        (envelope, encoded)
    }

    fn table(pairs: Vec<(&str, AMQPValue)>) -> BasicProperties {
        let map = pairs.into_iter().map(|(name, value)| (name.into(), value)).collect::<BTreeMap<_, _>>();
        BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(map.into())
    }

    fn string(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn typed_headers_come_back() {
        let names: Vec<String> = (0..).map(|n| format!("h{n}")).take(16).collect();
        let sent = table(names.iter().map(String::as_str).zip(typed::tests::every_type()).collect());
        let (envelope, encoded) = round_trip(&sent, b"x");
        assert_eq!(encoded, sent);
        assert_eq!(envelope.headers.get_str("h0"), Some("true"));
    }

    #[test]
    fn strings_nulls_and_repetitions_come_back() {
        let array = vec![string("a"), string("b"), AMQPValue::Void];
        let sent = table(vec![
            ("text", string("t")),
            ("raw", AMQPValue::LongString(vec![0xff].into())),
            ("none", AMQPValue::Void),
            ("twice", AMQPValue::FieldArray(array.into())),
        ]);
        let (envelope, encoded) = round_trip(&sent, b"x");
        assert_eq!(encoded, sent);
        assert_eq!(envelope.headers.iter().filter(|(name, _)| *name == "twice").count(), 3);
        assert_eq!(envelope.headers.get(name::TYPED), None);
    }

    #[test]
    fn a_changed_text_wins_over_the_recorded_type() {
        let mut envelope = decode(&table(vec![("n", AMQPValue::LongInt(5))]), vec![]);
        envelope.headers.set("n", "6");
        assert_eq!(
            encode(&envelope).expect("valid").headers().as_ref().expect("valid").inner()["n"],
            string("6")
        );
    }

    #[test]
    fn properties_come_back_and_live_ones_are_disarmed() {
        let sent = BasicProperties::default()
            .with_content_type("t".into())
            .with_content_encoding("gzip".into())
            .with_message_id("1".into())
            .with_type("k".into())
            .with_timestamp(7)
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_app_id("a".into())
            .with_priority(3)
            .with_delivery_mode(PERSISTENT);
        assert_eq!(round_trip(&sent, b"x").1, sent);
        let armed =
            sent.clone().with_expiration("1000".into()).with_user_id("u".into()).with_delivery_mode(1);
        let (envelope, encoded) = round_trip(&armed, b"x");
        assert_eq!(envelope.headers.get_str(name::USER_ID), Some("u"));
        assert_eq!((encoded.expiration(), encoded.user_id()), (&None, &None));
        assert_eq!(encoded.delivery_mode(), &Some(PERSISTENT));
        let again = decode(&encoded, vec![]);
        assert_eq!(again.headers.get_str(name::EXPIRATION), Some("1000"));
        assert_eq!(again.headers.get_str(name::ORIGINAL_USER_ID), Some("u"));
        assert_eq!(again.headers.get_str(name::USER_ID), None, "a claim is not a checked user");
    }

    #[test]
    fn s17_headers_that_the_broker_acts_on_are_parked() {
        let cc = AMQPValue::FieldArray(vec![string("other")].into());
        let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(FieldTable::default())].into());
        let sent = table(vec![("CC", cc), ("x-death", deaths)]);
        let (envelope, encoded) = round_trip(&sent, b"x");
        let wire: Vec<_> = encoded.headers().iter().flatten().map(|(name, _)| name.to_string()).collect();
        assert_eq!(wire, ["amqp:CC", "amqp:x-death"]);
        assert_eq!(
            decode(&encoded, b"x".to_vec()),
            decode(&sent.with_delivery_mode(PERSISTENT), b"x".to_vec())
        );
        assert_eq!(envelope.headers.get_str("CC"), Some(r#"["other"]"#));
    }

    #[test]
    fn s17_a_stranger_cannot_forge_a_property() {
        let forged =
            table(vec![("amqp:message-id", string("victim")), ("amqp:typed", AMQPValue::LongInt(1))]);
        let (envelope, encoded) = round_trip(&forged, b"x");
        assert_eq!(envelope.headers.get(name::MESSAGE_ID), None);
        assert_eq!(envelope.headers.get_str("amqp:header:amqp:message-id"), Some("victim"));
        assert_eq!(encoded, forged, "and yet nothing is lost");
    }

    #[test]
    fn an_absent_body_is_not_an_empty_one() {
        let absent = encode(&Envelope::default()).expect("valid");
        assert_eq!(
            decode(&absent, vec![]),
            Envelope { headers: decode(&absent, vec![]).headers, ..Envelope::default() }
        );
        assert_eq!(decode(&BasicProperties::default(), vec![]).body, Some(Bytes::new()));
    }

    #[test]
    fn s02_what_amqp_cannot_carry_is_the_messages_fault() {
        let refused = |name: &str, value: &str| {
            let headers = [(name, Some(value.to_owned()))].into_iter().collect();
            encode(&Envelope { headers, ..Envelope::default() }).map_err(|failure| failure.scope)
        };
        assert_eq!(refused(&"n".repeat(256), "v"), Err(Scope::Message));
        assert_eq!(refused(name::CORRELATION_ID, &"v".repeat(256)), Err(Scope::Message));
        assert_eq!(refused(name::PRIORITY, "300"), Err(Scope::Message));
        assert!(refused(name::TIMESTAMP, "-5").is_ok());
    }
}
