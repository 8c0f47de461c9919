// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis bench`: runs the probe guest deterministically and prints what it measured, beside what was wanted.

use crate::drive::Outcome;
use crate::figures::Figure;
use crate::place;
use crate::programs::BENCH_ROOT;
use crate::run::Run;
use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::system::Host;
use clap::Args;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection};
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Measures the system.
///
/// Runs images/bench.toml, one instruction a nanosecond, so that figures repeat to the digit. Exit status 3 if a guest
/// did not end well.
#[derive(Args, Clone, Debug, Default)]
pub struct Bench {
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
    /// Runs this manifest, whose guests print lines `figure NAME VALUE UNIT`
    #[arg(long, value_name = "MANIFEST")]
    pub manifest: Option<PathBuf>,
}

/// A run that takes longer stands still; it would take seconds.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    value: u64,
    unit: &'a str,
    must: Option<u64>,
    goal: Option<u64>,
}

impl Bench {
    /// Does it.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let (figures, status) = self.measure(outputs)?;
        let text = if self.json { json(&figures)? } else { table(&figures) };
        write!(outputs.out, "{text}").doing(|| "write the output".into())?;
        Ok(status)
    }

    /// Runs the probe beside the shipped servers, then the program that measures the kernel alone; where both measure
    /// the same, the shipped system counts. Lines that are no figures go to the log.
    pub fn measure(&self, outputs: &mut Outputs) -> Result<(Vec<Figure>, Status), Failure> {
        let mut text = Vec::new();
        let probe = self.run(None).with_keys(Box::new(io::empty()), &mut Outputs { out: &mut text, log: outputs.log })?;
        let mut figures = kernel(&probe)?;
        add(&text, &mut figures, outputs)?;
        // It writes plain text, which counts as the kernel's, and goes off without a report, which is no failure here.
        let (mut none, mut text) = (Vec::new(), Vec::new());
        self.run(Some(BENCH_ROOT)).with_keys(Box::new(io::empty()), &mut Outputs { out: &mut none, log: &mut text })?;
        add(&text, &mut figures, outputs)?;
        Ok((figures, probe.status))
    }

    fn run(&self, root: Option<&'static str>) -> Run {
        let manifest = self.manifest.clone().unwrap_or_else(|| place::root().join("images/bench.toml"));
        Run { manifest: Some(manifest), icount: true, timeout: Some(LIMIT), root, ..Run::default() }
    }
}

/// Takes the figures out of a console's lines.
fn add(text: &[u8], figures: &mut Vec<Figure>, outputs: &mut Outputs) -> Result<(), Failure> {
    for line in String::from_utf8_lossy(text).lines() {
        match figure(line) {
            Some(figure) if figures.iter().any(|known| known.name == figure.name) => {}
            Some(figure) => figures.push(figure),
            None => writeln!(outputs.log, "{line}").doing(|| "write the output".into())?,
        }
    }
    Ok(())
}

/// The figure in a line `NAME| figure NAME VALUE UNIT`.
fn figure(line: &str) -> Option<Figure> {
    Figure::parse(line.split_once("| ")?.1.strip_prefix("figure ")?)
}

/// What is known without the probe: the kernel's size and what root said at its start.
fn kernel(outcome: &Outcome) -> Result<Vec<Figure>, Failure> {
    let file = Host::default().kernel()?;
    let elf = ElfFile64::<LittleEndian>::parse(&*file).map_err(|error| Failure::says(format!("the kernel's ELF file: {error}")))?;
    let text = elf.section_by_name(".text").map(|section| Figure::new("kernel_text", section.size(), "bytes"));
    let started = outcome.started.map(|started| {
        [Figure::new("boot_to_root", started.boot_ticks, "instructions"), Figure::new("kernel_memory", started.kernel_memory, "bytes")]
    });
    Ok(text.into_iter().chain(started.into_iter().flatten()).collect())
}

fn rows(figures: &[Figure]) -> impl Iterator<Item = Row<'_>> {
    figures.iter().map(|figure| Row {
        name: &figure.name,
        value: figure.value,
        unit: &figure.unit,
        must: figure.wanted().map(|wanted| wanted.0),
        goal: figure.wanted().map(|wanted| wanted.1),
    })
}

fn json(figures: &[Figure]) -> Result<String, Failure> {
    let rows: Vec<Row> = rows(figures).collect();
    let text = serde_json::to_string_pretty(&rows).map_err(|error| Failure::says(format!("could not write JSON: {error}")))?;
    Ok(text + "\n")
}

/// `name value unit`, then must and goal where there are any, and which of them is reached.
fn table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for row in rows(figures) {
        let (name, value, unit) = (row.name, row.value, row.unit);
        text.push_str(&match row.must.zip(row.goal) {
            None => format!("{name:<20} {value:>10} {unit}\n"),
            Some((must, goal)) => {
                let reached = if value <= goal { "goal" } else if value <= must { "must" } else { "missed" };
                format!("{name:<20} {value:>10} {unit:<6}  must {must:>9}  goal {goal:>9}  {reached}\n")
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
        let figures = figures.map(|(name, value)| Figure::new(name, value, "ticks"));
        let text = table(&figures);
        let ends: Vec<&str> = text.lines().map(|line| line.rsplit(' ').next().unwrap_or_default()).collect();
        assert_eq!(ends, ["missed", "must", "goal", "ticks"]);
        assert!(text.starts_with("sgi_self                    900 ticks   must       800  goal       200  missed\n"));
    }

    #[test]
    fn json_has_null_where_nothing_is_wanted() {
        let text = json(&[Figure::new("other", 1, "ticks")]).unwrap_or_default();
        assert!(text.contains("\"value\": 1") && text.contains("\"must\": null"));
    }
}
