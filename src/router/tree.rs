//! Routes of one priority and host as a tree of path segments, walked in the order of precedence.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::path::{Step, split_segment, without_parameter};
use super::rule::Rule;

/// A map by host or segment.
pub(super) type Map<V> = HashMap<Box<str>, V, BuildHasherDefault<TextHasher>>;

/// Routes that agree in all segments so far. The lists hold numbers of routes, sorted by header and query conditions and written order.
#[derive(Debug, Default)]
pub(super) struct Node {
    literals: Map<Node>,
    param: Option<Box<Node>>,
    end: Box<[u32]>,
    regexes: Box<[u32]>,
    rest: Box<[u32]>,
    prefix: Box<[u32]>,
}

impl Node {
    /// The tree of `rules`, which agree in their first `depth` steps and are in order of precedence.
    pub(super) fn build(rules: &[(u32, &Rule)], depth: usize) -> Self {
        let mut sorted = rules.to_vec();
        // By method it is decided per request, so that must not come before the conditions here.
        sorted.sort_by(|(a, first), (b, second)| second.condition_counts().cmp(&first.condition_counts()).then(a.cmp(b)));
        let (mut end, mut regexes, mut rest, mut prefix, mut params) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut literals: BTreeMap<&str, Vec<(u32, &Rule)>> = BTreeMap::new();
        for &(index, rule) in &sorted {
            match rule.path.steps.get(depth) {
                Some(Step::Literal(text)) => literals.entry(text).or_default().push((index, rule)),
                Some(Step::Param(_)) => params.push((index, rule)),
                Some(Step::End) => end.push(index),
                Some(Step::Regex) => regexes.push(index),
                Some(Step::Rest(_)) => rest.push(index),
                Some(Step::PrefixEnd) => prefix.push(index),
                None => {}
            }
        }
        // A segment `a;x` fits the literals `a;x` and `a`: the branch of the former has the routes of both.
        let children = literals.iter().map(|(text, rules)| {
            let base = without_parameter(text);
            let shared = if base.len() < text.len() { literals.get(base) } else { None };
            let rules: Vec<_> = rules.iter().chain(shared.into_iter().flatten()).copied().collect();
            (Box::from(*text), Self::build(&rules, depth + 1))
        });
        Self {
            literals: children.collect(),
            param: (!params.is_empty()).then(|| Box::new(Self::build(&params, depth + 1))),
            end: end.into(),
            regexes: regexes.into(),
            rest: rest.into(),
            prefix: prefix.into(),
        }
    }

    /// Hands over the candidates for the path of which `rest` is left (`None`: not even a slash), best ones first, until there is a
    /// result. Each branch is entered at most once.
    pub(super) fn walk<'n, R>(&'n self, rest: Option<&str>, visit: &mut impl FnMut(&'n [u32]) -> Option<R>) -> Option<R> {
        let mut hand_over = |candidates: &'n [u32]| if candidates.is_empty() { None } else { visit(candidates) };
        let Some(text) = rest else {
            return hand_over(&self.end).or_else(|| hand_over(&self.prefix));
        };
        let (segment, after) = split_segment(text);
        if let Some(result) = self.literal(segment).and_then(|node| node.walk(after, visit)) {
            return Some(result);
        }
        if let Some(node) = &self.param
            && !segment.is_empty()
            && let Some(result) = node.walk(after, visit)
        {
            return Some(result);
        }
        [&self.regexes, &self.rest, &self.prefix].into_iter().find_map(|list| if list.is_empty() { None } else { visit(list) })
    }

    fn literal(&self, segment: &str) -> Option<&Self> {
        if self.literals.is_empty() {
            return None;
        }
        self.literals.get(segment).or_else(|| segment.split_once(';').and_then(|(name, _)| self.literals.get(name)))
    }
}

/// A fast hash for short text: multiply and rotate, eight bytes at a time. Keys come from the configuration alone, so nobody can choose
/// colliding ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TextHasher(u64);

impl TextHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for TextHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            self.mix(rest.iter().fold(rest.len() as u64, |word, &byte| (word << 8) | u64::from(byte)));
        }
    }
    fn write_u8(&mut self, byte: u8) {
        self.mix(u64::from(byte));
    }
    fn finish(&self) -> u64 {
        // The table takes its control bits from the top and its place from the bottom: both must be well mixed.
        self.0 ^ (self.0 >> 32)
    }
}
