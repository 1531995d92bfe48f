//! `${NAME}` inside the texts of the configuration.

use super::environment::Environment;

/// The longest text, in bytes: a file of 1 MiB can name a variable often.
const MAX_TEXT: usize = 64 * 1024;

/// The text with every `${NAME}` replaced by that variable; `$$` stands for a dollar sign.
///
/// Only called on the texts of a parsed document, so that a value can never change the structure of the document.
///
/// # Errors
/// What is wrong and how to mend it, for every variable that is missing or badly written.
pub(super) fn interpolate(text: &str, env: &Environment) -> Result<String, Vec<(String, String)>> {
    let mut out = String::with_capacity(text.len());
    let mut faults = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = after.find('}');
            let name = &after[..end.unwrap_or(after.len())];
            rest = &after[end.map_or(after.len(), |end| end + 1)..];
            match variable(name, end.is_some(), env) {
                Ok(value) if out.len() + value.len() > MAX_TEXT => faults.push(too_long()),
                Ok(value) => out.push_str(value),
                Err(fault) => faults.push(fault),
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    if faults.is_empty() { Ok(out) } else { Err(faults) }
}

fn too_long() -> (String, String) {
    let what = format!("a text with its variables is longer than {} KiB", MAX_TEXT >> 10);
    (what, "check what the variables hold".to_owned())
}

fn variable<'e>(name: &str, closed: bool, env: &'e Environment) -> Result<&'e str, (String, String)> {
    let sound = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !closed || !sound {
        // What follows an unclosed brace may be a password, so it is not shown.
        return Err((
            "a text holds \"${\" without a variable name and \"}\" after it".to_owned(),
            "write ${NAME} for a variable, or $$ for a dollar sign".to_owned(),
        ));
    }
    env.get(name).ok_or_else(|| {
        (
            format!("environment variable {name} is not set"),
            format!("set {name}, or write $${{{name}}} if the text itself is meant"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, Vec<(String, String)>> {
        interpolate(text, &Environment::from_iter([("A", "a$${B}\"")]))
    }

    #[test]
    fn variables_are_replaced_once_and_dollars_can_be_written() {
        assert_eq!(with("x${A}y").as_deref(), Ok("xa$${B}\"y"), "values are not interpolated again");
        assert_eq!(with("$$ $${A} $5 p$").as_deref(), Ok("$ ${A} $5 p$"));
    }

    #[test]
    fn every_missing_variable_is_named_and_no_text_is_echoed() {
        let faults = with("${B} ${C}").expect_err("missing");
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0].0, "environment variable B is not set");
        let faults = with("pw${S3cret@host").expect_err("unclosed");
        assert!(!faults[0].0.contains("S3cret"));
    }
}
