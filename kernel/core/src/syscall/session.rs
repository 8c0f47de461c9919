// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on sessions ([`crate::session`]).

use super::{Call, Done};
use crate::cap::{Cap, CapWord};
use crate::machine::Machine;
use crate::pool::Id;
use crate::session;
use crate::shared::{GUEST_VCPUS, GUESTS};
use trellis_idl::kernel::{Kind, Op, Refusal, Rights, SESSIONS, Seat};

impl<M: Machine> Call<'_, M> {
    pub(super) fn session_create(&mut self) -> Done {
        let control = self.shared.control.lock();
        self.guest_in(&control, 0, Rights::CONTROL)?;
        let guest = self.name(0, Kind::Guest, Rights::CONTROL)?;
        if self.a[1] >= SESSIONS {
            return Err(Refusal::OutOfRange);
        }
        self.check_empty(self.table, self.a[2])?;
        let word = CapWord::new(Kind::Session, Rights::ALL, 0);
        self.shared.table.put(self.table, self.a[2], Cap { word, name: session::name_of(guest, self.a[1]) })?;
        Ok(0)
    }

    /// An operation on one session.
    #[inline(never)]
    pub(super) fn session(&mut self, op: Op) -> Done {
        let name = self.name(0, Kind::Session, Rights::CONTROL)?;
        let id = Id::<()>::from_word(name);
        let (guest, number) = (id.index() % GUESTS, id.home());
        let shared = self.shared;
        // Nobody makes another guest with this index meanwhile.
        let control = shared.control.lock();
        let session = session::of(shared, guest, number.into()).check(name)?;
        match op {
            Op::SessionPlace => {
                let (vcpu, seat) = (self.a[1], self.a[2]);
                if vcpu >= GUEST_VCPUS as u64 {
                    return Err(Refusal::OutOfRange);
                }
                if seat > Seat::Second as u64 {
                    return Err(Refusal::BadArgument);
                }
                let portal = if self.a[3] == 0 { 0 } else { self.name(3, Kind::Portal, Rights::USE)? };
                session.place(seat as usize, vcpu as usize, portal);
                Ok(0)
            }
            Op::SessionCommit => {
                let seat = Seat::from_number(self.a[2]).ok_or(Refusal::BadArgument)?;
                let epoch = u32::try_from(self.a[1]).map_err(|_| Refusal::Gone)?;
                session.owner.change(epoch, seat).map(u64::from)
            }
            Op::SessionSettle => {
                drop(control);
                let index = self.vcpu_of(guest)?;
                Ok(session::settle(self.local, shared, self.machine, (number.into(), session), index))
            }
            _ => {
                let (epoch, seat) = session.owner.now();
                self.with(epoch.into(), [seat as u64, session.owed()])
            }
        }
    }
}
