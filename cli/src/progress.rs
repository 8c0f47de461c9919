// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells a waiting user what is going on: a spinner on a terminal, one line elsewhere, nothing when it is quick.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Work that takes less long is not worth a word.
const QUICK: Duration = Duration::from_millis(700);

/// One piece of work that may take long.
#[derive(Debug)]
pub struct Progress {
    what: String,
    began: Instant,
    bar: ProgressBar,
    has_spoken: bool,
}

impl Progress {
    /// Work described as in "building the board's programs".
    pub fn of(what: impl Into<String>) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg} ({elapsed})").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Progress { what: what.into(), began: Instant::now(), bar, has_spoken: false }
    }

    /// Says what is being done at the moment.
    pub fn step(&mut self, step: &str) {
        if self.began.elapsed() < QUICK {
            return;
        }
        if self.bar.is_hidden() && !self.has_spoken {
            eprintln!("trellis| {}", self.what);
        }
        self.has_spoken = true;
        self.bar.enable_steady_tick(Duration::from_millis(120));
        self.bar.set_message(format!("{}: {step}", self.what));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
