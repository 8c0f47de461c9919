// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that the core asks: physical memory, maps, clock, lines, switching vCPUs.

use crate::context::{STEP, Thread, Vcpu, vttbr};
use crate::debug::Count;
use crate::features::Features;
use crate::fp;
use crate::gic::Gic;
use crate::isa::{self, read, write};
use crate::log::LOG;
use crate::predictor::Policy;
use crate::registers::{self, pack_entry, table_of, unpack_entry};
use crate::silicon;
use trellis_core::float::{FloatMove, Lengths};
use trellis_core::lines::ListEntry;
use trellis_core::lock::Lock;
use trellis_core::machine::{Entry, Machine, Memory, NEVER, Page, Stale, Ticks};
use trellis_core::passage::Passage;
use trellis_core::shared::GUESTS;
use trellis_core::view::{Drop, LastMap};
use trellis_idl::boot::BootHeader;
use trellis_idl::kernel::{Fact, Refusal};
use trellis_idl::trace::{RECORD_WORDS, RECORDS, Record};

/// Ranges of more pages than this are invalidated as a whole.
const MOST_SINGLE: u64 = 64;

/// One CPU's hardware.
#[derive(Debug)]
pub struct Aarch64 {
    /// Interrupt controller.
    pub gic: Gic,
    /// The vCPU whose EL1, timer and list registers are in the hardware (null = none).
    pub loaded: *mut Vcpu,
    /// The loaded vCPU, unless what EL0 could see of it is in its context and not in the hardware ([`Aarch64::veil`]).
    pub visible: *mut Vcpu,
    /// What `direct` was before that.
    pub direct_behind: *mut Vcpu,
    /// The vCPU that a hot answer may enter at once: the loaded one, unless its debug registers are in use or it is veiled.
    pub direct: *mut Vcpu,
    /// The vCPU whose breakpoints are in the hardware (null = none, or they changed).
    pub debug_owner: *mut Vcpu,
    /// Virtual interrupts are held: what runs executes one instruction.
    pub stepping: bool,
    /// MDCR_EL2.TDE is set: debug exceptions come to EL2.
    pub routed: bool,
    /// Whether the loaded vCPU wants the maintenance interrupt, held or not.
    pub underflow: bool,
    /// Lengths that vectors can have here.
    pub lengths: Lengths,
    /// Per guest: which map and vCPU this CPU's TLBs may hold entries of.
    pub last: [LastMap; GUESTS],
    /// Ticks a second.
    pub hertz: u64,
    /// When the kernel's first instruction ran.
    pub first_tick: u64,
    /// Ticks from there to root's first instruction.
    pub boot_ticks: u64,
    /// What is done about predictors.
    pub policy: Policy,
    /// Bytes the kernel keeps.
    pub kernel_bytes: u64,
    /// The image's header.
    pub header: &'static BootHeader,
    /// SCTLR_EL1 of the loaded vCPU is in the hardware (else in its context).
    pub guest_mode: bool,
    /// Where the next record of this CPU's trace goes; `entry.S` moves it on too.
    pub next_note: *mut [u64; RECORD_WORDS],
}

/// Where a vCPU is while it moves to another CPU.
static PASSAGE: Lock<Passage<Aarch64>> = Lock::new(Passage::EMPTY);

/// Bytes of a CPU's trace.
pub const TRACE_BYTES: u64 = RECORDS * RECORD_WORDS as u64 * 8;

impl Memory for Aarch64 {
    #[inline(always)]
    fn entry(&self, table: Page, index: usize) -> u64 {
        let place = (table << 12) as *const u64;
        // SAFETY: the core passes only table pages of a map's own quota and index < 512; RAM is mapped where it is.
        unsafe { place.add(index & 511).read_volatile() }
    }

    #[inline(always)]
    fn set_entry(&mut self, table: Page, index: usize, value: u64) {
        let place = (table << 12) as *mut u64;
        // SAFETY: as in `entry`; table walks are cacheable and inner shareable (VTCR_EL2), so no cleaning is needed.
        unsafe { place.add(index & 511).write_volatile(value) }
    }

    fn word(&self, page: Page, index: usize) -> u64 {
        let place = (page << 12) as *const u64;
        // SAFETY: the core passes save areas only, which are the kernel's own; RAM is mapped where it is.
        unsafe { place.add(index & 511).read_volatile() }
    }

    fn set_word(&mut self, page: Page, index: usize, value: u64) {
        let place = (page << 12) as *mut u64;
        // SAFETY: the core passes message buffers, save areas, pages of a guest's quota or of its memory, in which no Rust
        // object lives.
        unsafe { place.add(index & 511).write_volatile(value) }
    }

    #[inline(always)]
    fn table(entry: u64, level: u8) -> Option<Page> {
        table_of(entry, level)
    }

    #[inline(always)]
    fn is_absent(entry: u64) -> bool {
        entry & 1 == 0
    }

    #[inline(always)]
    fn unpack(entry: u64, level: u8) -> Entry {
        unpack_entry(entry, level)
    }

    #[inline(always)]
    fn pack(entry: Entry, level: u8) -> u64 {
        pack_entry(entry, level)
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn zero(&mut self, first: Page, pages: u64) {
        let (start, end) = (first << 12, (first + pages) << 12);
        let line = isa::cache_line();
        match isa::zva_bytes() {
            // Both at once: whoever reads these first may have its caches off, so they go to the point of coherency
            // (Arm ARM B2.7, D7.5).
            Some(block) if block == line => {
                let mut at = start;
                while at < end {
                    // SAFETY: whole pages that the core owns; a block divides a page.
                    unsafe { isa::dc_zva(at) };
                    isa::dc_civac(at);
                    at += block;
                }
            }
            _ => {
                let mut at = start;
                while at < end {
                    // SAFETY: as above.
                    unsafe { (at as *mut u64).write_volatile(0) };
                    at += 8;
                }
                let mut at = start;
                while at < end {
                    isa::dc_civac(at);
                    at += line;
                }
            }
        }
        isa::dsb_sy();
    }

    fn copy(&mut self, to: u64, from: u64, bytes: u64, code: bool) {
        if to != from {
            copy_words(to, from, bytes);
        }
        if code {
            self.make_coherent(to, bytes);
        }
    }

    fn swap(&mut self, address: u64, mask: [u64; 2], expected: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]) {
        // SAFETY: the core found the address in a guest's map: memory that no Rust object lives in.
        unsafe { isa::swap(address, mask, expected, new) }
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn invalidate(&mut self, stale: Stale) {
        if stale.pages == 0 {
            // Nothing was there: walkers must only see the new entries (Arm ARM D8.16.3).
            isa::dsb_ishst();
            isa::isb();
            return;
        }
        let running = read!("vttbr_el2");
        write!("vttbr_el2", self.known_map(vttbr(stale.tag, stale.root)));
        isa::isb();
        // By IPA first, then stage 1, which combined entries are tagged by, a DSB after each (Arm ARM D8.17.6).
        if stale.pages > MOST_SINGLE {
            isa::tlbi_vmalls12e1is();
        } else {
            isa::dsb_ishst();
            for page in stale.first..stale.first + stale.pages {
                isa::tlbi_ipas2e1is(page);
            }
            isa::tlbi_vmalle1is();
        }
        if isa::features().has(Features::REPEAT_INVALIDATION) {
            // Errata 4193787 … (errata.rs): only a second one with its DSB waits for every access.
            isa::tlbi_vmalle1is();
        }
        write!("vttbr_el2", running);
        isa::isb();
    }
}

/// Copies bytes between physical addresses, words where both sides allow.
fn copy_words(to: u64, from: u64, bytes: u64) {
    let mut done = 0;
    if to % 8 == from % 8 {
        while (to + done) % 8 != 0 && done < bytes {
            copy_one::<u8>(to + done, from + done);
            done += 1;
        }
        while done + 8 <= bytes {
            copy_one::<u64>(to + done, from + done);
            done += 8;
        }
    }
    while done < bytes {
        copy_one::<u8>(to + done, from + done);
        done += 1;
    }
}

fn copy_one<T>(to: u64, from: u64) {
    // SAFETY: the core checked both addresses against maps and runs: memory that no Rust object lives in. Guests may
    // write it meanwhile, hence volatile.
    unsafe { (to as *mut T).write_volatile((from as *const T).read_volatile()) }
}

impl Aarch64 {
    /// Clean to unification, instruction caches invalidated (Arm ARM B2.7.4); and to coherency for guests without caches.
    fn make_coherent(&self, start: u64, bytes: u64) {
        let line = isa::cache_line();
        let mut at = start & !(line - 1);
        while at < start + bytes {
            isa::dc_cvau(at);
            isa::dc_civac(at);
            at += line;
        }
        isa::ic_ialluis();
    }

    /// Puts another vCPU's lazily switched state into the hardware.
    pub fn load(&mut self, vcpu: *mut Vcpu, guest: u16) {
        if self.loaded == vcpu {
            return;
        }
        self.save_loaded();
        // SAFETY: the pointer is to a living vCPU of this CPU's pool, which never moves; nobody else refers to it now.
        let context = unsafe { &mut *vcpu };
        isa::load_el1(&context.el1);
        self.gic.load(&context.lists, context.vmcr, context.active_priorities);
        self.watch_underflow(context.underflow);
        self.gic.set_timer_active(context.timer_active);
        self.loaded = vcpu;
        self.visible = vcpu;
        // Another vCPU of this guest may have left stage 1 entries of other tables under the same ASIDs, or entries of
        // another view under the same VMID.
        let what = self.last[guest as usize % GUESTS].enter(context.vttbr, vcpu as u64);
        if what == Drop::Nothing {
            return;
        }
        // It stays: the vCPU is entered next, and nothing may be walked from the map that was left any more.
        write!("vttbr_el2", context.vttbr);
        isa::isb();
        match what {
            Drop::Everything => isa::tlbi_vmalls12e1_local(),
            _ => isa::tlbi_vmalle1_local(),
        }
    }

    /// The map to invalidate under a VMID from: only the VMID counts, but what is walked meanwhile must be of the map
    /// that this CPU's TLBs hold entries of already.
    fn known_map(&self, map: u64) -> u64 {
        self.last.iter().map(|last| last.map).find(|known| known >> 48 == map >> 48).unwrap_or(map)
    }

    /// Saves what the hardware holds of the loaded vCPU.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn save_loaded(&mut self) {
        if self.loaded.is_null() {
            return;
        }
        self.unveil();
        // SAFETY: as in `load`.
        let context = unsafe { &mut *self.loaded };
        isa::save_el1(&mut context.el1);
        // Readable at EL0, by servers that have nothing to do with this guest.
        write!("tpidr_el0", 0);
        write!("tpidrro_el0", 0);
        if self.guest_mode {
            context.sctlr = read!("sctlr_el1");
        }
        // The timer is the hardware's no longer: it may not fire for a vCPU that is away.
        write!("cntv_ctl_el0", 0);
        isa::isb();
        self.gic.save(&mut context.lists, &mut context.vmcr, &mut context.active_priorities);
        context.timer_active = self.gic.timer_active();
        self.gic.set_timer_active(false);
        self.loaded = core::ptr::null_mut();
        self.visible = core::ptr::null_mut();
        self.direct = core::ptr::null_mut();
    }

    /// Takes from EL0 what it could read and write of the loaded vCPU's, which stays in the hardware otherwise.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub fn veil(&mut self) {
        // SAFETY: as in `load`; the caller knows that one is loaded, and not veiled.
        let el1 = unsafe { &mut (*self.loaded).el1 };
        isa::veil(el1);
        self.visible = core::ptr::null_mut();
        self.direct_behind = core::mem::replace(&mut self.direct, core::ptr::null_mut());
    }

    /// Gives the hardware back what [`Aarch64::veil`] took from it.
    #[inline(always)]
    pub fn unveil(&mut self) {
        if self.visible != self.loaded {
            self.show();
        }
    }

    #[inline(never)]
    fn show(&mut self) {
        // SAFETY: as in `load`; what is veiled is loaded.
        isa::unveil(unsafe { &(*self.loaded).el1 });
        self.visible = self.loaded;
        self.direct = self.direct_behind;
    }

    /// Before a vCPU is entered that is not `direct`: loads what its debug registers need. True while they are in use:
    /// the guarded vectors then take MDSCR_EL1 back at every entry.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn load_debug(&mut self, vcpu: *mut Vcpu) -> bool {
        // SAFETY: as in `load`.
        let context = unsafe { &*vcpu };
        let debug = &context.debug;
        let routed = context.stepping || context.stops_at_breakpoints && !debug.has_own_step();
        if self.routed != routed {
            self.routed = routed;
            write!("mdcr_el2", read!("mdcr_el2") ^ registers::MDCR_TDE);
        }
        if self.stepping != context.stepping {
            self.stepping = context.stepping;
            self.gic.control(!self.stepping, self.underflow);
        }
        if !debug.is_active() && !self.stepping {
            self.direct = vcpu;
            return false;
        }
        self.direct = core::ptr::null_mut();
        if self.debug_owner != vcpu {
            isa::load_debug(debug, Count::of(silicon::id_register(0x28)));
            self.debug_owner = vcpu;
        }
        write!("mdscr_el1", if self.stepping { debug.stepping(context.pstate) } else { debug.monitor });
        true
    }

    /// More than registers is to be seen to before the loaded vCPU is entered.
    fn not_direct(&mut self) {
        self.direct = core::ptr::null_mut();
        self.direct_behind = core::ptr::null_mut();
    }

    /// Debug registers of the running vCPU changed.
    pub fn debug_changed(&mut self) {
        self.not_direct();
        self.debug_owner = core::ptr::null_mut();
    }
}

impl Machine for Aarch64 {
    type Thread = Thread;
    type Vcpu = Vcpu;
    type Passage = &'static Lock<Passage<Aarch64>>;

    fn now(&self) -> Ticks {
        isa::isb();
        read!("cntpct_el0")
    }

    fn hertz(&self) -> u64 {
        self.hertz
    }

    fn wake_at(&mut self, deadline: Ticks) {
        if deadline == NEVER {
            write!("cnthp_ctl_el2", 0);
        } else {
            write!("cnthp_cval_el2", deadline);
            write!("cnthp_ctl_el2", 1);
        }
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn kick(&mut self, cpu: u16) {
        if let Some(mpidr) = self.header.mpidr.get(cpu as usize) {
            self.gic.kick(*mpidr);
        }
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn mask(&mut self, line: u32, masked: bool) {
        self.gic.mask(line, masked);
    }

    fn bequeath(&mut self, line: u32, to: u16) {
        if let Some(mpidr) = self.header.mpidr.get(to as usize) {
            self.gic.bequeath(line, *mpidr);
        }
    }

    fn retire(&mut self) {
        self.wake_at(NEVER);
        self.gic.close();
        if self.header.start == trellis_idl::boot::start::PSCI {
            // PSCI 5.5: CPU_OFF, which comes back only if it is denied.
            isa::smc(0x8400_0002, 0, 0, 0);
        }
        loop {
            isa::wfi();
        }
    }

    fn set_edge(&mut self, line: u32, edge: bool) {
        self.gic.set_edge(line, edge);
    }

    fn end_line(&mut self, line: u32) {
        // A message's is never active.
        if line < 1020 {
            self.gic.end_line(line);
        }
    }

    fn is_loaded(&self, vcpu: &Vcpu) -> bool {
        core::ptr::eq(self.loaded, vcpu)
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn list_entry(&self, index: usize) -> ListEntry {
        self.gic.list(index)
    }

    #[inline(always)]
    fn set_list_entry(&mut self, index: usize, entry: ListEntry) {
        self.gic.set_list(index, entry);
    }

    #[inline(always)]
    fn empty_lists(&self) -> u64 {
        self.gic.empty_lists()
    }

    #[inline(always)]
    fn list_entries(&self) -> usize {
        self.gic.lists()
    }

    #[inline(always)]
    fn watch_underflow(&mut self, on: bool) {
        self.underflow = on;
        self.gic.control(!self.stepping, on);
    }

    #[inline(always)]
    fn unload(&mut self, vcpu: &mut Vcpu) {
        if core::ptr::eq(self.loaded, vcpu) {
            self.save_loaded();
        }
    }

    fn forget(&mut self, vcpu: &Vcpu) {
        // By address: the one that was here before it, and this one itself when it was here before.
        self.last.iter_mut().for_each(|last| last.forget(&raw const *vcpu as u64));
        if core::ptr::eq(self.debug_owner, vcpu) {
            self.debug_changed();
        }
    }

    fn passage(&self) -> &'static Lock<Passage<Aarch64>> {
        &PASSAGE
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn move_float(&mut self, way: FloatMove, vcpu: &mut Vcpu) {
        let area = match vcpu.area {
            0 => &raw mut vcpu.vectors as u64,
            page => page << 12,
        };
        fp::carry(way, vcpu.lanes, area);
        vcpu.cptr = match way {
            FloatMove::Save => registers::CPTR_TRAP_ALL,
            FloatMove::Load => registers::cptr_of_owner(vcpu.lanes),
        };
    }

    fn move_thread_float(&mut self, way: FloatMove, area: Page) {
        fp::carry(way, 0, area << 12);
    }

    fn vector_lengths(&self) -> Lengths {
        self.lengths
    }

    fn switch_map(&mut self, vcpu: &mut Vcpu, guest: u16, root: Page, view: u16) {
        let (old, new) = (vcpu.vttbr, vttbr((vcpu.vttbr >> 48) as u16, root));
        vcpu.vttbr = new;
        vcpu.view = view.into();
        let last = &mut self.last[guest as usize % GUESTS];
        if *last != (LastMap { map: old, vcpu: &raw const *vcpu as u64 }) {
            // This CPU's TLBs hold another vCPU's entries of the guest, if any: they are dropped when this one is loaded.
            return;
        }
        last.map = new;
        let running = read!("vttbr_el2");
        // The new map, synchronised, then nothing is left of the old one (Arm ARM D8.14).
        write!("vttbr_el2", new);
        isa::isb();
        isa::tlbi_vmalls12e1_local();
        if running >> 48 != new >> 48 {
            write!("vttbr_el2", running);
            isa::isb();
        }
    }

    fn set_step(&mut self, vcpu: &mut Vcpu, on: bool) {
        vcpu.step(on);
        // An exception of the guest's that the instruction ended in has saved PSTATE.SS, which was not the guest's, in
        // SPSR_EL1 (Arm ARM D1.3.4): it is at one of its vectors then.
        let in_vectors = vcpu.pc.wrapping_sub(read!("vbar_el1")) & !0x780 == 0;
        if !on && in_vectors && vcpu.own_step == 0 && self.is_loaded(vcpu) {
            write!("spsr_el1", read!("spsr_el1") & !STEP);
        }
        // The hardware follows when it is entered.
        self.not_direct();
    }

    fn splits_execute(&self) -> bool {
        // ID_AA64MMFR1_EL1.XNX (Arm ARM D19.2.64).
        read!("id_aa64mmfr1_el1") >> 28 & 15 != 0
    }

    fn fact(&self, which: u64, argument: u64) -> Result<u64, Refusal> {
        Ok(match which {
            w if w == Fact::Cpus as u64 => self.header.cpus as u64,
            w if w == Fact::ClockHz as u64 => self.hertz,
            w if w == Fact::BootTicks as u64 => self.boot_ticks,
            w if w == Fact::KernelMemory as u64 => self.kernel_bytes,
            w if w == Fact::Midr as u64 => read!("midr_el1"),
            w if w == Fact::IdRegister as u64 => silicon::id_register(argument),
            w if w == Fact::Silicon as u64 => isa::features().0,
            w if w == Fact::Predictors as u64 => self.policy.guard(),
            w if w == Fact::ListRegisters as u64 => self.gic.lists() as u64,
            _ => return Err(Refusal::OutOfRange),
        })
    }

    fn power(&mut self, restart: bool) {
        if self.header.start == trellis_idl::boot::start::PSCI {
            // PSCI 5.9, 5.10: SYSTEM_OFF, SYSTEM_RESET.
            isa::smc(if restart { 0x8400_0009 } else { 0x8400_0008 }, 0, 0, 0);
        }
    }

    fn last_words(&mut self, records: &[Record]) {
        crate::boot::say_all(self.header);
        crate::boot::say_records(self.header, records);
    }

    fn log(&mut self, address: u64, bytes: u64) {
        let mut log = LOG.lock();
        for i in 0..bytes {
            // SAFETY: the core passes a message buffer page of the caller.
            let byte = unsafe { ((address + i) as *const u8).read_volatile() };
            log.put(byte);
        }
    }

    fn log_read(&mut self, address: u64, most: u64) -> u64 {
        let mut log = LOG.lock();
        let mut count = 0;
        while count < most {
            let Some(byte) = log.take() else { break };
            // SAFETY: as in `log`.
            unsafe { ((address + count) as *mut u8).write_volatile(byte) };
            count += 1;
        }
        count
    }
    #[inline(always)]
    fn note(&mut self, what: u64, argument: u64, context: u64) {
        let place = self.next_note;
        let time = read!("cntpct_el0");
        // SAFETY: `Cpu::set_up` put this at the first record of the CPU's ring, and it only moves round in it.
        unsafe { place.write_volatile([what, argument, time, context]) };
        self.next_note = (place as u64 + size_of::<[u64; RECORD_WORDS]>() as u64 & !TRACE_BYTES) as *mut _;
    }

    fn noted(&self, place: u64) -> [u64; 4] {
        let first = self.next_note as u64 & !(TRACE_BYTES - 1);
        let record = (first as *const [u64; RECORD_WORDS]).wrapping_add((place % RECORDS) as usize);
        // SAFETY: in this CPU's ring, whose beginning its alignment gives.
        unsafe { record.read_volatile() }
    }

    fn next_note(&self) -> u64 {
        (self.next_note as u64 & (TRACE_BYTES - 1)) / (RECORD_WORDS as u64 * 8)
    }
}
