// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text in columns.

/// Rows as lines, each column as wide as its widest cell; an indentation before all.
pub fn lines(indent: &str, rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{indent}{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Bytes in the unit that suits them.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..0x2800 => format!("{bytes} bytes"),
        0x2800..0xa0_0000 => format!("{} KiB", bytes >> 10),
        0xa0_0000..0x2_8000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_one_another() {
        let rows = [["a", "bc"], ["def", "g"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(lines(" ", &rows), " a    bc\n def  g\n");
        assert_eq!(lines("", &[]), "");
    }

    #[test]
    fn bytes_have_their_unit() {
        assert_eq!([100, 16 << 10, 16 << 20, 16 << 30].map(bytes), ["100 bytes", "16 KiB", "16 MiB", "16 GiB"]);
    }
}
