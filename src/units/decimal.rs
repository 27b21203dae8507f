//! Numbers as text, where `write!` would take several times as long as all else that a request writes.

/// Appends `number` in decimal.
#[inline]
pub fn push_decimal(number: u64, out: &mut Vec<u8>) {
    let digit = |of: u64| b'0' + (of % 10) as u8;
    // Counts, times and statuses have one to four digits.
    match number {
        0..10 => out.push(digit(number)),
        10..100 => out.extend_from_slice(&[digit(number / 10), digit(number)]),
        100..1000 => out.extend_from_slice(&[digit(number / 100), digit(number / 10), digit(number)]),
        1000..10_000 => out.extend_from_slice(&[digit(number / 1000), digit(number / 100), digit(number / 10), digit(number)]),
        _ => push_long(number, out),
    }
}

/// Two digits of each number below 100.
static PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

fn push_long(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    for pair in digits.as_chunks_mut::<2>().0.iter_mut().rev() {
        *pair = PAIRS[(number % 100) as usize];
        number /= 100;
        at -= 2;
        if number == 0 {
            at += usize::from(pair[0] == b'0');
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::push_decimal;

    #[test]
    fn numbers_are_written_in_full() {
        let edges = (0..20).map(|power| 10_u64.pow(power)).flat_map(|edge| [edge - 1, edge, edge + 1]);
        for number in edges.chain([65_535, 1_234, 9_876_543_210, u64::MAX]) {
            let mut out = Vec::new();
            push_decimal(number, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }
    }
}
