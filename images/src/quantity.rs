// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes and times as people write them: `"256M"`, `"4ms"`.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes of a size such as `"64K"`, `"256M"`, `"2G"` or `"0x200000"`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(digits) = text.strip_prefix("0x") {
        return parse_number(digits, 16);
    }
    let text = text.strip_suffix("iB").unwrap_or(text);
    let (digits, unit) = match text.chars().last()? {
        'K' => (text.strip_suffix('K')?, KIB),
        'M' => (text.strip_suffix('M')?, MIB),
        'G' => (text.strip_suffix('G')?, GIB),
        _ => (text, 1),
    };
    parse_number(digits.trim_end(), 10)?.checked_mul(unit)
}

/// Microseconds of a time such as `"500us"`, `"4ms"` or `"1s"`.
pub fn parse_time(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = [("us", 1), ("µs", 1), ("ms", 1_000), ("s", 1_000_000)]
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits, *unit)))?;
    parse_number(digits.trim_end(), 10)?.checked_mul(unit)
}

// `from_str_radix` also takes a sign, which no size or time has.
fn parse_number(digits: &str, radix: u32) -> Option<u64> {
    let digits = digits.replace('_', "");
    digits.chars().all(|digit| digit.is_digit(radix)).then(|| u64::from_str_radix(&digits, radix).ok())?
}

/// A number of 64 bits, such as `0xffff_0000`.
pub fn parse_bits(text: &str) -> Option<u64> {
    let digits: String = text.strip_prefix("0x")?.chars().filter(|digit| *digit != '_').collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// A size in its largest whole unit.
pub fn show_size(bytes: u64) -> String {
    match bytes {
        0 => "0".into(),
        _ if bytes.is_multiple_of(GIB) => format!("{}G", bytes / GIB),
        _ if bytes.is_multiple_of(MIB) => format!("{}M", bytes / MIB),
        _ if bytes.is_multiple_of(KIB) => format!("{}K", bytes / KIB),
        _ => format!("{bytes} bytes"),
    }
}

/// A time in its largest whole unit.
pub fn show_time(microseconds: u64) -> String {
    match microseconds {
        _ if microseconds.is_multiple_of(1_000_000) && microseconds > 0 => format!("{}s", microseconds / 1_000_000),
        _ if microseconds.is_multiple_of(1_000) && microseconds > 0 => format!("{}ms", microseconds / 1_000),
        _ => format!("{microseconds}us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_no_surprises() {
        assert_eq!(parse_size("256M"), Some(256 << 20));
        assert_eq!(parse_size("2 GiB"), Some(2 << 30));
        assert_eq!(parse_size("0x20_0000"), Some(2 << 20));
        for wrong in ["", "M", "-1M", "+1", "1T", "99999999999999999999G", "1.5G", "256 m", "0x"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("4ms"), Some(4_000));
        assert_eq!(parse_time("1 s"), Some(1_000_000));
        for wrong in ["4", "ms", "4m", "-4ms", "18446744073709551615s"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn shown_sizes_read_back() {
        for bytes in [1 << 21, 3 << 30, 4096] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
    }
}
