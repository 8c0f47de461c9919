// SPDX-License-Identifier: MIT OR Apache-2.0
//! What monitors may ask of a guest's p2m, and what becomes of accesses that they watch.

use trellis_hosted::laws;
use trellis_idl::kernel::{ANY_VIEW, Access, Exit, ExitHeader, GuestCall, Op, PAGE as PAGE_BYTES, Refusal, SESSIONS};
use trellis_idl::layout::badge;
use trellis_idl::plan::Populate;
use trellis_idl::wire::{P2mOp, ViewAccess};
use trellis_runtime::event_ring::{ENTRIES, Found, Reader};
use trellis_runtime::Reply;
use trellis_walks::views::{FIRST, PAGES, VCPUS, VIEWS, Watched, Went};

const ALL: u64 = u64::MAX;
const DEFAULT: u64 = ViewAccess::DEFAULT.0 as u64;
/// The view in which the guest is watched.
const VIEW: u64 = 1;
const PAGE: u64 = FIRST + 7;

fn at(view: u64, page: u64) -> u64 {
    view << 48 | page
}

/// Every vCPU in the view, where session 0 watches writes to a page.
fn watched(populate: Populate) -> Watched {
    let watched = Watched::new(populate, &[]);
    begin(&watched, 0, PAGE);
    watched
}

/// What a monitor asks when its guest begins: everything that is not readable alone is an event.
fn begin(watched: &Watched, session: u64, page: u64) {
    assert_eq!(watched.monitor(session, P2mOp::WatchJoin, &[VIEW]), Ok([0; 2]));
    assert_eq!(watched.monitor(session, P2mOp::Watch, &[at(VIEW, page), 1, 1]), Ok([1, 0]));
    assert_eq!(watched.monitor(session, P2mOp::WatchEnter, &[ALL, VIEW]), Ok([0; 2]));
}

#[test]
fn a_watched_access_is_an_event_and_all_others_go_on() {
    for populate in [Populate::Eager, Populate::Lazy] {
        let watched = watched(populate);
        for vcpu in 1..=3 {
            assert_eq!(watched.view_of(vcpu), VIEW);
            assert_eq!(watched.touch(vcpu, PAGE, Access::READ), Went::To(PAGE));
            assert_eq!(watched.touch(vcpu, PAGE + 1, Access::WRITE), Went::To(PAGE + 1));
            // Found, and remembered.
            assert_eq!(watched.touch(vcpu, PAGE, Access::WRITE), Went::Event(0));
            assert_eq!(watched.touch(vcpu, PAGE, Access::WRITE), Went::Event(0));
            assert_eq!(watched.touch(vcpu, PAGE, Access::EXECUTE), Went::Event(0));
        }
        laws::full(&watched.kernel.hosted.borrow()).expect("the laws hold");
    }
}

/// A walk for a fetch is no fetch, and one for a store reads its table.
#[test]
fn a_walk_of_the_guests_tables_in_a_watched_page_is_an_event_whatever_it_is_for() {
    let watched = watched(Populate::Eager);
    for allowed in 0..8u64 {
        watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, allowed]).expect("its own page");
        for flags in [0, ExitHeader::WRITE, ExitHeader::FETCH, ExitHeader::FETCH | ExitHeader::USER] {
            // Twice: found, and remembered.
            for _ in 0..2 {
                let is_event = matches!(watched.tell(1, VIEW, PAGE, flags | ExitHeader::WALK), Reply::Watched(..));
                assert_eq!(is_event, allowed & 3 != 3, "{allowed} {flags:#x}");
            }
        }
    }
    watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, DEFAULT]).expect("its own page");
    assert!(matches!(watched.tell(1, VIEW, PAGE, ExitHeader::FETCH | ExitHeader::WALK), Reply::Value(..)));
}

#[test]
fn a_walk_of_which_nobody_wants_to_hear_happens_without_a_word() {
    let watched = watched(Populate::Eager);
    let mut numbers = std::collections::BTreeSet::new();
    for wish in [0, P2mOp::TOLD] {
        watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, wish | P2mOp::NO_WALKS]).expect("its own page");
        for flags in [0, ExitHeader::WRITE, ExitHeader::FETCH] {
            // Twice: found, and remembered.
            for _ in 0..2 {
                let walked = watched.tell(1, VIEW, PAGE, flags | ExitHeader::WALK);
                let Reply::Forward(_, words) = walked else { panic!("{flags:#x}: {walked:?}") };
                let exit = Exit::from_words(words);
                assert!(exit.header.has(ExitHeader::ALLOWED), "the vcpu server does it: the instruction may be an exclusive access");
                assert!(numbers.insert(exit.general[3]), "it is none that was done already");
                let accessed = watched.tell(2, VIEW, PAGE, flags);
                assert_eq!(matches!(accessed, Reply::Watched(..)), wish == 0, "what is no walk is an event");
            }
        }
    }
    assert_eq!(told(&watched, 0, 1), (vec![], 0), "nobody is told");
    assert_eq!(told(&watched, 0, 2).0.len(), 6, "but what is no walk");
}

#[test]
fn each_combination_of_accesses_can_be_watched() {
    let watched = watched(Populate::Lazy);
    for allowed in 0..8 {
        watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, allowed]).expect("its own page");
        for access in [Access::READ, Access::WRITE, Access::EXECUTE] {
            let expected = if Access(allowed).covers(access) { Went::To(PAGE) } else { Went::Event(0) };
            assert_eq!(watched.touch(1, PAGE, access), expected, "{allowed} {access:?}");
        }
    }
}

#[test]
fn what_was_asked_may_be_asked_again_and_changes_nothing() {
    let watched = watched(Populate::Eager);
    begin(&watched, 0, PAGE);
    begin(&watched, 0, PAGE);
    assert_eq!(watched.touch(2, PAGE, Access::WRITE), Went::Event(0));
    assert_eq!(watched.kernel(Op::GuestInfo, &[]).expect("it lives")[2], 2, "one view beside the host map");
}

#[test]
fn what_is_watched_no_more_is_no_event() {
    let watched = watched(Populate::Eager);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
    watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, DEFAULT]).expect("its own page");
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::To(PAGE));
    begin(&watched, 0, PAGE);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
    assert_eq!(watched.monitor(0, P2mOp::WatchLeave, &[VIEW]), Ok([0; 2]));
    assert_eq!((watched.view_of(1), watched.view_of(3)), (0, 0), "with the last session the view goes");
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::To(PAGE));
    assert_eq!(watched.monitor(0, P2mOp::WatchLeave, &[VIEW]), Err((Refusal::MissingRight, VIEW)));
}

#[test]
fn two_monitors_watch_each_its_own_pages_in_one_view() {
    let watched = watched(Populate::Eager);
    begin(&watched, 3, PAGE + 1);
    for vcpu in 1..=3 {
        assert_eq!(watched.touch(vcpu, PAGE, Access::WRITE), Went::Event(0));
        assert_eq!(watched.touch(vcpu, PAGE + 1, Access::WRITE), Went::Event(3));
    }
    // Neither can blind the other.
    assert_eq!(watched.monitor(0, P2mOp::WatchEnter, &[ALL, 0]), Err((Refusal::Occupied, ALL)));
    assert_eq!(watched.monitor(3, P2mOp::WatchEnter, &[1, 0]), Err((Refusal::Occupied, 1)));
    let taken = Err((Refusal::Occupied, PAGE + 1));
    assert_eq!(watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 2, 7]), taken, "and the first page is as it was");
    assert_eq!(watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE + 1), 1, DEFAULT]), taken);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
    // One leaves: the other watches on.
    watched.monitor(0, P2mOp::WatchLeave, &[VIEW]).expect("it watched there");
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::To(PAGE));
    assert_eq!(watched.touch(1, PAGE + 1, Access::WRITE), Went::Event(3));
    assert_eq!(watched.monitor(3, P2mOp::WatchEnter, &[1, 0]), Ok([0; 2]), "alone it may");
}

#[test]
fn a_monitor_reaches_nothing_that_is_not_its_own() {
    let watched = watched(Populate::Eager);
    let mine = watched.call(P2mOp::ViewCreate, &[ANY_VIEW, 7, 1]).expect("there is room")[0];
    let no = |op: P2mOp, given: &[u64], why: Refusal| {
        let refused = watched.monitor(1, op, given);
        assert_eq!(refused.map_err(|(refusal, _)| refusal), Err(why), "{op:?} {given:?}");
    };
    no(P2mOp::WatchJoin, &[0], Refusal::BadArgument);
    no(P2mOp::WatchJoin, &[mine], Refusal::Occupied);
    for view in [VIEWS, 511, 512, 65_535, u64::MAX] {
        no(P2mOp::WatchJoin, &[view], Refusal::OutOfRange);
    }
    for view in [0, VIEW, mine, VIEWS, 511, 512, 65_535] {
        no(P2mOp::Watch, &[at(view, PAGE), 1, 0], Refusal::MissingRight);
        no(P2mOp::WatchLeave, &[view], Refusal::MissingRight);
    }
    no(P2mOp::WatchEnter, &[1, mine], Refusal::MissingRight);
    no(P2mOp::WatchEnter, &[1, VIEW], Refusal::MissingRight);
    no(P2mOp::WatchEnter, &[1, 0], Refusal::Occupied);
    no(P2mOp::WatchEnter, &[ALL, 0], Refusal::Occupied);
    let foreign = [
        P2mOp::Populate, P2mOp::PopulateAll, P2mOp::Protect, P2mOp::Blank, P2mOp::Reset, P2mOp::ViewCreate,
        P2mOp::ViewDestroy, P2mOp::ViewSwitch, P2mOp::ViewSetDefault, P2mOp::ViewSetAccess, P2mOp::ViewSetAccessList,
        P2mOp::ViewRemap, P2mOp::ViewShow, P2mOp::ViewSetNotify, P2mOp::ViewNotify, P2mOp::ViewReset, P2mOp::ViewFlush,
        P2mOp::Withdraw, P2mOp::LogStart, P2mOp::LogStop, P2mOp::LogTake,
    ];
    for op in foreign {
        no(op, &[PAGE, 1, 1], Refusal::MissingRight);
    }
    // Nobody else speaks for a session.
    for who in [badge::ROOT, badge::VCPU_SERVER] {
        for op in [P2mOp::WatchJoin, P2mOp::Watch, P2mOp::WatchEnter, P2mOp::WatchLeave] {
            assert_eq!(watched.call_as(who, op, &[VIEW]).map_err(|(why, _)| why), Err(Refusal::MissingRight));
        }
    }
    let beyond = watched.call_as(badge::monitor(SESSIONS, 0), P2mOp::WatchJoin, &[VIEW]);
    assert_eq!(beyond, Err((Refusal::BadArgument, VIEW)));
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0), "all is as it was");
}

#[test]
fn every_page_and_access_is_looked_at() {
    let watched = watched(Populate::Eager);
    let watch = |first: u64, pages: u64, access: u64| watched.monitor(0, P2mOp::Watch, &[at(VIEW, first), pages, access]);
    assert_eq!(watch(FIRST, PAGES, 1), Ok([PAGES, 0]));
    for (first, pages, page) in [
        (FIRST - 1, 1, FIRST - 1), (0, 1, 0), (FIRST + PAGES, 1, FIRST + PAGES), (FIRST, 0, FIRST),
        (FIRST + PAGES - 1, 2, FIRST + PAGES), ((1 << 48) - 1, 1, (1 << 48) - 1),
    ] {
        assert_eq!(watch(first, pages, 1), Err((Refusal::OutOfRange, page)), "{first:#x} {pages}");
    }
    for access in [8, 16, 32, 64, 0x100, 0x101, 0x103, 512, 65_535, u64::MAX] {
        assert_eq!(watch(PAGE, 1, access).map_err(|(why, _)| why), Err(Refusal::BadArgument), "{access:#x}");
    }
    for vcpu in [4, 8, 255, 511, 512, 65_535, u64::MAX - 1] {
        assert!(watched.monitor(0, P2mOp::WatchEnter, &[vcpu, VIEW]).is_err(), "{vcpu}");
    }
}

#[test]
fn a_monitor_that_asks_for_ever_more_leaves_room_for_others() {
    let watched = Watched::with_tables(Populate::Eager, &[], 256);
    begin(&watched, 0, PAGE);
    let flood = (0..PAGES / 2).map(|n| watched.monitor(0, P2mOp::Watch, &[at(VIEW, FIRST + 2 * n), 1, n % 2]));
    let refused = flood.filter_map(Result::err).last();
    assert_eq!(refused.map(|(why, _)| why), Some(Refusal::Quota));
    begin(&watched, 1, FIRST + 801);
    assert_eq!(watched.touch(1, FIRST + 801, Access::WRITE), Went::Event(1));
    let joined = (2..VIEWS).filter(|view| watched.monitor(0, P2mOp::WatchJoin, &[*view]).is_ok()).count();
    assert!(joined < VIEWS as usize - 2 || VIEWS <= 5, "{joined} views more");
}

#[test]
fn a_guest_that_starts_again_is_watched_by_nobody_until_it_is_asked_for() {
    let watched = watched(Populate::Eager);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
    watched.call(P2mOp::Reset, &[]).expect("root may");
    assert_eq!(watched.view_of(1), 0);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::To(PAGE));
    begin(&watched, 0, PAGE);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
}

#[test]
fn the_view_that_a_guest_is_watched_in_is_hidden_from_it() {
    let watched = watched(Populate::Eager);
    watched.monitor(0, P2mOp::WatchEnter, &[ALL, 0]).expect("it watches alone");
    assert_eq!(watched.guest_call(1, GuestCall::Switch, [VIEW, 0]), Refusal::NotMapped.to_register());
}

#[test]
fn writes_are_noted_as_before_where_a_page_is_watched() {
    let watched = watched(Populate::Eager);
    watched.call(P2mOp::LogStart, &[]).expect("root may");
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
    assert_eq!(watched.call(P2mOp::LogTake, &[0]), Ok([0, 0]), "an event is no write");
    assert_eq!(watched.touch(1, PAGE + 2, Access::WRITE), Went::To(PAGE + 2));
    assert_eq!(watched.call(P2mOp::LogTake, &[0]), Ok([1 << (PAGE + 2 - FIRST), 0]));
}

#[test]
fn a_vcpu_that_starts_anew_is_watched_from_its_first_instruction() {
    let watched = watched(Populate::Eager);
    for vcpu in 1..=3 {
        watched.launch(vcpu);
        assert_eq!(watched.view_of(vcpu), VIEW);
        assert_eq!(watched.touch(vcpu, PAGE, Access::WRITE), Went::Event(0));
    }
}

#[test]
fn what_the_next_monitor_does_not_ask_for_is_watched_no_more_and_the_rest_without_a_gap() {
    let watched = Watched::with_tables(Populate::Eager, &[], 256);
    begin(&watched, 0, PAGE);
    // All that it may watch: the next one has room all the same.
    for n in 0..PAGES / 2 {
        let _ = watched.monitor(0, P2mOp::Watch, &[at(VIEW, FIRST + 2 * n), 1, n % 2]);
    }
    watched.monitor(0, P2mOp::WatchJoin, &[VIEW]).expect("it watches there");
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0), "old, and still watched");
    for n in 0..20 {
        assert_eq!(watched.monitor(0, P2mOp::Watch, &[at(VIEW, FIRST + 500 + 2 * n), 1, 1]), Ok([1, 0]));
    }
    assert_eq!(watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, 1]), Ok([1, 0]));
    assert_eq!(watched.touch(2, PAGE, Access::WRITE), Went::Event(0));
    assert_eq!(watched.touch(1, FIRST + 8, Access::WRITE), Went::Event(0));
    watched.monitor(0, P2mOp::WatchEnter, &[1, VIEW]).expect("its own");
    assert_eq!(watched.touch(1, FIRST + 8, Access::WRITE), Went::Event(0), "one vCPU is not the end of it");
    watched.monitor(0, P2mOp::WatchEnter, &[ALL, VIEW]).expect("its own");
    assert_eq!(watched.touch(1, FIRST + 8, Access::WRITE), Went::To(FIRST + 8));
    for page in [PAGE, FIRST + 500, FIRST + 538] {
        assert_eq!(watched.touch(3, page, Access::WRITE), Went::Event(0));
    }
}

/// What a session's reader finds in a vCPU's ring: numbers of events, and what it missed.
fn told(watched: &Watched, session: usize, vcpu: usize) -> (Vec<u64>, u64) {
    let ring = &watched.told[session * 4 + vcpu].0;
    let (mut reader, mut numbers, mut missed) = (Reader::default(), Vec::new(), 0);
    reader.go_on(ring);
    while let Some(found) = reader.next(ring) {
        match found {
            Found::Missed(count) => missed += count,
            Found::Entry([_, number, words @ ..]) => {
                let exit = Exit::from_words(words);
                assert_eq!((exit.physical / PAGE_BYTES, exit.general[3]), (PAGE, number), "the exit's own words");
                numbers.push(number);
            }
        }
    }
    (numbers, missed)
}

#[test]
fn what_need_only_be_told_happens_at_once_and_is_told() {
    let watched = watched(Populate::Lazy);
    watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, 1 | P2mOp::TOLD]).expect("its own page");
    for vcpu in [1, 3] {
        assert_eq!(watched.touch(vcpu, PAGE, Access::READ), Went::To(PAGE));
        for _ in 0..3 {
            assert_eq!(watched.touch(vcpu, PAGE, Access::WRITE), Went::Happens);
        }
        assert_eq!(told(&watched, 0, vcpu as usize), (vec![1, 2, 3], 0));
        assert_eq!(told(&watched, 0, vcpu as usize), (vec![], 0), "each once");
    }
    assert_eq!(*watched.kernel.wakes.borrow(), [0, 1, 0, 1], "each reader once, in both seats: it had read nothing yet");
    assert_eq!((told(&watched, 0, 2), told(&watched, 1, 1)), ((vec![], 0), (vec![], 0)), "nobody else's ring");
    // Asked again, whoever watches is asked about it.
    begin(&watched, 0, PAGE);
    assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Event(0));
}

#[test]
fn what_nobody_reads_is_counted_and_nobody_waits() {
    let watched = watched(Populate::Lazy);
    watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, 1 | P2mOp::TOLD]).expect("its own page");
    let most = ENTRIES as u64;
    (0..most + 9).for_each(|_| assert_eq!(watched.touch(2, PAGE, Access::WRITE), Went::Happens));
    assert_eq!(told(&watched, 0, 2), ((1..=most).collect(), 9));
    assert_eq!(watched.touch(2, PAGE, Access::WRITE), Went::Happens);
    assert_eq!(told(&watched, 0, 2), (vec![most + 10], 0));
}

#[test]
fn a_guest_that_begins_anew_tells_anew() {
    let watched = watched(Populate::Eager);
    watched.monitor(0, P2mOp::Watch, &[at(VIEW, PAGE), 1, 1 | P2mOp::TOLD]).expect("its own page");
    (0..50).for_each(|_| assert_eq!(watched.touch(1, PAGE, Access::WRITE), Went::Happens));
    for number in 1..4 {
        watched.kernel.ask(Op::VcpuStop, [VCPUS + number, 0, 0, 0, 0, 0]).expect("it can be stopped");
    }
    watched.call(P2mOp::Reset, &[]).expect("nothing runs");
    Reader::default().begin(&watched.told[1].0);
    assert_eq!(told(&watched, 0, 1), (vec![], 0));
}
