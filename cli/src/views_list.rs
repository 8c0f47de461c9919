// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's views as a list.

use crate::columns;
use serde_json::{Value, json};
use trellis_idl::control::{Part, ViewState};
use trellis_idl::wire::ViewAccess;

fn views(parts: &[Part]) -> impl Iterator<Item = &ViewState> {
    parts.iter().filter_map(|part| if let Part::View(view) = part { Some(view) } else { None })
}

/// What a view lets its guest do with pages that have no access of their own, in the manifest's words.
fn default(view: &ViewState) -> String {
    match view.access() {
        None => format!("{:#x}", view.default),
        Some(ViewAccess::DEFAULT) => "host".into(),
        Some(ViewAccess::RX2RW) => "rx2rw".into(),
        Some(ViewAccess::N2RWX) => "n2rwx".into(),
        Some(ViewAccess(bits)) => {
            let letters: String = [(1, 'r'), (2, 'w'), (4, 'x')].iter().filter(|(bit, _)| bits & bit != 0).map(|(_, letter)| *letter).collect();
            if letters.is_empty() { "n".into() } else { letters }
        }
    }
}

fn vcpus(view: &ViewState) -> Vec<u8> {
    (0..8).filter(|index| view.vcpus >> index & 1 == 1).collect()
}

/// As lines.
pub fn text(parts: &[Part]) -> String {
    let head = ["VIEW", "DEFAULT", "VCPUS IN IT"].map(String::from).to_vec();
    let row = |view: &ViewState| {
        let inside: Vec<String> = vcpus(view).iter().map(u8::to_string).collect();
        vec![view.view.to_string(), default(view), if inside.is_empty() { "-".into() } else { inside.join(" ") }]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(views(parts).map(row)).collect();
    columns::lines("", &rows)
}

/// As JSON.
pub fn json(parts: &[Part]) -> Value {
    views(parts).map(|view| json!({ "view": view.view, "default": default(view), "vcpus": vcpus(view) })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_listed_in_the_manifests_words() {
        let view = |view, default, vcpus| Part::View(ViewState { view, default, vcpus });
        let parts = [view(0, 0x102, 0b101), view(3, 5, 0), view(4, 0, 2), view(5, 0x100, 0), view(6, 0x101, 0), view(7, 0xffff, 0)];
        let expected = "VIEW  DEFAULT  VCPUS IN IT\n0     host     0 2\n3     rx       -\n4     n        1\n\
                        5     rx2rw    -\n6     n2rwx    -\n7     0xffff   -\n";
        assert_eq!(text(&parts), expected);
        assert_eq!(json(&parts)[0], json!({ "view": 0, "default": "host", "vcpus": [0, 2] }));
    }
}
