// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on capabilities: grant, drop, revoke.

use super::{Call, Done};
use crate::cap::Cap;
use crate::machine::Machine;
use trellis_idl::kernel::{Kind, Refusal, Rights};

/// Kinds of objects whose names can be revoked.
const KINDS: [Kind; 9] = [
    Kind::Domain, Kind::Thread, Kind::Portal, Kind::Signal, Kind::Vcpu, Kind::Guest, Kind::Frames, Kind::Line,
    Kind::Session,
];

impl<M: Machine> Call<'_, M> {
    pub(super) fn grant(&mut self) -> Done {
        let control = self.shared.control.lock();
        // Read under the lock: whoever revokes finds either the source or the copy.
        let need = if self.a[4] == 0 { Rights::GRANT } else { Rights::GRANT.with(Rights::CONTROL) };
        let cap = self.any(need)?;
        let index = self.domain_in(&control, 1, Rights::EDIT)?;
        let to = self.shared.domains[index].lock().table;
        self.check_empty(to, self.a[2])?;
        let word = cap.word.shrink(Rights(self.a[3] as u8)).badged(self.a[4]);
        self.shared.table.put(to, self.a[2], Cap { word, name: cap.name })?;
        Ok(0)
    }

    /// The capability in slot `x0`, whatever it is to.
    fn any(&self, need: Rights) -> Result<Cap, Refusal> {
        let cap = self.shared.table.read(self.table, self.a[0]);
        if cap.word.is_empty() {
            return Err(Refusal::NoCapability);
        }
        if !cap.word.rights().covers(need) {
            return Err(Refusal::MissingRight);
        }
        Ok(cap)
    }

    pub(super) fn drop_capability(&mut self) -> Done {
        let _control = self.shared.control.lock();
        self.any(Rights(0))?;
        self.shared.table.clear(self.table, self.a[0], self.shared.grace.mark());
        Ok(0)
    }

    /// Ends when every CPU has left the kernel since the last copy went: none is in use any more.
    pub(super) fn revoke(&mut self) -> Done {
        let _control = self.shared.control.lock();
        let cap = self.any(Rights::CONTROL)?;
        let keep = Some((self.table, self.a[0]));
        let now = self.shared.grace.mark();
        let kind = KINDS.into_iter().find(|kind| cap.word.is(*kind, Rights(0)));
        let found = kind.is_some_and(|kind| self.shared.table.clear_name(kind, cap.name, keep, now));
        // An earlier call may have found some: the caller kept its mark, which is no later than now.
        let mark = if found { now } else { self.a[1].min(now) };
        if self.settled(mark) { Ok(0) } else { self.with(1, [mark, 0]) }
    }
}
