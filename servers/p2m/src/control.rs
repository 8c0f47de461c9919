// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers calls of root and of the guest's vcpu server ([`P2mOp`]).

use crate::P2m;
use core::sync::atomic::Ordering;
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Access, Refusal, WORDS};
use trellis_idl::layout::badge as badges;
use trellis_idl::wire::{P2mOp, PageRanges, to_answer};
use trellis_runtime::{Reply, System, message};

impl P2m {
    /// One call, with so many bytes of the message buffer.
    pub(crate) fn control(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::P2M, &words);
        }
        if P2mOp::from_number(words[0]) == Some(P2mOp::PopulateAll) {
            return message::answer(system, self.populate_all(system, &words, bytes));
        }
        let mut answer = [0; WORDS];
        answer[0] = to_answer(self.perform(system, badges::kind(badge) == badges::ROOT, words));
        Reply::Call(answer)
    }

    fn populate_all(&self, system: &impl System, words: &[u64; WORDS], bytes: usize) -> Result<(), Refusal> {
        let ranges: PageRanges = message::decode(system, words, bytes)?;
        ranges.iter().try_for_each(|range| self.map.populate(system, range.first, range.pages))
    }

    fn perform(&self, system: &impl System, is_root: bool, words: [u64; WORDS]) -> Result<(), Refusal> {
        let [number, first, pages, access, ..] = words;
        match P2mOp::from_number(number).ok_or(Refusal::NoOperation)? {
            P2mOp::Ready => Ok(()),
            P2mOp::PopulateAll => Err(Refusal::BadArgument),
            P2mOp::Populate => self.map.populate(system, first, pages),
            P2mOp::Protect => self.map.protect(system, first, pages, Access(access)),
            P2mOp::Blank => self.map.blank(system, first),
            P2mOp::Reset if !is_root => Err(Refusal::MissingRight),
            P2mOp::Reset => {
                self.refused.store(0, Ordering::Relaxed);
                self.map.clear(system)?;
                self.begin(system)
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
