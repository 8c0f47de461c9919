// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of misdeeds. `misdeed=NAME` on the command line chooses one (or several: `misdeed=a,b`, or `all` but those
//! that may hang a bare machine), `loops=` how often, `seed=` the random numbers, `skip=` how many of the first
//! addresses are left out.
//!
//! Each says what it does and ends with `misdeed NAME survived`, or with `misdeed NAME failed: WHY` where it got
//! something it must not get. A guest that is stopped for what it did says neither.

mod calls;
mod memory;
mod moods;
mod race;
mod registers;
mod servers;
mod storms;
mod user;

use trellis_guest_platform::{Machine, guest, println};

/// `Err` says what went wrong for the platform, not for the guest.
type Outcome = Result<(), &'static str>;

/// One misdeed.
struct Misdeed {
    name: &'static str,
    what: &'static str,
    act: fn(&'static Machine) -> Outcome,
}

/// Not part of `all`: where nobody stops the first, the CPU executes what the device answers; the second asks a CPU for
/// a state that it may not have.
const ALONE: [&str; 2] = ["jump-device", "aarch32-hidden"];

impl Misdeed {
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == "all" && !ALONE.contains(&self.name)
    }
}

macro_rules! misdeeds {
    ($($name:literal, $what:literal, $act:path;)*) => {
        [$(Misdeed { name: $name, what: $what, act: $act }),*]
    };
}

static MISDEEDS: [Misdeed; 26] = misdeeds! {
    "touch-outside", "reads and writes where it has no memory", memory::touch_outside;
    "jump-nowhere", "calls into nothing", memory::jump_nowhere;
    "jump-device", "calls into devices with the MMU off", memory::jump_device;
    "unaligned-device", "unaligned accesses to devices", memory::unaligned_device;
    "pair-device", "pairs, exclusives, writeback on devices", memory::pair_device;
    "set-way", "cleans and invalidates caches by set and way", memory::set_way;
    "spin-masked", "spins with all interrupts masked", storms::spin_masked;
    "flood-console", "writes to its console without asking for room", storms::flood_console;
    "timer-storm", "arms its timer in the past, again and again", storms::timer_storm;
    "sgi-storm", "sends interrupts to all CPUs from all CPUs", storms::sgi_storm;
    "psci-race", "starts one CPU from all others at once", race::psci_race;
    "random-hypercalls", "HVC with random numbers", calls::random_hypercalls;
    "random-smc", "SMC with random numbers", calls::random_smc;
    "write-id-registers", "reads and writes all identification registers", registers::write_id_registers;
    "debug-registers", "writes all debug and counter registers", registers::debug_registers;
    "big-endian", "exits with SCTLR_EL1.E0E and EE set", moods::big_endian;
    "alignment-faults", "exits with SCTLR_EL1.A, SA and SA0 set", moods::alignment_faults;
    "software-step", "exits with MDSCR_EL1.SS, MDE and KDE set", moods::software_step;
    "watchpoints", "exits with watchpoints and a breakpoint on everything", moods::watchpoints;
    "trap-clock", "exits with CNTKCTL_EL1 trapping the clock", moods::trap_clock;
    "cpacr-off", "exits with CPACR_EL1 trapping floating point", moods::cpacr_off;
    "fp-use", "keeps values in all vector registers across exits", moods::fp_use;
    "spoil-vcpu", "asks its vcpu server to crash or hang", servers::spoil_vcpu;
    "spoil-p2m", "asks its p2m server to crash or hang", servers::spoil_p2m;
    "aarch32", "runs AArch32 and AArch64 instructions at EL0", user::aarch32;
    "aarch32-hidden", "runs AArch32 instructions at EL0 whatever the CPU says of itself", user::aarch32_hidden;
};

guest!(run);

fn run(machine: &'static Machine) {
    let Some(wanted) = machine.arguments().value("misdeed") else {
        return list();
    };
    for name in wanted.split(',') {
        let mut known = false;
        for misdeed in MISDEEDS.iter().filter(|misdeed| misdeed.is_called(name)) {
            known = true;
            commit(misdeed, machine);
        }
        if !known {
            println!("misdeed {name} unknown");
        }
    }
}

fn list() {
    for misdeed in &MISDEEDS {
        println!("misdeed={}: {}", misdeed.name, misdeed.what);
    }
}

fn commit(misdeed: &Misdeed, machine: &'static Machine) {
    println!("misdeed {}: {}", misdeed.name, misdeed.what);
    match (misdeed.act)(machine) {
        Ok(()) => println!("misdeed {} survived", misdeed.name),
        Err(reason) => println!("misdeed {} failed: {reason}", misdeed.name),
    }
}
