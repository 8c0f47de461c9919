// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of system calls, exits and interrupts against the laws of `trellis_hosted::laws`.
//!
//! `TRELLIS_LAWS` = how many sequences (1,000 unless told).

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use trellis_hosted::action::{self, Step};
use trellis_hosted::{Hosted, Settings, laws, small};

/// Steps of a sequence.
const LENGTH: usize = 60;

fn sequences() -> u32 {
    std::env::var("TRELLIS_LAWS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u8>(), any::<u8>(), any::<[u16; 6]>(), any::<u64>())
        .prop_map(|(cpu, what, op, choice, word)| Step { cpu, what, op, choice, word })
}

fn hold(make: impl Fn() -> Hosted, share: u32) {
    let config = Config { cases: sequences() / share, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&proptest::collection::vec(step(), 1..LENGTH), |steps| {
        let mut hosted = make();
        for step in &steps {
            action::take(&mut hosted, step).map_err(TestCaseError::fail)?;
        }
        laws::full(&hosted).map_err(TestCaseError::fail)
    });
    if let Err(broken) = result {
        panic!("{broken}");
    }
}

#[test]
fn the_laws_hold_on_one_cpu() {
    hold(|| small::running(Settings::default()), 2);
}

#[test]
fn the_laws_hold_on_several_cpus() {
    hold(|| small::running(Settings { cpus: 3, ..Settings::default() }), 2);
}
