// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis bench`: runs the probe guest deterministically and prints what it measured, beside what was wanted.

use crate::drive::Outcome;
use crate::figures::{Figure, WANTED};
use crate::flat::flatten;
use crate::place;
use crate::run::Run;
use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::swaps;
use crate::system::{Host, MEASURE, StandIns};
use crate::trace;
use clap::Args;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, SectionKind};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures the system.
///
/// Runs images/bench.toml and other images beside it, one instruction a nanosecond, so that figures repeat to the digit, and
/// traces the dearest paths for what they are made of. Exit status 3 if a guest did not end well.
#[derive(Args, Clone, Debug, Default)]
pub struct Bench {
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
    /// Runs only this manifest, whose guests print lines `figure NAME VALUE UNIT`
    #[arg(long, value_name = "MANIFEST")]
    pub manifest: Option<PathBuf>,
}

/// A run that takes longer stands still; it would take seconds.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs whose guests measure; where two measure the same, the first counts.
const MANIFESTS: [&str; 6] = [
    "images/bench.toml", "images/bench-pair.toml", "images/views.toml", "images/bench-watched.toml", "images/bench-messages.toml",
    "images/bench-messages-direct.toml",
];

/// The image for what floating-point registers cost; the last figure of its run, which stops at whatever is not as it
/// must be.
const VECTORS: &str = "images/bench-vectors.toml";
const LAST_OF_VECTORS: &str = "exit_hvc_live_vectors";
/// The first on a board whose predictors are guarded.
const GUARDED: &str = "images/bench-guarded.toml";

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    /// None: there is a bar for it, but it is not measured.
    value: Option<u64>,
    unit: &'a str,
    must: Option<u64>,
    goal: Option<u64>,
}

impl Bench {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let (mut figures, status) = self.measure(outputs)?;
        if self.manifest.is_none() {
            add(swaps::measure()?, &mut figures);
        }
        let text = if self.json { json(&figures)? } else { table(&figures) };
        write!(outputs.out, "{text}").doing(|| "write the output".into())?;
        Ok(status)
    }

    /// Runs the probe beside the shipped servers, then the program that measures the kernel alone; where both measure
    /// the same, the shipped system counts. Lines that are no figures go to the log.
    pub fn measure(&self, outputs: &mut Outputs) -> Result<(Vec<Figure>, Status), Failure> {
        let manifests = match &self.manifest {
            Some(manifest) => vec![manifest.clone()],
            None => MANIFESTS.map(|name| place::root().join(name)).to_vec(),
        };
        let mut figures = kernel_text()?;
        let mut status = Status::Well;
        for manifest in &manifests {
            let mut text = Vec::new();
            let probe = run(manifest, &[]).with_keys(Box::new(io::empty()), &mut Outputs { out: &mut text, log: outputs.log })?;
            add(said_by_root(&probe), &mut figures);
            add(read(&text, outputs)?, &mut figures);
            status = if status == Status::Well { probe.status } else { status };
        }
        if self.manifest.is_none() {
            add(guarded(outputs)?, &mut figures);
        }
        let Some(manifest) = manifests.first() else { return Ok((figures, status)) };
        // It writes plain text, which counts as the kernel's, and goes off without a report, which is no failure here.
        let (mut none, mut text) = (Vec::new(), Vec::new());
        run(manifest, MEASURE).with_keys(Box::new(io::empty()), &mut Outputs { out: &mut none, log: &mut text })?;
        add(read(&text, outputs)?, &mut figures);
        let vectors = Run { cpu: Some("max".into()), ..run(&place::root().join(VECTORS), MEASURE) };
        let (mut none, mut text) = (Vec::new(), Vec::new());
        vectors.with_keys(Box::new(io::empty()), &mut Outputs { out: &mut none, log: &mut text })?;
        let measured = read(&text, outputs)?;
        is_whole(&measured)?;
        add(measured, &mut figures);
        add(traced(run(manifest, MEASURE), &[trace::CALL])?, &mut figures);
        add(traced(run(manifest, &[]), &[trace::HYPERCALL, trace::DEVICE_READ])?, &mut figures);
        Ok((figures, status))
    }
}

/// What two paths cost where the kernel guards the CPU's predictors at every entry, which it does not on a board that is
/// only an emulator's.
fn guarded(outputs: &mut Outputs) -> Result<Vec<Figure>, Failure> {
    let mut text = Vec::new();
    let run = run(&place::root().join(GUARDED), &[]);
    run.with_keys(Box::new(io::empty()), &mut Outputs { out: &mut text, log: outputs.log })?;
    let mut figures = read(&text, outputs)?;
    figures.retain(|figure| ["exit_hvc_server", "mmio_read_server"].contains(&figure.name.as_str()));
    Ok(figures.into_iter().map(|figure| Figure { name: format!("{}_guarded", figure.name), ..figure }).collect())
}

fn run(manifest: &Path, stand_ins: StandIns) -> Run {
    Run { manifest: Some(manifest.to_owned()), icount: true, timeout: Some(LIMIT), stand_ins, ..Run::default() }
}

/// Floating-point registers were measured to the end, an exit with live ones costs what it costs without, and a switch
/// between guests that use none moves nothing.
fn is_whole(figures: &[Figure]) -> Result<(), Failure> {
    let value = |name: &str| figures.iter().find(|figure| figure.name == name).map(|figure| figure.value);
    let (with, without) = (value(LAST_OF_VECTORS), value("exit_hvc_no_vectors"));
    if with.is_none() || with != without || value("fp_switch_none_bytes") != Some(0) {
        return Err(Failure::says(format!("floating-point registers: exit with {with:?} and without {without:?} of them live")));
    }
    Ok(())
}

/// What the paths are made of that such a run takes.
fn traced(run: Run, paths: &[trace::Path]) -> Result<Vec<Figure>, Failure> {
    let (arguments, _image, base) = run.command_line()?;
    let code = trace::Code { base, bytes: flatten(&Host::default().kernel()?)? };
    trace::paths(&arguments, &code, paths)
}

/// Adds what is not known yet.
fn add(new: Vec<Figure>, figures: &mut Vec<Figure>) {
    for figure in new {
        if figures.iter().all(|known| known.name != figure.name) {
            figures.push(figure);
        }
    }
}

/// Takes the figures out of a console's lines.
fn read(text: &[u8], outputs: &mut Outputs) -> Result<Vec<Figure>, Failure> {
    let mut figures = Vec::new();
    for line in String::from_utf8_lossy(text).lines() {
        match figure(line) {
            Some(figure) => figures.push(figure),
            None => writeln!(outputs.log, "{line}").doing(|| "write the output".into())?,
        }
    }
    Ok(figures)
}

/// The figure in a line `NAME| figure NAME VALUE UNIT`.
fn figure(line: &str) -> Option<Figure> {
    Figure::parse(line.split_once("| ")?.1.strip_prefix("figure ")?)
}

/// What root said at its start.
fn said_by_root(outcome: &Outcome) -> Vec<Figure> {
    let Some(started) = outcome.started else { return Vec::new() };
    vec![
        Figure::new("boot_to_root", started.boot_ticks, "instructions"),
        Figure::new("kernel_memory", started.kernel_memory, "bytes"),
    ]
}

/// What the kernel executes at boot alone and gives away when root starts.
const BOOT_TEXT: &str = ".init.text";

/// Bytes of the kernel's code, without what fills its last pages: all that stays executable, and what boot alone executes.
fn kernel_text() -> Result<Vec<Figure>, Failure> {
    let broken = |error: object::Error| Failure::says(format!("the kernel's ELF file: {error}"));
    let file = Host::default().kernel()?;
    let elf = ElfFile64::<LittleEndian>::parse(&*file).map_err(broken)?;
    let (mut stays, mut boot) = (0, 0);
    for section in elf.sections().filter(|section| section.kind() == SectionKind::Text) {
        let data = section.data().map_err(broken)?;
        let bytes = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        *if section.name() == Ok(BOOT_TEXT) { &mut boot } else { &mut stays } += bytes;
    }
    Ok(vec![Figure::new("kernel_text", stays, "bytes"), Figure::new("kernel_boot_text", boot, "bytes")])
}

/// First what there are bars for, whether it was measured or not, then the rest.
fn rows(figures: &[Figure]) -> Vec<Row<'_>> {
    let row = |(name, must, goal): &(&'static str, u64, u64)| {
        let figure = figures.iter().find(|figure| figure.name == *name);
        let (value, unit) = (figure.map(|figure| figure.value), figure.map_or("", |figure| &figure.unit));
        Row { name, value, unit, must: Some(*must), goal: Some(*goal) }
    };
    let others = figures.iter().filter(|figure| figure.wanted().is_none());
    let others = others.map(|Figure { name, value, unit }| Row { name, value: Some(*value), unit, must: None, goal: None });
    WANTED.iter().map(row).chain(others).collect()
}

fn json(figures: &[Figure]) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(&rows(figures));
    Ok(text.map_err(|error| Failure::says(format!("could not write JSON: {error}")))? + "\n")
}

/// `name value unit`, then must and goal where there are any, and which of them is reached.
fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for row in rows(figures) {
        let (name, unit) = (row.name, row.unit);
        text.push_str(&match (row.value, row.must.zip(row.goal)) {
            (None, _) => format!("{name:<24} not measured\n"),
            (Some(value), None) => format!("{name:<24} {value:>8} {unit}\n"),
            (Some(value), Some((must, goal))) => {
                let reached = if value <= goal { "goal" } else if value <= must { "must" } else { "missed" };
                format!("{name:<24} {value:>8} {unit:<12}  must {must:>7}  goal {goal:>7}  {reached}\n")
            }
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_figures_are_taken_from_a_console() {
        assert_eq!(figure("probe| figure sgi_self 700 ticks"), Some(Figure::new("sgi_self", 700, "ticks")));
        assert_eq!(figure("probe| starting"), None);
        assert_eq!(figure("figure sgi_self 700 ticks"), None);
    }

    #[test]
    fn the_table_says_what_is_reached() {
        let figures = [("sgi_self", 900), ("wfi_timer", 900), ("cpu_on", 1_999), ("other", 1)];
        let figures = figures.map(|(name, value)| Figure::new(name, value, "instructions"));
        let text = table(&figures);
        let end = |name| text.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next());
        assert_eq!(["sgi_self", "wfi_timer", "cpu_on", "other"].map(end), ["missed", "must", "goal", "instructions"].map(Some));
        let line = "sgi_self                      900 instructions  must     800  goal     200  missed\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn what_is_not_measured_is_said() {
        assert_eq!(table(&[]).lines().count(), WANTED.len());
        assert!(table(&[]).contains("irq_to_thread            not measured\n"));
    }

    #[test]
    fn json_has_null_where_nothing_is_wanted_or_measured() {
        let text = json(&[Figure::new("other", 1, "ticks")]).unwrap_or_default();
        assert!(text.contains("\"value\": 1") && text.contains("\"must\": null") && text.contains("\"value\": null"));
    }

    #[test]
    fn the_first_to_measure_counts() {
        let mut figures = vec![Figure::new("a", 1, "x")];
        add(vec![Figure::new("a", 2, "x"), Figure::new("b", 3, "x")], &mut figures);
        assert_eq!(figures, [Figure::new("a", 1, "x"), Figure::new("b", 3, "x")]);
    }
}
