//! The trace context: taken from the current span, carried in headers, given back to a span.
//!
//! W3C's propagators read and write it, whatever the application has set up for its own HTTP traffic: the outbox
//! table is a public contract, and its form must not depend on a global.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::baggage::BaggageExt;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::message::Headers;
use crate::names::{BAGGAGE, TRACEPARENT, TRACESTATE};

/// Longest value that is read or written; longer ones are dropped rather than trusted.
const MAX_BYTES: usize = 8 * 1024;

/// Writes what a new message inherits into its headers: the current span's context, unless they already carry one,
/// and the [cause](crate::context) where a handler is at work.
///
/// Without a recording OpenTelemetry layer there is no context, and nothing is written. An empty `tracestate` is
/// left out.
pub fn inject_current(headers: &mut Headers) {
    crate::context::inherit(headers);
    if headers.get(TRACEPARENT).is_some() {
        return;
    }
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    if !span.is_valid() {
        return;
    }
    let flags = span.trace_flags().to_u8();
    headers.set(TRACEPARENT, format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()));
    let state = span.trace_state().header();
    if !state.is_empty() && state.len() <= MAX_BYTES {
        headers.set(TRACESTATE, state);
    }
    let baggage: Vec<String> = context
        .baggage()
        .iter()
        .map(|(key, (value, _))| format!("{key}={}", percent_encoded(value.as_str())))
        .collect();
    let baggage = baggage.join(",");
    if !baggage.is_empty() && baggage.len() <= MAX_BYTES {
        headers.set(BAGGAGE, baggage);
    }
}

/// The context that headers carry; `None` where there is none or it is not well-formed.
pub fn extract(headers: &Headers) -> Option<Context> {
    let span = parse_traceparent(headers.get_str(TRACEPARENT)?, headers.get_str(TRACESTATE).unwrap_or(""))?;
    Some(Context::new().with_remote_span_context(span))
}

/// Makes `span` a child of the context that headers carry, if they carry one.
pub fn set_parent(span: &Span, headers: &Headers) {
    if let Some(context) = extract(headers) {
        // Fails only where no OpenTelemetry layer is installed, and then there is nobody to tell.
        let _ = span.set_parent(context);
    }
}

/// Links `span` to the context that headers carry, if they carry one.
pub fn add_link(span: &Span, headers: &Headers) {
    if let Some(context) = extract(headers) {
        span.add_link(context.span().span_context().clone());
    }
}

/// The trace headers as pairs, for a log line or a table column.
pub fn carried(headers: &Headers) -> HashMap<&'static str, String> {
    [TRACEPARENT, TRACESTATE, BAGGAGE]
        .into_iter()
        .filter_map(|name| Some((name, headers.get_str(name)?.to_owned())))
        .collect()
}

/// Strict: version 00 or later with exactly the four fields that version 00 has; ids of zeros are refused.
fn parse_traceparent(text: &str, state: &str) -> Option<SpanContext> {
    let mut fields = text.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let sized = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let hex = [version, trace, span, flags]
        .iter()
        .all(|field| field.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    if !sized || !hex || version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let state = if state.len() <= MAX_BYTES {
        state.parse::<TraceState>().unwrap_or_default()
    } else {
        TraceState::NONE
    };
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        state,
    );
    context.is_valid().then_some(context)
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+/:@?".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_well_formed_context_is_read() {
        let headers: Headers = [(TRACEPARENT, Some(GOOD)), (TRACESTATE, Some("a=1"))].into_iter().collect();
        let context = extract(&headers).expect("well-formed");
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().header(), "a=1");
    }

    #[test]
    fn forged_contexts_are_refused() {
        let long = "x".repeat(1 << 20);
        for bad in [
            "",
            "00",
            "zz-0-0-0",
            &GOOD.replace("0af7", "0AF7"),
            &format!("{GOOD}-00"),
            &long,
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let headers: Headers = [(TRACEPARENT, Some(bad.to_owned()))].into_iter().collect();
            assert!(extract(&headers).is_none(), "{bad:.60}");
        }
    }

    #[test]
    fn without_a_span_nothing_is_written() {
        let mut headers = Headers::default();
        inject_current(&mut headers);
        assert!(headers.is_empty());
    }
}
