//! JSON Schema and option reference, generated from the configuration's types: their doc comments are the documentation.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

/// The JSON Schema of `gateway.yaml`.
pub fn json_schema() -> Value {
    let mut schema = schemars::schema_for!(super::Config).to_value();
    if let Value::Object(fields) = &mut schema {
        fields.insert("title".to_owned(), "gateway.yaml".into());
    }
    schema
}

/// Names of the fields that the type `name` must have, in their order. For messages: it makes the whole schema.
pub(super) fn required_fields(name: &str) -> Vec<String> {
    let schema = json_schema();
    let required = schema.pointer("/$defs").and_then(|types| types.get(name)).and_then(|of| of["required"].as_array());
    required.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The option reference, `docs/config.md`: one table per block.
pub fn markdown() -> String {
    let schema = json_schema();
    let mut book = Book { root: &schema, queue: Vec::new(), done: BTreeSet::new(), text: String::new() };
    book.text.push_str(
        "# Options of gateway.yaml\n\n\
         Generated from the types in `src/config`; do not edit. Durations are written as `500ms`, `5s`, `2m`, `1h`; sizes as `512B`, `64KiB`, `10MiB`, `1GiB`;\n\
         rates as `100/s`, `1000/m`, `5000/h`, `10000/d`. Scalars may hold `${VAR}`, `${VAR:-default}` and `${file:PATH}`; `$${` is a literal `${`.\n",
    );
    book.section("gateway.yaml", &schema);
    while !book.queue.is_empty() {
        let (title, schema) = book.queue.remove(0);
        book.section(&title, schema);
    }
    book.text
}

struct Book<'a> {
    root: &'a Value,
    queue: Vec<(String, &'a Value)>,
    done: BTreeSet<String>,
    text: String,
}

impl<'a> Book<'a> {
    fn section(&mut self, title: &str, schema: &'a Value) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let _ok = write!(self.text, "\n## {title}\n\n{}\n\n| Option | Type | Default | Meaning |\n|---|---|---|---|\n", one_line(about));
        for (name, property) in properties {
            let kind = self.kind(property);
            let default = match property.get("default") {
                _ if required.contains(&name.as_str()) => "required".to_owned(),
                None | Some(Value::Null) => "–".to_owned(),
                Some(Value::String(text)) if text.is_empty() => "`\"\"`".to_owned(),
                Some(value) if is_block(value) => "see there".to_owned(),
                Some(value) => format!("`{}`", cell(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
            };
            let meaning = property.get("description").and_then(Value::as_str).or_else(|| self.described(property)).unwrap_or_default();
            let _ok = writeln!(self.text, "| `{name}` | {kind} | {default} | {} |", cell(&one_line(meaning)));
        }
    }

    /// The description of what a property refers to.
    fn described(&self, property: &'a Value) -> Option<&'a str> {
        self.target(property)?.1.get("description").and_then(Value::as_str)
    }

    fn target(&self, schema: &'a Value) -> Option<(&'a str, &'a Value)> {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        Some((name, self.root.get("$defs")?.get(name)?))
    }

    /// What is written for this option, in words; blocks it leads to are queued.
    fn kind(&mut self, schema: &'a Value) -> String {
        if let Some((name, target)) = self.target(schema) {
            if let Some(words) = words_of(target) {
                return words;
            }
            return self.block(name, target);
        }
        if let Some(words) = words_of(schema) {
            return words;
        }
        if let Some(forms) = schema.get("anyOf").and_then(Value::as_array) {
            let mut kinds: Vec<String> = Vec::new();
            for form in forms.iter().filter(|form| form.get("type") != Some(&"null".into())) {
                let kind = self.kind(form);
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
            return kinds.join(" or ");
        }
        if schema.get("properties").is_some() {
            let name = schema.get("title").and_then(Value::as_str).unwrap_or("block");
            return self.block(name, schema);
        }
        match type_name(schema) {
            Some("array") => format!("list of {}", schema.get("items").map_or_else(|| "anything".to_owned(), |items| self.kind(items))),
            Some("object") => {
                let values = schema.get("additionalProperties").filter(|values| values.is_object());
                format!("name → {}", values.map_or_else(|| "anything".to_owned(), |values| self.kind(values)))
            }
            Some("string") => unit(schema).unwrap_or_else(|| "text".to_owned()),
            Some("integer") => "whole number".to_owned(),
            Some("number") => "number".to_owned(),
            Some("boolean") => "`true` or `false`".to_owned(),
            _ => "anything".to_owned(),
        }
    }

    fn block(&mut self, name: &str, schema: &'a Value) -> String {
        if self.done.insert(name.to_owned()) {
            self.queue.push((name.to_owned(), schema));
        }
        format!("[{name}](#{})", name.to_lowercase())
    }
}

/// The first type of a schema that is not null.
fn type_name(schema: &Value) -> Option<&str> {
    match schema.get("type")? {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// The pattern's name, for values such as durations.
fn unit(schema: &Value) -> Option<String> {
    let pattern = schema.get("pattern")?.as_str()?;
    Some(match pattern {
        p if p.contains("ms|s|m|h") => "duration".to_owned(),
        p if p.contains("KiB") && p.contains("/s") => "data rate".to_owned(),
        p if p.contains("KiB") => "size".to_owned(),
        p if p.contains("(s|m|h|d)") => "rate".to_owned(),
        p if p.contains('%') => "percent".to_owned(),
        p if p.contains("[0-9]{3}") => "status range".to_owned(),
        p if p.contains("global") => "selector".to_owned(),
        p if p.contains("bearer") => "`bearer`, `header:NAME`, `cookie:NAME` or `query:NAME`".to_owned(),
        _ => "text".to_owned(),
    })
}

/// The words an option is one of.
fn words_of(schema: &Value) -> Option<String> {
    let quoted = |value: &Value| value.as_str().map_or_else(|| format!("`{value}`"), |text| format!("`{text}`"));
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        // `false` is only another spelling of `off`.
        let words: Vec<String> = words.iter().filter(|word| !word.is_null() && **word != Value::Bool(false)).map(quoted).collect();
        return Some(words.join(", "));
    }
    let variants = schema.get("oneOf").and_then(Value::as_array)?;
    let words: Option<Vec<String>> = variants.iter().map(|variant| variant.get("const").map(quoted)).collect();
    words.map(|words| words.join(", "))
}

fn is_block(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| !fields.is_empty())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text that can stand in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a generated file with what is in the repository; `BLESS=1 cargo test schema` writes it anew.
    fn compare(path: &str, generated: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, generated).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == generated, "{} is out of date: run `BLESS=1 cargo test --lib config::schema`", path.display());
    }

    #[test]
    fn the_option_reference_is_up_to_date() {
        compare("docs/config.md", &markdown());
    }

    #[test]
    fn the_schema_file_is_up_to_date() {
        compare("docs/gateway.schema.json", &(serde_json::to_string_pretty(&json_schema()).unwrap() + "\n"));
    }

    #[test]
    fn every_option_has_a_meaning() {
        for line in markdown().lines().filter(|line| line.starts_with("| `")) {
            assert!(!line.ends_with("|  |"), "no doc comment: {line}");
        }
    }

    #[test]
    fn short_forms_are_in_the_schema() {
        let text = json_schema().to_string();
        assert!(text.contains("\"off\"") && text.contains("round_robin") && text.contains("consistent_hash"), "{text}");
    }
}
