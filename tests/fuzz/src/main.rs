// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the seeds of a target into a folder: `seeds FOLDER TARGET`. Without a target it prints all their names.
//! It stands here and not beside the fuzzer's programs, which are compiled with its counters.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use trellis_fuzz_targets::TARGETS;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, name] = words.as_slice() else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return ExitCode::SUCCESS;
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("there is no target {name}");
        return ExitCode::FAILURE;
    };
    for (index, seed) in (target.seeds)().iter().enumerate() {
        if let Err(error) = std::fs::write(Path::new(folder).join(format!("seed-{index:03}")), seed) {
            eprintln!("{folder}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
