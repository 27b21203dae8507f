//! Random JSON texts.

use proptest::prelude::*;

/// Numbers that a float cannot hold, among others.
pub(in super::super) fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?"
}

/// JSON texts.
pub(in super::super) fn document() -> impl Strategy<Value = String> {
    let string = prop_oneof!["[a-zé€😀]{0,12}", Just("\\u0061\\\"\\n".to_owned())];
    let leaf = prop_oneof![number(), Just("null".to_owned()), Just("true".to_owned()), string.prop_map(|s| format!("\"{s}\""))];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec(("[a-e]", inner), 0..4).prop_map(|members| {
                let members: Vec<String> = members.into_iter().map(|(key, value)| format!("\"{key}\" : {value}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}
