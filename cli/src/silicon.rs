// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a machine's CPUs lack and what their errata and predictors need, in sentences, with what is done instead.

use trellis_idl::control::Silicon;

/// Bits of [`trellis_idl::kernel::Fact::Silicon`], as `kernel/aarch64/src/features.rs` names them.
mod bit {
    pub const ERRORS: u64 = 1 << 0;
    pub const FINE_TRAPS: u64 = 1 << 1;
    pub const TRANSLATE_APART: u64 = 1 << 8;
    pub const REPEAT_INVALIDATION: u64 = 1 << 9;
    pub const ASK_FIRST_STAGE: u64 = 1 << 10;
}

/// What is there.
pub fn has(silicon: &Silicon) -> Vec<String> {
    let mut list = vec![format!("{} list registers: pending interrupts beyond that wait in the kernel", silicon.list_registers)];
    if silicon.vectors != 0 {
        let lengths = (0..16).filter(|lane| silicon.vectors >> lane & 1 == 1).map(|lane: u32| ((lane + 1) * 128).to_string());
        list.push(format!("scalable vectors of {} bits", lengths.collect::<Vec<_>>().join(", ")));
    }
    list
}

/// What is missing, and what replaces it.
pub fn lacks(silicon: &Silicon) -> Vec<&'static str> {
    let without = |bit: u64| silicon.features & bit == 0;
    // ID_AA64MMFR1_EL1.XNX (Arm ARM D19.2).
    let no_split = silicon.memory_model >> 28 & 15 == 0;
    let table = [
        (without(bit::ERRORS), "no RAS: an error of the machine cannot be told apart, and stops whoever ran"),
        (without(bit::FINE_TRAPS), "no fine-grained traps: registers are trapped by groups"),
        (no_split, "no split execution (FEAT_XNX): execution is forbidden for kernel and user together"),
        (silicon.vectors == 0, "no scalable vectors: a guest that asks for them is not started"),
    ];
    table.into_iter().filter(|(lacks, _)| *lacks).map(|(_, sentence)| sentence).collect()
}

/// Errata that the kernel works round.
pub fn errata(silicon: &Silicon) -> Vec<&'static str> {
    let table = [
        (bit::TRANSLATE_APART, "addresses are translated apart from everything else"),
        (bit::REPEAT_INVALIDATION, "invalidations that all CPUs hear are done twice"),
        (bit::ASK_FIRST_STAGE, "after a fault the first stage is asked again"),
    ];
    table.into_iter().filter(|(bit, _)| silicon.features & bit != 0).map(|(_, sentence)| sentence).collect()
}

/// What the kernel does at every entry about what predictors have learnt.
pub fn predictors(silicon: &Silicon) -> String {
    let (function, branches) = (silicon.predictors as u32, silicon.predictors >> 32 & 0xff);
    let mut done = Vec::new();
    if function != 0 {
        done.push(format!("calls the firmware ({function:#x})"));
    }
    if branches != 0 {
        done.push(format!("takes {branches} branches"));
    }
    if silicon.predictors >> 40 & 1 == 1 {
        done.push("clears branch history".into());
    }
    if done.is_empty() { "nothing to be done at entries".into() } else { format!("the kernel {} at each entry", done.join(" and ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Silicon =
        Silicon { midr: 0x410f_d083, features: 0x120, predictors: 0x8000_3fff | 8 << 32, memory_model: 0, list_registers: 4, vectors: 0 };

    #[test]
    fn an_old_cpu_lacks_much_and_each_has_its_replacement() {
        assert!(lacks(&OLD).len() == 4 && lacks(&OLD).iter().all(|sentence| sentence.contains(": ")));
        assert_eq!(errata(&OLD), ["addresses are translated apart from everything else"]);
        assert_eq!(predictors(&OLD), "the kernel calls the firmware (0x80003fff) and takes 8 branches at each entry");
        assert_eq!(has(&OLD).len(), 1);
    }

    #[test]
    fn a_new_one_lacks_nothing() {
        let new = Silicon { features: 3, predictors: 1 << 40, memory_model: 1 << 28, vectors: 0b1011, ..OLD };
        assert!(lacks(&new).is_empty() && errata(&new).is_empty());
        assert_eq!(has(&new)[1], "scalable vectors of 128, 256, 512 bits");
        assert_eq!(predictors(&new), "the kernel clears branch history at each entry");
        assert_eq!(predictors(&Silicon { predictors: 0, ..new }), "nothing to be done at entries");
    }
}
