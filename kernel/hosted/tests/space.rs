// SPDX-License-Identifier: MIT OR Apache-2.0
//! Second-stage maps against a plain reference: a page is in a map or not, and that is all.

use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trellis_core::machine::{Leaf, Memory};
use trellis_core::space::Space;
use trellis_hosted::{Board, HostedMachine};
use trellis_idl::kernel::{Access, Refusal};

const GIGABYTE: u64 = 512 * 512;

#[derive(Clone, Copy, Debug)]
enum Change {
    Map(u64, u64, u64, u64),
    Unmap(u64, u64),
    Protect(u64, u64, u64),
}

/// Few pages, all around the edges of blocks.
fn page() -> impl Strategy<Value = u64> {
    (prop::sample::select(vec![0, 512, 1024, GIGABYTE, GIGABYTE + 512, 2 * GIGABYTE]), 0..4u64)
        .prop_map(|(edge, offset)| (edge + offset).saturating_sub(2))
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..5u64, 2 => Just(512), 2 => 511..1030u64, 1 => Just(GIGABYTE), 1 => Just(GIGABYTE + 513)]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => (page(), page(), count(), 1..8u64).prop_map(|(at, frame, count, access)| Change::Map(at, frame, count, access)),
        1 => (page(), count(), 1..8u64).prop_map(|(at, count, access)| Change::Map(at, at, count, access)),
        2 => (page(), count()).prop_map(|(at, count)| Change::Unmap(at, count)),
        1 => (page(), count(), 0..8u64).prop_map(|(at, count, access)| Change::Protect(at, count, access)),
    ]
}

/// The reference: stretches of pages with what they show, never overlapping.
#[derive(Clone, Default)]
struct Plain(BTreeMap<u64, (u64, Leaf)>);

impl Plain {
    fn find(&self, page: u64) -> Option<Leaf> {
        let (first, (count, leaf)) = self.0.range(..=page).next_back()?;
        (page < first + count).then_some(Leaf { page: leaf.page + (page - first), ..*leaf })
    }

    fn split(&mut self, at: u64) {
        if let Some((first, (count, leaf))) = self.0.range(..at).next_back().map(|(f, s)| (*f, *s))
            && at < first + count
        {
            self.0.insert(first, (at - first, leaf));
            self.0.insert(at, (first + count - at, Leaf { page: leaf.page + (at - first), ..leaf }));
        }
    }

    fn is_empty(&mut self, at: u64, count: u64) -> bool {
        self.split(at);
        self.split(at + count);
        self.0.range(at..at + count).next().is_none()
    }

    fn change(&mut self, at: u64, count: u64, access: Option<Access>) {
        self.split(at);
        self.split(at + count);
        let inside: Vec<u64> = self.0.range(at..at + count).map(|(first, _)| *first).collect();
        for first in inside {
            match (access, self.0.get_mut(&first)) {
                (Some(access), Some((_, leaf))) => leaf.access = access,
                _ => drop(self.0.remove(&first)),
            }
        }
    }

    /// Pages where something could be wrong: all edges and their neighbours.
    fn edges(&self) -> Vec<u64> {
        let edges = self.0.iter().flat_map(|(first, (count, _))| [*first, first + count]);
        edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1, edge + 511]).collect()
    }
}

fn same(space: &Space, machine: &HostedMachine, plain: &Plain, more: &[u64]) {
    for page in plain.edges().iter().chain(more).chain(&[0, 511, 512, GIGABYTE, 2 * GIGABYTE - 1]) {
        assert_eq!(space.find(machine, *page), plain.find(*page), "page {page:#x}");
        assert_eq!(machine.board.borrow().walk(space.root, *page), plain.find(*page), "page {page:#x}, walked");
    }
}

/// Does a change in both; a refused one must leave the map as it was.
fn apply(space: &mut Space, machine: &mut HostedMachine, plain: &mut Plain, change: Change) {
    let (at, count) = match change {
        Change::Map(at, _, count, _) | Change::Unmap(at, count) | Change::Protect(at, count, _) => (at, count),
    };
    let probes = [at.saturating_sub(1), at, at + count / 2, at + count - 1, at + count];
    // Everything around is in a TLB when it changes.
    for page in probes {
        machine.board.borrow_mut().translate(0, space.tag, space.root, page);
    }
    let before = (*space, plain.clone());
    let result = match change {
        Change::Map(_, frame, _, access) => space.map(machine, at, frame, count, Access(access)),
        Change::Unmap(..) => space.unmap(machine, at, count),
        Change::Protect(_, _, access) => space.protect(machine, at, count, Access(access)),
    };
    match (result, change) {
        (Ok(stale), Change::Map(_, frame, _, access)) => {
            machine.invalidate(stale);
            assert!(plain.is_empty(at, count), "it mapped over something");
            plain.0.insert(at, (count, Leaf { page: frame, access: Access(access) }));
        }
        (Ok(stale), Change::Unmap(..)) => {
            machine.invalidate(stale);
            plain.change(at, count, None);
        }
        (Ok(stale), Change::Protect(_, _, access)) => {
            machine.invalidate(stale);
            plain.change(at, count, Some(Access(access)));
        }
        (Err(refusal), _) => {
            assert_eq!(*space, before.0, "{refusal:?} changed the map's own state");
            let free = plain.is_empty(at, count);
            if let Change::Map(..) = change {
                assert_eq!(refusal == Refusal::Occupied, !free, "{refusal:?}");
            }
            assert!(matches!(refusal, Refusal::Occupied | Refusal::Quota), "{refusal:?}");
        }
    }
    assert_eq!(machine.board.borrow().stale_translations(), []);
    same(space, machine, plain, &probes);
}

fn machine(pages: u64) -> HostedMachine {
    HostedMachine::new(Rc::new(RefCell::new(Board::new(0x1000_0000, pages))), 0, 1)
}

fn story(changes: &[Change], tables: u64) {
    let mut machine = machine(tables);
    let mut space = Space::new(&mut machine, 5, 0x1000_0000, tables).expect("a root table");
    let mut plain = Plain::default();
    for change in changes {
        apply(&mut space, &mut machine, &mut plain, *change);
    }
    let stale = space.clear(&mut machine);
    machine.invalidate(stale);
    assert_eq!(machine.board.borrow().tlb.len(), 0);
    assert_eq!(space.tables_left(), tables - 1, "every table but the root came back");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_map_is_what_a_plain_list_says(changes in prop::collection::vec(change(), 1..12)) {
        story(&changes, 2000);
    }

    #[test]
    fn a_map_with_few_tables_refuses_and_stays_as_it_is(changes in prop::collection::vec(change(), 1..12), tables in 1..9u64) {
        story(&changes, tables);
    }
}

#[test]
fn the_last_table_can_be_used() {
    // A root, one table of blocks, one of pages: enough for one page out of a block in the middle.
    let mut machine = machine(3);
    let mut space = Space::new(&mut machine, 5, 0x1000_0000, 3).expect("a root table");
    let _ = space.map(&mut machine, 512, 0, 1024, Access::READ).expect("blocks");
    assert_eq!(space.tables_left(), 1);
    let stale = space.unmap(&mut machine, 700, 3).expect("one split is enough for both edges");
    assert_eq!((stale.first, stale.pages), (700, 3));
    assert_eq!(space.tables_left(), 0);
    assert_eq!(space.unmap(&mut machine, 1030, 1), Err(Refusal::Quota));
}

#[test]
fn pages_over_several_blocks_need_no_more_tables_than_they_use() {
    let mut machine = machine(5);
    let mut space = Space::new(&mut machine, 5, 0x1000_0000, 5).expect("a root table");
    let _ = space.map(&mut machine, 1, 0, 1300, Access::READ).expect("one table of blocks and three of pages");
    assert_eq!(space.tables_left(), 0);
}

#[test]
fn a_device_stays_a_device_when_its_access_changes() {
    let mut machine = machine(8);
    let mut space = Space::new(&mut machine, 5, 0x1000_0000, 8).expect("a root table");
    let _ = space.map(&mut machine, 9, 77, 1, Access::READ.with(Access::DEVICE)).expect("empty");
    let _ = space.protect(&mut machine, 9, 1, Access::READ.with(Access::WRITE)).expect("there");
    assert_eq!(space.find(&machine, 9).map(|leaf| leaf.access.0), Some(1 | 2 | 8));
}
