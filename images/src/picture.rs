// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may do what to whom, as a picture in SVG.
//!
//! A band for each rank, the highest at the top, monitors above what they watch; a column for each guest with its two servers; a row for each CPU at
//! the foot. Calls go down, signals go up, exits come from the guests.

use crate::explain::{ROOT_RANK, show_budget};
use crate::guest::Guest;
use crate::quantity::show_size;
use crate::system::System;
use svg::Document;
use svg::node::element::{Definitions, Group, Line, Marker, Path, Polyline, Rectangle, Text};
use trellis_idl::plan::Role;

const LEFT: f64 = 120.0;
const COLUMN: f64 = 330.0;
const SERVER_X: f64 = 50.0;
const SERVER_WIDTH: f64 = 190.0;
const CONSOLE_Y: f64 = 90.0;
const ROOT_Y: f64 = 205.0;
const BUS_Y: f64 = 335.0;
const MONITOR_Y: f64 = 380.0;
const BOX_HEIGHT: f64 = 80.0;

const CALL: &str = "#1f5fbf";
const EXIT: &str = "#c0392b";
const SIGNAL: &str = "#8a6d00";
const MAP: &str = "#1e8449";
const WATCH: &str = "#8e44ad";
const INK: &str = "#1c2833";

/// Where the rows below root begin: one more where somebody watches.
#[derive(Clone, Copy)]
struct Rows {
    vcpu: f64,
    p2m: f64,
    guest: f64,
}

impl Rows {
    fn of(system: &System) -> Rows {
        let shift = if system.monitors().is_empty() { 0.0 } else { 130.0 };
        Rows { vcpu: MONITOR_Y + shift, p2m: 540.0 + shift, guest: 720.0 + shift }
    }
}

impl System {
    /// Who may do what to whom, as SVG.
    pub fn picture(&self) -> String {
        let width = LEFT + COLUMN * (self.guests.len().max(self.monitors.len()).max(2)) as f64 + 90.0;
        let rows = Rows::of(self);
        let lines: Vec<_> = self.guests.iter().map(|guest| self.guest_lines(guest)).collect();
        let guest_height = lines.iter().map(|lines| 44.0 + 18.0 * lines.len() as f64).fold(0.0, f64::max);
        let cpus_y = rows.guest + guest_height + 100.0;
        let height = cpus_y + 46.0 * (self.cpus() + 1) as f64 + 20.0;
        let mut group = Group::new().set("font-family", "DejaVu Sans, Helvetica, sans-serif");
        group = self.bands(group, width, guest_height, rows);
        group = self.system_servers(group, width);
        for (index, (guest, lines)) in self.guests.iter().zip(&lines).enumerate() {
            group = column(group, LEFT + COLUMN * index as f64, guest, (guest_height, lines), rows);
        }
        group = self.watchers_row(group, rows);
        group = kernel_bar(group, width, rows.guest + guest_height + 30.0);
        group = self.cpu_rows(group, width, cpus_y);
        group = self.memory_row(group, width, cpus_y + 46.0 * self.cpus() as f64);
        Document::new()
            .set("viewBox", (0.0, 0.0, width, height))
            .set("width", width)
            .set("height", height)
            .add(arrow_heads())
            .add(rectangle(0.0, 0.0, width, height, "#ffffff", "none"))
            .add(group)
            .to_string()
    }

    fn bands(&self, group: Group, width: f64, guest_height: f64, rows: Rows) -> Group {
        let title = format!("system {}", self.name);
        let group = group.add(text(20.0, 36.0, 22, INK, &title).set("font-weight", "bold"));
        let group = group.add(text(20.0, 60.0, 13, INK, &self.describe_board()));
        let watched = !self.monitors.is_empty();
        let group = legend(group, width - 560.0, watched);
        let bands = [
            (CONSOLE_Y, BOX_HEIGHT, format!("rank {}", Role::Console.rank()), "console"),
            (ROOT_Y, BOX_HEIGHT, format!("rank {ROOT_RANK}"), "root"),
            (rows.vcpu, BOX_HEIGHT, format!("rank {}", Role::Vcpu(0).rank()), "vcpu"),
            (rows.p2m, BOX_HEIGHT, format!("rank {}", Role::P2m(0).rank()), "p2m"),
            (rows.guest, guest_height, "guests".into(), "EL1, EL0"),
        ];
        let monitors = (MONITOR_Y, BOX_HEIGHT, format!("rank {}", Role::Monitor.rank()), "monitors");
        let monitors = (!self.monitors.is_empty()).then_some(monitors);
        bands.into_iter().chain(monitors).fold(group, |group, (y, height, rank, what)| {
            group
                .add(rectangle(10.0, y - 12.0, width - 20.0, height + 24.0, "#f4f6f7", "none").set("rx", 8))
                .add(text(22.0, y + height / 2.0, 14, "#566573", &rank).set("font-weight", "bold"))
                .add(text(22.0, y + height / 2.0 + 18.0, 12, "#566573", what))
        })
    }

    fn system_servers(&self, group: Group, width: f64) -> Group {
        let (right, bus_right) = (width - 100.0, width - 55.0);
        let devices: Vec<String> = self.board.fixed_devices().iter().map(|(name, at)| format!("{name} {:#x}", at.base)).collect();
        let group = node(group, LEFT, CONSOLE_Y, width - 30.0 - LEFT, BOX_HEIGHT, "#fdf2e0", "console", &[
            "the serial port: frames logs and guests' consoles".into(),
            format!("maps the serial port's page, takes line {}, reads the kernel's log", self.board.uart.line),
        ]);
        let group = node(group, LEFT, ROOT_Y, right - LEFT, BOX_HEIGHT, "#e8eef9", "root", &[
            format!("starts and supervises all; holds free memory, the machine, {}", devices.join(", ")),
            "may create and destroy every object; calls every p2m and vcpu server".into(),
        ]);
        let first = LEFT + SERVER_X + 150.0;
        let bus = [(first, BUS_Y), (bus_right, BUS_Y), (bus_right, CONSOLE_Y + BOX_HEIGHT)];
        let group = group.add(arrow(&bus, SIGNAL, true));
        let group = group.add(
            text(bus_right + 8.0, ROOT_Y - 10.0, 11, SIGNAL, "signal: output, input")
                .set("transform", format!("rotate(90 {} {})", bus_right + 8.0, ROOT_Y - 10.0)),
        );
        group.add(arrow(&[(right - 40.0, ROOT_Y), (right - 40.0, CONSOLE_Y + BOX_HEIGHT)], SIGNAL, true)).add(text(
            right - 225.0,
            ROOT_Y - 14.0,
            11,
            SIGNAL,
            "signal: drain before power-off",
        ))
    }

    /// The monitors, and which guests' watched pages each is asked about.
    fn watchers_row(&self, mut group: Group, rows: Rows) -> Group {
        let foot = MONITOR_Y + BOX_HEIGHT;
        for (index, monitor) in self.monitors.iter().enumerate() {
            let left = LEFT + COLUMN * index as f64 + SERVER_X;
            let names = monitor.guests.iter().map(|(guest, _)| shorten(&self.guests[*guest].name, 12)).collect::<Vec<_>>().join(", ");
            group = node(group, left, MONITOR_Y, SERVER_WIDTH, BOX_HEIGHT, "#f6e9f3", &monitor.name, &[
                format!("watches {names}"),
                format!("{} rule{}; is called by root", monitor.rules.len(), if monitor.rules.len() == 1 { "" } else { "s" }),
            ]);
            for (guest, _) in &monitor.guests {
                let lane = LEFT + COLUMN * *guest as f64 + 8.0;
                let (level, end) = (foot + 12.0 + 5.0 * index as f64, left + 20.0);
                let way = [(lane + SERVER_X - 8.0, rows.p2m + 20.0), (lane, rows.p2m + 20.0), (lane, level), (end, level), (end, foot)];
                group = group.add(arrow(&way, WATCH, false));
            }
        }
        group
    }

    fn guest_lines(&self, guest: &Guest) -> Vec<String> {
        let mut lines = guest_lines(guest);
        for monitor in &guest.monitors {
            lines.push(format!("watched by {}, in view {}:", shorten(&monitor.server.value, 16), guest.watched_view()));
            let rules = self.monitor_named(&monitor.server.value).into_iter().flat_map(|monitor| &monitor.rules);
            let rules = rules.filter(|rule| rule.guest.value == guest.name);
            lines.extend(rules.map(|rule| format!("   {}", rule.describe())));
            let events = self.monitor_named(&monitor.server.value).into_iter().flat_map(|monitor| &monitor.events);
            let events = events.filter(|rule| rule.guest.value == guest.name);
            lines.extend(events.map(|rule| format!("   {}", rule.describe())));
        }
        lines
    }

    fn cpu_rows(&self, mut group: Group, width: f64, top: f64) -> Group {
        for cpu in 0..self.cpus() {
            let y = top + 46.0 * cpu as f64;
            group = group.add(rectangle(10.0, y, width - 20.0, 38.0, "#eef1f4", "#aeb6bf").set("rx", 6));
            group = group.add(text(22.0, y + 24.0, 14, INK, &format!("CPU {cpu}")).set("font-weight", "bold"));
            let mut words = if cpu == 0 { vec!["root, console, control threads".to_string()] } else { Vec::new() };
            if self.owned().next().is_some() && self.irqfwd_cpus().contains(&(cpu as u8)) {
                words.push("irqfwd".into());
            }
            if self.has_smmu() && cpu == 0 {
                words.push("smmu".into());
            }
            for guest in &self.guests {
                let here = guest.cpus.iter().enumerate().filter(|(_, at)| usize::from(**at) == cpu);
                words.extend(here.map(|(vcpu, _)| {
                    format!("{} vCPU {vcpu}: priority {}, {}", shorten(&guest.name, 12), guest.priority, short_budget(guest))
                }));
            }
            group = group.add(text(LEFT, y + 24.0, 12, INK, &shorten(&words.join(APART), (width / 7.2) as usize)));
        }
        group
    }

    /// Who has how much of the machine's memory, to scale.
    fn memory_row(&self, group: Group, width: f64, y: f64) -> Group {
        let all = self.board.memory().max(1);
        let right = width - 20.0;
        let mut group = group.add(rectangle(10.0, y, width - 20.0, 38.0, "#eef1f4", "#aeb6bf").set("rx", 6));
        group = group.add(text(22.0, y + 24.0, 14, INK, "memory").set("font-weight", "bold"));
        let mut x = LEFT;
        for guest in &self.guests {
            let share = (right - LEFT) * guest.memory_bytes as f64 / all as f64;
            group = group.add(rectangle(x, y + 28.0, share, 7.0, "#a9cbb4", "#5d8a6b"));
            x += share;
        }
        let mut words: Vec<String> = self
            .guests
            .iter()
            .map(|guest| format!("{} {}", shorten(&guest.name, 12), show_size(guest.memory_bytes)))
            .collect();
        words.push(format!("of {}; the rest is the image's, the kernel's, the servers' and root's", show_size(all)));
        group.add(text(LEFT, y + 20.0, 12, INK, &shorten(&words.join(APART), (width / 7.2) as usize)))
    }
}

/// Between two pieces of a row.
const APART: &str = "   |   ";

fn short_budget(guest: &Guest) -> String {
    if guest.budget.is_none() { "no budget".into() } else { show_budget(guest.budget) }
}

/// One guest with its servers and every arrow between them.
fn column(group: Group, x: f64, guest: &Guest, (height, lines): (f64, &[String]), rows: Rows) -> Group {
    let Rows { vcpu, p2m, guest: foot } = rows;
    let (server, root_end) = (x + SERVER_X, ROOT_Y + BOX_HEIGHT);
    let right = server + SERVER_WIDTH;
    let group = node(group, server, vcpu, SERVER_WIDTH, BOX_HEIGHT, "#e9f3ec", &guest.vcpu_name(), &[
        "processor and platform:".into(),
        "vCPUs, lines, memory r/w".into(),
    ]);
    let group = node(group, server, p2m, SERVER_WIDTH, BOX_HEIGHT, "#e9f3ec", &guest.p2m_name(), &[
        "owns the guest's maps".into(),
        format!("tables: {} pages", guest.table_pages()),
    ]);
    let group = node(group, x, foot, COLUMN - 30.0, height, "#fbfcfc", &guest.name, lines);
    let up = |from: f64, to: f64, at: f64| [(at, from), (at, to)];
    let (signal_lane, call_lane) = (right + 22.0, right + 50.0);
    let p2m_signal = [(right, p2m + 20.0), (signal_lane, p2m + 20.0), (signal_lane, root_end)];
    let p2m_call = [(call_lane, root_end), (call_lane, p2m + 58.0), (right, p2m + 58.0)];
    let exit_lane = [(x + 22.0, foot), (x + 22.0, vcpu + 40.0), (server, vcpu + 40.0)];
    group
        .add(arrow(&up(root_end, vcpu, server + 40.0), CALL, false))
        .add(text(server + 46.0, root_end + 26.0, 11, CALL, "call"))
        .add(arrow(&up(vcpu, root_end, server + 150.0), SIGNAL, true))
        .add(dot(server + 150.0, BUS_Y))
        .add(text(server + 104.0, root_end + 26.0, 11, SIGNAL, "signal"))
        .add(arrow(&p2m_signal, SIGNAL, true))
        .add(dot(signal_lane, BUS_Y))
        .add(arrow(&p2m_call, CALL, false))
        .add(text(call_lane - 24.0, root_end + 26.0, 11, CALL, "call"))
        .add(arrow(&up(vcpu + BOX_HEIGHT, p2m, server + 95.0), CALL, false))
        .add(text(server + 102.0, p2m - 36.0, 11, CALL, "call: populate"))
        .add(arrow(&up(p2m, vcpu + BOX_HEIGHT, server + 40.0), EXIT, false))
        .add(text(server + 46.0, p2m - 36.0, 11, EXIT, "exit"))
        .add(arrow(&up(p2m + BOX_HEIGHT, foot, server + 40.0), MAP, false))
        .add(text(server - 14.0, foot - 46.0, 11, MAP, "map,").set("text-anchor", "start"))
        .add(text(server - 14.0, foot - 32.0, 11, MAP, "unmap"))
        .add(arrow(&up(foot, p2m + BOX_HEIGHT, server + 120.0), EXIT, false))
        .add(text(server + 127.0, foot - 40.0, 11, EXIT, "exit: memory faults"))
        .add(arrow(&exit_lane, EXIT, false))
        .add(text(x + 28.0, vcpu + BOX_HEIGHT + 24.0, 11, EXIT, "exit: all"))
        .add(text(x + 28.0, vcpu + BOX_HEIGHT + 38.0, 11, EXIT, "others"))
}

fn guest_lines(guest: &Guest) -> Vec<String> {
    let cpus = guest.cpus.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        shorten(&format!("{} ({})", guest.kernel_name, guest.kind.name()), 40),
        format!("vCPUs on CPU{} {cpus}; priority {}", if guest.cpus.len() > 1 { "s" } else { "" }, guest.priority),
        show_budget(guest.budget),
        format!("GICv{}, PL011, both timers, PSCI", guest.gic),
        format!("memory {} from {:#x}:", show_size(guest.memory_bytes), Guest::MEMORY_BASE),
    ];
    for piece in &guest.placement.kernel.pieces {
        lines.push(format!("   {:#x}  {}", piece.address, shorten(piece.name.split(" at ").next().unwrap_or(""), 20)));
    }
    if let Some(initrd) = &guest.placement.initrd {
        lines.push(format!("   {:#x}  initrd", initrd.start));
    }
    lines.push(format!("   {:#x}  device tree", guest.placement.tree_at));
    lines
}

fn kernel_bar(group: Group, width: f64, y: f64) -> Group {
    let sentence = "kernel, EL2: carries every call, signal, exit and map; checks each capability; allocates nothing after boot";
    group.add(rectangle(10.0, y, width - 20.0, 42.0, "#34495e", "none").set("rx", 6)).add(text(22.0, y + 26.0, 13, "#ffffff", sentence))
}

fn legend(group: Group, x: f64, watched: bool) -> Group {
    let kinds = [("call (down only)", CALL, false), ("signal", SIGNAL, true), ("exit", EXIT, false), ("map", MAP, false)];
    let kinds = kinds.into_iter().chain(watched.then_some(("event", WATCH, false)));
    kinds.enumerate().fold(group, |group, (index, (name, colour, dashed))| {
        let apart = if watched { 105.0 } else { 140.0 };
        let at = x.max(330.0) + apart * index as f64 + if index > 0 { 40.0 } else { 0.0 };
        group.add(arrow(&[(at, 32.0), (at + 36.0, 32.0)], colour, dashed)).add(text(at + 44.0, 36.0, 12, colour, name))
    })
}

#[allow(clippy::too_many_arguments)] // a rectangle, a colour and what it says
fn node(group: Group, x: f64, y: f64, width: f64, height: f64, fill: &str, name: &str, lines: &[String]) -> Group {
    let most = (width / 7.0) as usize;
    let group = group
        .add(rectangle(x, y, width, height, fill, INK).set("rx", 6))
        .add(text(x + 12.0, y + 24.0, 15, INK, &shorten(name, (width / 10.5) as usize)).set("font-weight", "bold"));
    lines.iter().enumerate().fold(group, |group, (index, line)| {
        group.add(text(x + 12.0, y + 46.0 + 18.0 * index as f64, 12, INK, &shorten(line, most)))
    })
}

fn rectangle(x: f64, y: f64, width: f64, height: f64, fill: &str, stroke: &str) -> Rectangle {
    let rectangle = Rectangle::new().set("x", x).set("y", y).set("width", width).set("height", height);
    rectangle.set("fill", fill).set("stroke", stroke).set("stroke-width", 1.2)
}

fn text(x: f64, y: f64, size: u32, fill: &str, words: &str) -> Text {
    // Spaces in a row stay only if they do not break; `xml:space` would also keep the line ends around the words.
    let words = words.replace(char::is_control, " ").replace("  ", "\u{a0}\u{a0}");
    Text::new(words).set("x", x).set("y", y).set("font-size", size).set("fill", fill)
}

fn arrow(points: &[(f64, f64)], colour: &str, dashed: bool) -> Polyline {
    let points = points.iter().map(|(x, y)| format!("{x},{y}")).collect::<Vec<_>>().join(" ");
    let line = Polyline::new().set("points", points).set("fill", "none").set("stroke", colour).set("stroke-width", 1.8);
    let line = line.set("marker-end", format!("url(#head-{})", colour.trim_start_matches('#')));
    if dashed { line.set("stroke-dasharray", "6 4") } else { line }
}

fn dot(x: f64, y: f64) -> Line {
    let line = Line::new().set("x1", x).set("y1", y).set("x2", x).set("y2", y);
    line.set("stroke", SIGNAL).set("stroke-width", 7).set("stroke-linecap", "round")
}

fn arrow_heads() -> Definitions {
    [CALL, EXIT, SIGNAL, MAP, WATCH].into_iter().fold(Definitions::new(), |heads, colour| {
        let head = Path::new().set("d", "M0,0 L8,4 L0,8 z").set("fill", colour);
        let marker = Marker::new().set("id", format!("head-{}", colour.trim_start_matches('#')));
        let marker = marker.set("markerWidth", 8).set("markerHeight", 8).set("refX", 7).set("refY", 4);
        heads.add(marker.set("orient", "auto").set("markerUnits", "userSpaceOnUse").add(head))
    })
}

fn shorten(words: &str, most: usize) -> String {
    if words.chars().count() <= most {
        return words.into();
    }
    words.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
