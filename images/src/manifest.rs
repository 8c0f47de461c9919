// SPDX-License-Identifier: MIT OR Apache-2.0
//! The manifest as written: every key read into its type, with its place, and nothing decided yet.
//!
//! `check` looks at it together with the board and the files it names.

use crate::problem::{Code, Problem};
use crate::source::{Download, OUR_GUESTS};
use crate::table::{Later, Placed, Problems, Span, Table, not_there_yet};
use toml::de::{DeTable, DeValue};
use crate::view::{self, ViewsEntry};
use crate::monitor::{self, ForwardEntry, MonitorEntry, ServerEntry};
use trellis_idl::control::Control;
use trellis_idl::plan::{OnReset, Populate, Sve};

/// Longest manifest.
pub const MAX_BYTES: usize = 1 << 20;
const MAX_NAME: usize = 31;
const RESERVED: [&str; 8] = ["root", "console", "kernel", "host", "p2m", "vcpu", "irqfwd", "smmu"];

/// Whether no guest, monitor or channel may have this name.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name.to_ascii_lowercase().as_str())
}

/// The whole manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The system's name.
    pub name: Option<Placed<String>>,
    /// The board's name, or a path to a board file.
    pub board: Option<Placed<String>>,
    /// `server-float`: servers may use floating point.
    pub server_float: bool,
    /// `control`: what the host may do.
    pub control: Control,
    /// Each `[guest.NAME]`, in the order of the text.
    pub guests: Vec<GuestEntry>,
    /// Each `[server.NAME]`, in the order of the text.
    pub servers: Vec<ServerEntry>,
    /// `[server.irqfwd]`.
    pub forward: Option<ForwardEntry>,
}

/// How a guest's kernel is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An arm64 Image, as Linux has it.
    Image,
    /// A flat file without a header.
    Raw,
    /// ELF64, by physical address.
    Elf,
}

impl Kind {
    /// As manifests name it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Raw => "raw",
            Kind::Elf => "elf",
        }
    }
}

/// Where a kernel or an initial file system comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A file, relative to the manifest.
    File(String),
    /// A guest of ours.
    Ours(&'static str),
    /// Something the tool fetches.
    Download(Download),
    /// `debian:` and a word nobody knows.
    UnknownDownload(String),
}

impl Origin {
    fn parse(text: &str) -> Origin {
        if let Some(name) = OUR_GUESTS.iter().find(|name| **name == text) {
            return Origin::Ours(name);
        }
        if !text.starts_with("debian:") {
            return Origin::File(text.into());
        }
        match Download::ALL.iter().find(|download| download.name() == text) {
            Some(download) => Origin::Download(*download),
            None => Origin::UnknownDownload(text.into()),
        }
    }

    /// The kind a kernel of this origin has, where the origin alone tells.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Origin::Ours(_) => Some(Kind::Elf),
            Origin::Download(Download::Linux) => Some(Kind::Image),
            Origin::Download(Download::UBoot) => Some(Kind::Raw),
            _ => None,
        }
    }

    /// As the manifest names it.
    pub fn name(&self) -> &str {
        match self {
            Origin::File(text) | Origin::UnknownDownload(text) => text,
            Origin::Ours(name) => name,
            Origin::Download(download) => download.name(),
        }
    }
}

/// Time per period.
#[derive(Clone, Debug)]
pub struct BudgetEntry {
    /// Microseconds in each period.
    pub time: Placed<u64>,
    /// Microseconds.
    pub period: Placed<u64>,
}

/// One `[guest.NAME]`.
#[derive(Clone, Debug)]
pub struct GuestEntry {
    /// Its name.
    pub name: Placed<String>,
    /// `kind`.
    pub kind: Option<Placed<Kind>>,
    /// `kernel`.
    pub kernel: Option<Placed<Origin>>,
    /// `initrd`.
    pub initrd: Option<Placed<Origin>>,
    /// `command-line`.
    pub command_line: Option<Placed<String>>,
    /// `memory`, in bytes.
    pub memory: Option<Placed<u64>>,
    /// `load-offset`, in bytes.
    pub load_offset: Option<Placed<u64>>,
    /// `populate`.
    pub populate: Option<Placed<Populate>>,
    /// `cpus`.
    pub cpus: Option<Placed<Vec<Placed<u64>>>>,
    /// `priority`.
    pub priority: Option<Placed<u64>>,
    /// `budget`.
    pub budget: Option<BudgetEntry>,
    /// `gic`.
    pub gic: Option<Placed<u64>>,
    /// `on-reset`.
    pub on_reset: Option<Placed<OnReset>>,
    /// `essential`.
    pub essential: Option<Placed<bool>>,
    /// `sve`.
    pub sve: Option<Placed<Sve>>,
    /// `views`, `views-inside` and `view`.
    pub views: ViewsEntry,
    /// Each `[[guest.NAME.device]]`.
    pub devices: Vec<DeviceEntry>,
    /// `[guest.NAME.monitor]`, one or several.
    pub monitors: Vec<MonitorEntry>,
}

impl GuestEntry {
    /// CPU of each vCPU.
    pub fn cpu_numbers(&self) -> Vec<u64> {
        self.cpus.as_ref().map_or(vec![0], |cpus| cpus.value.iter().map(|cpu| cpu.value).collect())
    }

    /// Which of its monitors a server is.
    pub fn watcher(&self, server: &str) -> Option<usize> {
        self.monitors.iter().position(|monitor| monitor.server.value == server)
    }
}

/// One `[[guest.NAME.device]]`.
#[derive(Clone, Debug)]
pub struct DeviceEntry {
    /// `device`: as the board file names it.
    pub device: Placed<String>,
    /// `forward`: the kernel hands its interrupts on.
    pub direct: bool,
    /// Where `dma = "unprotected"` stands.
    pub unprotected: Option<Span>,
    /// Where `as = "pci"` stands.
    pub as_pci: Option<Span>,
}

const SYSTEM_KEYS: [&str; 6] = ["name", "board", "control", "server-float", "guest", "server"];
const GUEST_KEYS: [&str; 19] = [
    "kind", "kernel", "initrd", "command-line", "memory", "load-offset", "populate", "cpus", "priority", "budget", "gic",
    "on-reset", "essential", "sve", "views", "views-inside", "view", "device", "monitor",
];
const DEVICE_KEYS: [&str; 4] = ["device", "forward", "dma", "as"];
const GUEST_LATER: [Later; 1] = [("swap", "swapping servers at runtime")];

impl Manifest {
    /// Reads the text; what is wrong goes into `problems`, and what could be read comes back.
    pub fn parse(text: &str, problems: &mut Problems) -> Manifest {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            problems.push(syntax(error, text, table.get_ref()));
            // Everything in a table that stands there twice would follow, key by key.
            if repeated_header(text, error.span().unwrap_or(0..0).start).is_some() {
                break;
            }
        }
        // What follows a syntax error is guesswork, and guesses should not be complained about.
        if !errors.is_empty() {
            return Manifest { name: None, board: None, server_float: false, control: Control::Off, guests: Vec::new(), servers: Vec::new(), forward: None };
        }
        let top = Table::new(table.get_ref(), "the manifest", 0..0);
        top.allow(&SYSTEM_KEYS, &[], problems);
        top.require("name", "name = \"my-system\"", problems);
        top.require("board", "board = \"virt\"", problems);
        let words = [("off", Control::Off), ("observe", Control::Observe), ("full", Control::Full)];
        let control = top.choice("control", &words, problems);
        let name = top.text("name", "name = \"my-system\"", problems);
        if let Some(name) = &name {
            check_name("a system", name, problems);
        }
        let server_float = top.choice("server-float", &[("fault", false), ("own", true)], problems);
        let board = top.text("board", "board = \"virt\"", problems);
        let guests = guests(&top, problems);
        let (servers, forward) = servers(&top, problems);
        let names = servers.iter().map(|server| ("server", &server.name));
        distinct(guests.iter().map(|guest| ("guest", &guest.name)).chain(names).collect(), problems);
        Manifest {
            name,
            board,
            server_float: server_float.is_some_and(|choice| choice.value),
            control: control.map_or(Control::Off, |choice| choice.value),
            guests,
            servers,
            forward,
        }
    }
}

fn syntax(error: &toml::de::Error, text: &str, table: &DeTable<'_>) -> Problem {
    let span = clamp(error.span().unwrap_or(0..0), text);
    let message = error.message().trim().replace('\n', "; ");
    if !message.contains("duplicate key") {
        return Problem::new(Code::Syntax, "this is not TOML").at(span, message).hint("see https://toml.io for the format");
    }
    let word = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']).to_string();
    let problem = Problem::new(Code::DuplicateKey, format!("`{word}` stands here twice")).at(span.clone(), "again here");
    match repeated_header(text, span.start).or_else(|| earlier(table, &word, span.start)) {
        Some(first) => problem.at(first, "first here"),
        None => problem,
    }
    .hint("keep one of them, or give one another name")
}

fn clamp(span: Span, text: &str) -> Span {
    span.start.min(text.len())..span.end.min(text.len())
}

/// If a place is in a `[table]` line: where that line stands before.
fn repeated_header(text: &str, at: usize) -> Option<Span> {
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.lines().next()?.trim_end();
    let first = line.starts_with('[').then(|| text[..start].find(line))??;
    Some(first..first + line.len())
}

/// The last key of that name before a place: the one that a second mention meets.
fn earlier(table: &DeTable<'_>, word: &str, before: usize) -> Option<Span> {
    let here = table.keys().filter(|key| key.get_ref() == word && key.span().start < before).map(|key| key.span());
    let below = table.values().filter_map(|value| earlier(value.get_ref().as_table()?, word, before));
    here.chain(below).max_by_key(|span| span.start)
}

fn guests(top: &Table<'_, '_>, problems: &mut Problems) -> Vec<GuestEntry> {
    let table = top.table("guest", "guest".into(), "[guest.NAME]", problems);
    let entries = table.map(|table| table.entries()).unwrap_or_default();
    entries.into_iter().filter_map(|(name, value)| guest(name, &value, problems)).collect()
}

/// Monitors, and what is said of irqfwd, which is there where a guest owns a device and cannot be named otherwise.
fn servers(top: &Table<'_, '_>, problems: &mut Problems) -> (Vec<ServerEntry>, Option<ForwardEntry>) {
    let table = top.table("server", "server".into(), "[server.NAME]", problems);
    let entries = table.map(|table| table.entries()).unwrap_or_default();
    let (own, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(name, value)| name.value == monitor::IRQFWD && value.value.is_table());
    let forward = own.into_iter().next().and_then(|(name, value)| {
        let table = Table::new(value.value.as_table()?, format!("server {}", name.value), value.span.clone());
        Some(monitor::forward(name, &table, problems))
    });
    let one = |(name, value)| {
        let table = named("server", &name, &value, problems)?;
        Some(monitor::server(name, &table, problems))
    };
    (entries.into_iter().filter_map(one).collect(), forward)
}

/// Complains about names that logs would not tell apart.
fn distinct(names: Vec<(&str, &Placed<String>)>, problems: &mut Problems) {
    for (index, (kind, one)) in names.iter().enumerate() {
        let same = |other: &&(&str, &Placed<String>)| other.1.value.eq_ignore_ascii_case(&one.value);
        if let Some((other_kind, other)) = names[..index].iter().find(same) {
            let who = if kind == other_kind { format!("two {kind}s are") } else { format!("a {other_kind} and a {kind} are") };
            problems.push(
                Problem::new(Code::DuplicateName, format!("{who} called `{}`", one.value))
                    .at(one.span.clone(), "this one")
                    .at(other.span.clone(), "and this one")
                    .hint("names must differ in more than capitals, since logs are read by people"),
            );
        }
    }
}

/// The table of a guest or server, whose name is one.
fn named<'a, 'i>(
    kind: &str, name: &Placed<String>, value: &Placed<&'a DeValue<'i>>, problems: &mut Problems,
) -> Option<Table<'a, 'i>> {
    check_name(&format!("a {kind}"), name, problems);
    let Some(table) = value.value.as_table() else {
        problems.push(
            Problem::new(Code::WrongType, format!("{kind} `{}` must be a table", name.value))
                .at(value.span.clone(), "this is not one")
                .hint(format!("write it as: [{kind}.{}]", name.value)),
        );
        return None;
    };
    Some(Table::new(table, format!("{kind} `{}`", name.value), name.span.clone()))
}

fn guest(name: Placed<String>, value: &Placed<&DeValue<'_>>, problems: &mut Problems) -> Option<GuestEntry> {
    let table = named("guest", &name, value, problems)?;
    table.allow(&GUEST_KEYS, &GUEST_LATER, problems);
    table.require("kernel", "kernel = \"hello\", or a path relative to this file", problems);
    table.require("memory", "memory = \"64M\"", problems);
    Some(GuestEntry {
        kind: kind(&table, problems),
        kernel: table.text("kernel", "kernel = \"hello\"", problems).map(|text| text.map(|text| Origin::parse(&text))),
        initrd: table.text("initrd", "initrd = \"initrd.img\"", problems).map(|text| text.map(|text| Origin::parse(&text))),
        command_line: table.text("command-line", "command-line = \"console=ttyAMA0\"", problems),
        memory: table.size("memory", "64M", problems),
        load_offset: table.size("load-offset", "2M", problems),
        populate: table.choice("populate", &[("eager", Populate::Eager), ("lazy", Populate::Lazy)], problems),
        cpus: table.numbers("cpus", 0..64, problems),
        priority: table.number("priority", 0..256, problems),
        budget: budget(&table, problems),
        gic: table.number("gic", 2..4, problems),
        on_reset: table.choice("on-reset", &[("reboot", OnReset::Reboot), ("end", OnReset::End)], problems),
        essential: table.flag("essential", problems),
        sve: sve(&table, problems),
        views: view::read(&table, problems),
        devices: devices(&table, problems),
        monitors: monitor::read(&table, problems),
        name,
    })
}

fn devices(table: &Table<'_, '_>, problems: &mut Problems) -> Vec<DeviceEntry> {
    let name = format!("a device of {}", table.name);
    let example = "[[guest.NAME.device]] with device = \"rtc\" below it";
    let tables = table.tables("device", &name, example, problems);
    tables.iter().filter_map(|table| device(table, problems)).collect()
}

fn device(table: &Table<'_, '_>, problems: &mut Problems) -> Option<DeviceEntry> {
    table.allow(&DEVICE_KEYS, &[], problems);
    table.require("device", "device = \"rtc\", as the board file names it", problems);
    let forward = table.choice("forward", &[("server", false), ("direct", true)], problems);
    let dma = table.choice("dma", &[("unprotected", ())], problems);
    let shown = table.choice("as", &[("platform", false), ("pci", true)], problems);
    Some(DeviceEntry {
        device: table.text("device", "device = \"rtc\"", problems)?,
        direct: forward.is_some_and(|forward| forward.value),
        unprotected: dma.map(|dma| dma.span),
        as_pci: shown.filter(|shown| shown.value).map(|shown| shown.span),
    })
}

fn kind(table: &Table<'_, '_>, problems: &mut Problems) -> Option<Placed<Kind>> {
    let words =
        [("image", Some(Kind::Image)), ("raw", Some(Kind::Raw)), ("elf", Some(Kind::Elf)), ("solo5", None)];
    let Placed { value, span } = table.choice("kind", &words, problems)?;
    if value.is_none() {
        problems.push(not_there_yet("kind = \"solo5\"", "Solo5 guests", span.clone()));
    }
    Some(Placed::new(value?, span))
}

/// A word, or bits of a vector.
fn sve(table: &Table<'_, '_>, problems: &mut Problems) -> Option<Placed<Sve>> {
    let (_, value) = table.get("sve")?;
    if value.value.as_str().is_some() {
        return table.choice("sve", &[("off", Sve::Off), ("max", Sve::Most)], problems);
    }
    let bits = table.number("sve", 0..1 << 16, problems)?;
    if !bits.value.is_multiple_of(128) || !(128..=2048).contains(&bits.value) {
        problems.push(
            Problem::new(Code::SveLength, format!("scalable vectors cannot have {} bits", bits.value))
                .at(bits.span, "not a length of vectors")
                .hint("a multiple of 128 from 128 to 2048, or \"max\" for the longest that the machine has"),
        );
        return None;
    }
    Some(bits.map(|bits| Sve::Lanes((bits / 128) as u8)))
}

fn budget(table: &Table<'_, '_>, problems: &mut Problems) -> Option<BudgetEntry> {
    let example = "budget = { time = \"4ms\", period = \"10ms\" }";
    let inner = table.table("budget", format!("the budget of {}", table.name), example, problems)?;
    inner.allow(&["time", "period"], &[], problems);
    inner.require("time", example, problems);
    inner.require("period", example, problems);
    let time = inner.time("time", 10..1_000_001, problems);
    let period = inner.time("period", 100..1_000_001, problems);
    let (time, period) = (time?, period?);
    if time.value > period.value {
        problems.push(
            Problem::new(Code::BudgetOverPeriod, "a budget of more time than its period has")
                .at(time.span, "this much time")
                .at(period.span, "in each of these")
                .hint("a vCPU runs on one CPU at a time; leave the budget out to give it the whole CPU"),
        );
        return None;
    }
    Some(BudgetEntry { time, period })
}

fn check_name(what: &str, name: &Placed<String>, problems: &mut Problems) {
    let text = &name.value;
    let letters = text.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
    let begins = text.chars().next().is_some_and(|letter| letter.is_ascii_alphanumeric());
    if !letters || !begins || text.len() > MAX_NAME {
        problems.push(
            Problem::new(Code::BadName, format!("{what} cannot be called `{text}`"))
                .at(name.span.clone(), "not a name")
                .hint(format!("letters, digits and hyphens, a letter or digit first, at most {MAX_NAME}")),
        );
    } else if what != "a system" && is_reserved(text) {
        problems.push(
            Problem::new(Code::ReservedName, format!("`{text}` is a name of the system's own"))
                .at(name.span.clone(), "taken")
                .hint(format!("these are taken: {}", RESERVED.join(", "))),
        );
    }
}
