// SPDX-License-Identifier: MIT OR Apache-2.0
//! The laws of `trellis_hosted::laws` against steps made of a fuzzer's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trellis_hosted::action::{self, Step};
use trellis_hosted::{Settings, laws, small};

fuzz_target!(|input: (u8, Vec<Step>)| {
    let (cpus, steps) = input;
    let mut hosted = small::running(Settings { cpus: 1 + u16::from(cpus % 4), ..Settings::default() });
    for step in steps.iter().take(200) {
        if let Err(broken) = action::take(&mut hosted, step) {
            panic!("{broken}");
        }
    }
    if let Err(broken) = laws::full(&hosted) {
        panic!("{broken}");
    }
});
