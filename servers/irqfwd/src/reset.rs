// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function gets back into the state that a start of the machine leaves it in, between two lives of its guest, if it has a
//! way: a reset of its own (PCI Express 6.6.2, the same in the capability of advanced features), or the one that waking from sleep
//! is (PCI Power Management 1.2, 5.4.1).
//!
//! Each takes its time, in which nobody waits here: whoever wants the function asks again. Until when nobody may ask the function
//! itself anything is noted where the next server finds it.

use crate::function::Function;
use trellis_runtime::memory::{Registers, SharedMemory};
use trellis_runtime::pci::{COMMAND, EXPRESS, MASTER, MEMORY, NO_WIRE};

/// What of the command is 0 after a reset, and is not when one begins.
const TOLD: u32 = MEMORY | MASTER | NO_WIRE;

/// PCI Express (7.5.3): what it can, and in one word what it is to do and how it is.
const EXPRESS_CAN: usize = 4;
const EXPRESS_CONTROL: usize = 8;
const EXPRESS_RESETS: u32 = 1 << 28;
const EXPRESS_RESET: u32 = 1 << 15;
/// What it is to do, but for a reset. Writing how it is as zeroes changes nothing of it.
const EXPRESS_KEPT: u32 = 0x7fff;
const EXPRESS_PENDING: u32 = 1 << 21;

/// Advanced features: what it can stands in the first word.
const FEATURES: u32 = 0x13;
const FEATURES_CONTROL: usize = 4;
const FEATURES_SAY_PENDING: u32 = 1 << 24;
const FEATURES_RESETS: u32 = 1 << 25;
const FEATURES_RESET: u32 = 1;
const FEATURES_PENDING: u32 = 1 << 8;

/// Power management (3.2.4): the state is in the lowest two bits.
const POWER: u32 = 0x01;
const POWER_CONTROL: usize = 4;
const POWER_KEEPS: u32 = 1 << 3;
const POWER_KEPT: u32 = 0x1f00;
const ASLEEP: u32 = 3;
const AWAKE: u32 = 0;

/// Milliseconds after which accesses that it began count as lost: their answers come within 50 (2.8).
const LOST: u64 = 100;
/// Milliseconds for which nobody may ask a function that is being reset anything, and that it takes to fall asleep or to wake.
const RESETS: u64 = 100;
const WAKES: u64 = 10;
/// Milliseconds more that it may take until it answers.
const LATE: u64 = 500;

/// When it is, and where to note for the next server when a function may be asked again.
#[derive(Debug)]
pub struct Turn<'a, M> {
    /// Ticks of the clock.
    pub now: u64,
    /// As many are a second.
    pub hertz: u64,
    /// The memory that outlives a server.
    pub memory: &'a M,
    /// The word in it.
    pub note: u64,
}

impl<M: SharedMemory> Turn<'_, M> {
    const fn after(&self, milliseconds: u64) -> u64 {
        self.now + milliseconds * self.hertz / 1000
    }

    /// The same, and until then nobody asks the function anything.
    fn silence(&self, milliseconds: u64) -> u64 {
        let until = self.after(milliseconds);
        self.memory.write(self.note, until);
        until
    }

    /// Whether an earlier server told it something that takes until later.
    fn is_early(&self) -> bool {
        self.now < self.memory.read(self.note)
    }
}

/// How a function can be reset, with the place of the capability that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Express(usize),
    Features(usize),
    Power(usize),
}

/// How far a function is on its way from one life of its guest to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Its guest uses it, or nobody knows what it was told.
    #[default]
    Told,
    /// It begins no access any more. Until this time those that it has begun are waited for.
    Silent(u64),
    /// It sleeps, and may be woken from this time on.
    Asleep(u64),
    /// It answers from this time on, or somewhat later.
    Renewed(u64),
    /// It is ready for its guest.
    Fresh,
}

/// What is known of that of one function: nothing at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reset {
    stage: Stage,
    way: Option<Way>,
    /// What PCI Express told it to do, which a reset makes it forget: it fits the way to it.
    control: Option<(usize, u32)>,
    /// When it does not answer any more.
    late: u64,
    /// It was used before.
    was_used: bool,
    /// It was not reset, since it has no way or did not do it; and that was told.
    keeps: bool,
    was_told: bool,
}

impl Reset {
    /// It is to be silent, and then reset; goes on with that as far as it goes now. True: it has begun accesses that are not over.
    pub fn is_busy_leaving<R: Registers, M: SharedMemory>(&mut self, function: &Function<R>, turn: &Turn<'_, M>) -> bool {
        if self.stage == Stage::Told {
            if turn.is_early() {
                return true;
            }
            self.leave(function, turn);
        }
        self.go_on(function, turn);
        matches!(self.stage, Stage::Silent(_))
    }

    /// Whether its guest can have it: it is as after a reset, or its guest uses it. Goes on as far as it goes now.
    pub fn is_ready<R: Registers, M: SharedMemory>(&mut self, function: &Function<R>, turn: &Turn<'_, M>) -> bool {
        if self.stage == Stage::Told && !turn.is_early() && function.is_used() {
            return true;
        }
        self.is_busy_leaving(function, turn);
        self.stage == Stage::Fresh
    }

    /// Its guest has it. True, once: that finds what an earlier life told it.
    pub fn used(&mut self) -> bool {
        self.stage = Stage::Told;
        self.keeps && !core::mem::replace(&mut self.was_told, self.keeps)
    }

    fn leave<R: Registers, M: SharedMemory>(&mut self, function: &Function<R>, turn: &Turn<'_, M>) {
        if !function.answers() {
            // It is late, after a reset that an earlier server began.
            self.stage = Stage::Renewed(turn.now);
            self.late = turn.after(LATE);
            return;
        }
        self.was_used |= function.is_used();
        function.disconnect();
        self.stage = Stage::Silent(turn.after(LOST));
    }

    fn go_on<R: Registers, M: SharedMemory>(&mut self, function: &Function<R>, turn: &Turn<'_, M>) {
        match self.stage {
            Stage::Silent(until) if turn.now < until && is_pending(function) => {}
            Stage::Silent(_) => self.begin(function, turn),
            Stage::Asleep(until) if turn.now >= until => {
                self.renewed(turn, WAKES);
                self.power(function, AWAKE);
            }
            Stage::Renewed(from) if turn.now >= from && (function.answers() || turn.now >= self.late) => self.finish(function),
            Stage::Told | Stage::Asleep(_) | Stage::Renewed(_) | Stage::Fresh => {}
        }
    }

    fn begin<R: Registers, M: SharedMemory>(&mut self, function: &Function<R>, turn: &Turn<'_, M>) {
        self.way = way(function);
        self.control = function.capability(EXPRESS).ok().map(|at| (at, function.page.read(at + EXPRESS_CONTROL) & EXPRESS_KEPT));
        match self.way {
            Some(Way::Express(at)) => {
                let control = function.page.read(at + EXPRESS_CONTROL) & EXPRESS_KEPT;
                self.renewed(turn, RESETS);
                function.page.write(at + EXPRESS_CONTROL, control | EXPRESS_RESET);
            }
            Some(Way::Features(at)) => {
                self.renewed(turn, RESETS);
                function.page.write(at + FEATURES_CONTROL, FEATURES_RESET);
            }
            Some(Way::Power(_)) => {
                self.stage = Stage::Asleep(turn.silence(WAKES));
                self.power(function, ASLEEP);
            }
            None => {
                self.keeps = self.was_used;
                self.stage = Stage::Fresh;
            }
        }
    }

    /// What is done next takes so long, and then somewhat longer.
    fn renewed<M: SharedMemory>(&mut self, turn: &Turn<'_, M>, milliseconds: u64) {
        self.stage = Stage::Renewed(turn.silence(milliseconds));
        self.late = turn.after(milliseconds + LATE);
    }

    fn power<R: Registers>(&self, function: &Function<R>, state: u32) {
        if let Some(Way::Power(at)) = self.way {
            function.page.write(at + POWER_CONTROL, function.page.read(at + POWER_CONTROL) & POWER_KEPT | state);
        }
    }

    fn finish<R: Registers>(&mut self, function: &Function<R>) {
        self.stage = Stage::Fresh;
        if !function.answers() {
            return;
        }
        self.keeps = self.was_used && function.page.read(COMMAND) & TOLD != 0;
        if let Some((at, control)) = self.control {
            function.page.write(at + EXPRESS_CONTROL, control);
        }
    }
}

/// The first way that it offers.
fn way<R: Registers>(function: &Function<R>) -> Option<Way> {
    let (page, find) = (&function.page, |kind| function.capability(kind).ok());
    let express = find(EXPRESS).filter(|at| page.read(at + EXPRESS_CAN) & EXPRESS_RESETS != 0).map(Way::Express);
    let features = || find(FEATURES).filter(|at| page.read(*at) & FEATURES_RESETS != 0).map(Way::Features);
    let power = || find(POWER).filter(|at| page.read(at + POWER_CONTROL) & POWER_KEEPS == 0).map(Way::Power);
    express.or_else(features).or_else(power)
}

/// Whether it says that accesses which it has begun are not over.
fn is_pending<R: Registers>(function: &Function<R>) -> bool {
    let (page, find) = (&function.page, |kind| function.capability(kind).ok());
    let express = find(EXPRESS).is_some_and(|at| page.read(at + EXPRESS_CONTROL) & EXPRESS_PENDING != 0);
    let says = |at: &usize| page.read(*at) & FEATURES_SAY_PENDING != 0;
    express || find(FEATURES).filter(says).is_some_and(|at| page.read(at + FEATURES_CONTROL) & FEATURES_PENDING != 0)
}
