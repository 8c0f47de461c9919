// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a manifest says of a guest's views: how many, what the guest itself may do, and those that are there from the start.

use crate::problem::{Code, Problem};
use crate::table::{Placed, Problems, Span, Table};
use toml::de::DeValue;
use trellis_idl::kernel::{Inside, MAX_VIEWS, PAGE};
use trellis_idl::plan::{MAX_PLANNED_PAGES, MAX_PLANNED_VIEWS, PagesPlan, ViewPlan};
use trellis_idl::wire::ViewAccess;

/// A guest's views as the manifest has them.
#[derive(Clone, Debug)]
pub struct ViewsEntry {
    /// How many there may be, the host map among them.
    pub count: u16,
    /// What the guest itself may do.
    pub inside: Inside,
    /// Where that stands.
    pub inside_span: Option<Span>,
    /// Views 1, 2, … with where each stands.
    pub planned: Vec<Placed<ViewPlan>>,
}

impl Default for ViewsEntry {
    fn default() -> Self {
        ViewsEntry { count: 1, inside: Inside::NONE, inside_span: None, planned: Vec::new() }
    }
}

/// Words for what a page may be used for.
const WORDS: [(&str, ViewAccess); 13] = [
    ("host", ViewAccess::DEFAULT),
    ("n", ViewAccess(0)),
    ("r", ViewAccess(1)),
    ("w", ViewAccess(2)),
    ("rw", ViewAccess(3)),
    ("x", ViewAccess(4)),
    ("rx", ViewAccess(5)),
    ("rx-kernel", ViewAccess(17)),
    ("rx-user", ViewAccess(33)),
    ("wx", ViewAccess(6)),
    ("rwx", ViewAccess(7)),
    ("rx2rw", ViewAccess::RX2RW),
    ("n2rwx", ViewAccess::N2RWX),
];

/// The word for an access.
pub fn word(access: ViewAccess) -> &'static str {
    WORDS.iter().find(|(_, known)| *known == access).map_or("?", |(word, _)| word)
}

/// Reads a guest's keys `views`, `views-inside` and `view`.
pub fn read(table: &Table<'_, '_>, problems: &mut Problems) -> ViewsEntry {
    let count = table.number("views", 1..MAX_VIEWS + 1, problems);
    let inside = [("none", Inside::NONE), ("switch", Inside::SWITCH), ("all", Inside::ALL)];
    let inside = table.choice("views-inside", &inside, problems);
    let planned = planned(table, problems);
    let most = count.as_ref().map_or(1, |count| count.value as u16);
    if let Some(view) = planned.get(usize::from(most).saturating_sub(1)) {
        problems.push(
            Problem::new(Code::OutOfRange, format!("{} has more views than `views` allows", table.name))
                .at(view.span.clone(), "one too many")
                .hint(format!("view 0 is the guest's own memory; write: views = {}", planned.len() + 1)),
        );
    }
    let inside_span = inside.as_ref().map(|inside| inside.span.clone());
    ViewsEntry { count: most, inside: inside.map_or(Inside::NONE, |inside| inside.value), inside_span, planned }
}

/// The `[[guest.NAME.view]]` tables.
fn planned(table: &Table<'_, '_>, problems: &mut Problems) -> Vec<Placed<ViewPlan>> {
    let list = list(table, "view", "[[guest.NAME.view]]", MAX_PLANNED_VIEWS, problems);
    let views = list.into_iter().enumerate().map(|(index, mut inner)| {
        inner.name = format!("view {} of {}", index + 1, table.name);
        inner.allow(&["default", "shown", "pages"], &[], problems);
        let default = inner.choice("default", &WORDS, problems);
        let shown = inner.flag("shown", problems);
        let plan = ViewPlan {
            default: default.map_or(ViewAccess::DEFAULT, |default| default.value),
            shown: shown.is_none_or(|shown| shown.value),
            pages: pages(&inner, problems),
        };
        Placed::new(plan, inner.span.clone())
    });
    views.collect()
}

/// The `[[guest.NAME.view.pages]]` tables of a view.
fn pages(view: &Table<'_, '_>, problems: &mut Problems) -> heapless::Vec<PagesPlan, MAX_PLANNED_PAGES> {
    let mut all = heapless::Vec::new();
    for mut inner in list(view, "pages", "[[guest.NAME.view.pages]]", MAX_PLANNED_PAGES, problems) {
        inner.name = format!("pages of {}", view.name);
        inner.allow(&["range", "access", "notify", "shows"], &[], problems);
        inner.require("range", "range = \"0x40200000..0x40201000\"", problems);
        let access = inner.choice("access", &WORDS, problems).map_or(ViewAccess::DEFAULT, |access| access.value);
        let notify = inner.flag("notify", problems).is_some_and(|notify| notify.value);
        let shows = inner.text("shows", "shows = \"0x40300000\"", problems);
        let shows = shows.and_then(|text| checked(&text, address(&text.value), "an address of a page", problems));
        let range = inner.text("range", "range = \"0x40200000..0x40201000\"", problems);
        let range = range.and_then(|text| checked(&text, range_of(&text.value), "a range of pages", problems));
        if let Some((first, pages)) = range {
            // `list` gave no more than there is room for.
            let _ = all.push(PagesPlan { first, pages, access, notify, shows });
        }
    }
    all
}

/// A list of tables, at most so many.
fn list<'a, 'i>(
    table: &Table<'a, 'i>, key: &str, example: &str, most: usize, problems: &mut Problems,
) -> Vec<Table<'a, 'i>> {
    let Some((span, value)) = table.get(key) else { return Vec::new() };
    let items = match value.value {
        DeValue::Array(items) if items.iter().all(|item| item.get_ref().is_table()) => items,
        _ => {
            problems.push(
                Problem::new(Code::WrongType, format!("`{key}` must be a list of tables"))
                    .at(span, "this is none")
                    .hint(format!("write it as: {example}")),
            );
            return Vec::new();
        }
    };
    if let Some(item) = items.get(most) {
        problems.push(
            Problem::new(Code::OutOfRange, format!("{} has too many `{key}`", table.name))
                .at(item.span(), "one too many")
                .hint(format!("at most {most}; a monitor can make more while the guest runs")),
        );
    }
    let tables = items.iter().take(most);
    tables.filter_map(|item| Some(Table::new(item.get_ref().as_table()?, "", item.span()))).collect()
}

fn checked<T>(text: &Placed<String>, value: Option<T>, wanted: &str, problems: &mut Problems) -> Option<T> {
    if value.is_none() {
        problems.push(
            Problem::new(Code::BadSize, format!("`{}` is not {wanted}", text.value))
                .at(text.span.clone(), format!("not {wanted}"))
                .hint("guest addresses, multiples of 4096, in hexadecimal"),
        );
    }
    value
}

/// The page of `"0x40200000"`.
fn address(text: &str) -> Option<u64> {
    let address = u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
    address.is_multiple_of(PAGE).then_some(address / PAGE)
}

/// First page and pages of `"0x40200000..0x40201000"`.
pub fn range_of(text: &str) -> Option<(u64, u64)> {
    let (first, end) = text.split_once("..")?;
    let (first, end) = (address(first)?, address(end)?);
    (first < end).then(|| (first, end - first))
}

/// Complains about pages that are no memory of the guest's.
pub fn check_memory(entry: &ViewsEntry, first: u64, pages: u64, problems: &mut Problems) {
    for view in &entry.planned {
        for range in &view.value.pages {
            let inside = |page: u64| first <= page && page.saturating_add(range.pages) <= first + pages;
            if !inside(range.first) || range.shows.is_some_and(|page| !inside(page)) {
                problems.push(
                    Problem::new(Code::OutsideMemory, "pages of a view that are not the guest's memory")
                        .at(view.span.clone(), "in this view")
                        .hint(format!("memory is {:#x}..{:#x}", first * PAGE, (first + pages) * PAGE)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_whole_pages() {
        assert_eq!(range_of("0x40200000..0x40202000"), Some((0x40200, 2)));
        for bad in ["", "..", "0x1000", "0x1001..0x2000", "0x2000..0x1000", "0x1000..0x1000", "1..2", "0x0..0xg"] {
            assert_eq!(range_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_word_is_an_access_of_its_own() {
        for (index, (name, access)) in WORDS.iter().enumerate() {
            assert!(WORDS[..index].iter().all(|(_, other)| other != access));
            assert_eq!(word(*access), *name);
        }
    }
}
