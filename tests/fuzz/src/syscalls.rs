// SPDX-License-Identifier: MIT OR Apache-2.0
//! The laws of `trellis_hosted::laws` against steps made of a fuzzer's bytes: the action type of the laws' own test.

use arbitrary::{Arbitrary, Unstructured};
use trellis_hosted::action::{self, Step};
use trellis_hosted::{Settings, laws, small};

/// Steps of a sequence at most.
const MOST: usize = 200;

/// One sequence on one to four CPUs.
pub fn run(bytes: &[u8]) {
    let Ok((cpus, steps)) = <(u8, Vec<Step>)>::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let mut hosted = small::running(Settings { cpus: 1 + u16::from(cpus % 4), ..Settings::default() });
    for step in steps.iter().take(MOST) {
        if let Err(broken) = action::take(&mut hosted, step) {
            panic!("{broken}");
        }
    }
    if let Err(broken) = laws::full(&hosted) {
        panic!("{broken}");
    }
}

/// Bytes that count up in different strides: each makes other steps.
pub fn seeds() -> Vec<Vec<u8>> {
    [1u64, 29, 53, 101, 197, 251].map(|stride| (0..600u64).map(|i| (i * stride * (1 + i / 97)) as u8).collect()).to_vec()
}
