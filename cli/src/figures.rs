// SPDX-License-Identifier: MIT OR Apache-2.0
//! What Trellis is measured by: each figure with the value it must reach and the value it aims at.

/// Names, what must be reached, and the goal. Ticks are instructions, sizes are bytes.
pub const WANTED: &[(&str, u64, u64)] = &[
    ("null_syscall", 100, 40),
    ("ipc_roundtrip_4w", 350, 180),
    ("ipc_roundtrip_10w", 440, 190),
    ("signal_to_thread", 500, 250),
    ("exit_hvc_server", 480, 290),
    ("mmio_read_server", 610, 300),
    ("fault_p2m_map", 1_500, 480),
    ("vtimer_to_handler", 600, 120),
    ("irq_to_thread", 400, 250),
    ("irq_forward_server", 1_000, 450),
    ("irq_forward_direct", 400, 150),
    ("msi_forward", 1_200, 500),
    ("irq_storm_cost", 200, 60),
    ("sgi_self", 800, 200),
    ("sgi_roundtrip_wfi", 3_000, 1_000),
    ("wfi_timer", 1_000, 200),
    ("cpu_on", 12_000, 2_000),
    ("map_page_batched", 60, 25),
    ("fp_switch_none_bytes", 0, 0),
    ("view_switch_hvc", 400, 120),
    ("view_switch_server", 600, 300),
    ("step_once", 3_000, 1_500),
    ("event_sync_roundtrip", 1_200, 500),
    ("event_async", 400, 150),
    ("swap_guest_pause_p50", 500_000, 100_000),
    ("swap_guest_pause_max", 500_000, 100_000),
    ("lazy_copy_fault", 1_500, 500),
    ("view_idle_bytes", 16_384, 8_192),
    ("boot_to_root", 1_000_000, 300_000),
    ("kernel_text", 96 << 10, 64 << 10),
    ("kernel_memory", 2 << 20, 1 << 20),
];

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// As [`WANTED`] names it; guests may measure more.
    pub name: String,
    /// How much.
    pub value: u64,
    /// Of what.
    pub unit: String,
}

impl Figure {
    /// Of these parts.
    pub fn new(name: &str, value: u64, unit: &str) -> Figure {
        Figure { name: name.into(), value, unit: unit.into() }
    }

    /// From `NAME VALUE UNIT`.
    pub fn parse(line: &str) -> Option<Figure> {
        let mut words = line.split_whitespace();
        let (name, value, unit) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        words.next().is_none().then(|| Figure::new(name, value, unit))
    }

    /// Must and goal, if this figure has them.
    pub fn wanted(&self) -> Option<(u64, u64)> {
        WANTED.iter().find(|(name, ..)| *name == self.name).map(|(_, must, goal)| (*must, *goal))
    }

    /// `NAME VALUE UNIT`.
    pub fn line(&self) -> String {
        format!("{} {} {}", self.name, self.value, self.unit)
    }
}

/// The figures in a file of `NAME VALUE UNIT` lines; what is empty or begins with `#` is left out.
pub fn parse(text: &str) -> Result<Vec<Figure>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|line| Figure::parse(line).ok_or_else(|| format!("not `NAME VALUE UNIT`: {line}"))).collect()
}

/// What has grown by more than 2 %, or is gone, since the figures that were committed.
pub fn worse(now: &[Figure], before: &[Figure]) -> Vec<String> {
    let compare = |old: &Figure| match now.iter().find(|new| new.name == old.name) {
        None => Some(format!("{} was {} {} and is not measured any more", old.name, old.value, old.unit)),
        Some(new) if u128::from(new.value) * 100 > u128::from(old.value) * 102 => {
            Some(format!("{} grew from {} to {} {}", old.name, old.value, new.value, new.unit))
        }
        Some(_) => None,
    };
    before.iter().filter_map(compare).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_three_words() {
        assert_eq!(Figure::parse("sgi_self 700 ticks"), Some(Figure::new("sgi_self", 700, "ticks")));
        for wrong in ["sgi_self 700", "sgi_self x ticks", "sgi_self 7 ticks more", ""] {
            assert_eq!(Figure::parse(wrong), None);
        }
    }

    #[test]
    fn two_per_cent_are_forgiven_and_no_more() {
        let figure = |value| vec![Figure::new("sgi_self", value, "ticks")];
        assert!(worse(&figure(102), &figure(100)).is_empty());
        assert_eq!(worse(&figure(103), &figure(100)), ["sgi_self grew from 100 to 103 ticks"]);
        assert_eq!(worse(&[], &figure(100)).len(), 1);
        assert_eq!(worse(&figure(1), &figure(0)).len(), 1);
    }

    #[test]
    fn a_file_of_figures_reads_back() {
        assert_eq!(parse("# last\n\nsgi_self 7 ticks\n"), Ok(vec![Figure::new("sgi_self", 7, "ticks")]));
        assert!(parse("nonsense").is_err());
    }
}
