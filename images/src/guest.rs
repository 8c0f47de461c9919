// SPDX-License-Identifier: MIT OR Apache-2.0
//! One guest, decided: what the manifest says, with its files read and placed.

use crate::device::Owned;
use crate::device_tree::MEMORY_BASE;
use crate::manifest::Kind;
use crate::monitor::MonitorEntry;
use crate::place::Placement;
use crate::view::ViewsEntry;
use trellis_idl::plan::{Budget, OnReset, Populate, Sve};

/// One guest of a checked system.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// How its kernel is packed.
    pub kind: Kind,
    /// Its kernel as the manifest names it.
    pub kernel_name: String,
    /// Bytes of memory, from [`Guest::MEMORY_BASE`].
    pub memory_bytes: u64,
    /// CPU of each vCPU.
    pub cpus: Vec<u8>,
    /// 0 (lowest) – 255.
    pub priority: u8,
    /// Per vCPU; none = the whole CPU by priority.
    pub budget: Option<Budget>,
    /// When its memory is mapped.
    pub populate: Populate,
    /// Interrupt controller it sees: 2 or 3.
    pub gic: u8,
    /// What a reset leads to.
    pub on_reset: OnReset,
    /// The system goes on as long as it does.
    pub essential: bool,
    /// Line of `[guest.NAME]` in the manifest.
    pub manifest_line: u32,
    /// Scalable vectors.
    pub sve: Sve,
    /// Its views.
    pub views: ViewsEntry,
    /// Devices that it owns.
    pub devices: Vec<Owned>,
    /// Who watches it: each has the session of its place here.
    pub monitors: Vec<MonitorEntry>,
    /// What lies where in its memory.
    pub placement: Placement,
    /// The kernel file.
    pub kernel: Vec<u8>,
    /// The initial file system.
    pub initrd: Option<Vec<u8>>,
}

impl Guest {
    /// First byte of every guest's memory.
    pub const MEMORY_BASE: u64 = MEMORY_BASE;

    /// Page tables that map all its memory in pages: one for each 2 MiB, one for each GiB, and a few for the top
    /// levels and for devices. Each view more has its top level, one for each GiB and a few for pages that differ: what it
    /// shows is filled in as it is touched, and dropped where room is needed.
    pub fn table_pages(&self) -> u32 {
        let giants = self.memory_bytes.div_ceil(1 << 30);
        let others = u64::from(self.views_count() - 1);
        let views = if others == 0 { 0 } else { others * (giants + 9) + 2 };
        let tables = self.memory_bytes.div_ceil(2 << 20) + giants + 24 + views;
        u32::try_from(tables + self.float_pages()).unwrap_or(u32::MAX)
    }

    /// Views it may have, that in which it is watched among them.
    pub fn views_count(&self) -> u16 {
        self.views.count + u16::from(!self.monitors.is_empty())
    }

    /// The view in which it is watched: the one behind those that the manifest describes.
    pub fn watched_view(&self) -> u16 {
        self.views.planned.len() as u16 + 1
    }

    /// Save areas of its vCPUs' scalable vectors: 32 vectors, 17 predicates an eighth as long, and 64 bytes.
    fn float_pages(&self) -> u64 {
        let lanes = match self.sve {
            Sve::Off => return 0,
            Sve::Lanes(lanes) => u64::from(lanes),
            Sve::Most => 16,
        };
        self.cpus.len() as u64 * (64 + 32 * 16 * lanes + 17 * 2 * lanes).div_ceil(4096)
    }

    /// Name of the server that owns its maps.
    pub fn p2m_name(&self) -> String {
        format!("p2m.{}", self.name)
    }

    /// Name of the server that is its processor and platform.
    pub fn vcpu_name(&self) -> String {
        format!("vcpu.{}", self.name)
    }

    /// CPU of each thread of its servers: one for each vCPU, and the control thread on root's.
    pub fn server_cpus(&self) -> impl Iterator<Item = u8> + '_ {
        self.cpus.iter().copied().chain([0])
    }
}
