// SPDX-License-Identifier: MIT OR Apache-2.0
//! Capability tables: one array of atomic slots, each domain owning a range of it.
//!
//! Readers take no lock: the name with acquire, then the word. Writers hold the control lock; they store the name last
//! when they grant and clear it first when they delete. A reader that has the name of what was there must not get the
//! word of what comes next: an emptied slot keeps a mark, and is used again only after every CPU has left the kernel
//! once since ([`crate::grace`]).

use crate::cap::{Cap, CapWord};
use crate::grace::Mark;
use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{Kind, Refusal, Rights};

/// Slots in the system.
pub const SLOTS: usize = 4096;

#[derive(Debug)]
struct Slot<W = AtomicU64> {
    word: W,
    name: W,
}

/// The range of slots that a domain owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableRange {
    /// First slot.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// All capability tables.
#[derive(Debug)]
pub struct Table {
    slots: [Slot; SLOTS],
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// Empty tables.
    pub const fn new() -> Self {
        Table { slots: [const { Slot { word: AtomicU64::new(0), name: AtomicU64::new(0) } }; SLOTS] }
    }

    #[inline(always)]
    fn slot(&self, range: TableRange, selector: u64) -> Option<&Slot> {
        if selector >= range.count as u64 {
            return None;
        }
        Some(&self.slots[(range.first as usize + selector as usize) & (SLOTS - 1)])
    }

    /// What is in a slot, whatever it is.
    #[inline(always)]
    pub fn read(&self, range: TableRange, selector: u64) -> Cap {
        match self.slot(range, selector) {
            Some(slot) => slot.read(),
            None => Cap::default(),
        }
    }

    /// The capability in a slot, if it is of this kind with these rights.
    #[inline(always)]
    pub fn find(&self, range: TableRange, selector: u64, kind: Kind, need: Rights) -> Result<Cap, Refusal> {
        let cap = self.read(range, selector);
        if cap.word.is(kind, need) { Ok(cap) } else { Err(cap.word.why_not(kind)) }
    }

    /// The mark of a slot that is there and empty.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub fn check_empty(&self, range: TableRange, selector: u64) -> Result<Mark, Refusal> {
        if selector == 0 {
            return Err(Refusal::OutOfRange);
        }
        let slot = self.slot(range, selector).ok_or(Refusal::OutOfRange)?;
        let word = CapWord(slot.word.load(Ordering::Relaxed));
        if word.is_empty() { Ok(word.mark()) } else { Err(Refusal::Occupied) }
    }

    /// Puts a capability into an empty slot whose mark every CPU has passed. Under the control lock.
    pub fn put(&self, range: TableRange, selector: u64, cap: Cap) -> Result<(), Refusal> {
        self.check_empty(range, selector)?;
        let slot = self.slot(range, selector).ok_or(Refusal::OutOfRange)?;
        slot.put(cap);
        Ok(())
    }

    /// Empties a slot. Under the control lock.
    #[inline(never)]
    pub fn clear(&self, range: TableRange, selector: u64, mark: Mark) {
        if let Some(slot) = self.slot(range, selector) {
            slot.clear(mark);
        }
    }

    /// Empties every slot that names the object, but the one at `keep`. Under the control lock. Says whether there were any.
    pub fn clear_name(&self, kind: Kind, name: u64, keep: Option<(TableRange, u64)>, mark: Mark) -> bool {
        let mut found = false;
        let kept = keep.map(|(range, selector)| range.first as usize + selector as usize);
        for (index, slot) in self.slots.iter().enumerate() {
            let word = CapWord(slot.word.load(Ordering::Relaxed));
            if word.is(kind, Rights(0)) && slot.name.load(Ordering::Relaxed) == name && kept != Some(index) {
                slot.clear(mark);
                found = true;
            }
        }
        found
    }
}

impl<W: Word> Slot<W> {
    #[inline(always)]
    fn read(&self) -> Cap {
        let name = self.name.load(Ordering::Acquire);
        Cap { word: CapWord(self.word.load(Ordering::Relaxed)), name }
    }

    fn put(&self, cap: Cap) {
        self.word.store(cap.word.0, Ordering::Relaxed);
        self.name.store(cap.name, Ordering::Release);
    }

    fn clear(&self, mark: Mark) {
        let empty = CapWord(self.word.load(Ordering::Relaxed)).is_empty();
        if !empty {
            self.name.store(0, Ordering::Release);
            self.word.store(CapWord::emptied(mark).0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grace::tests::model as grace;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;

    const OLD: Cap = Cap { word: CapWord::new(Kind::Frames, Rights::READ, 3), name: 7 };
    const NEW: Cap = Cap { word: CapWord::new(Kind::Frames, Rights::ALL, 4), name: 8 };

    /// How often a model put the new capability into the slot.
    static PUTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

    /// CPU 1 enters the kernel twice and looks a capability up each time; CPU 0 deletes it, and puts another one into
    /// the same slot as soon as it may.
    fn a_slot_changes_hands(waits: bool) {
        let shared = Arc::new((Slot { word: LoomWord::new(0), name: LoomWord::new(0) }, grace()));
        shared.0.put(OLD);
        let reader = shared.clone();
        let looking = loom::thread::spawn(move || {
            for _ in 0..2 {
                reader.1.pass(1);
                let found = reader.0.read();
                let usable = found.word.is(Kind::Frames, Rights::READ) && found.name != 0;
                assert!(!usable || found == OLD || found == NEW, "{found:x?} was never granted");
            }
            // It leaves, and comes again for a kick.
            reader.1.pass(1);
        });
        let mark = shared.1.mark();
        shared.0.clear(mark);
        for _ in 0..2 {
            if !waits || shared.1.behind(mark, 0b10) == 0 {
                shared.0.put(NEW);
                PUTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                break;
            }
            // The checker tries what the other CPU does meanwhile.
            loom::thread::yield_now();
        }
        looking.join().unwrap();
    }

    #[test]
    fn no_order_of_memory_mixes_two_capabilities() {
        loom::model(|| a_slot_changes_hands(true));
        assert!(PUTS.load(std::sync::atomic::Ordering::Relaxed) > 0, "in some order it came to that");
    }

    #[test]
    fn a_slot_that_is_used_again_at_once_is_found_out() {
        assert!(is_broken(|| a_slot_changes_hands(false)));
    }

    #[test]
    fn a_selector_outside_the_range_finds_nothing() {
        let table = Table::new();
        let range = TableRange { first: 64, count: 4 };
        let cap = Cap { word: CapWord::new(Kind::Line, Rights::ALL, 0), name: 9 };
        assert_eq!(table.put(range, 4, cap), Err(Refusal::OutOfRange));
        assert_eq!(table.put(range, 0, cap), Err(Refusal::OutOfRange));
        assert_eq!(table.put(range, 3, cap), Ok(()));
        assert_eq!(table.put(range, 3, cap), Err(Refusal::Occupied));
        assert_eq!(table.find(range, u64::MAX, Kind::Line, Rights(0)), Err(Refusal::NoCapability));
        assert_eq!(table.find(range, 3, Kind::Guest, Rights(0)), Err(Refusal::WrongKind));
        assert_eq!(table.find(range, 3, Kind::Line, Rights::USE), Ok(cap));
        table.clear_name(Kind::Line, 9, None, 5);
        assert_eq!(table.check_empty(range, 3), Ok(5));
        assert_eq!(table.find(range, 3, Kind::Line, Rights(0)), Err(Refusal::NoCapability));
    }
}
