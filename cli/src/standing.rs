// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a running system stands, as `trellis ctl status` shows it.

use crate::columns::{self, bytes};
use crate::silicon;
use serde_json::{Value, json};
use trellis_idl::control::{Control, Ended, GuestState, Life, Part, ServerState, Silicon, SourceState, SystemState, VcpuState};

/// Everything that the system said of itself.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    system: Option<SystemState>,
    guests: Vec<GuestState>,
    servers: Vec<ServerState>,
    sources: Vec<SourceState>,
    silicon: Option<Silicon>,
}

impl Standing {
    /// Out of an answer's parts.
    pub fn of(parts: &[Part]) -> Standing {
        let mut standing = Standing::default();
        for part in parts {
            match part {
                Part::System(system) => standing.system = Some(system.clone()),
                Part::Guest(guest) => standing.guests.push(guest.clone()),
                Part::Server(server) => standing.servers.push(server.clone()),
                Part::Source(source) => standing.sources.push(*source),
                Part::Silicon(silicon) => standing.silicon = Some(*silicon),
                // Parts of other answers, and of later versions.
                _ => {}
            }
        }
        standing
    }

    /// The system's name, and for how many seconds it has run.
    pub fn title(&self) -> (String, f64) {
        self.system.as_ref().map_or_else(Default::default, |system| (system.name.to_string(), seconds(system)))
    }

    /// The clock's ticks a second.
    pub fn hertz(&self) -> u64 {
        self.system.as_ref().map_or(1, |system| system.clock_hz.max(1))
    }

    /// A server's name.
    pub fn server_name(&self, index: u8) -> &str {
        self.server(index)
    }

    /// The guests.
    pub fn guests(&self) -> &[GuestState] {
        &self.guests
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut text = self.system.as_ref().map(system).unwrap_or_default();
        text += "\n";
        text += &columns::lines("", &self.guest_rows());
        for guest in self.guests.iter().filter(|guest| guest.stopped > 0) {
            let accesses = if guest.stopped == 1 { "an access".into() } else { format!("{} accesses", guest.stopped) };
            text += &format!("the SMMU stopped {accesses} of {}'s devices\n", guest.name);
        }
        text += "\n";
        text += &columns::lines("", &self.server_rows());
        if !self.sources.is_empty() {
            text += "\n";
            text += &columns::lines("", &self.source_rows());
        }
        if let Some(silicon) = &self.silicon {
            text += &format!("\nCPU {:#x}\n", silicon.midr);
            let list = silicon::has(silicon).into_iter().chain(silicon::lacks(silicon).into_iter().map(String::from));
            let errata = silicon::errata(silicon).into_iter().map(|what| format!("erratum: {what}"));
            for line in list.chain(errata).chain([format!("predictors: {}", silicon::predictors(silicon))]) {
                text += &format!("  {line}\n");
            }
        }
        text
    }

    fn guest_rows(&self) -> Vec<Vec<String>> {
        let head = ["GUEST", "STATE", "VCPUS", "MEMORY", "VIEWS", "TABLES LEFT", "RESTARTS"].map(String::from).to_vec();
        let row = |guest: &GuestState| {
            vec![
                guest.name.to_string(),
                self.life(guest.life),
                guest.vcpus.iter().map(vcpu).collect::<Vec<_>>().join(", "),
                bytes(guest.memory_bytes),
                format!("{} of {}", guest.views[1], guest.views[0]),
                format!("{} of {}", guest.tables[1], guest.tables[0]),
                guest.reboots.to_string(),
            ]
        };
        std::iter::once(head).chain(self.guests.iter().map(row)).collect()
    }

    fn server_rows(&self) -> Vec<Vec<String>> {
        let head = ["SERVER", "STATE", "RANK", "THREADS", "MEMORY"].map(String::from).to_vec();
        let row = |server: &ServerState| {
            let state = if server.has_stopped { "stopped" } else { "runs" };
            vec![
                server.name.to_string(), state.into(), server.rank.to_string(), server.threads.to_string(),
                bytes(server.memory_bytes),
            ]
        };
        std::iter::once(head).chain(self.servers.iter().map(row)).collect()
    }

    fn source_rows(&self) -> Vec<Vec<String>> {
        let head = ["LINE", "GUEST", "SEEN AS", "BY SERVER", "STRAIGHT", "STORMS", "WAITED"].map(String::from).to_vec();
        let row = |source: &SourceState| {
            let numbers = [source.passed, source.straight, source.storms].map(|number| number.to_string());
            let [passed, straight, storms] = numbers;
            let guest = self.guest_of(source);
            vec![source.line.to_string(), guest, source.guest_line.to_string(), passed, straight, storms, waited(source)]
        };
        std::iter::once(head).chain(self.sources.iter().map(row)).collect()
    }

    fn guest_of(&self, source: &SourceState) -> String {
        let found = self.guests.iter().find(|guest| guest.guest == source.guest);
        found.map_or_else(String::new, |guest| guest.name.to_string())
    }

    /// What a guest does, in words.
    pub fn life(&self, life: Life) -> String {
        match life {
            Life::Runs => "runs".into(),
            Life::Paused => "paused".into(),
            Life::Ended(Ended::Off) => "off".into(),
            Life::Ended(Ended::Reset) => "ended by a reset".into(),
            Life::Ended(Ended::Status(status)) => format!("ended with status {status}"),
            Life::Ended(Ended::Crash) => "crashed".into(),
            Life::Ended(Ended::Vectors) => "not started: no such vectors".into(),
            Life::Ended(Ended::Server(server)) => format!("lost {}", self.server(server)),
            Life::Ended(Ended::Stopped(server)) => format!("stopped by {}", self.server(server)),
        }
    }

    fn server(&self, index: u8) -> &str {
        let found = self.servers.iter().find(|known| known.server == index);
        found.map_or("a server", |server| server.name.as_str())
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "system": self.system.as_ref().map(|system| json!({
                "name": system.name.as_str(), "control": word(system.control), "up_seconds": seconds(system), "cpus": system.cpus,
                "kernel_bytes": system.kernel_bytes, "free_bytes": system.free_bytes,
            })),
            "guests": self.guests.iter().map(|guest| self.guest_json(guest)).collect::<Vec<_>>(),
            "servers": self.servers.iter().map(|server| json!({
                "name": server.name.as_str(), "rank": server.rank, "stopped": server.has_stopped, "threads": server.threads,
                "memory_bytes": server.memory_bytes,
            })).collect::<Vec<_>>(),
            "sources": self.sources.iter().map(|source| json!({
                "line": source.line, "guest": self.guest_of(source), "guest_line": source.guest_line, "direct": source.is_direct,
                "by_server": source.passed, "straight": source.straight, "waited_for_vcpu": source.waited, "storms": source.storms,
                "moved": source.moved, "waited": WAITS.iter().zip(source.delays).map(|(wait, count)| json!({
                    "less_than_us": wait, "count": count,
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "silicon": self.silicon.as_ref().map(|silicon| json!({
                "midr": silicon.midr, "has": silicon::has(silicon), "lacks": silicon::lacks(silicon),
                "errata": silicon::errata(silicon), "predictors": silicon::predictors(silicon),
            })),
        })
    }

    fn guest_json(&self, guest: &GuestState) -> Value {
        let vcpus = guest.vcpus.iter().map(|vcpu| json!({ "cpu": vcpu.cpu, "on": vcpu.is_on, "view": vcpu.view }));
        json!({
            "name": guest.name.as_str(), "state": self.life(guest.life), "restarts": guest.reboots,
            "memory_bytes": guest.memory_bytes, "views": guest.views[1], "most_views": guest.views[0],
            "tables_left": guest.tables[1], "tables": guest.tables[0], "accesses_stopped": guest.stopped, "vcpus": vcpus.collect::<Vec<_>>(),
        })
    }
}

/// Microseconds that interrupts waited for less than, step by step; the last step has no end.
const WAITS: [Option<u64>; 9] =
    [Some(1), Some(4), Some(16), Some(64), Some(256), Some(1024), Some(4096), Some(16_384), None];

/// How many interrupts of a source waited for how long, steps without any left out.
fn waited(source: &SourceState) -> String {
    let steps = WAITS.iter().zip(source.delays).filter(|(_, count)| *count > 0);
    let words = steps.map(|(wait, count)| match wait {
        Some(wait) => format!("{count} < {wait} us"),
        None => format!("{count} longer"),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn seconds(system: &SystemState) -> f64 {
    system.up as f64 / system.clock_hz.max(1) as f64
}

/// As the manifest says it.
fn word(control: Control) -> &'static str {
    match control {
        Control::Off => "off",
        Control::Observe => "observe",
        Control::Full => "full",
    }
}

fn system(system: &SystemState) -> String {
    format!(
        "system {}, up {:.1} s, control = \"{}\"\n{} CPUs; the kernel keeps {}, {} are free\n",
        system.name, seconds(system), word(system.control), system.cpus, bytes(system.kernel_bytes), bytes(system.free_bytes)
    )
}

/// Where a vCPU is, and the view if it is not the host map.
fn vcpu(vcpu: &VcpuState) -> String {
    let at = format!("CPU {}", vcpu.cpu);
    match (vcpu.is_on, vcpu.view) {
        (false, _) => format!("{at} (off)"),
        (true, 0) => at,
        (true, view) => format!("{at} (view {view})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::control::Name;

    fn name(text: &str) -> Name {
        Name::try_from(text).expect("a short name")
    }

    fn standing() -> Standing {
        let system = SystemState {
            name: name("two"), control: Control::Full, up: 25, clock_hz: 10, cpus: 2, kernel_bytes: 643_072, free_bytes: 900 << 20,
        };
        let vcpu = |cpu, is_on, view| VcpuState { cpu, is_on, view };
        let guest = |text, life, vcpus: &[VcpuState]| GuestState {
            guest: 0, name: name(text), life, reboots: 1, memory_bytes: 16 << 20, views: [8, 2], tables: [30, 12],
            stopped: if text == "db" { 7 } else { 0 },
            vcpus: vcpus.iter().copied().collect(),
        };
        let server = ServerState { server: 1, name: name("p2m.web"), rank: 1, has_stopped: true, threads: 3, memory_bytes: 90 << 10 };
        let silicon = Silicon { midr: 0x410f_d083, features: 0, predictors: 0, memory_model: 0, list_registers: 4, vectors: 0 };
        Standing::of(&[
            Part::System(system),
            Part::Guest(guest("web", Life::Paused, &[vcpu(0, true, 0), vcpu(1, false, 0)])),
            Part::Guest(guest("db", Life::Ended(Ended::Server(1)), &[vcpu(1, true, 3)])),
            Part::Server(server),
            Part::Silicon(silicon),
            Part::Source(SourceState {
                guest: 0, line: 153, guest_line: 127, is_direct: false, passed: 12, straight: 0, waited: 1, storms: 0, moved: 2,
                delays: [9, 0, 2, 0, 0, 0, 0, 0, 1],
            }),
        ])
    }

    #[test]
    fn a_system_is_shown_in_columns() {
        let text = standing().text();
        let expected = "system two, up 2.5 s, control = \"full\"\n2 CPUs; the kernel keeps 628 KiB, 900 MiB are free\n\n\
            GUEST  STATE         VCPUS               MEMORY  VIEWS   TABLES LEFT  RESTARTS\n\
            web    paused        CPU 0, CPU 1 (off)  16 MiB  2 of 8  12 of 30     1\n\
            db     lost p2m.web  CPU 1 (view 3)      16 MiB  2 of 8  12 of 30     1\n\
            the SMMU stopped 7 accesses of db's devices\n\n\
            SERVER   STATE    RANK  THREADS  MEMORY\np2m.web  stopped  1     3        90 KiB\n\n\
            LINE  GUEST  SEEN AS  BY SERVER  STRAIGHT  STORMS  WAITED\n\
            153   web    127      12         0         0       9 < 1 us, 2 < 16 us, 1 longer\n\nCPU 0x410fd083\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("  predictors: nothing to be done at entries\n"), "{text}");
    }

    #[test]
    fn the_same_as_json() {
        let json = standing().json();
        assert_eq!(json["system"]["up_seconds"], 2.5);
        assert_eq!(json["guests"][0]["state"], "paused");
        assert_eq!(json["guests"][0]["vcpus"][1]["on"], false);
        assert_eq!([0, 1].map(|guest| &json["guests"][guest]["accesses_stopped"]), [&json!(0), &json!(7)]);
        assert_eq!(json["servers"][0]["stopped"], true);
        let source = &json["sources"][0];
        assert_eq!((&source["line"], &source["guest"], &source["guest_line"]), (&json!(153), &json!("web"), &json!(127)));
        assert_eq!((&source["waited"][2]["less_than_us"], &source["waited"][2]["count"]), (&json!(16), &json!(2)));
        assert_eq!(source["waited"][8], json!({ "less_than_us": null, "count": 1 }));
        assert_eq!(json["silicon"]["lacks"].as_array().map(Vec::len), Some(4));
    }
}
