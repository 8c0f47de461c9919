// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who watches a guest, and what is owed to it.
//!
//! Whoever finds an event (the guest's p2m server, its vcpu server) serves an exit and forwards it to the session. From
//! there it is like any exit that was forwarded: one thread serves it, on the vCPU's own CPU, and its answer is a
//! one-shot. What makes a session more than a portal:
//!
//! - Who is asked is one word, a seat and an epoch. Its compare-and-swap changes that for all CPUs at once: before it the
//!   old watcher is asked, after it the new one is.
//! - With a watcher that dies, that is late or that is replaced, nothing is lost: the vCPU keeps the words of its event,
//!   is *owed* an answer, and waits until somebody settles it. All that happens on the vCPU's own CPU, so an event
//!   cannot be answered by the old watcher and given to the new one: whichever comes first ends the other.
//!
//! No lock, and no write to a word that CPUs share, lies on the way of an event that somebody answers: the owner's word
//! is read, and what says that an event is owed is written only when it is.

use crate::local::{Local, Running};
use crate::machine::{Machine, VcpuContext};
use crate::pool::Id;
use crate::portal::{self, Client};
use crate::schedule;
use crate::shared::{GUEST_VCPUS, GUESTS, Shared};
use crate::thread::{Thread, ThreadState};
use crate::trap::Next;
use crate::vcpu::{self, Vcpu, VcpuState};
use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{EXIT_CLASSES, Groups, Kind, Refusal, Rights, SESSIONS, Seat};

/// The name of a guest's session: the guest's, with the session in the place of a home.
pub const fn name_of(guest: u64, number: u64) -> u64 {
    guest & !(0xffff << 16) | (number % SESSIONS) << 16
}

/// The word that says who is asked: seat (bits 0–7), and how often that changed.
#[derive(Debug)]
pub struct Owner<W = AtomicU64>(W);

impl<W: Word> Owner<W> {
    /// Of a new guest's session.
    pub const FIRST: u64 = Self::word(1, Seat::Held);

    const fn word(epoch: u32, seat: Seat) -> u64 {
        seat as u64 | (epoch as u64) << 8
    }

    /// Epoch and seat.
    pub fn now(&self) -> (u32, Seat) {
        let word = self.0.load(Ordering::Acquire);
        // The byte is only ever written from a seat.
        ((word >> 8) as u32, Seat::from_number(word & 0xff).unwrap_or(Seat::Held))
    }

    /// Somebody else is asked from now on, on every CPU. `Gone`: it is not this epoch any more. `Quota`: the epochs are
    /// used up.
    pub fn change(&self, epoch: u32, seat: Seat) -> Result<u32, Refusal> {
        let (now, old) = self.now();
        if now != epoch {
            return Err(Refusal::Gone);
        }
        let next = epoch.checked_add(1).ok_or(Refusal::Quota)?;
        self.0.replace(Self::word(epoch, old), Self::word(next, seat)).map_err(|_| Refusal::Gone)?;
        Ok(next)
    }
}

/// One of a guest's sessions.
#[derive(Debug)]
pub struct Session {
    /// Its name; 0 = there is no such guest.
    name: AtomicU64,
    /// Who is asked.
    pub owner: Owner,
    /// vCPUs whose event is owed, one bit each.
    owed: AtomicU64,
    /// Portals of both seats, one a vCPU.
    posts: [[AtomicU64; GUEST_VCPUS]; 2],
}

impl Session {
    /// Of no guest.
    pub const NONE: Session = {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        let owner = Owner(AtomicU64::new(Owner::<AtomicU64>::FIRST));
        Session { name: ZERO, owner, owed: ZERO, posts: [const { [ZERO; GUEST_VCPUS] }; 2] }
    };

    /// A guest begins, or (0) ends: nobody watches it, nothing is owed.
    pub fn begin(&self, name: u64) {
        self.name.store(0, Ordering::Release);
        self.posts.iter().flatten().for_each(|post| post.store(0, Ordering::Relaxed));
        self.owed.store(0, Ordering::Relaxed);
        self.owner.0.store(Owner::<AtomicU64>::FIRST, Ordering::Relaxed);
        self.name.store(name, Ordering::Release);
    }

    /// Whether a capability with this name means it.
    pub fn check(&self, name: u64) -> Result<&Session, Refusal> {
        if name != 0 && self.name.load(Ordering::Acquire) == name { Ok(self) } else { Err(Refusal::Gone) }
    }

    /// Puts a portal where a vCPU's events go while this seat is asked.
    pub fn place(&self, seat: usize, vcpu: usize, portal: u64) {
        self.posts[seat % 2][vcpu % GUEST_VCPUS].store(portal, Ordering::Release);
    }

    /// vCPUs whose event is owed.
    pub fn owed(&self) -> u64 {
        self.owed.load(Ordering::Acquire)
    }
}

/// A vCPU's open event: whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watch {
    /// The session's number.
    pub session: u8,
    /// Name of the thread that was asked; 0 = its exit is no event, or nobody was.
    pub thread: u64,
}

/// Whom a session asks about a vCPU: thread and badge, or nobody who lives. `Gone`: nobody shall be asked.
fn asked<M: Machine>(local: &Local<M>, session: &Session, vcpu: u8) -> Result<Option<(u16, u64)>, Refusal> {
    let seat = match session.owner.now().1 {
        Seat::Nobody => return Err(Refusal::Gone),
        Seat::Held => return Ok(None),
        seat => seat as usize,
    };
    let portal = session.posts[seat % 2][vcpu as usize % GUEST_VCPUS].load(Ordering::Acquire);
    Ok(portal::entry(local, portal).ok())
}

/// Where an exit goes that its server forwards to a session: a thread and a badge, or nobody for now.
#[inline(never)]
pub(crate) fn target<M: Machine>(
    local: &Local<M>, shared: &Shared, name: u64, client: Client,
) -> Result<Option<(u16, u64)>, Refusal> {
    let Client::Vcpu(vcpu, _) = client else { return Err(Refusal::BadArgument) };
    let id = Id::<()>::from_word(name);
    let session = of(shared, id.index(), id.home().into()).check(name)?;
    let vcpu = local.vcpus.get(Local::<M>::vcpu_id(vcpu)).ok_or(Refusal::Gone)?;
    if usize::from(vcpu.guest) != id.index() {
        return Err(Refusal::BadArgument);
    }
    asked(local, session, vcpu.number)
}

/// `Op::Forward` to a session, when the forwarder has no queue and whom the session asks about the vCPU is free.
#[inline(always)]
pub fn forward<M: Machine>(local: &mut Local<M>, shared: &Shared, selector: u64) -> Next {
    let me = local.thread();
    let server = local.threads.at(me);
    let rank = server.rank;
    let Client::Vcpu(name, turn) = server.client else { return Next::Slow };
    let cap = shared.table.read(server.table, selector);
    if server.queue != Client::None || !cap.word.is(Kind::Session, Rights::USE) {
        return Next::Slow;
    }
    let (guest, number) = (Id::<()>::from_word(cap.name).index(), Id::<()>::from_word(cap.name).home());
    let id = Local::<M>::vcpu_id(name);
    let Some(vcpu) = local.vcpus.get(id) else {
        return Next::Slow;
    };
    if vcpu.state != VcpuState::Awaiting || vcpu.turn != turn || usize::from(vcpu.guest) != guest {
        return Next::Slow;
    }
    let session = of(shared, guest, number.into());
    let seat = session.owner.now().1 as usize;
    if session.name.load(Ordering::Acquire) != cap.name || seat >= session.posts.len() {
        return Next::Slow;
    }
    let post = session.posts[seat][vcpu.number as usize % GUEST_VCPUS].load(Ordering::Acquire);
    let Some(portal) = local.portals.get(Id::from_word(post)) else {
        return Next::Slow;
    };
    let (asked, badge) = (Id::<Thread<M>>::from_word(portal.thread), portal.badge);
    let budget = local.budget;
    let Some(watcher) = local.threads.get_mut(asked) else {
        return Next::Slow;
    };
    if watcher.state != ThreadState::Open || watcher.rank <= rank {
        return Next::Slow;
    }
    watcher.state = ThreadState::Ready;
    watcher.client = Client::Vcpu(name, turn);
    watcher.budget = budget;
    let server = local.threads.at_mut(me);
    server.state = ThreadState::Open;
    server.client = Client::None;
    let vcpu = local.vcpus.at_mut(id.index() as u16);
    vcpu.watch = Watch { session: number as u8, thread: asked.0 };
    vcpu.queued_badge = badge;
    vcpu.queued_groups = WORDS;
    local.running = Running::Thread(asked.index() as u16);
    Next::Pass { thread: asked.index() as u16, vcpu: id.index() as u16, badge }
}

/// All words of an exit travel that was forwarded.
pub(crate) const WORDS: u64 = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;

/// A guest's session.
pub fn of(shared: &Shared, guest: usize, number: usize) -> &Session {
    &shared.sessions[guest % GUESTS][number % SESSIONS as usize]
}

fn of_vcpu<'a, M: Machine>(shared: &'a Shared, vcpu: &Vcpu<M>) -> &'a Session {
    of(shared, vcpu.guest.into(), vcpu.watch.session.into())
}

/// A vCPU whose event nobody serves any more waits, with its words.
pub(crate) fn owe<M: Machine>(local: &mut Local<M>, shared: &Shared, index: u16) {
    let vcpu = local.vcpus.at_mut(index);
    vcpu.state = VcpuState::Owed;
    vcpu.turn = Client::next_turn(vcpu.turn);
    of_vcpu(shared, vcpu).owed.fetch_or(1 << vcpu.number, Ordering::AcqRel);
}

/// A vCPU does not wait for this event any more.
pub(crate) fn forgive<M: Machine>(shared: &Shared, vcpu: &Vcpu<M>) {
    if vcpu.state == VcpuState::Owed {
        of_vcpu(shared, vcpu).owed.fetch_and(!(1 << vcpu.number), Ordering::AcqRel);
    }
}

/// What became of a vCPU's event.
const NONE: u64 = 0;
const ASKED: u64 = 1;
const OWED: u64 = 2;

/// Takes a vCPU's event from whoever is not asked any more, and gives what is owed to whom the session names.
pub(crate) fn settle<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, session: (u64, &Session), index: u16,
) -> u64 {
    let vcpu = local.vcpus.at(index);
    if u64::from(vcpu.watch.session) != session.0 {
        return NONE;
    }
    let client = Client::Vcpu(local.vcpus.name_at(index).0, vcpu.turn);
    let to = asked(local, session.1, vcpu.number);
    let watcher = Id::<Thread<M>>::from_word(vcpu.watch.thread);
    match vcpu.state {
        VcpuState::Owed => {}
        VcpuState::Awaiting | VcpuState::Queued => {
            let server = watcher.index() as u16;
            if local.threads.get(watcher).is_none() || !portal::has(local, server, client) {
                return NONE;
            }
            if to.is_ok_and(|to| to.is_some_and(|(thread, _)| thread == server)) {
                return ASKED;
            }
            portal::withdraw(local, client);
            let budget = local.vcpus.at(index).budget();
            schedule::retire(local, budget);
            owe(local, shared, index);
        }
        _ => return NONE,
    }
    give(local, shared, machine, index, to)
}

/// An owed event goes to whom the session asks; if nobody shall be asked, where exits of its class go.
fn give<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, to: Result<Option<(u16, u64)>, Refusal>,
) -> u64 {
    let vcpu = local.vcpus.at(index);
    let route = vcpu.routes[vcpu.context.exit()[0] as usize & (EXIT_CLASSES - 1)];
    let (to, is_watched) = match to {
        Ok(None) => return OWED,
        Ok(to) => (to, true),
        Err(_) => (portal::entry(local, route.portal).ok().map(|(server, _)| (server, route.badge)), false),
    };
    forgive(shared, vcpu);
    let Some((server, badge)) = to else {
        local.vcpus.at_mut(index).settle();
        vcpu::stopped(local, shared, machine, index);
        return NONE;
    };
    let thread = if is_watched { local.threads.name_at(server).0 } else { 0 };
    let vcpu = local.vcpus.at_mut(index);
    vcpu.watch.thread = thread;
    vcpu.queued_badge = badge;
    portal::present(local, machine, server, index);
    ASKED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use loom::thread::spawn;

    fn owner() -> Arc<Owner<LoomWord>> {
        Arc::new(Owner(LoomWord::new(Owner::<LoomWord>::FIRST)))
    }

    type Change = fn(&Owner<LoomWord>, u32, Seat) -> Result<u32, Refusal>;

    /// Two replace one watcher, while a CPU looks whom it asks.
    fn two_replace_one(change: Change) {
        let shared = owner();
        let (other, looking) = (shared.clone(), shared.clone());
        let second = spawn(move || change(&other, 1, Seat::Second));
        let look = spawn(move || [looking.now(), looking.now()]);
        let first = change(&shared, 1, Seat::First);
        let second = second.join().unwrap();
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
        let seat = if first.is_ok() { Seat::First } else { Seat::Second };
        assert_eq!(shared.now(), (2, seat), "whoever was told so");
        let [before, after] = look.join().unwrap();
        assert!(before == (1, Seat::Held) || before == (2, seat), "never half a change: {before:?}");
        assert!(after.0 >= before.0, "it does not go back");
    }

    #[test]
    fn two_that_replace_one_watcher_do_not_both_succeed() {
        loom::model(|| two_replace_one(Owner::change));
    }

    #[test]
    fn a_change_that_looks_and_then_writes_is_found_out() {
        let torn: Change = |owner, epoch, seat| {
            if owner.now().0 != epoch {
                return Err(Refusal::Gone);
            }
            owner.0.store(Owner::<LoomWord>::word(epoch + 1, seat), Ordering::Release);
            Ok(epoch + 1)
        };
        assert!(is_broken(move || two_replace_one(torn)));
    }

    #[test]
    fn epochs_are_counted_and_end() {
        loom::model(|| {
            let owner = owner();
            assert_eq!(owner.now(), (1, Seat::Held));
            for wrong in [0, 2, u32::MAX - 1] {
                assert_eq!(owner.change(wrong, Seat::First), Err(Refusal::Gone));
            }
            assert_eq!(owner.change(1, Seat::First), Ok(2));
            assert_eq!(owner.change(2, Seat::Nobody), Ok(3));
            assert_eq!(owner.now(), (3, Seat::Nobody));
            owner.0.store(Owner::<LoomWord>::word(u32::MAX, Seat::First), Ordering::Relaxed);
            assert_eq!(owner.change(u32::MAX, Seat::Held), Err(Refusal::Quota));
        });
    }

    #[test]
    fn a_sessions_name_ends_with_its_guest() {
        let guest = 7 | 0xffff << 16 | 3 << 32;
        let session = Session::NONE;
        assert!(session.check(0).is_err());
        session.begin(name_of(guest, 2));
        assert!(session.check(name_of(guest, 2)).is_ok());
        for other in [0, guest, name_of(guest, 1), name_of(guest + (1 << 32), 2)] {
            assert!(session.check(other).is_err(), "{other:#x}");
        }
        session.place(1, 3, 99);
        session.begin(0);
        assert_eq!(session.posts[1][3].load(Ordering::Relaxed), 0);
        assert!(session.check(0).is_err());
    }
}
