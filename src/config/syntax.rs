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
    let lines = split_lines(text);
    let mut place = place.unwrap_or(Place { line: 1, column: 1 });
    // At the end of the text the reader may point behind its last line.
    if place.line > lines.len() || (place.line == lines.len() && place.line > 1 && lines.last().is_some_and(String::is_empty)) {
        let last = lines.iter().rposition(|line| !line.trim().is_empty()).unwrap_or(0);
        place = Place { line: last + 1, column: lines.get(last).map_or(0, |line| line.chars().count()) + 1 };
    }
    let checks = [tab, special_start, behind_quote, braces, unclosed, missing_space, nested_colon];
    let scene = Scene { lines: &lines, place, message };
    checks.iter().find_map(|check| check(&scene)).unwrap_or_else(|| Mistake {
        place,
        message: format!("this is not YAML: {}", message.split(" at line ").next().unwrap_or(message)),
        help: Some("check the indentation and the quotes here and in the line above".to_owned()),
    })
}

struct Scene<'a> {
    lines: &'a [String],
    place: Place,
    message: &'a str,
}

impl Scene<'_> {
    fn line(&self) -> Vec<char> {
        self.lines.get(self.place.line.saturating_sub(1)).map_or_else(Vec::new, |line| line.chars().collect())
    }
    /// This line and the one with text above it, numbered from 1.
    fn nearby(&self) -> impl Iterator<Item = (usize, Vec<char>)> {
        let here = self.place.line;
        let above = (1..here).rev().find(|n| self.lines.get(n - 1).is_some_and(|line| !line.trim().is_empty()));
        [Some(here), above].into_iter().flatten().filter_map(|n| Some((n, self.lines.get(n - 1)?.chars().collect())))
    }
    fn mistake(line: usize, column: usize, message: impl Into<String>, help: impl Into<String>) -> Option<Mistake> {
        Some(Mistake { place: Place { line, column }, message: message.into(), help: Some(help.into()) })
    }
}

fn tab(scene: &Scene<'_>) -> Option<Mistake> {
    for (line, text) in scene.nearby() {
        let at = text.iter().position(|c| !matches!(c, ' ' | '-')).filter(|at| text.get(*at) == Some(&'\t'));
        if let Some(at) = at {
            return Scene::mistake(line, at + 1, "a tab cannot indent YAML", "indent with spaces");
        }
    }
    None
}

fn special_start(scene: &Scene<'_>) -> Option<Mistake> {
    let text = scene.line();
    let at = scene.place.column.saturating_sub(1);
    // For an alias the reader points behind the `*`.
    let start =
        [Some(at), at.checked_sub(1)].into_iter().flatten().find(|at| matches!(text.get(*at), Some('@' | '`' | '%' | '*' | '&' | '!')))?;
    let wrong =
        ["cannot start any token", "scanning an alias", "unknown anchor", "scanning an anchor", "scanning a directive", "scanning a tag"];
    if !wrong.iter().any(|wrong| scene.message.contains(wrong)) {
        return None;
    }
    let mark = text.get(start)?;
    let message = if scene.message.contains("unknown anchor") {
        format!("a value that starts with `{mark}` names an anchor, and there is none of this name")
    } else {
        format!("a value cannot start with `{mark}` unless it is quoted")
    };
    Scene::mistake(scene.place.line, start + 1, message, format!("quote it: \"{}\"", word(&text, start)))
}

/// The text from `start` to the next blank or mark of a list or mapping.
fn word(text: &[char], start: usize) -> String {
    text.iter().skip(start).take_while(|c| !matches!(c, ' ' | ',' | ']' | '}' | '#')).collect()
}

/// Whether `at` is inside quotes on its line.
fn in_quotes(text: &[char], at: usize) -> bool {
    quoted_spans(text).iter().any(|(from, to)| (*from..=*to).contains(&at))
}

/// First and last character of everything in quotes; a quote counts only where a value can start.
fn quoted_spans(text: &[char]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut at = 0;
    while let Some(c) = text.get(at) {
        let starts = at == 0 || text.get(at - 1).is_some_and(|before| matches!(before, ' ' | '[' | '{' | ',' | '\t'));
        if *c == '#' && starts {
            break;
        }
        if matches!(c, '"' | '\'') && starts {
            let mut end = at + 1;
            while text.get(end).is_some_and(|other| other != c) {
                end += if *c == '"' && text.get(end) == Some(&'\\') { 2 } else { 1 };
            }
            spans.push((at, end.min(text.len())));
            at = end;
        }
        at += 1;
    }
    spans
}

fn behind_quote(scene: &Scene<'_>) -> Option<Mistake> {
    if !(scene.message.contains("did not find expected") || scene.message.contains("could not find expected")) {
        return None;
    }
    for (line, text) in scene.nearby() {
        for (_, end) in quoted_spans(&text) {
            let next = (end + 1..text.len()).find(|at| text.get(*at).is_some_and(|c| *c != ' '));
            let Some(next) = next else { continue };
            if !matches!(text.get(next), Some(',' | ']' | '}' | ':' | '#')) {
                let help = "put the closing quote at the end of the value, or quote the whole of it";
                return Scene::mistake(line, next + 1, "text behind a quoted value", help);
            }
        }
    }
    None
}

fn braces(scene: &Scene<'_>) -> Option<Mistake> {
    if !scene.message.contains("did not find expected") && !scene.message.contains("flow") {
        return None;
    }
    for (line, text) in scene.nearby() {
        for (at, c) in text.iter().enumerate() {
            let glued = at > 0 && text.get(at - 1).is_some_and(|before| !matches!(before, ' ' | '[' | '{' | ','));
            let starts = !glued && looks_like_parameter(&text, at);
            if *c == '{' && (glued || starts) && !in_quotes(&text, at) {
                let start = (0..at).rev().take_while(|i| text.get(*i).is_some_and(|c| !matches!(c, ' ' | '[' | ','))).last().unwrap_or(at);
                let value: String = text.iter().skip(start).take_while(|c| !matches!(c, ' ' | ',' | ']')).collect();
                // The last closing brace is the mapping's own if there is one too many.
                let surplus = value.matches('}').count().saturating_sub(value.matches('{').count());
                let value = value.get(..value.len() - surplus).unwrap_or(&value);
                let message = "a value with { } in it must be quoted here";
                return Scene::mistake(line, start + 1, message, format!("write \"{value}\""));
            }
        }
    }
    None
}

/// `{name}` followed by more text: a template, not a mapping.
fn looks_like_parameter(text: &[char], at: usize) -> bool {
    let Some(end) = (at + 1..text.len()).find(|i| text.get(*i) == Some(&'}')) else { return false };
    let inside = text.get(at + 1..end).unwrap_or_default();
    let plain = !inside.is_empty() && inside.iter().all(|c| c.is_alphanumeric() || matches!(c, '_' | '*' | '-'));
    plain && text.get(end + 1).is_some_and(|c| !matches!(c, ' ' | ',' | ']' | '}'))
}

fn unclosed(scene: &Scene<'_>) -> Option<Mistake> {
    let opened = scene.message.rsplit_once(" at line ").and_then(|(_, rest)| rest.split_once(" column "));
    let (line, column) = opened
        .and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?)))
        .unwrap_or((scene.place.line, scene.place.column));
    if scene.message.contains("quoted scalar") {
        return Scene::mistake(line, column, "the quote that opens here is never closed", "close it; inside \"…\" a \" is written \\\"");
    }
    if scene.message.contains("parsing a flow") && scene.line().get(scene.place.column.saturating_sub(1)).is_none() {
        let (line, column) = open_bracket(scene.lines).unwrap_or((line, column));
        return Scene::mistake(line, column, "the bracket that opens here is never closed", "close it with ] or }");
    }
    None
}

/// The innermost bracket that nothing closes.
fn open_bracket(lines: &[String]) -> Option<(usize, usize)> {
    let mut open = Vec::new();
    for (line, text) in lines.iter().enumerate() {
        let text: Vec<char> = text.chars().collect();
        let spans = quoted_spans(&text);
        for (at, c) in text.iter().enumerate() {
            let quoted = spans.iter().any(|(from, to)| (*from..=*to).contains(&at));
            match c {
                '#' if !quoted && (at == 0 || text.get(at - 1) == Some(&' ')) => break,
                '[' | '{' if !quoted => open.push((line + 1, at + 1)),
                ']' | '}' if !quoted => {
                    open.pop();
                }
                _ => {}
            }
        }
    }
    open.pop()
}

/// `key:value`.
fn missing_space(scene: &Scene<'_>) -> Option<Mistake> {
    for (line, text) in scene.nearby() {
        let start = text.iter().position(|c| !matches!(c, ' ' | '-'))?;
        let colon = (start..text.len()).find(|at| text.get(*at) == Some(&':'))?;
        let key = text.get(start..colon)?;
        let is_key = !key.is_empty() && key.iter().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        let next = text.get(colon + 1);
        let is_url = next == Some(&'/') && text.get(colon + 2) == Some(&'/');
        if is_key && next.is_some_and(|c| !c.is_whitespace()) && !is_url {
            let key: String = key.iter().collect();
            return Scene::mistake(line, colon + 2, format!("a space is missing behind `{key}:`"), "write `key: value`");
        }
    }
    None
}

fn nested_colon(scene: &Scene<'_>) -> Option<Mistake> {
    if !scene.message.contains("mapping values are not allowed") {
        return None;
    }
    let help = "quote the value if the colon belongs to it; otherwise check the indentation";
    Scene::mistake(scene.place.line, scene.place.column, "a second `: ` in one line, or a wrong indentation", help)
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse;
    use super::*;

    fn explained(text: &str) -> (usize, usize, String) {
        let (place, message) = parse(text).expect_err(text);
        let mistake = explain(text, place, &message);
        (mistake.place.line, mistake.place.column, format!("{} / {}", mistake.message, mistake.help.unwrap_or_default()))
    }

    #[track_caller]
    fn check(text: &str, line: usize, column: usize, words: &str) {
        let found = explained(text);
        assert!(found.2.contains(words), "{found:?}");
        assert_eq!((found.0, found.1), (line, column), "{found:?}");
    }

    #[test]
    fn braces_in_a_flow_mapping() {
        check("a:\n  rewrite: { path: /users/{id} }\n", 2, 20, "write \"/users/{id}\"");
        check("a: [x, ${NAME]\n", 1, 8, "write \"${NAME");
        check("a:\n  path: {id}/x\n", 2, 9, "write \"{id}/x\"");
    }

    #[test]
    fn tabs() {
        check("a:\n\tb: 1\n", 2, 1, "a tab cannot indent");
        check("a:\n  b: 1\n \tc: 2\n", 3, 2, "a tab cannot indent");
    }

    #[test]
    fn marks_that_cannot_start_a_value() {
        check("host: *.example.com\n", 1, 7, "\"*.example.com\"");
        check("host: @x\n", 1, 7, "cannot start with `@`");
        check("a: 1\nhost: %x\n", 2, 7, "cannot start with `%`");
        check("host: *all\n", 1, 7, "names an anchor");
    }

    #[test]
    fn a_missing_space() {
        check("server:\n  workers:4\n  max_headers: 5\n", 2, 11, "a space is missing behind `workers:`");
    }

    #[test]
    fn text_behind_a_quoted_value() {
        check("a: \"x\" y\nb: 1\n", 1, 8, "text behind a quoted value");
        check("a: { b: \"x\"y }\n", 1, 12, "text behind a quoted value");
    }

    #[test]
    fn quotes_and_brackets_that_are_not_closed() {
        check("a: 1\nb: \"x\nc: 2\n", 2, 4, "never closed");
        check("a: 1\nb: [x, y\n", 2, 4, "never closed");
    }

    #[test]
    fn a_colon_in_a_plain_value() {
        check("a: b: c\n", 1, 5, "a second `: `");
    }
}
