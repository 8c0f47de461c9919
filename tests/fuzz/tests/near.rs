// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every target takes its own seeds, and what lies near them. The long search is `./trellis test --nightly`.

use trellis_fuzz_targets::{TARGETS, Target};

/// Changed inputs made of each seed.
const CHANGES: u64 = 40;

/// The next of a row of numbers that look random and are the same each time (xorshift).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The seed with a few bytes changed, put in or taken out.
fn changed(seed: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=next(state) % 4 {
        let at = next(state) as usize % (bytes.len() + 1);
        match next(state) % 4 {
            0 => bytes.insert(at, next(state) as u8),
            1 => bytes.truncate(at),
            _ if at == bytes.len() => bytes.push(next(state) as u8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][next(state) as usize % 5],
            _ => bytes[at] ^= 1 << (next(state) % 8),
        }
    }
    bytes
}

fn takes_what_is_near(target: Target) {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has seeds", target.name);
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for seed in &seeds {
        assert!(seed.len() < 1 << 14, "{}: a seed is small", target.name);
        (target.run)(seed);
        for _ in 0..CHANGES {
            (target.run)(&changed(seed, &mut state));
        }
    }
}

macro_rules! near {
    ($($index:literal $name:ident)*) => {
        $(#[test] fn $name() { takes_what_is_near(TARGETS[$index]); })*

        #[test]
        fn every_target_is_tested_and_has_a_program_for_the_fuzzer() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
            let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("the fuzzer's manifest");
            for target in TARGETS {
                let program = format!("fuzz_targets/{}.rs", target.name);
                assert!(folder.join(&program).is_file() && manifest.contains(&program), "{program}");
            }
        }
    };
}

near! {
    0 boot_header 1 compose 2 console 3 context 4 control 5 device_tree 6 host_frames 7 instruction 8 kernel_file
    9 manifest 10 messages 11 plan 12 program 13 query 14 rings 15 syndrome 16 syscalls 17 upload
}
