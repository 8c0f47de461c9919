// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of views, each a sentence; docs/checks-views.md says which check each is.

use trellis_hosted::laws;
use trellis_idl::kernel::{ANY_VIEW, Access, ExitHeader, GuestCall, NoticePage, Op, Refusal};
use trellis_idl::plan::{PagesPlan, Populate, ViewPlan};
use trellis_idl::wire::{P2mOp, ViewAccess};
use trellis_walks::views::{ENTRY, FIRST, PAGES, VIEWS, Watched, Went};

const DEFAULT: u64 = ViewAccess::DEFAULT.0 as u64;
const READ: Access = Access::READ;
const WRITE: Access = Access::WRITE;
/// Where vCPU 1 is told.
const NOTICE: u64 = FIRST + 9;

fn at(view: u64, page: u64) -> u64 {
    view << 48 | page
}

fn watched() -> Watched {
    Watched::new(Populate::Eager, &[])
}

/// A view with this default, and vCPU 1 in it.
fn in_view(watched: &Watched, default: u64) -> u64 {
    let view = watched.call(P2mOp::ViewCreate, &[ANY_VIEW, default, 1]).expect("there is room")[0];
    watched.call(P2mOp::ViewSwitch, &[1, view]).expect("it is there");
    view
}

fn word(watched: &Watched, page: u64, index: u64) -> u64 {
    watched.kernel.hosted.borrow().board.borrow().word((page - FIRST + watched.frame) * 4096 + index * 8)
}

fn set_word(watched: &Watched, page: u64, index: u64, value: u64) {
    let address = (page - FIRST + watched.frame) * 4096 + index * 8;
    watched.kernel.hosted.borrow().board.borrow_mut().set_word(address, value);
}

/// A view in which writes to page 3 are forbidden and told, with vCPU 1 listening in it.
fn listening() -> (Watched, u64) {
    let watched = watched();
    let view = in_view(&watched, 7);
    watched.call(P2mOp::ViewSetAccess, &[at(view, FIRST + 3), 1, 5]).expect("memory");
    watched.call(P2mOp::ViewSetNotify, &[at(view, FIRST + 3), 1, 1]).expect("memory");
    set_word(&watched, NOTICE, 0, 0);
    assert_eq!(watched.guest_call(1, GuestCall::Notify, [NOTICE * 4096, ENTRY]), 0);
    (watched, view)
}

#[test]
fn a_guest_is_told_of_a_forbidden_write_and_goes_back_to_it() {
    let (watched, view) = listening();
    assert_eq!(watched.touch(1, FIRST + 3, READ), Went::To(FIRST + 3), "reading is allowed");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Told);
    assert_eq!(word(&watched, NOTICE, 0), u64::from(NoticePage::FORBIDDEN) | u64::from(NoticePage::BUSY) << 32);
    assert_eq!(word(&watched, NOTICE, 1) & (ExitHeader::WRITE | ExitHeader::FETCH), ExitHeader::WRITE);
    assert_eq!((word(&watched, NOTICE, 3) / 4096, word(&watched, NOTICE, 4)), (FIRST + 3, view));
    let pc = || watched.kernel.hosted.borrow().cpus[1].local.vcpus.at(0).context.pc();
    assert_eq!(pc(), ENTRY);
    watched.guest_call(1, GuestCall::Return, [0, 0]);
    assert_eq!(pc(), word(&watched, NOTICE, 6), "where it was");
    assert_eq!(watched.guest_call(1, GuestCall::Return, [0, 0]), Refusal::BadState.to_register(), "once");
}

#[test]
fn a_guest_that_has_not_read_its_notice_is_not_told_again() {
    let (watched, _) = listening();
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Told);
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Refused, "it is serving one");
    watched.guest_call(1, GuestCall::Return, [0, 0]);
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Refused, "the page still says busy");
    set_word(&watched, NOTICE, 0, 0);
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Told);
}

#[test]
fn a_notice_page_that_left_the_guest_is_never_written() {
    let (watched, _) = listening();
    watched.call(P2mOp::Withdraw, &[NOTICE, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Refused);
    assert_eq!(word(&watched, NOTICE, 0), 0);
    watched.call(P2mOp::Populate, &[NOTICE, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Told, "it is back");
}

#[test]
fn a_notice_page_is_memory_one_a_vcpu_and_given_once() {
    let (watched, _) = listening();
    let notify = |vcpu, address| watched.guest_call(vcpu, GuestCall::Notify, [address, ENTRY]);
    let refused = |refusal: Refusal| refusal.to_register();
    assert_eq!(notify(1, NOTICE * 4096), refused(Refusal::Occupied));
    assert_eq!(notify(2, NOTICE * 4096 + 8), refused(Refusal::BadArgument));
    assert_eq!(notify(2, (FIRST + PAGES) * 4096), refused(Refusal::NotMapped));
    assert_eq!(notify(2, !0xfff), refused(Refusal::NotMapped));
    assert_eq!(notify(1, u64::MAX), 0);
    assert_eq!(notify(1, u64::MAX), 0, "no more, twice");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Refused);
}

#[test]
fn what_is_not_to_be_told_goes_to_p2m() {
    let (watched, view) = listening();
    watched.call(P2mOp::ViewSetNotify, &[at(view, FIRST + 3), 1, 0]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::Refused);
    assert_eq!(word(&watched, NOTICE, 0), 0);
}

#[test]
fn the_guest_enters_views_that_are_shown_to_it_and_no_others() {
    let watched = watched();
    let hidden = watched.call(P2mOp::ViewCreate, &[ANY_VIEW, 7, 0]).expect("room")[0];
    let switch = |view| watched.guest_call(1, GuestCall::Switch, [view, 0]);
    assert_eq!(switch(hidden), Refusal::NotMapped.to_register());
    assert_eq!(watched.view_of(1), 0);
    watched.call(P2mOp::ViewShow, &[hidden, 1]).expect("there");
    assert_eq!((switch(hidden), watched.view_of(1)), (0, hidden));
    watched.call(P2mOp::ViewShow, &[hidden, 0]).expect("there");
    assert_eq!(switch(hidden), 0, "it is in it");
    assert_eq!(watched.call(P2mOp::ViewSwitch, &[u64::MAX, hidden]).map_err(|why| why.0), Err(Refusal::NotMapped));
    assert_eq!(watched.call(P2mOp::ViewSwitch, &[2, hidden]), Ok([0, 0]), "whoever watches may");
}

#[test]
fn a_view_is_destroyed_only_when_no_vcpu_is_in_it() {
    let watched = watched();
    let view = in_view(&watched, 7);
    let destroy = |view| watched.call(P2mOp::ViewDestroy, &[view]).map_err(|why| why.0);
    assert_eq!(destroy(view), Err(Refusal::BadState));
    assert_eq!(destroy(0), Err(Refusal::BadArgument));
    assert_eq!(watched.touch(1, FIRST, WRITE), Went::To(FIRST));
    watched.call(P2mOp::ViewSwitch, &[u64::MAX, 0]).expect("view 0 is always there");
    assert_eq!(destroy(view), Ok([0, 0]));
    assert_eq!(destroy(view), Err(Refusal::NotMapped));
    assert_eq!(watched.call(P2mOp::ViewSwitch, &[1, view]).map_err(|why| why.0), Err(Refusal::NotMapped));
}

#[test]
fn the_default_access_of_a_view_is_its_own() {
    let watched = watched();
    let [one, other] = [7, DEFAULT].map(|default| in_view(&watched, default));
    watched.call(P2mOp::ViewSetDefault, &[one, 1]).expect("there");
    let default = |view| watched.call(P2mOp::ViewDefault, &[view]).expect("there")[0];
    assert_eq!([default(0), default(one), default(other)], [7, 1, DEFAULT]);
    let access = |view| watched.call(P2mOp::ViewAccess, &[at(view, FIRST)]).expect("there");
    assert_eq!([access(0), access(one), access(other)], [[7, 1], [1, 1], [7, 1]]);
    assert_eq!(watched.call(P2mOp::ViewSetDefault, &[0, 1]).map_err(|why| why.0), Err(Refusal::BadArgument));
}

#[test]
fn a_views_access_changes_only_by_request() {
    let watched = watched();
    let own = in_view(&watched, 5);
    assert_eq!(watched.touch(1, FIRST, READ), Went::To(FIRST));
    watched.call(P2mOp::ViewSetAccess, &[at(0, FIRST), 1, 0]).expect("memory");
    assert_eq!(watched.touch(1, FIRST, READ), Went::To(FIRST), "the host map's is another's");
    assert_eq!(watched.call(P2mOp::ViewAccess, &[at(own, FIRST)]), Ok([5, 1]));
    let follows = in_view(&watched, DEFAULT);
    assert_eq!(watched.touch(1, FIRST, READ), Went::Refused, "this one follows it");
    watched.call(P2mOp::ViewSetAccess, &[at(0, FIRST), 1, 7]).expect("memory");
    assert_eq!(watched.touch(1, FIRST, WRITE), Went::To(FIRST));
    assert_eq!(watched.call(P2mOp::ViewAccess, &[at(follows, FIRST)]), Ok([7, 1]));
}

#[test]
fn a_remap_stays_when_its_own_page_changes_and_goes_with_its_target() {
    let watched = watched();
    let view = in_view(&watched, 7);
    watched.call(P2mOp::ViewRemap, &[at(view, FIRST + 1), 1, FIRST + 600]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 1, WRITE), Went::To(FIRST + 600));
    watched.call(P2mOp::ViewSetAccess, &[at(0, FIRST + 1), 1, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 1, WRITE), Went::To(FIRST + 600));
    watched.call(P2mOp::Withdraw, &[FIRST + 600, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 1, READ), Went::Refused);
    laws::full(&watched.kernel.hosted.borrow()).expect("no view shows it any more");
    watched.call(P2mOp::Populate, &[FIRST + 600, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 1, READ), Went::To(FIRST + 600));
    watched.call(P2mOp::ViewRemap, &[at(view, FIRST + 1), 1, u64::MAX]).expect("undone");
    watched.call(P2mOp::ViewRemap, &[at(view, FIRST + 2), 1, u64::MAX]).expect("nothing to undo");
    assert_eq!(watched.touch(1, FIRST + 1, READ), Went::To(FIRST + 1));
}

#[test]
fn a_lazily_copied_block_is_no_larger_than_what_is_alike() {
    let watched = watched();
    let view = in_view(&watched, 7);
    watched.call(P2mOp::ViewSetAccess, &[at(view, FIRST + 5), 1, 1]).expect("memory");
    assert_eq!(watched.touch(1, FIRST + 4, WRITE), Went::To(FIRST + 4));
    assert_eq!(watched.touch(1, FIRST + 5, READ), Went::To(FIRST + 5));
    assert_eq!(watched.touch(1, FIRST + 5, WRITE), Went::Refused);
    assert_eq!(watched.touch(1, FIRST + 6, WRITE), Went::To(FIRST + 6), "one page out of 512");
    assert_eq!(watched.touch(1, FIRST + 513, WRITE), Went::To(FIRST + 513));
}

#[test]
fn one_kind_of_execution_alone_is_refused_where_the_cpu_cannot() {
    let watched = watched();
    let view = in_view(&watched, 7);
    let copy = |access: Access| watched.kernel(Op::ViewCopy, &[at(view, FIRST), 1, access.0, 1]);
    for cpu in &mut watched.kernel.hosted.borrow_mut().cpus {
        cpu.machine.splits_execute = false;
    }
    assert_eq!(copy(Access::USER_EXECUTE), Err(Refusal::Unsupported));
    assert_eq!(copy(Access::EXECUTE), Ok([1, 1, 0]), "execution alone is always possible");
}

#[test]
fn every_index_at_its_edges_is_done_or_refused() {
    let watched = watched();
    in_view(&watched, 7);
    let views = [0, VIEWS - 1, VIEWS, VIEWS + 1, 511, 512, 65_535, u64::MAX];
    let pages = [0, FIRST, FIRST + PAGES - 1, FIRST + PAGES, FIRST + PAGES + 1, 511, 512, 65_535, (1 << 48) - 1];
    let counts = [0, 1, PAGES, PAGES + 1, 511, 512, 65_535, u64::MAX];
    for view in views {
        let outside = view >= VIEWS;
        for op in [P2mOp::ViewCreate, P2mOp::ViewSetDefault, P2mOp::ViewDefault, P2mOp::ViewShow, P2mOp::ViewReset,
            P2mOp::ViewFlush, P2mOp::ViewDestroy] {
            let found = watched.call(op, &[view, 1, 0]);
            assert!(!outside || found.is_err() || view == ANY_VIEW && op == P2mOp::ViewCreate, "{op:?} {view}: {found:?}");
        }
        for vcpu in views {
            assert!(watched.call(P2mOp::ViewSwitch, &[vcpu, view]).is_err() || !outside);
            let _ = watched.call(P2mOp::ViewOf, &[vcpu]);
        }
        assert!(!outside || watched.guest_call(1, GuestCall::Switch, [view, 0]) == Refusal::OutOfRange.to_register());
        for page in pages {
            for count in counts {
                for op in [P2mOp::ViewSetAccess, P2mOp::ViewRemap, P2mOp::ViewSetNotify] {
                    let found = watched.call(op, &[at(view & 0xffff, page), count, 1]);
                    let wrong = outside || !(FIRST..FIRST + PAGES).contains(&page) || count == 0;
                    assert!(!wrong || found.is_err(), "{op:?} {view} {page:#x} {count}: {found:?}");
                }
                for op in [Op::ViewCopy, Op::GuestUnmap, Op::GuestProtect, Op::ViewRemap] {
                    let found = watched.kernel(op, &[at(view & 0xffff, page), count, 1, 1]);
                    assert!(!outside || found.is_err(), "{op:?} {view} {page:#x} {count}: {found:?}");
                }
            }
            let _ = watched.kernel(Op::ViewReset, &[at(view & 0xffff, page)]);
            for op in [P2mOp::ViewAccess, P2mOp::ViewNotify] {
                let found = watched.call(op, &[at(view & 0xffff, page)]);
                let wrong = outside || !(FIRST..FIRST + PAGES).contains(&page);
                assert!(!wrong || found.is_err(), "{op:?} {view} {page:#x}: {found:?}");
            }
            for count in counts {
                let found = watched.call(P2mOp::ViewSetAccessList, &[view, 5, count, page, page, page, page, page, page]);
                let wrong = outside || count > 6 || count > 0 && !(FIRST..FIRST + PAGES).contains(&page);
                assert!(!wrong || found.is_err(), "{view} {page:#x} {count}: {found:?}");
            }
        }
        for op in [Op::ViewCreate, Op::ViewDestroy, Op::ViewShow] {
            for third in views {
                let found = watched.kernel(op, &[view, third]);
                let wrong = outside && (view != ANY_VIEW || op != Op::ViewCreate) || op == Op::ViewShow && third > 1;
                assert!(!wrong || found.is_err(), "{op:?} {view} {third}: {found:?}");
            }
        }
        laws::full(&watched.kernel.hosted.borrow()).expect("the laws hold");
    }
}

#[test]
fn every_order_and_every_log_word_at_its_edges_is_done_or_refused() {
    let watched = watched();
    let view = in_view(&watched, DEFAULT);
    for block in [0, 1, 2, 511, 512, 513, 65_535, 1 << 18, (1 << 18) + 1, u64::MAX] {
        let found = watched.kernel(Op::ViewCopy, &[at(view, FIRST), 1, 1, block]);
        assert_eq!(found.is_ok(), [1, 512, 1 << 18].contains(&block), "{block}: {found:?}");
        watched.kernel(Op::ViewReset, &[at(view, 0)]).expect("it is there");
    }
    for word in [0, 1, 63, 64, 511, 512, PAGES, 65_535, u64::MAX] {
        assert!(watched.call(P2mOp::LogTake, &[word]).is_err(), "{word}: there is no log");
    }
    watched.call(P2mOp::LogStart, &[]).expect("a log");
    for word in [0, 1, 63, 64, 511, 512, PAGES - 64, PAGES - 1, PAGES, PAGES + 64, 65_535, u64::MAX] {
        let found = watched.call(P2mOp::LogTake, &[word]);
        assert_eq!(found.is_ok(), word % 64 == 0 && word < PAGES, "{word}: {found:?}");
    }
    for access in [0x37, 0x38, 0x40, 0xff, 0x100, 0x101, 0x102, 0x103, 0x104, 511, 512, 65_535, u64::MAX] {
        let known = [0x37, 0x100, 0x101].contains(&access) || access == DEFAULT;
        let found = watched.call(P2mOp::ViewSetAccess, &[at(view, FIRST), 1, access]);
        assert_eq!(found.is_ok(), known, "access {access:#x}: {found:?}");
    }
    laws::full(&watched.kernel.hosted.borrow()).expect("the laws hold");
}

#[test]
fn a_noted_page_that_gets_another_access_is_written_in_a_view_that_is_as_the_host_map() {
    let watched = watched();
    in_view(&watched, DEFAULT);
    watched.call(P2mOp::LogStart, &[]).expect("a log");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::To(FIRST + 3));
    watched.call(P2mOp::ViewSetAccess, &[at(0, FIRST + 3), 1, 2]).expect("a page of the host map");
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::To(FIRST + 3), "it was noted already");
    assert_eq!(watched.call(P2mOp::LogTake, &[0]).expect("a word")[0], 1 << 3);
    assert_eq!(watched.touch(1, FIRST + 3, WRITE), Went::To(FIRST + 3), "and is noted again");
    assert_eq!(watched.call(P2mOp::LogTake, &[0]).expect("a word")[0], 1 << 3);
}

#[test]
fn views_of_the_manifest_are_there_from_the_start_and_again_after_a_reset() {
    let pages = PagesPlan { first: FIRST + 3, pages: 2, access: ViewAccess(5), notify: false, shows: Some(FIRST + 7) };
    let plan = ViewPlan { default: ViewAccess::ALL, shown: true, pages: heapless::Vec::from_slice(&[pages]).expect("one") };
    let watched = Watched::new(Populate::Lazy, &[plan]);
    for _ in 0..2 {
        assert_eq!(watched.guest_call(1, GuestCall::Switch, [1, 0]), 0);
        assert_eq!(watched.touch(1, FIRST + 4, READ), Went::To(FIRST + 8));
        assert_eq!(watched.touch(1, FIRST + 4, WRITE), Went::Refused);
        watched.call(P2mOp::ViewCreate, &[ANY_VIEW, 0, 0]).expect("another");
        watched.call(P2mOp::Reset, &[]).expect("as at the beginning");
        assert_eq!((watched.view_of(1), watched.kernel(Op::GuestInfo, &[]).expect("it lives")[2]), (0, 2));
    }
}
