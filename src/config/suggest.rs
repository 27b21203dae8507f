//! "did you mean": the nearest of the words that would have been right.

/// The word of `among` nearest to `word`, if it takes at most two insertions, deletions, replacements or swaps of neighbours.
pub fn suggest<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    among
        .map(|candidate| (distance(word, candidate), candidate))
        // Two edits turn any word of two letters into any other.
        .filter(|(edits, candidate)| *edits <= 2 && *edits < candidate.chars().count().max(word.chars().count()))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// `, did you mean "…"?`, or nothing.
pub(super) fn did_you_mean<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> String {
    suggest(word, among).map_or_else(String::new, |right| format!(", did you mean \"{right}\"?"))
}

/// Optimal string alignment distance, ignoring ASCII case (three rows of the usual table).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().map(|c| c.to_ascii_lowercase()).collect();
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_within_two_edits_are_suggested_nearest_first() {
        let words = ["timeout", "idle_timeout", "retry"];
        assert_eq!(suggest("timout", words.into_iter()), Some("timeout"));
        assert_eq!(suggest("tiemout", words.into_iter()), Some("timeout"));
        assert_eq!(suggest("Retries", words.into_iter()), None);
        assert_eq!(suggest("rerty", words.into_iter()), Some("retry"));
        assert_eq!(suggest("userz", ["users", "user"].into_iter()), Some("users"));
    }

    #[test]
    fn short_words_are_not_turned_into_something_else_whole() {
        assert_eq!(suggest("by", ["to"].into_iter()), None);
    }
}
