// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on capabilities: grant, drop, revoke.

use super::{Call, Done, one};
use crate::cap::Cap;
use crate::machine::Machine;
use trellis_idl::kernel::{Kind, Refusal, Rights};

impl<M: Machine> Call<'_, M> {
    pub(super) fn grant(&mut self) -> Done {
        let cap = self.shared.table.read(self.table, self.a[0]);
        if cap.word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        if !cap.word.rights().covers(Rights::GRANT) {
            return Err(Refusal::MissingRight);
        }
        let index = self.domain(1, Rights::EDIT)?;
        let to = self.shared.domains[index].lock().table;
        let _control = self.shared.control.lock();
        self.shared.table.put(to, self.a[2], Cap { word: cap.word.shrink(Rights(self.a[3] as u8)), name: cap.name })?;
        one(0)
    }

    pub(super) fn drop_capability(&mut self) -> Done {
        if self.shared.table.read(self.table, self.a[0]).word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        let _control = self.shared.control.lock();
        self.shared.table.clear(self.table, self.a[0]);
        one(0)
    }

    pub(super) fn revoke(&mut self) -> Done {
        let cap = self.shared.table.read(self.table, self.a[0]);
        if cap.word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        if !cap.word.rights().covers(Rights::CONTROL) {
            return Err(Refusal::MissingRight);
        }
        let _control = self.shared.control.lock();
        for kind in [Kind::Domain, Kind::Thread, Kind::Portal, Kind::Signal, Kind::Vcpu, Kind::Guest, Kind::Frames, Kind::Line] {
            if cap.word.is(kind, Rights(0)) {
                self.shared.table.clear_name(kind, cap.name, Some((self.table, self.a[0])));
            }
        }
        one(0)
    }
}
