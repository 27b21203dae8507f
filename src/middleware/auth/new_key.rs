//! Making an API key: `tollgate key new`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::api_key::end_of_day;
use super::jwt::digest;

/// Makes a key of 256 random bits for `id`: the key `tg_ID_…`, which is shown once, and the entry for `keys` or `keys_file`.
///
/// # Errors
/// An id or scope that cannot be used, a date that is none, or no random numbers.
pub fn new_key(id: &str, scopes: &[String], expires: Option<&str>) -> Result<(String, String), String> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err("an id has letters, digits, `-`, `_` and `.` only".to_owned());
    }
    let is_scope = |scope: &String| !scope.is_empty() && scope.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'"' && b != b'\\');
    if let Some(wrong) = scopes.iter().find(|scope| !is_scope(scope)) {
        return Err(format!("`{wrong}` cannot be a scope: it may have no spaces, quotes or backslashes"));
    }
    if let Some(date) = expires {
        end_of_day(date)?;
    }
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| "the system gives no random numbers".to_owned())?;
    let key = format!("tg_{id}_{}", URL_SAFE_NO_PAD.encode(random));
    let hash: String = digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut entry = format!("- {{ id: {}, sha256: \"{hash}\"", scalar(id));
    if !scopes.is_empty() {
        entry += &format!(", scopes: [{}]", scopes.iter().map(|scope| scalar(scope)).collect::<Vec<_>>().join(", "));
    }
    if let Some(date) = expires {
        entry += &format!(", expires: {date}");
    }
    entry += " }";
    Ok((key, entry))
}

/// A YAML scalar that is read back as this text: plain where nothing could take it for something else.
fn scalar(text: &str) -> String {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/'))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with(':')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { format!("\"{text}\"") }
}

#[cfg(test)]
mod tests {
    use super::super::api_key::ApiKeys;
    use super::*;
    use crate::config::auth::Key;

    #[test]
    fn the_entry_knows_the_key() {
        for (id, scopes) in [("acme", vec!["orders:read".to_owned(), "a,b".to_owned()]), ("true", vec![]), ("12", vec!["x:".to_owned()])] {
            let (key, entry) = new_key(id, &scopes, Some("2030-01-31")).unwrap();
            let written: Vec<Key> = serde_yaml::from_str(&entry).unwrap();
            assert_eq!((written.len(), &*written[0].id, &written[0].scopes), (1, id, &scopes), "{entry}");
            let mut keys = ApiKeys::default();
            keys.add(&written[0]).unwrap();
            assert_eq!(&*keys.verify(&digest(key.as_bytes()), 0.0).unwrap().user, id);
            assert!(key.starts_with(&format!("tg_{id}_")) && key.len() == id.len() + 4 + 43, "{key}");
            assert!(!entry.contains(&key));
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        assert!(new_key("", &[], None).is_err());
        assert!(new_key("a b", &[], None).is_err());
        assert!(new_key("a", &["x y".to_owned()], None).is_err());
        assert!(new_key("a", &[], Some("2030-02-30")).is_err());
    }
}
