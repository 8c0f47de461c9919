// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest on a CPU does: touches memory through the TLB, takes and ends interrupts, waits.

use crate::hosted::{Hosted, Now};
use trellis_core::local::Running;
use trellis_core::machine::Leaf;
use trellis_core::trap::Trap;
use trellis_idl::kernel::{Access, ExitClass, ExitHeader};

/// What became of a touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// It reached this machine page.
    Reached(u64),
    /// It stopped the vCPU; this runs now.
    Stopped(Now),
}

/// The exit header of an access of 4 bytes by `w1`.
pub fn access_header(access: Access, permission: bool) -> u64 {
    let write = if access.covers(Access::WRITE) { ExitHeader::WRITE } else { 0 };
    let fetch = if access.covers(Access::EXECUTE) { ExitHeader::FETCH } else { 0 };
    let known = if permission { ExitHeader::PERMISSION } else { 0 };
    4 << 8 | 1 << 16 | 4 << 48 | write | fetch | known
}

impl Hosted {
    /// The running guest touches a guest-physical address.
    pub fn touch(&mut self, cpu: u16, address: u64, access: Access) -> Touch {
        let this = &self.cpus[cpu as usize];
        let Running::Vcpu(index) = this.local.running else { panic!("no guest runs on CPU {cpu}") };
        let vcpu = this.local.vcpus.at(index);
        let (tag, root, page) = (vcpu.context.tag, vcpu.context.root, address / 4096);
        let class = vcpu.class_of(page);
        let value = vcpu.context.general(1);
        let pc = vcpu.context.pc();
        let leaf = self.board.borrow_mut().translate(cpu, tag, root, page);
        match leaf {
            Some(leaf) if leaf.access.normal().covers(access) => {
                self.store(leaf, address, access);
                self.executed(cpu);
                Touch::Reached(leaf.page)
            }
            other => {
                let class = ExitClass::from_number(class.into()).unwrap_or(ExitClass::Illegal);
                let header = access_header(access, other.is_some());
                Touch::Stopped(self.exit(cpu, class, [header, 0, address, 0, pc, value, 0, 0, 0, 0]))
            }
        }
    }

    /// The running guest has executed an instruction that stopped it nowhere: what runs then.
    pub fn executed(&mut self, cpu: u16) -> Now {
        let this = &mut self.cpus[cpu as usize];
        let Running::Vcpu(index) = this.local.running else { panic!("no guest runs on CPU {cpu}") };
        this.local.vcpus.at_mut(index).context.step_done();
        self.settle(cpu)
    }

    /// The running thread touches its own memory: true if it may.
    pub fn touch_own(&mut self, cpu: u16, address: u64, access: Access) -> bool {
        let this = &self.cpus[cpu as usize];
        let Running::Thread(index) = this.local.running else { panic!("no thread runs on CPU {cpu}") };
        let context = &this.local.threads.at(index).context;
        let (tag, root) = (context.tag, context.root);
        let leaf = self.board.borrow_mut().translate(cpu, tag, root, address / 4096);
        match leaf {
            Some(leaf) if leaf.access.covers(access) => {
                self.store(leaf, address, access);
                true
            }
            _ => false,
        }
    }

    fn store(&mut self, leaf: Leaf, address: u64, access: Access) {
        let mut board = self.board.borrow_mut();
        if access.covers(Access::WRITE) && !leaf.access.covers(Access::DEVICE) {
            board.set_word((leaf.page * 4096 + address % 4096) & !7, address);
        }
    }

    /// The guest acknowledges the pending interrupt of the highest priority. In the middle of a step there is none for it.
    pub fn acknowledge(&mut self, cpu: u16) -> Option<u8> {
        let this = &mut self.cpus[cpu as usize];
        if let Running::Vcpu(index) = this.local.running
            && this.local.vcpus.at(index).context.step.is_some()
        {
            return None;
        }
        let lists = &mut this.machine.lists;
        let entry = lists.iter_mut().filter(|entry| entry.pending).min_by_key(|entry| entry.priority)?;
        entry.pending = false;
        entry.active = true;
        Some(entry.line)
    }

    /// The guest ends an interrupt; maintenance interrupts that this causes are taken.
    pub fn end_of_interrupt(&mut self, cpu: u16, line: u8) {
        let machine = &mut self.cpus[cpu as usize].machine;
        let mut notify = false;
        for entry in machine.lists.iter_mut().filter(|entry| entry.active && entry.line == line) {
            entry.active = false;
            notify |= entry.notify;
            if entry.is_tied() && entry.origin < 32 {
                machine.timer_active = false;
            }
            if entry.origin >= 32 {
                self.board.borrow_mut().active.remove(&u32::from(entry.origin));
            }
        }
        let used = machine.lists.iter().filter(|entry| !entry.is_empty()).count();
        if notify || (machine.underflow && used <= 1) {
            self.trap(cpu, Trap::Maintenance);
            let lists = &self.cpus[cpu as usize].machine.lists;
            let is_noticed = !lists.iter().any(|entry| entry.is_empty() && entry.notify);
            assert!(is_noticed, "the maintenance interrupt is up still, and would come again and again");
        }
    }

    /// The guest waits for an interrupt. Alone on its CPU it does so in the hardware, else it stops.
    pub fn wait_for_interrupt(&mut self, cpu: u16) -> Now {
        let this = &self.cpus[cpu as usize];
        let Running::Vcpu(index) = this.local.running else { panic!("no guest runs on CPU {cpu}") };
        if this.local.vcpus.at(index).context.waits_trap {
            return self.trap(cpu, Trap::WaitForInterrupt);
        }
        this.now
    }
}
