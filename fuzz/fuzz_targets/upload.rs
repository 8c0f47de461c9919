// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gives the fuzzer's bytes to `trellis_fuzz_targets::upload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trellis_fuzz_targets::upload::run(bytes));
