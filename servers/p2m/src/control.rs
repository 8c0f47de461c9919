// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers calls of root, of the guest's vcpu server and of its monitors ([`P2mOp`]).

use crate::P2m;
use crate::map::ANY;
use crate::patch::Watcher;
use crate::view::{Failure, Views};
use core::sync::atomic::Ordering;
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{ANY_VIEW, Access, Refusal, WORDS};
use trellis_idl::layout::badge as badges;
use trellis_idl::wire::{P2mOp, PageRanges, ViewAccess, to_answer};
use trellis_runtime::{Reply, System, message};

/// What an answer carries behind `m0`.
type Values = [u64; 2];

fn done(_: ()) -> Values {
    [0; 2]
}

impl P2m {
    /// One call, with so many bytes of the message buffer.
    pub(crate) fn control(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::P2M, &words);
        }
        let is_monitor = badges::kind(badge) == badges::MONITOR;
        if P2mOp::from_number(words[0]) == Some(P2mOp::PopulateAll) && !is_monitor {
            return message::answer(system, self.populate_all(system, &words, bytes));
        }
        let result = match is_monitor {
            true => self.perform_for_monitor(system, badges::session(badge), words),
            false => self.perform(system, badges::kind(badge) == badges::ROOT, words),
        };
        let mut answer = [0; WORDS];
        answer[0] = to_answer(result.map(|_| ()).map_err(|failure| failure.refusal));
        match result {
            Ok(values) => answer[1..3].copy_from_slice(&values),
            Err(failure) => answer[2] = failure.page,
        }
        Reply::Call(answer)
    }

    fn populate_all(&self, system: &impl System, words: &[u64; WORDS], bytes: usize) -> Result<(), Refusal> {
        let ranges: PageRanges = message::decode(system, words, bytes)?;
        let mut views = self.views.lock(system);
        ranges.iter().try_for_each(|range| views.populate(system, &self.map, range.first, range.pages))
    }

    fn perform(&self, system: &impl System, is_root: bool, words: [u64; WORDS]) -> Result<Values, Failure> {
        let [number, first, pages, access, ..] = words;
        let fail = |refusal| Failure { refusal, page: first };
        let op = P2mOp::from_number(number).ok_or(fail(Refusal::NoOperation))?;
        match op {
            P2mOp::Ready => Ok([0; 2]),
            P2mOp::Populate => {
                let mut views = self.views.lock(system);
                let result = views.populate(system, &self.map, first, pages);
                self.special.store(views.is_host_special(), Ordering::Release);
                result.map(done).map_err(fail)
            }
            P2mOp::Protect => {
                let mut views = self.views.lock(system);
                let result = self.protect(system, &mut views, (first, pages), access);
                self.special.store(views.is_host_special(), Ordering::Release);
                result.map(done)
            }
            P2mOp::PopulateAll => Err(fail(Refusal::BadArgument)),
            P2mOp::Blank => self.map.blank(system, first).map(done).map_err(fail),
            _ if !is_root => Err(fail(Refusal::MissingRight)),
            P2mOp::Reset => {
                self.refused.store(0, Ordering::Relaxed);
                self.tells.begin();
                let mut views = self.views.lock(system);
                let ended = views.end(system);
                self.recent.forget();
                drop(views);
                ended.map_err(fail)?;
                self.map.clear(system).map_err(fail)?;
                self.begin(system).map(done).map_err(fail)
            }
            op => {
                let mut views = self.views.lock(system);
                let result = self.perform_on_view(system, &mut views, op, words);
                self.special.store(views.is_host_special(), Ordering::Release);
                self.recent.forget();
                result
            }
        }
    }

    /// What a monitor asks: it speaks for its own session alone.
    fn perform_for_monitor(&self, system: &impl System, session: u8, words: [u64; WORDS]) -> Result<Values, Failure> {
        let [number, a, b, c, ..] = words;
        let fail = |refusal| Failure { refusal, page: a };
        let op = P2mOp::from_number(number).ok_or(fail(Refusal::NoOperation))?;
        let mut views = self.views.lock(system);
        let result = match op {
            P2mOp::Ready => Ok([0; 2]),
            P2mOp::WatchJoin => views.join(system, session, a).map(done).map_err(fail),
            P2mOp::Watch => {
                let (range, access) = ((a & ((1 << 48) - 1), b), ViewAccess::from_word(c & !(P2mOp::TOLD | P2mOp::NO_WALKS)).map_err(fail)?);
                let watcher = if c & P2mOp::TOLD != 0 { Watcher::told(session) } else { Watcher::asked(session) };
                let watcher = if c & P2mOp::NO_WALKS != 0 { watcher.without_walks() } else { watcher };
                views.watch(system, &self.map, watcher, a >> 48, range, access).map(|pages| [pages, 0])
            }
            P2mOp::WatchEnter => views.enter(system, session, a, b).map(done).map_err(fail),
            P2mOp::WatchLeave => views.leave(system, session, a).map(done).map_err(fail),
            P2mOp::ViewAccess | P2mOp::ViewDefault | P2mOp::ViewOf => {
                return self.perform_on_view(system, &mut views, op, words);
            }
            _ => Err(fail(Refusal::MissingRight)),
        };
        self.recent.forget();
        result
    }

    /// Gives pages of the host map an access.
    fn protect(
        &self, system: &impl System, views: &mut Views, (first, pages): (u64, u64), access: u64,
    ) -> Result<(), Failure> {
        let fail = |refusal| Failure { refusal, page: first };
        if access & !ANY.0 != 0 {
            return Err(fail(Refusal::BadArgument));
        }
        let access = ViewAccess::bits(Access(access));
        let mut done = 0;
        while done < pages {
            done += views.set_access(system, &self.map, 0, (first + done, pages - done), access)?;
        }
        Ok(())
    }

    /// Operations on views.
    fn perform_on_view(
        &self, system: &impl System, views: &mut Views, op: P2mOp, words: [u64; WORDS],
    ) -> Result<Values, Failure> {
        let map = &self.map;
        let [_, a, b, c, ..] = words;
        let (view, page) = (a >> 48, a & ((1 << 48) - 1));
        let fail = |refusal| Failure { refusal, page: a };
        let access = |word| ViewAccess::from_word(word).map_err(fail);
        let flag = |word| if word <= 1 { Ok(word == 1) } else { Err(fail(Refusal::BadArgument)) };
        match op {
            P2mOp::ViewCreate => {
                let wanted = if a == ANY_VIEW { None } else { Some(a) };
                views.create(system, wanted, access(b)?, flag(c)?).map(|view| [view.into(), 0]).map_err(fail)
            }
            P2mOp::ViewDestroy => views.destroy(system, a).map(done).map_err(fail),
            P2mOp::ViewSwitch if a == u64::MAX => views.switch_all(system, b).map(done).map_err(fail),
            P2mOp::ViewSwitch => views.switch(system, a, b).map(done).map_err(fail),
            P2mOp::ViewSetDefault => views.set_default(system, a, access(b)?).map(done).map_err(fail),
            P2mOp::ViewDefault => views.default_of(a).map(|access| [access.0.into(), 0]).map_err(fail),
            P2mOp::ViewSetAccess => {
                views.set_access(system, map, view, (page, b), access(c)?).map(|pages| [pages, 0])
            }
            P2mOp::ViewSetAccessList => {
                let list = usize::try_from(c).ok().and_then(|count| words.get(4..4usize.checked_add(count)?));
                let list = list.ok_or(fail(Refusal::OutOfRange))?;
                views.set_access_list(system, map, a, list, access(b)?).map(|pages| [pages, 0])
            }
            P2mOp::ViewAccess => {
                views.access(map, view, page).map(|(access, own)| [access.0.into(), own.into()]).map_err(fail)
            }
            P2mOp::ViewRemap => {
                let shows = if c == u64::MAX { None } else { Some(c) };
                views.remap(system, map, view, (page, b), shows).map(|pages| [pages, 0])
            }
            P2mOp::ViewShow => views.show(system, a, flag(b)?).map(done).map_err(fail),
            P2mOp::ViewSetNotify => {
                views.set_notify(system, map, view, (page, b), flag(c)?).map(|pages| [pages, 0])
            }
            P2mOp::ViewNotify => views.notify(map, view, page).map(|told| [told.into(), 0]).map_err(fail),
            P2mOp::ViewOf => views.of(system, a).map(|view| [view.into(), 0]).map_err(fail),
            P2mOp::ViewReset => views.reset(system, a).map(done).map_err(fail),
            P2mOp::ViewFlush => views.flush(system, a).map(done).map_err(fail),
            P2mOp::Withdraw => views.withdraw(system, map, a, b).map(done).map_err(fail),
            P2mOp::LogStart => views.log_start(system, map).map(|pages| [pages, 0]).map_err(fail),
            P2mOp::LogStop => views.log_stop(system, map).map(done).map_err(fail),
            P2mOp::LogTake => views.log_take(system, map, a).map(|bits| [bits, 0]).map_err(fail),
            // They are asked for a session.
            P2mOp::WatchJoin | P2mOp::Watch | P2mOp::WatchEnter | P2mOp::WatchLeave => Err(fail(Refusal::MissingRight)),
            P2mOp::Ready | P2mOp::Populate | P2mOp::PopulateAll | P2mOp::Protect | P2mOp::Blank | P2mOp::Reset => {
                Err(fail(Refusal::NoOperation))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::P2m;
    use crate::fake::{Fake, p2m};
    use trellis_idl::kernel::{Op, Refusal, WORDS};
    use trellis_idl::layout::badge;
    use trellis_idl::plan::Populate;
    use trellis_idl::wire::{P2mOp, from_answer};
    use trellis_runtime::{Reply, Server};

    fn call(p2m: &P2m, fake: &Fake, badge: u64, given: [u64; 4]) -> Result<(), Refusal> {
        let mut words = [0; WORDS];
        words[..4].copy_from_slice(&given);
        match p2m.call(fake, badge, words) {
            Reply::Call(words) => from_answer(words[0]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ready_is_answered_and_nonsense_refused() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Lazy);
        assert_eq!(call(&p2m, &fake, badge::ROOT, [P2mOp::Ready as u64, 0, 0, 0]), Ok(()));
        assert_eq!(call(&p2m, &fake, badge::ROOT, [99, 0, 0, 0]), Err(Refusal::NoOperation));
    }

    #[test]
    fn only_root_resets_and_then_memory_is_as_at_the_beginning() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Eager);
        let reset = [P2mOp::Reset as u64, 0, 0, 0];
        assert_eq!(call(&p2m, &fake, badge::VCPU_SERVER, reset), Err(Refusal::MissingRight));
        assert_eq!(call(&p2m, &fake, badge::ROOT, reset), Ok(()));
        assert_eq!(fake.operations(), [Op::GuestMap, Op::GuestUnmap, Op::GuestMap]);
        assert_eq!(fake.maps(), [(0x40000, 0, 0x400)]);
    }

    #[test]
    fn a_blank_page_is_shown_where_memory_is_not() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Lazy);
        let blank = |page| call(&p2m, &fake, badge::VCPU_SERVER, [P2mOp::Blank as u64, page, 0, 0]);
        // Another vCPU may have asked first.
        assert_eq!((blank(0x4000), blank(0x4000)), (Ok(()), Ok(())));
        assert_eq!(fake.blanks(), [0x4000]);
        assert_eq!(blank(0x40000), Err(Refusal::OutOfRange));
        assert_eq!(blank(u64::MAX), Err(Refusal::OutOfRange));
    }

    #[test]
    fn protection_holds_for_pages_nobody_touched() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Lazy);
        assert_eq!(call(&p2m, &fake, badge::VCPU_SERVER, [P2mOp::Protect as u64, 0x40001, 2, 1]), Ok(()));
        assert_eq!(fake.operations(), [Op::GuestMap, Op::GuestProtect]);
        assert_eq!(call(&p2m, &fake, badge::VCPU_SERVER, [P2mOp::Protect as u64, 0x40001, 2, 8]), Err(Refusal::BadArgument));
        assert_eq!(call(&p2m, &fake, badge::VCPU_SERVER, [P2mOp::Protect as u64, 0, 2, 1]), Err(Refusal::OutOfRange));
    }
}
