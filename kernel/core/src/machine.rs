// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the core asks of hardware. Deciding is not among it.

use crate::float::{FloatMove, Lengths};
use crate::lines::ListEntry;
use crate::lock::Lock;
use crate::passage::Passage;
use core::ops::Deref;
use trellis_idl::kernel::{Access, Refusal, Traps};
use trellis_idl::trace::Record;

/// A physical page number.
pub type Page = u64;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = trellis_idl::kernel::PAGE;

/// A clock value; the unit is the machine's own.
pub type Ticks = u64;

/// A deadline that never comes.
pub const NEVER: Ticks = u64::MAX;

/// A leaf of a second-stage map: a frame and what may be done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First page of the frame.
    pub page: Page,
    /// What the second stage allows, and the memory kind.
    pub access: Access,
}

/// What one entry of a table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing.
    Absent,
    /// A table of the next level, at this page.
    Table(Page),
    /// A block or page.
    Leaf(Leaf),
}

/// Part of a map that changed; TLBs may hold what was there. Must be turned into an invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a changed map must be invalidated, or a stale TLB entry lives on"]
pub struct Stale {
    /// Hardware tag of the map (VMID).
    pub tag: u16,
    /// Root table of the map.
    pub root: Page,
    /// First page of the changed range, in the map's own addresses.
    pub first: u64,
    /// Pages; 0 = nothing was there before, so only ordering is needed.
    pub pages: u64,
}

/// Physical memory as tables and bytes: what the walker and the copying operations need.
pub trait Memory {
    /// Reads entry `index` of the table at `table`.
    fn entry(&self, table: Page, index: usize) -> u64;
    /// Writes it with one 64-bit store that table walkers see whole.
    fn set_entry(&mut self, table: Page, index: usize, value: u64);
    /// Reads a word of a page that is no table.
    fn word(&self, page: Page, index: usize) -> u64;
    /// Writes a word of a page that is no table.
    fn set_word(&mut self, page: Page, index: usize, value: u64);
    /// Unpacks an entry. `level` 1 = 1 GiB, 2 = 2 MiB, 3 = 4 KiB.
    fn unpack(entry: u64, level: u8) -> Entry;
    /// The table that an entry leads to.
    fn table(entry: u64, level: u8) -> Option<Page> {
        match Self::unpack(entry, level) {
            Entry::Table(page) => Some(page),
            _ => None,
        }
    }
    /// Whether an entry says nothing.
    fn is_absent(entry: u64) -> bool;
    /// Packs an entry. Leaves of one kind at one level differ by their page only, linearly.
    fn pack(entry: Entry, level: u8) -> u64;
    /// Zeroes pages and cleans them to the point of coherency.
    fn zero(&mut self, first: Page, pages: u64);
    /// Copies bytes between physical addresses; `code` makes the target coherent with instruction fetch.
    fn copy(&mut self, to: u64, from: u64, bytes: u64, code: bool);
    /// Compares 16 bytes, aligned, with two words where `mask` has bits, and if they are the same there, writes others there,
    /// at once for every observer. Back: whether it did, and what was there. It may give up.
    fn swap(&mut self, address: u64, mask: [u64; 2], expected: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]);
    /// Carries out an invalidation on every CPU.
    fn invalidate(&mut self, stale: Stale);
}

/// A machine: saved contexts and the effects that only hardware can have.
pub trait Machine: Memory + Sized + core::fmt::Debug {
    /// Saved state of a thread.
    type Thread: ThreadContext;
    /// Saved state of a vCPU.
    type Vcpu: VcpuContext;
    /// A reference to what [`Machine::passage`] gives.
    type Passage: Deref<Target = Lock<Passage<Self>>>;

    /// The clock.
    fn now(&self) -> Ticks;
    /// Ticks a second.
    fn hertz(&self) -> u64;
    /// The next timer interrupt shall come at this time (or not at all).
    fn wake_at(&mut self, deadline: Ticks);
    /// Makes another CPU enter its kernel soon.
    fn kick(&mut self, cpu: u16);
    /// Masks or unmasks a physical line.
    fn mask(&mut self, line: u32, masked: bool);
    /// A physical line that is masked is triggered by an edge from now on, or by its level.
    fn set_edge(&mut self, line: u32, edge: bool);
    /// Ends a physical line that may be active, whoever took it.
    fn end_line(&mut self, line: u32);
    /// A physical line that comes to this CPU comes to another one from now on, masked or not.
    fn bequeath(&mut self, line: u32, to: u16);
    /// This CPU stops, with nothing in it that is anybody's. It comes back only with the next boot.
    fn retire(&mut self);
    /// Whether the vCPU with this context has its state in the hardware of this CPU.
    fn is_loaded(&self, vcpu: &Self::Vcpu) -> bool;
    /// The list registers of the loaded vCPU: reads one.
    fn list_entry(&self, index: usize) -> ListEntry;
    /// The list registers of the loaded vCPU: writes one.
    fn set_list_entry(&mut self, index: usize, entry: ListEntry);
    /// The list registers of the loaded vCPU that hold nothing and can be used, one bit each.
    fn empty_lists(&self) -> u64;
    /// Number of list registers.
    fn list_entries(&self) -> usize;
    /// Asks for a maintenance interrupt when at most one list register is in use.
    fn watch_underflow(&mut self, on: bool);
    /// Puts what the hardware holds of this vCPU into its context, if it is loaded, and forgets it; not its
    /// floating-point registers, whose owner the core keeps.
    fn unload(&mut self, vcpu: &mut Self::Vcpu);
    /// What is remembered of this context is another's from now on: a vCPU came here and uses it.
    fn forget(&mut self, vcpu: &Self::Vcpu);
    /// Where a vCPU is while it moves from one CPU to another: one place for all CPUs.
    fn passage(&self) -> Self::Passage;
    /// Moves a vCPU's floating-point registers between hardware and memory ([`VcpuContext::set_float`] says where that is).
    /// Afterwards their use by this vCPU traps (saved) or does not (loaded).
    fn move_float(&mut self, way: FloatMove, vcpu: &mut Self::Vcpu);
    /// The same for a thread, whose area of fixed vectors lies at this page. Loaded ones trap until the machine lets the
    /// thread go on, and again from its next entry into the kernel.
    fn move_thread_float(&mut self, way: FloatMove, area: Page);
    /// Lengths that vectors can have on this CPU.
    fn vector_lengths(&self) -> Lengths;
    /// Puts a vCPU into another map of its guest, now: what this CPU's TLBs hold of the old one goes.
    fn switch_map(&mut self, vcpu: &mut Self::Vcpu, guest: u16, root: Page, view: u16);
    /// From its next entry a vCPU executes one instruction, which ends in a trap back to here, while its virtual interrupts
    /// and its own single step wait; or no more. Asked for again while it is so already: the instruction is to come.
    fn set_step(&mut self, vcpu: &mut Self::Vcpu, on: bool);
    /// Whether a leaf can allow one kind of execution alone.
    fn splits_execute(&self) -> bool;
    /// A fact about the machine ([`trellis_idl::kernel::Fact`]).
    fn fact(&self, which: u64, argument: u64) -> Result<u64, Refusal>;
    /// Switches off (false) or restarts (true). Comes back only where the board cannot.
    fn power(&mut self, restart: bool);
    /// Nobody reads the kernel's log any more: puts what is in it, and what this CPU did last, where a person may see it.
    fn last_words(&mut self, records: &[Record]);
    /// Puts bytes at a physical address into the kernel's log.
    fn log(&mut self, address: u64, bytes: u64);
    /// Takes bytes of the log into a page.
    fn log_read(&mut self, address: u64, most: u64) -> u64;
    /// Appends to this CPU's trace, with the time: a first word ([`trellis_idl::trace::TraceKind::with`]), an argument,
    /// and whom it is about ([`crate::trace::place_of`] its context, or 0).
    fn note(&mut self, what: u64, argument: u64, context: u64);
    /// Words of the trace at a place below [`trellis_idl::trace::RECORDS`]: what, argument, time, context.
    fn noted(&self, place: u64) -> [u64; 4];
    /// The place that the next one will have.
    fn next_note(&self) -> u64;
}

/// What the core needs of a thread's saved state.
pub trait ThreadContext: core::fmt::Debug {
    /// A context of nothing.
    const EMPTY: Self;
    /// Prepares a first entry: program counter, stack pointer, first argument, and the map it runs in.
    fn start(&mut self, pc: u64, sp: u64, argument: u64);
    /// The map it runs in.
    fn set_map(&mut self, tag: u16, root: Page);
    /// What `x0`–`x2` hold when it goes on after a system call.
    fn set_return(&mut self, values: [u64; 3]);
    /// Message words waiting to be loaded.
    fn words(&self) -> &[u64; 10];
    /// The same, for writing.
    fn words_mut(&mut self) -> &mut [u64; 10];
    /// A word of its registers: 0–30 general, 31 stack pointer, 32 program counter.
    fn register(&self, n: usize) -> u64;
}

/// What the core needs of a vCPU's saved state.
pub trait VcpuContext: core::fmt::Debug {
    /// A context of nothing.
    const EMPTY: Self;
    /// Words of the exit message.
    fn exit(&self) -> &[u64; 10];
    /// Replaces the words of the exit message (a server forwarded it with others).
    fn set_exit(&mut self, words: [u64; 10]);
    /// Puts every register to its reset value; the map and identity stay.
    fn reset(&mut self);
    /// The map it runs in, and which number it is in its guest.
    fn set_map(&mut self, tag: u16, root: Page, index: u8);
    /// How many lanes of 128 bits its vectors have (0 = fixed ones) and where its floating-point registers are saved (0 =
    /// in the context itself). Stays over [`VcpuContext::reset`].
    fn set_float(&mut self, lanes: u8, area: Page);
    /// Words of the save area in the context, laid out by [`crate::float::Layout`] for fixed vectors.
    fn float(&self) -> &[u64];
    /// The same, for writing.
    fn float_mut(&mut self) -> &mut [u64];
    /// The view it is in.
    fn view(&self) -> u16;
    /// A general register (0–30), whatever the vCPU does.
    fn general(&self, n: usize) -> u64;
    /// Writes one.
    fn set_general(&mut self, n: usize, value: u64);
    /// Lets it go on at `pc` of its kernel level with everything masked. Says where it was: program counter and state.
    fn divert(&mut self, pc: u64) -> [u64; 2];
    /// Puts it back to where [`VcpuContext::divert`] took it from.
    fn go_back(&mut self, to: [u64; 2]);
    /// Reads a register by [`trellis_idl::kernel::VcpuRegister`] number.
    fn get(&self, register: u64) -> Result<u64, Refusal>;
    /// Writes one; bits a guest may not have are refused.
    fn set(&mut self, register: u64, value: u64) -> Result<(), Refusal>;
    /// Applies an answer's words from memory (the fast way is in the machine's entry code). If anything changes, the
    /// instruction it stopped at counts as executed.
    fn answer(&mut self, mask: u64, words: &[u64; 10]);
    /// Where it begins after a reset, and its first argument.
    fn start(&mut self, pc: u64, argument: u64);
    /// Skips the instruction it stopped at.
    fn advance(&mut self);
    /// Enters an exception at the guest's kernel level.
    fn exception(&mut self, syndrome: u64, address: u64);
    /// What stops the vCPU beside what always does. Stays over [`VcpuContext::reset`].
    fn set_traps(&mut self, traps: Traps);
    /// Whether waiting instructions stop the vCPU.
    fn trap_wait(&mut self, on: bool);
    /// When its virtual timer will fire next ([`NEVER`] when it will not); valid while unloaded.
    fn timer_deadline(&self) -> Ticks;
    /// Saved list registers while it is not loaded.
    fn list_entry(&self, index: usize) -> ListEntry;
    /// Writes a saved list register.
    fn set_list_entry(&mut self, index: usize, entry: ListEntry);
    /// Whether a maintenance interrupt is wanted when at most one list register is in use; the machine obeys it when it
    /// loads this vCPU ([`Machine::watch_underflow`] is for the one that is loaded).
    fn watch_underflow(&mut self, _on: bool) {}
}
