// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's command line: words of the form `key=value`, separated by blanks.

/// A command line (`chosen/bootargs`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Arguments<'a>(pub &'a str);

impl<'a> Arguments<'a> {
    /// The value of the last `key=value` with this key: later words override earlier ones.
    pub fn value(self, key: &str) -> Option<&'a str> {
        let found = |word: &'a str| word.strip_prefix(key)?.strip_prefix('=');
        self.0.split_ascii_whitespace().filter_map(found).next_back()
    }

    /// The value of `key` as a number (decimal, or hexadecimal after `0x`), or `default` if it is absent or no number.
    pub fn number(self, key: &str, default: u64) -> u64 {
        self.value(key).and_then(parse).unwrap_or(default)
    }
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_with_a_key_counts() {
        let arguments = Arguments("name=a  quiet name=b misname=c");
        assert_eq!(arguments.value("name"), Some("b"));
        assert_eq!(arguments.value("quiet"), None);
        assert_eq!(arguments.value("nam"), None);
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal_and_default_otherwise() {
        let arguments = Arguments("loops=12 stride=0x1000 seed=x empty=");
        assert_eq!(arguments.number("loops", 1), 12);
        assert_eq!(arguments.number("stride", 1), 4096);
        assert_eq!(arguments.number("seed", 7), 7);
        assert_eq!(arguments.number("empty", 8), 8);
        assert_eq!(arguments.number("absent", 9), 9);
    }
}
