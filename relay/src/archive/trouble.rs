//! What a store of objects answers when it does not do what it is asked, and how to mend it.

use std::error::Error as _;

use backstop_core::report::cut;
use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use crate::config::BucketUrl;
use crate::exit::{Exit, Failure};

/// Longest cause in an error line, in bytes.
const MAX_CAUSE: usize = 400;
const KEYS: &str = "check who asks: access_key_id and secret_access_key_file in [dead_letters.retention.s3], or AWS_ACCESS_KEY_ID \
                    and AWS_SECRET_ACCESS_KEY";
const RIGHTS: &str = "allow s3:PutObject, s3:GetObject and s3:AbortMultipartUpload on the bucket's objects; to keys of the \
                      environment belongs their AWS_SESSION_TOKEN";
const REGION: &str = "set region in [dead_letters.retention.s3], or AWS_REGION, to the bucket's";

/// The failure to do something with a bucket, such as `cannot be written to`.
pub(super) fn failure(url: &BucketUrl, cannot: &str, error: &Error) -> Failure {
    let code = code(error);
    let cause = cause(error, code.as_deref());
    Failure::new(Exit::Failed, format!("{url} {cannot}: {cause}"), hint(error, code.as_deref()))
}

/// Whether the store does not know what it was asked to do.
pub(super) fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || code(error).is_some_and(|code| code == "NotImplemented")
        || error.to_string().contains("status code: 501")
}

/// The text of an element in the XML of an answer, which the client hands on as a text.
fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// What the store calls its reason.
fn code(error: &Error) -> Option<String> {
    element(&error.to_string(), "Code")
}

/// Why, in one line. Answers without words, such as those to HEAD, have their status alone.
fn cause(error: &Error, code: Option<&str>) -> String {
    let text = error.to_string();
    let cause = match code {
        Some(code) => match element(&text, "Message") {
            Some(message) => format!("{code}: {message}"),
            None => code.to_owned(),
        },
        None => deepest(error),
    };
    cut(cause.trim_end_matches([':', ' ']), MAX_CAUSE).to_string()
}

/// What lies below everything that was wrapped around it.
pub(super) fn deepest(error: &Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// How far a request got that had no answer.
fn unanswered(error: &Error) -> Option<HttpErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

fn hint(error: &Error, code: Option<&str>) -> &'static str {
    match code {
        Some("NoSuchBucket") => "make the bucket, or name another in [dead_letters.retention] archive",
        Some("InvalidAccessKeyId" | "SignatureDoesNotMatch") => KEYS,
        Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            "these credentials are over: set new ones, and start the relay again"
        }
        Some("InvalidRequest") => {
            "the message says what is missing; under Object Lock it may be a checksum: they go as x-amz-checksum-sha256"
        }
        Some("RequestTimeTooSkewed") => "set the clock of this machine",
        Some("PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed") => REGION,
        Some(_) | None => hint_without_code(error),
    }
}

fn hint_without_code(error: &Error) -> &'static str {
    let text = error.to_string();
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => RIGHTS,
        Error::NotFound { .. } => "check the name, the bucket and the prefix",
        // The addresses at which machines and containers ask for the credentials of their role.
        _ if text.contains("//169.254.") => {
            "no credentials are set, and this machine has no role: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             [dead_letters.retention.s3]"
        }
        _ if text.contains("redirect") => REGION,
        _ if deepest(error).contains("certificate") => {
            "check the certificate of the store; name an authority of your own with SSL_CERT_FILE in the environment"
        }
        _ if unanswered(error).is_some() => {
            "check endpoint in [dead_letters.retention.s3] or AWS_ENDPOINT_URL, and the way to it"
        }
        _ => "look into the log of the store; the relay tries again by itself",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> Error {
        let text =
            format!("status code: 400: <Error><Code>{code}</Code><Message>\n because </Message></Error>");
        Error::Generic { store: "S3", source: text.into() }
    }

    fn told(error: &Error) -> (String, String) {
        let url = BucketUrl { bucket: "letters".to_owned(), prefix: String::new() };
        let failure = failure(&url, "fails", error);
        let hint = failure.complaints()[0].hint.clone().unwrap_or_default();
        (failure.to_string(), hint)
    }

    #[test]
    fn every_answer_has_its_cause_in_one_line_and_its_remedy() {
        for (code, expected) in [
            ("NoSuchBucket", "make the bucket"),
            ("InvalidAccessKeyId", "check who asks"),
            ("ExpiredToken", "these credentials are over"),
            ("RequestTimeTooSkewed", "set the clock"),
            ("InvalidRequest", "the message says what is missing; under Object Lock"),
            ("AuthorizationHeaderMalformed", "set region"),
            ("SlowDown", "look into the log of the store"),
        ] {
            let (text, hint) = told(&refused(code));
            assert_eq!(text, format!("s3://letters fails: {code}: because"));
            assert!(hint.starts_with(expected), "{code}: {hint}");
        }
        let generic = |text: &str| Error::Generic { store: "S3", source: text.into() };
        let role = generic("Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error");
        assert!(told(&role).1.starts_with("no credentials are set"), "{:?}", told(&role));
        let redirect = generic("Received redirect without LOCATION");
        assert!(told(&redirect).1.starts_with("set region"), "{:?}", told(&redirect));
        let path = || "a".to_owned();
        let denied = Error::PermissionDenied { path: path(), source: "status code: 403 Forbidden: ".into() };
        let (text, hint) = told(&denied);
        assert_eq!(text, "s3://letters fails: status code: 403 Forbidden");
        assert!(hint.starts_with("allow s3:PutObject"), "{hint}");
        let missing = Error::NotFound { path: path(), source: "status code: 404 Not Found: ".into() };
        assert!(told(&missing).1.starts_with("check the name"), "{:?}", told(&missing));
    }
}
