// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what to whom, in words.

use crate::guest::Guest;
use crate::monitor::Monitor;
use crate::device::Owned;
use crate::quantity::{show_size, show_time};
use crate::smmu::streams;
use crate::system::System;
use crate::view::word;
use trellis_idl::control::Control;
use trellis_idl::kernel::{Inside, PAGE};
use trellis_idl::plan::{Budget, OnReset, Populate, Role, SwapPlan};

/// Root's rank; the other servers' is in their role.
pub(crate) const ROOT_RANK: u8 = 4;

/// What a server is there for, its capabilities, and what it may call.
pub(crate) struct Duty {
    /// One phrase.
    pub purpose: String,
    /// What its capabilities allow.
    pub may: Vec<String>,
}

pub(crate) fn duty(system: &System, name: &str, role: Role) -> Duty {
    let guest = |index: u8| system.guests()[usize::from(index)].name.clone();
    match role {
        Role::Console => Duty {
            purpose: "the serial port: frames logs and guests' consoles".into(),
            may: vec![
                "map the serial port's page and take its interrupt".into(),
                "read the kernel's log".into(),
                "signal each vcpu server: input waits".into(),
                "hand what the host asks to root, which decides".into(),
            ],
        },
        Role::P2m(index) => Duty {
            purpose: format!("owns the maps of guest {}", guest(index)),
            may: vec![
                format!("map, protect and unmap guest {}'s memory, and nothing else", guest(index)),
                format!("hand exits that are not its own on to {}", system.guests()[usize::from(index)].vcpu_name()),
                "be called by the guest's vcpu server and by root".into(),
                "signal root and console".into(),
            ]
            .into_iter()
            .chain(system.guests()[usize::from(index)].monitors.iter().map(|monitor| {
                format!("hand exits that {0} watches on to it; be called by {0}", monitor.server.value)
            }))
            .collect(),
        },
        Role::Vcpu(index) => Duty {
            purpose: format!("processor and platform of guest {}", guest(index)),
            may: vec![
                format!("read and write guest {}'s memory; start, stop and set its vCPUs; raise its lines", guest(index)),
                format!("call {} on each of its CPUs", system.guests()[usize::from(index)].p2m_name()),
                "be called by root".into(),
                "signal root and console".into(),
            ]
            .into_iter()
            .chain(system.guests()[usize::from(index)].devices.iter().filter(|owned| owned.as_pci).map(|owned| {
                let table = if owned.device.table.is_some() { ", and fill the table of its messages" } else { "" };
                format!("read the configuration of {}{table}", owned.device.name)
            }))
            .collect(),
        },
        Role::Monitor => Duty {
            purpose: "watches guests: is asked about what they do to watched pages, and decides".into(),
            may: system.monitor_named(name).map_or(Vec::new(), |monitor| monitor_may(system, monitor)),
        },
        Role::Smmu => Duty { purpose: "keeps devices that touch memory by themselves to their guests' memory".into(), may: smmu_rights(system) },
        Role::Irqfwd => Duty {
            purpose: "forwards the interrupts of devices that guests own".into(),
            may: system
                .owned()
                .filter(|(_, owned)| !owned.device.lines.is_empty())
                .map(|(index, owned)| {
                    let which = if owned.device.lines.len() == 1 { "it" } else { "them" };
                    format!("take {} and raise {which} in guest {}", line_list(&owned.device.lines), guest(index as u8))
                })
                .chain(message_rights(system))
                .chain(["be called by root".into(), "signal root and console".into()])
                .collect(),
        },
    }
}

/// What smmu does for each device.
fn smmu_rights(system: &System) -> Vec<String> {
    let one = |(index, owned): (usize, &Owned)| {
        let streams: Vec<String> = streams(&system.board, &owned.device).iter().map(|stream| format!("{stream:#x}")).collect();
        let guest = &system.guests()[index].name;
        let what = if owned.protected { format!("guest {guest}'s memory alone") } else { "all of memory, unprotected".into() };
        (!streams.is_empty()).then(|| format!("show {} (stream {}) {what}", owned.device.name, streams.join(", ")))
    };
    let tables = "say where the SMMU keeps its tables, and which memory each device sees".to_string();
    system.owned().filter_map(one).chain([tables, "be called by root".into(), "signal root and console".into()]).collect()
}

/// What irqfwd may beside that where functions of PCI interrupt.
fn message_rights(system: &System) -> Vec<String> {
    let functions: Vec<String> = system
        .owned()
        .filter_map(|(_, owned)| Some(format!("{} ({})", owned.device.name, owned.device.function?)))
        .collect();
    if functions.is_empty() {
        return Vec::new();
    }
    vec![
        format!("configure {}", functions.join(", ")),
        "say where the interrupt translation service and the redistributors keep their tables: they write them by themselves".into(),
    ]
}

/// What is kept for another one in a monitor's place, or in irqfwd's.
fn explain_swap(swap: Option<SwapPlan>, is_monitor: bool) -> String {
    let Some(swap) = swap else { return "  cannot be replaced while its guests run: nothing is kept for that\n".into() };
    let kib = u64::from(swap.pages) * PAGE >> 10;
    let signed = match swap.signer {
        Some(_) => format!(", signed by whom the manifest names, and numbered {} or higher", swap.counter),
        None => String::new(),
    };
    format!("  can be replaced while its guests run, by a program and a file of up to {kib} KiB{signed};\n    memory is kept for {}\n", if is_monitor { "two of either" } else { "one and two of them" })
}

/// What a monitor's capabilities allow.
fn monitor_may(system: &System, monitor: &Monitor) -> Vec<String> {
    let guests = monitor.guests.iter().map(|(index, _)| &system.guests()[*index]);
    let mut may = Vec::new();
    for guest in guests {
        may.push(format!("call {} and {} on each of their CPUs, about its own watches", guest.p2m_name(), guest.vcpu_name()));
        may.push(format!("read the registers of guest {}'s stopped vCPUs", guest.name));
        for entry in guest.monitors.iter().filter(|entry| entry.server.value == monitor.name) {
            let rights = [
                (entry.reads, format!("read guest {}'s memory", guest.name)), (entry.writes, format!("write guest {}'s memory", guest.name)),
                (entry.sets, format!("write the registers of guest {}'s stopped vCPUs", guest.name)),
                (entry.pauses, format!("stop and start guest {}'s vCPUs", guest.name)),
            ];
            may.extend(rights.into_iter().filter(|(has, _)| *has).map(|(_, right)| right));
        }
    }
    may.extend(["be called by root".into(), "signal root and console".into()]);
    may
}

impl System {
    /// Who may do what to whom, as text.
    pub fn explain(&self) -> String {
        let mut text = format!("system {}\nboard  {}\nhost   {}\n", self.name, self.describe_board(), self.describe_control());
        text += &format!("\nkernel\n  the only privileged code; allocates nothing after boot; {} CPU(s) in use\n", self.cpus());
        text += &self.explain_root();
        for (name, role) in &self.servers {
            text += &self.explain_server(name, *role);
        }
        for guest in &self.guests {
            text += &explain_guest(guest);
        }
        text += &self.explain_cpus();
        text
    }

    pub(crate) fn describe_board(&self) -> String {
        let board = &self.board;
        format!("{} ({}): {} CPUs, {} of memory, GICv{}", board.name, board.title, board.cpus.len(), show_size(board.memory()), board.gic.version)
    }

    fn describe_control(&self) -> &'static str {
        match self.control {
            Control::Off => "may do nothing (control = \"off\")",
            Control::Observe => "may look, and change nothing (control = \"observe\")",
            Control::Full => "may look at everything, and pause and restart guests (control = \"full\")",
        }
    }

    fn explain_root(&self) -> String {
        let devices: Vec<String> =
            self.board.fixed_devices().iter().map(|(name, range)| format!("{name} at {:#x}", range.base)).collect();
        let owned = self.owned().flat_map(|(_, owned)| {
            owned.stretches.iter().map(|stretch| format!("{} at {:#x}", owned.device.name, stretch.base))
        });
        let more = self.message_runs().into_iter().chain(self.smmu_run()).map(|(name, range)| format!("{name} at {:#x}", range.base));
        let devices: Vec<String> = devices.into_iter().chain(owned).chain(more).collect();
        format!(
            "\nserver root (rank {ROOT_RANK}) on CPU 0\n  starts the system from its plan and supervises it\n  \
             holds all free memory; devices: {}\n  may create and destroy everything, and switch the machine off\n  \
             calls every p2m and vcpu server{} (lower ranks)\n",
            devices.join(", "),
            if self.monitors.is_empty() { "" } else { ", and every monitor" }
        )
    }

    fn explain_server(&self, name: &str, role: Role) -> String {
        let duty = duty(self, name, role);
        let cpus = cpu_list(&self.server_cpus(name, role));
        let mut text = format!("\nserver {name} (rank {}) on {cpus}\n  {}\n", role.rank(), duty.purpose);
        for watch in self.monitor_named(name).map_or(Vec::new(), |monitor| self.explain_watches(monitor)) {
            text += &format!("  {watch}\n");
        }
        for may in duty.may {
            text += &format!("  may {may}\n");
        }
        text + &match role {
            Role::Monitor | Role::Irqfwd => explain_swap(self.swap_of(name, role), role == Role::Monitor),
            _ => String::new(),
        }
    }

    /// What a monitor watches, guest by guest.
    fn explain_watches(&self, monitor: &Monitor) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, _) in &monitor.guests {
            let guest = &self.guests[*index];
            lines.push(format!("watches guest {}, in view {} of its memory:", guest.name, guest.watched_view()));
            let rules = monitor.rules.iter().enumerate().filter(|(_, rule)| rule.guest.value == guest.name);
            lines.extend(rules.map(|(number, rule)| format!("  rule {}: {}", number + 1, rule.describe())));
            let events = monitor.events.iter().enumerate().filter(|(_, rule)| rule.guest.value == guest.name);
            lines.extend(events.map(|(number, rule)| format!("  events, rule {}: {}", number + 1, rule.describe())));
        }
        lines
    }

    pub(crate) fn server_cpus(&self, name: &str, role: Role) -> Vec<u8> {
        match role {
            Role::Console => vec![0],
            Role::P2m(guest) | Role::Vcpu(guest) => self.guests[usize::from(guest)].server_cpus().collect(),
            Role::Irqfwd => self.irqfwd_cpus(),
            Role::Smmu => vec![0],
            Role::Monitor => self.monitor_named(name).map_or(Vec::new(), |monitor| self.monitor_cpus(monitor)),
        }
    }

    fn explain_cpus(&self) -> String {
        let mut text = String::new();
        for cpu in 0..self.cpus() {
            text += &format!("\nCPU {cpu}\n");
            if cpu == 0 {
                text += "  root, console\n";
            }
            for guest in &self.guests {
                for (vcpu, _) in guest.cpus.iter().enumerate().filter(|(_, at)| usize::from(**at) == cpu) {
                    text += &format!("  vCPU {vcpu} of {}: priority {}, {}\n", guest.name, guest.priority, show_budget(guest.budget));
                }
            }
        }
        text
    }
}

/// How many views a guest may have, and those that are there from the start.
fn explain_views(guest: &Guest) -> String {
    let views = &guest.views;
    if views.count == 1 {
        return String::new();
    }
    let inside = match views.inside {
        Inside::NONE => "it knows nothing of them",
        Inside::SWITCH => "it may enter those that are shown to it",
        _ => "it may enter those that are shown to it, and is told of what they forbid where that is wanted",
    };
    let mut text = format!("    {} views of its memory at most; {inside}\n", views.count);
    for (index, view) in (1..).zip(&views.planned) {
        let shown = if view.value.shown { "" } else { ", hidden from it" };
        text += &format!("      view {index}: {}{shown}\n", word(view.value.default));
        for pages in &view.value.pages {
            let (first, end) = (pages.first * PAGE, (pages.first + pages.pages) * PAGE);
            let notify = if pages.notify { ", it is told" } else { "" };
            let shows = pages.shows.map_or(String::new(), |page| format!(", shows {:#x}", page * PAGE));
            text += &format!("        {first:#x}..{end:#x} {}{notify}{shows}\n", word(pages.access));
        }
    }
    text
}

fn explain_guest(guest: &Guest) -> String {
    let start = Guest::MEMORY_BASE;
    let mut text = format!("\nguest {} ({}, manifest line {})\n", guest.name, guest.kernel_name, guest.manifest_line);
    text += &format!(
        "  memory {start:#x}..{:#x} ({}, {}); page tables from a quota of {} pages\n",
        start + guest.memory_bytes,
        show_size(guest.memory_bytes),
        if guest.populate == Populate::Eager { "mapped before it starts" } else { "mapped at first touch" },
        guest.table_pages(),
    );
    for piece in &guest.placement.kernel.pieces {
        text += &format!("    {:#x}..{:#x} {}\n", piece.address, piece.address + piece.memory_bytes, piece.name);
    }
    if let Some(initrd) = &guest.placement.initrd {
        text += &format!("    {:#x}..{:#x} initrd\n", initrd.start, initrd.end);
    }
    text += &explain_views(guest);
    let tree_at = guest.placement.tree_at;
    text += &format!("    {tree_at:#x}..{:#x} device tree (x0)\n", tree_at + guest.placement.tree.len() as u64);
    text += &format!("  begins at {:#x}, EL1, on {}; {}\n", guest.placement.kernel.entry, cpu_list(&guest.cpus), show_budget(guest.budget));
    text += &format!("  sees a GICv{}, a PL011, both timers, PSCI 1.1\n", guest.gic);
    for owned in &guest.devices {
        let device = &owned.device;
        let way = if owned.direct { "straight from the kernel" } else { "through irqfwd" };
        let lines = match &device.lines[..] {
            [] => "no interrupt".into(),
            lines if lines == owned.lines => format!("{}, {way}", line_list(lines)),
            lines => format!("{}, seen as {}, {way}", line_list(lines), line_list(&owned.lines)),
        };
        let pages = owned.stretches.iter();
        let pages = pages.map(|one| format!("{} page(s) at {:#x}, seen at {:#x}", one.pages(), one.page() * PAGE, one.address));
        text += &format!("  owns {}: {}; {lines}\n", device.name, pages.collect::<Vec<_>>().join("; "));
        if owned.as_pci {
            text += &format!("    it finds {} by its configuration, as a function of PCI: {}\n", device.name, if device.table.is_some() {
                "its messages go to a frame (GICv2m)"
            } else {
                "its first message is its wire"
            });
        } else if device.table.is_some() {
            text += &format!("    the table of {}'s messages is on pages that it does not see\n", device.name);
        }
        if owned.protected {
            text += &format!("    {} reads and writes this memory by itself, at the guest's addresses, and no other: the SMMU stops it\n", device.name);
        } else if device.has_dma() {
            text += &format!("    {} reads and writes all of memory by itself, unprotected, at the machine's addresses\n", device.name);
        }
    }
    text += &format!("  exits: memory faults go to {}, all others to {}\n", guest.p2m_name(), guest.vcpu_name());
    for monitor in &guest.monitors {
        text += &format!("  watched by {}, in view {}: {}\n", monitor.server.value, guest.watched_view(), monitor.describe());
    }
    text += &format!(
        "  after a reset it {}; it is {}essential\n",
        if guest.on_reset == OnReset::Reboot { "starts again" } else { "has ended" },
        if guest.essential { "" } else { "not " },
    );
    text
}

pub(crate) fn show_budget(budget: Option<Budget>) -> String {
    match budget {
        None => "the whole CPU by priority".into(),
        Some(budget) => format!("{} of each {}", show_time(budget.time_us.into()), show_time(budget.period_us.into())),
    }
}

fn line_list(lines: &[u32]) -> String {
    let list = lines.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    format!("{} {list}", if lines.len() == 1 { "interrupt" } else { "interrupts" })
}

pub(crate) fn cpu_list(cpus: &[u8]) -> String {
    let mut cpus: Vec<u8> = cpus.to_vec();
    cpus.sort();
    cpus.dedup();
    let list = cpus.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    format!("{} {list}", if cpus.len() == 1 { "CPU" } else { "CPUs" })
}
