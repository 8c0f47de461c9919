// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed pools of objects, named by index, home CPU and generation in one word.
//!
//! A slot stores its own name, so one masked index and one 64-bit compare are bounds check, home check and generation
//! check at once, and the mask is the speculation clamp. A generation that is used up retires its slot.

use core::marker::PhantomData;

/// Home of objects that belong to no CPU.
pub const SHARED_HOME: u16 = 0xffff;

/// The name of an object: index (bits 0–15), home CPU (16–31), generation (32–63). 0 names nothing.
pub struct Id<T>(pub u64, PhantomData<fn() -> T>);

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Id<T> {}
impl<T> core::fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}@{}#{}", self.index(), self.home(), self.0 >> 32)
    }
}

impl<T> Id<T> {
    /// Names nothing.
    pub const NONE: Id<T> = Id(0, PhantomData);

    /// From the word a capability holds.
    pub const fn from_word(word: u64) -> Self {
        Id(word, PhantomData)
    }

    const fn new(index: usize, home: u16, generation: u32) -> Self {
        Id(index as u64 | (home as u64) << 16 | (generation as u64) << 32, PhantomData)
    }

    /// Index in its pool.
    pub const fn index(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// CPU whose pool it is in.
    pub const fn home(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

#[derive(Debug)]
#[repr(C)]
struct Slot<T: Empty> {
    object: T,
    /// 0 while free.
    name: u64,
    generation: u32,
    align: [T::Align; 0],
}

/// Objects that are found by index on hot paths take a power of two of bytes: a shift finds them instead of a product.
pub mod align {
    /// 1,024 bytes.
    #[derive(Debug)]
    #[repr(align(1024))]
    pub struct Kilobyte;

    /// 4,096 bytes.
    #[derive(Debug)]
    #[repr(align(4096))]
    pub struct Page;
}

/// A pool of `N` objects, `N` a power of two.
#[derive(Debug)]
#[repr(C)]
pub struct Pool<T: Empty, const N: usize> {
    slots: [Slot<T>; N],
    home: u16,
    used: u16,
}

/// A value to fill a pool with before anything lives in it.
pub trait Empty {
    /// The value.
    const EMPTY: Self;
    /// What a slot is aligned to.
    type Align: core::fmt::Debug;
}

impl<T: Empty, const N: usize> Pool<T, N> {
    /// An empty pool whose objects live on CPU `home`.
    pub const fn new(home: u16) -> Self {
        assert!(N.is_power_of_two() && N <= 0x1_0000);
        Pool { slots: [const { Slot { object: T::EMPTY, name: 0, generation: 0, align: [] } }; N], home, used: 0 }
    }

    /// Says which CPU the pool belongs to; only before anything lives in it.
    pub fn set_home(&mut self, home: u16) {
        self.home = home;
    }

    /// The object with this name, if it is alive.
    #[inline(always)]
    pub fn get(&self, id: Id<T>) -> Option<&T> {
        let slot = &self.slots[id.index() & (N - 1)];
        if slot.name == id.0 && id.0 != 0 { Some(&slot.object) } else { None }
    }

    /// The same, for changing.
    #[inline(always)]
    pub fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        let slot = &mut self.slots[id.index() & (N - 1)];
        if slot.name == id.0 && id.0 != 0 { Some(&mut slot.object) } else { None }
    }

    /// The object at an index that came from a name checked before.
    #[inline(always)]
    pub fn at(&self, index: u16) -> &T {
        &self.slots[index as usize & (N - 1)].object
    }

    /// The same, for changing.
    #[inline(always)]
    pub fn at_mut(&mut self, index: u16) -> &mut T {
        &mut self.slots[index as usize & (N - 1)].object
    }

    /// The name of what lives at an index ([`Id::NONE`] if nothing).
    #[inline(always)]
    pub fn name_at(&self, index: u16) -> Id<T> {
        Id::from_word(self.slots[index as usize & (N - 1)].name)
    }

    /// Gives a free slot a name. The object in it is [`Empty::EMPTY`] or what its last life left.
    pub fn insert(&mut self, object: T) -> Option<Id<T>> {
        let home = self.home;
        let (index, slot) =
            self.slots.iter_mut().enumerate().find(|(_, slot)| slot.name == 0 && slot.generation != u32::MAX)?;
        slot.generation += 1;
        slot.object = object;
        let id = Id::new(index, home, slot.generation);
        slot.name = id.0;
        self.used += 1;
        Some(id)
    }

    /// Ends the life of an object. Its names are dead from now on.
    pub fn remove(&mut self, id: Id<T>) -> bool {
        let slot = &mut self.slots[id.index() & (N - 1)];
        if slot.name != id.0 || id.0 == 0 {
            return false;
        }
        slot.name = 0;
        self.used -= 1;
        true
    }

    /// Gives a living object a new generation: all its names but the new one are dead.
    pub fn rename(&mut self, id: Id<T>) -> Option<Id<T>> {
        let home = self.home;
        let slot = &mut self.slots[id.index() & (N - 1)];
        if slot.name != id.0 || id.0 == 0 || slot.generation == u32::MAX {
            return None;
        }
        slot.generation += 1;
        let new = Id::new(id.index(), home, slot.generation);
        slot.name = new.0;
        Some(new)
    }

    /// Names of all that live.
    pub fn names(&self) -> impl Iterator<Item = Id<T>> + '_ {
        self.slots.iter().filter(|slot| slot.name != 0).map(|slot| Id::from_word(slot.name))
    }

    /// Does this to all that live.
    pub fn each_mut(&mut self, mut act: impl FnMut(&mut T)) {
        for slot in self.slots.iter_mut().filter(|slot| slot.name != 0) {
            act(&mut slot.object);
        }
    }

    /// Ends the life of all of which this holds.
    pub fn remove_where(&mut self, is: impl Fn(&T) -> bool) {
        for slot in self.slots.iter_mut().filter(|slot| slot.name != 0 && is(&slot.object)) {
            slot.name = 0;
            self.used -= 1;
        }
    }

    /// How many more can live here now.
    pub fn free(&self) -> usize {
        N - self.used as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Empty for u32 {
        const EMPTY: u32 = 0;
        type Align = ();
    }

    #[test]
    fn a_stale_name_refuses_after_its_slot_is_used_again() {
        let mut pool = Pool::<u32, 2>::new(3);
        let first = pool.insert(7).expect("the pool is empty");
        assert_eq!(first.home(), 3);
        assert_eq!(pool.get(first), Some(&7));
        assert!(pool.remove(first));
        let second = pool.insert(8).expect("one was freed");
        assert_eq!(first.index(), second.index());
        assert_eq!(pool.get(first), None);
        assert_eq!(pool.get(second), Some(&8));
        assert!(!pool.remove(first));
    }

    #[test]
    fn a_full_pool_refuses_and_index_out_of_range_names_nothing() {
        let mut pool = Pool::<u32, 2>::new(0);
        assert!(pool.insert(1).is_some() && pool.insert(2).is_some());
        assert_eq!(pool.insert(3), None);
        assert_eq!(pool.get(Id::from_word(0)), None);
        assert_eq!(pool.get(Id::from_word(0x1_0000_0002)), None);
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn a_used_up_generation_retires_its_slot() {
        let mut pool = Pool::<u32, 1>::new(0);
        pool.slots[0].generation = u32::MAX - 1;
        let last = pool.insert(1).expect("one generation is left");
        assert_eq!(pool.rename(last), None);
        pool.remove(last);
        assert_eq!(pool.insert(2), None);
    }
}
