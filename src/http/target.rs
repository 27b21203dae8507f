//! Request targets and hosts: checked and made canonical once, so that the bytes policy matches are the bytes that are forwarded.

use std::borrow::Cow;

/// Decodes percent escapes; bytes that are not UTF-8 become U+FFFD.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    let _ = text;
    todo!()
}
