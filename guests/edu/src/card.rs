// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network card that keeps its messages in a table (82574L): each is called for, many times, and comes as a line of its
//! own. Behind it, a source of randomness above 4G, of which only the registers are looked at.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use trellis_guest_platform::cpu::{device_read, device_write};
use trellis_guest_platform::tree::{Card, Device, MAX_LINES};
use trellis_guest_platform::{Machine, cpu, gic, println, timer};

/// Registers of the card (Intel 82574L datasheet, 10.2.4): causes, causes by command, causes that count, and which message each has.
const CAUSES: u64 = 0xc0;
const CALL: u64 = 0xc8;
const COUNT: u64 = 0xd0;
const COUNT_NONE: u64 = 0xd8;
const MESSAGES: u64 = 0xe4;
/// Two of its queues that receive, two that send, and all others: cause 20 + i has message i, four bits each with one that
/// says so.
const FIRST: u32 = 20;
const LAST: usize = 5;
const EACH_ITS_OWN: u32 = 0xc_ba98;
/// What the last of these stands for: a change of the link, and the like.
const OTHERS: u32 = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 16 | 1 << 17 | 1 << 18;

/// Registers of the source (Virtio 1.2, 4.1.4.3): which 32 features, and these.
const CHOOSE: u64 = 0x0;
const FEATURES: u64 = 0x4;

static BASE: AtomicU64 = AtomicU64::new(0);
static LINES: [AtomicU32; MAX_LINES] = [const { AtomicU32::new(0) }; MAX_LINES];
static CAME: [AtomicU64; MAX_LINES] = [const { AtomicU64::new(0) }; MAX_LINES];
/// The message that was called for and did not come yet.
static EXPECTED: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = u32::MAX;
/// Microseconds after which the emulator's card has written each message a second time.
const AGAIN: u64 = 500;

/// Calls for each message so many times, if there is a card.
pub fn run(machine: &'static Machine, calls: u64) {
    if let Some(card) = machine.tree.card {
        call_all(machine, card, calls);
    }
    if let Some(source) = machine.tree.random {
        look(source);
    }
}

fn call_all(machine: &'static Machine, card: Card, calls: u64) {
    BASE.store(card.base, Ordering::Relaxed);
    for (own, line) in LINES.iter().zip(card.lines).filter(|(_, line)| *line != 0) {
        own.store(line, Ordering::Release);
        gic::open_edge(line, 0, machine.affinity(0));
    }
    device_write(card.base + COUNT_NONE, u32::MAX);
    device_write(card.base + CAUSES, u32::MAX);
    device_write(card.base + MESSAGES, EACH_ITS_OWN);
    device_write(card.base + COUNT, 31 << FIRST);
    let count = card.lines.iter().filter(|line| **line != 0).count().min(LAST);
    for number in 0..calls as usize * count {
        let message = number % count;
        EXPECTED.store(message as u32, Ordering::Release);
        device_write(card.base + CALL, 1 << (FIRST + message as u32));
        cpu::sleep_until(|| EXPECTED.load(Ordering::Acquire) == NONE);
        let begin = cpu::counter();
        while cpu::counter() - begin < timer::microseconds(AGAIN) {
            core::hint::spin_loop();
        }
    }
    let right = CAME.iter().take(count).filter(|came| came.load(Ordering::Acquire) == calls).count();
    println!("edu: a card at {:#x}, {count} messages called for {calls} times each, {right} heard as often", card.base);
}

/// A line of the card's. Only the one that was called for is counted.
pub fn came(line: u32) {
    let Some(message) = LINES.iter().position(|own| own.load(Ordering::Acquire) == line) else { return };
    // A cause goes away by writing it; reading would take all of them away.
    let own = 1 << (FIRST + message as u32);
    device_write(BASE.load(Ordering::Relaxed) + CAUSES, own | if message + 1 == LAST { OTHERS } else { 0 });
    if EXPECTED.compare_exchange(message as u32, NONE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        CAME[message].fetch_add(1, Ordering::Release);
    }
}

fn look(source: Device) {
    device_write(source.base + CHOOSE, 1);
    let is_modern = device_read(source.base + FEATURES) & 1 == 1;
    println!("edu: a source at {:#x} is {}", source.base, if is_modern { "as Virtio 1 says" } else { "something else" });
}
