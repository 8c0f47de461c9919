// SPDX-License-Identifier: MIT OR Apache-2.0
//! The translation service as irqfwd drives it, on one made of memory: it carries out commands as GICv3 chapter 5 says,
//! remembers what redistributors remember (so that a command that is forgotten is noticed), and refuses what hardware may.

mod model;

use model::{Board, Fake, Function, Range};
use trellis_idl::kernel::{FIRST_MESSAGE, Op, Refusal, WORDS};
use trellis_idl::plan::{FunctionPlan, MessagePlan, RangePlan, TablePlace, TablePlan};
use trellis_irqfwd::its::Failure;
use trellis_irqfwd::messages::{Gate, Messages};
use trellis_runtime::System;

const LINE: u32 = FIRST_MESSAGE as u32;

/// Nobody is asked: a lock that is free needs nobody.
struct Nothing;

impl System for Nothing {
    fn invoke(&self, _: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// Two functions: one writes a message, the other four.
fn plan() -> MessagePlan {
    let ranges = |base| [RangePlan { base, register: 0, bits: 20 }].into_iter().collect();
    let function = |guest, requester, base, line, messages| FunctionPlan {
        guest, run: 3, requester, ranges: ranges(base), line, messages, table: None, chosen: false,
    };
    MessagePlan {
        service: 1,
        redistributors: 2,
        redistributors_at: model::REDISTRIBUTORS,
        frames: 8,
        doorbell: model::DOORBELL,
        cpus: [(1, 1), (3, 3)].into_iter().collect(),
        functions: [function(0, 0x10, 0x1000_0000, LINE, 1), function(1, 0x18, 0x1010_0000, LINE + 1, 4)].into_iter().collect(),
    }
}

fn start(fake: &Fake) -> Result<Messages<Board>, Failure> {
    Messages::start(fake.board(), &plan())
}

#[test]
fn a_message_makes_the_line_that_the_plan_says_at_the_cpu_that_is_wished() {
    for by_address in [false, true] {
        let fake = Fake::with(|settings| settings.by_address = by_address);
        let messages = start(&fake).expect("all is there");
        let gate = &messages;
        assert_eq!(fake.message(0x10, 0), None, "nobody has opened it");
        for (number, cpu) in [(0, 1), (0, 3), (0, 1)] {
            gate.open(&Nothing, LINE, cpu).expect("it is there");
            assert_eq!(fake.message(0x10, number), Some((u32::from(cpu), LINE)));
        }
        for number in 0..4 {
            gate.open(&Nothing, LINE + 1 + number, 3).expect("it is there");
            assert_eq!(fake.message(0x18, number), Some((3, LINE + 1 + number)));
        }
        assert_eq!(fake.message(0x18, 4), None, "it writes four");
        assert_eq!(fake.message(0x11, 0), None, "nobody's");
    }
}

#[test]
fn a_line_that_is_closed_comes_when_it_is_open_again_once() {
    let fake = Fake::new();
    let messages = start(&fake).expect("all is there");
    let gate = &messages;
    gate.open(&Nothing, LINE, 1).expect("it is there");
    gate.close(&Nothing, LINE);
    assert_eq!((fake.message(0x10, 0), fake.message(0x10, 0), fake.pending()), (None, None, vec![LINE]));
    // Somewhere else, even: what is pending goes along.
    gate.open(&Nothing, LINE, 3).expect("it is there");
    assert_eq!(fake.taken(3), vec![LINE]);
    assert_eq!((fake.taken(3), fake.taken(1), fake.pending()), (vec![], vec![], vec![]));
    // Its neighbours in the same word of properties were let alone.
    assert_eq!(fake.message(0x18, 0), None);
}

#[test]
fn a_server_that_follows_a_lost_one_finds_all_as_it_was() {
    let fake = Fake::new();
    let first = start(&fake).expect("all is there");
    (&first).open(&Nothing, LINE, 3).expect("it is there");
    let commands = fake.commands();
    drop(first);
    assert_eq!(fake.message(0x10, 0), Some((3, LINE)), "nobody is needed for it");
    let second = start(&fake).expect("it is as it was");
    assert!(fake.commands() - commands <= 2, "nothing is mapped a second time");
    assert_eq!(fake.message(0x10, 0), Some((3, LINE)));
    (&second).open(&Nothing, LINE, 1).expect("it is there");
    assert_eq!(fake.message(0x10, 0), Some((1, LINE)));
}

/// Whatever it was doing: the next one begins anew, and all is there in the end.
#[test]
fn a_server_that_was_lost_while_it_brought_all_up_is_followed_by_one_that_does() {
    let mut stopped = 0;
    // Between the first writes and the last ones a thousand lines get their priorities.
    for most in (0..12).chain((12..1030).step_by(113)).chain(1030..) {
        let fake = Fake::with(|settings| settings.writes = Some(most));
        let whole = start(&fake).is_ok() && !fake.is_broken();
        fake.mend();
        let messages = start(&fake).expect("all is there");
        (&messages).open(&Nothing, LINE + 4, 3).expect("it is there");
        assert_eq!(fake.message(0x18, 3), Some((3, LINE + 4)), "after {most} writes");
        if whole {
            break;
        }
        stopped += 1;
    }
    assert!(stopped > 20, "{stopped} places to stop at");
}

#[test]
fn hardware_that_cannot_do_it_is_told_apart() {
    let cases: [(fn(&mut model::Settings), Failure); 8] = [
        (|settings| settings.kind &= !1, Failure::NoLines),
        (|settings| settings.kind = settings.kind & !(31 << 8) | 12 << 8, Failure::NoLines),
        (|settings| settings.shareable = false, Failure::NotCoherent),
        (|settings| settings.entry = 1 << 17, Failure::NoTable),
        (|settings| settings.redistributors = 2, Failure::NoRedistributor),
        (|settings| settings.lpis = false, Failure::NoRedistributor),
        (|settings| settings.elsewhere = true, Failure::Elsewhere),
        (|settings| settings.silent = true, Failure::Stuck),
    ];
    for (index, (spoil, failure)) in cases.into_iter().enumerate() {
        assert_eq!(start(&Fake::with(spoil)).map(drop), Err(failure), "case {index}");
    }
    let fake = Fake::new();
    let far = MessagePlan { functions: [FunctionPlan { requester: 0x4000, ..plan().functions[0].clone() }].into_iter().collect(), ..plan() };
    assert_eq!(Messages::start(fake.board(), &far).map(drop), Err(Failure::TooMany), "no entry in a table of 64 KiB");
}

#[test]
fn tables_of_each_size_of_page_do() {
    for size in 0..3 {
        let fake = Fake::with(|settings| settings.page_size = size);
        let messages = start(&fake).expect("it takes pages of another size");
        (&messages).open(&Nothing, LINE, 1).expect("it is there");
        assert_eq!(fake.message(0x10, 0), Some((1, LINE)));
    }
}

#[test]
fn a_function_gets_its_place_and_writes_messages_as_long_as_its_guest_is_there() {
    let plan = plan();
    for wide in [false, true] {
        let fake = Fake::new();
        fake.functions(&[Function::new(0x10_0000, wide, 1), Function::new(0x10_0000, wide, 4)]);
        let messages = start(&fake).expect("all is there");
        let gate = &messages;
        gate.connect(&Nothing, 1).expect("it can");
        let function = fake.function(1);
        assert_eq!((function.base(), function.is_on(), function.writes()), (0x1010_0000, true, Some((model::DOORBELL, 0, 4))));
        assert_eq!((fake.function(0).base(), fake.function(0).is_on()), (0, false), "another guest's");
        // Once more, as after a lost server: it is not taken away from its guest for a moment.
        fake.forbid_moves();
        gate.connect(&Nothing, 1).expect("it can");
        gate.disconnect(&Nothing, 1).expect("nothing is on its way");
        assert_eq!((fake.function(1).is_master(), fake.function(1).writes()), (false, None));
        gate.connect(&Nothing, 1).expect("it can");
        assert!(fake.function(1).is_master());
    }
    assert_eq!(plan.functions.len(), 2);
}

#[test]
fn a_function_that_is_not_what_the_board_file_says_stays_off() {
    let cases: [(fn(&mut Function), Failure); 8] = [
        (|function| function.identity = u32::MAX, Failure::NoFunction),
        (|function| function.header = 1 << 16, Failure::NoFunction),
        (|function| function.ranges[0] = Range::Narrow(0x20_0000), Failure::NoFunction),
        (|function| function.ranges[0] = Range::None, Failure::NoFunction),
        (|function| function.ranges[2] = Range::Narrow(0x1000), Failure::NoFunction),
        (|function| function.most = 2, Failure::NoMessages),
        (|function| function.capability = 0, Failure::NoMessages),
        (|function| function.is_ring = true, Failure::NoMessages),
    ];
    for (index, (spoil, failure)) in cases.into_iter().enumerate() {
        let fake = Fake::new();
        let mut function = Function::new(0x10_0000, false, 4);
        spoil(&mut function);
        fake.functions(&[Function::new(0x10_0000, false, 1), function]);
        let messages = start(&fake).expect("all is there");
        assert_eq!((&messages).connect(&Nothing, 1), Err(failure), "case {index}");
        assert!(!fake.function(1).is_on() && !fake.function(1).is_master(), "case {index}");
    }
}

/// Ranges of each kind: in 32 bits of address, ports, and in 64 bits. The last one has the table, and behind it what waits.
const RANGES: [Range; 6] =
    [Range::Narrow(0x2_0000), Range::Narrow(0x1000), Range::Ports(32), Range::None, Range::Wide(0x8000), Range::High];

/// The same as a plan says it, with the table's entries from the page's middle on.
fn with_table(messages: u8) -> MessagePlan {
    let range = |register, base, bits| RangePlan { base, register, bits };
    let ranges = [range(0, 0x1020_0000, 17), range(1, 0x1022_0000, 12), range(4, 0x80_1234_8000, 15)].into_iter().collect();
    let place = |offset| TablePlace { register: 4, offset };
    let table = Some(TablePlan { run: 4, entries: 6, at: place(0x2800), pending: place(0x3000) });
    let first = plan().functions[0].clone();
    let function = FunctionPlan { guest: 1, run: 3, requester: 0x18, ranges, line: LINE + 1, messages, table, chosen: false };
    MessagePlan { functions: [first, function].into_iter().collect(), ..plan() }
}

fn function_with_table() -> Function {
    Function::with_table(RANGES, 6, 0x2804, 0x3004)
}

#[test]
fn a_function_with_several_ranges_and_a_table_gets_places_and_writes_the_messages_that_are_lines() {
    let fake = Fake::new();
    fake.functions(&[Function::new(0x10_0000, false, 1), function_with_table()]);
    let messages = Messages::start(fake.board(), &with_table(4)).expect("all is there");
    let gate = &messages;
    gate.connect(&Nothing, 1).expect("it can");
    let function = fake.function(1);
    assert_eq!([0, 1, 4].map(|register| function.at(register)), [0x1020_0000, 0x1022_0000, 0x80_1234_8000]);
    assert!(function.is_on() && function.is_master() && !function.shows_program());
    let expected: Vec<_> = (0..6).map(|number| (number < 4).then_some((model::DOORBELL, number))).collect();
    assert_eq!(function.messages(), expected, "the last two stay masked");
    for number in 0..4 {
        gate.open(&Nothing, LINE + 1 + number, 3).expect("it is there");
        assert_eq!(fake.message(0x18, number), Some((3, LINE + 1 + number)));
    }
    // Once more, as after a lost server: no entry is masked for a moment, and nothing moves.
    fake.forbid_moves();
    gate.connect(&Nothing, 1).expect("it can");
    assert_eq!(fake.function(1).messages(), expected);
}

#[test]
fn a_table_is_silent_without_its_guest_and_what_it_held_before_is_never_written() {
    let fake = Fake::new();
    let mut function = function_with_table();
    // Whoever was there before has left entries that write elsewhere.
    function.entries.iter_mut().for_each(|entry| entry[3] = 0);
    fake.functions(&[Function::new(0x10_0000, false, 1), function]);
    let messages = Messages::start(fake.board(), &with_table(4)).expect("all is there");
    let gate = &messages;
    for _ in 0..2 {
        gate.connect(&Nothing, 1).expect("it can");
        let written: Vec<_> = fake.function(1).messages().into_iter().flatten().collect();
        assert_eq!(written, [0, 1, 2, 3].map(|number| (model::DOORBELL, number)));
        gate.disconnect(&Nothing, 1).expect("nothing is on its way");
        assert!(!fake.function(1).is_master() && fake.function(1).messages().iter().all(Option::is_none));
    }
}

#[test]
fn a_table_or_a_range_that_is_not_what_the_board_file_says_keeps_a_function_off() {
    let cases: [(fn(&mut Function), Failure); 11] = [
        (|function| function.table = Some((6, 0x2804, 0x3001)), Failure::OtherTable),
        (|function| function.table = Some((6, 0x2004, 0x3004)), Failure::OtherTable),
        (|function| function.table = Some((6, 0x2800, 0x3004)), Failure::OtherTable),
        (|function| function.table = Some((7, 0x2804, 0x3004)), Failure::OtherTable),
        (|function| function.table = Some((3, 0x2804, 0x3004)), Failure::NoMessages),
        (|function| function.table = None, Failure::NoMessages),
        (|function| function.ranges[1] = Range::Narrow(0x2000), Failure::NoFunction),
        (|function| function.ranges[1] = Range::Ports(0x20), Failure::NoFunction),
        // A range above what 32 bits can say.
        (|function| (function.ranges[4], function.ranges[5]) = (Range::Narrow(0x8000), Range::None), Failure::NoFunction),
        (|function| (function.ranges[3], function.ranges[4]) = (Range::Wide(0x8000), Range::High), Failure::NoFunction),
        (|function| function.ranges[3] = Range::Narrow(0x10), Failure::NoFunction),
    ];
    for (index, (spoil, failure)) in cases.into_iter().enumerate() {
        let fake = Fake::new();
        let mut function = function_with_table();
        spoil(&mut function);
        fake.functions(&[Function::new(0x10_0000, false, 1), function]);
        let messages = Messages::start(fake.board(), &with_table(4)).expect("all is there");
        assert_eq!((&messages).connect(&Nothing, 1), Err(failure), "case {index}");
        assert!(!fake.function(1).is_on() && !fake.function(1).is_master(), "case {index}");
    }
}

/// Two functions of guest 1 whose tables it fills, with other guests' around them: three lines of one, two of the other.
fn chosen() -> MessagePlan {
    let one = |guest, requester, line, messages| {
        let like = with_table(messages).functions[1].clone();
        FunctionPlan { guest, requester, line, chosen: true, ..like }
    };
    let functions = [one(1, 0x18, LINE + 1, 3), plan().functions[0].clone(), one(2, 0x28, LINE + 6, 2), one(1, 0x20, LINE + 4, 2)];
    MessagePlan { functions: functions.into_iter().collect(), ..plan() }
}

fn chosen_functions() -> [Function; 4] {
    [function_with_table(), Function::new(0x10_0000, false, 1), function_with_table(), function_with_table()]
}

#[test]
fn a_message_that_the_guest_chose_makes_its_line_whichever_function_writes_it() {
    let fake = Fake::new();
    let messages = Messages::start(fake.board(), &chosen()).expect("all is there");
    let gate = &messages;
    for line in LINE..LINE + 8 {
        gate.open(&Nothing, line, 3).expect("it is there");
    }
    for device in [0x18, 0x20] {
        for number in 0..5 {
            assert_eq!(fake.message(device, number), Some((3, LINE + 1 + number)), "{device:#x} message {number}");
        }
        for number in [5, 6, 7, 31, 32, u32::MAX] {
            assert_eq!(fake.message(device, number), None, "{device:#x} message {number}");
        }
    }
    // Another guest's of the same kind, and one whose messages nobody chooses.
    assert_eq!([0, 1, 2].map(|number| fake.message(0x28, number)), [Some((3, LINE + 6)), Some((3, LINE + 7)), None]);
    assert_eq!([0, 1].map(|number| fake.message(0x10, number)), [Some((3, LINE)), None]);
}

#[test]
fn a_line_that_several_functions_make_is_moved_and_masked_for_all_of_them() {
    let fake = Fake::new();
    let messages = Messages::start(fake.board(), &chosen()).expect("all is there");
    let gate = &messages;
    let line = LINE + 4;
    for cpu in [1, 3, 3, 1] {
        gate.open(&Nothing, line, cpu).expect("it is there");
        assert_eq!([0x18, 0x20].map(|device| fake.message(device, 3)), [Some((cpu.into(), line)); 2]);
    }
    gate.close(&Nothing, line);
    assert_eq!([0x18, 0x20].map(|device| fake.message(device, 3)), [None, None]);
    assert_eq!(fake.pending(), vec![line], "both are one interrupt");
    gate.open(&Nothing, line, 3).expect("it is there");
    assert_eq!((fake.taken(3), fake.taken(1), fake.pending()), (vec![line], vec![], vec![]));
    // Its neighbours are as they were.
    assert_eq!([2, 4].map(|number| fake.message(0x20, number)), [None, None]);
}

#[test]
fn entries_are_the_guests_as_long_as_it_is_there_and_nobodys_before_and_after() {
    let fake = Fake::new();
    let mut left = chosen_functions();
    // Whoever was there before has left entries that write elsewhere.
    left.iter_mut().flat_map(|function| &mut function.entries).for_each(|entry| entry[3] = 0);
    fake.functions(&left);
    let first = Messages::start(fake.board(), &chosen()).expect("all is there");
    for _ in 0..2 {
        (&first).connect(&Nothing, 1).expect("it can");
        for place in [0, 3] {
            let function = fake.function(place);
            assert!(function.is_on() && function.is_master() && function.may_write(), "its guest unmasks what it fills");
            assert!(function.messages().iter().all(Option::is_none), "function {place}: nothing that was there before");
        }
        assert!(!fake.function(2).is_master(), "another guest's");
        // The guest fills some, in any order.
        let (high, low) = ((model::DOORBELL >> 32) as u32, model::DOORBELL as u32);
        fake.set_entry(0, 4, [low, high, 0, 0]);
        fake.set_entry(3, 0, [low, high, 4, 0]);
        (&first).disconnect(&Nothing, 1).expect("nothing is on its way");
        assert!([0, 3].iter().all(|place| fake.function(*place).messages().iter().all(Option::is_none)));
    }
}

#[test]
fn a_server_that_follows_a_lost_one_leaves_what_the_guest_chose() {
    let fake = Fake::new();
    fake.functions(&chosen_functions());
    let first = Messages::start(fake.board(), &chosen()).expect("all is there");
    (&first).connect(&Nothing, 1).expect("it can");
    for line in LINE + 1..LINE + 6 {
        (&first).open(&Nothing, line, 3).expect("it is there");
    }
    let (high, low) = ((model::DOORBELL >> 32) as u32, model::DOORBELL as u32);
    fake.set_entry(3, 1, [low, high, 2, 0]);
    let (before, commands) = (fake.function(3).entries, fake.commands());
    fake.forbid_moves();
    drop(first);
    let second = Messages::start(fake.board(), &chosen()).expect("it is as it was");
    (&second).connect(&Nothing, 1).expect("it can");
    assert_eq!((fake.commands(), fake.function(3).entries), (commands, before), "nothing is told again");
    assert_eq!(fake.function(3).messages()[1], Some((model::DOORBELL, 2)));
    assert_eq!(fake.message(0x20, 2), Some((3, LINE + 3)));
    (&second).open(&Nothing, LINE + 3, 1).expect("it is there");
    assert_eq!([0x18, 0x20].map(|device| fake.message(device, 2)), [Some((1, LINE + 3)); 2]);
}

#[test]
fn a_guest_chooses_among_as_many_lines_as_there_are_and_no_more() {
    let one = |requester, line, messages| FunctionPlan { requester, line, messages, ..chosen().functions[0].clone() };
    let of = |functions: &[FunctionPlan]| MessagePlan { functions: functions.iter().cloned().collect(), ..plan() };
    let fake = Fake::new();
    fake.functions(&[function_with_table(), function_with_table()]);
    let messages = Messages::start(fake.board(), &of(&[one(0x18, LINE, 31), one(0x20, LINE + 31, 1)])).expect("all is there");
    (&messages).open(&Nothing, LINE + 31, 1).expect("it is there");
    assert_eq!([0x18, 0x20].map(|device| fake.message(device, 31)), [Some((1, LINE + 31)); 2]);
    let wrong = [
        &[one(0x18, LINE, 31), one(0x20, LINE + 31, 2)][..],
        &[one(0x18, LINE, 32), one(0x20, LINE, 1)],
        &[one(0x18, LINE + 31, 2)],
        &[one(0x18, LINE - 1, 1)],
        &[one(0x18, u32::MAX, 2)],
        &[one(0x18, LINE, 255)],
    ];
    for (index, functions) in wrong.into_iter().enumerate() {
        let fake = Fake::new();
        assert_eq!(Messages::start(fake.board(), &of(functions)).map(drop), Err(Failure::TooMany), "case {index}");
    }
    // Where it has no table there is nothing to choose.
    let bare = FunctionPlan { table: None, ..one(0x18, LINE, 2) };
    let fake = Fake::new();
    let messages = Messages::start(fake.board(), &of(&[bare, one(0x20, LINE + 2, 2)])).expect("all is there");
    (&messages).open(&Nothing, LINE + 2, 1).expect("it is there");
    assert_eq!([(0x18, 2), (0x20, 0)].map(|(device, number)| fake.message(device, number)), [None, Some((1, LINE + 2))]);
}
