//! `${NAME}` in a text that YAML is to read: its braces must not look like a mapping's, so `{ token: ${TOKEN} }` needs no quotes.

use std::borrow::Cow;

use super::{Kind, Node};

/// Stand for `{` and `}` of a variable while YAML reads. Of the same number of characters, so that every column stays right.
const HELD: [char; 2] = ['\u{e000}', '\u{e001}'];

/// `text` with the braces of its variables held back. A text that has the stand-ins itself stays as it is.
pub(super) fn hold(text: &str) -> Cow<'_, str> {
    if !text.contains("${") || text.contains(HELD) {
        return Cow::Borrowed(text);
    }
    let mut held = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        held.push_str(before);
        match behind.find(['{', '}', '\n']).and_then(|at| behind.split_at_checked(at)) {
            Some((inside, after)) if after.starts_with('}') => {
                held.extend(['$', HELD[0]]);
                held.push_str(inside);
                held.push(HELD[1]);
                rest = after.get(1..).unwrap_or_default();
            }
            _ => {
                held.push_str("${");
                rest = behind;
            }
        }
    }
    held.push_str(rest);
    Cow::Owned(held)
}

/// Gives every text in `node` its braces back.
pub(super) fn release(node: &mut Node) {
    match &mut node.kind {
        Kind::Text(text) | Kind::Expanded(text) => restore(text),
        Kind::List(list) => list.iter_mut().for_each(release),
        Kind::Map(entries) => {
            for entry in entries {
                restore(&mut entry.key);
                release(&mut entry.value);
            }
        }
        Kind::Null | Kind::Bool(_) | Kind::Unsigned(_) | Kind::Signed(_) | Kind::Float(_) | Kind::Lost => {}
    }
}

/// Gives a text its braces back.
pub(super) fn restore(text: &mut String) {
    if text.contains(HELD) {
        *text = text
            .chars()
            .map(|c| {
                if c == HELD[0] {
                    '{'
                } else if c == HELD[1] {
                    '}'
                } else {
                    c
                }
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_braces_of_whole_variables_are_held() {
        assert_eq!(hold("a: {b: ${C}, d: '{x}', e: ${F:-1}}"), "a: {b: $\u{e000}C\u{e001}, d: '{x}', e: $\u{e000}F:-1\u{e001}}");
        assert_eq!(hold("a: ${\nb}"), "a: ${\nb}");
        assert_eq!(hold("${a${B}"), "${a$\u{e000}B\u{e001}");
        assert_eq!(hold("\u{e000}${A}"), "\u{e000}${A}");
    }

    #[test]
    fn what_was_held_is_read_as_written() {
        let (node, faults) =
            super::super::parse("a: { b: ${C}, \"${k}\": [x${D:-1}y, '${E}'] }\n").unwrap_or_else(|(_, why)| panic!("{why}"));
        assert!(faults.is_empty());
        let text = format!("{node:?}");
        for part in ["\"${C}\"", "\"${k}\"", "\"x${D:-1}y\"", "\"${E}\""] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
