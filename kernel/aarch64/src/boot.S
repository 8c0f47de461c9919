// SPDX-License-Identifier: MIT OR Apache-2.0
// The arm64 Image header and the way from the loader to Rust: EL2 checked, relocated, memory zeroed, stack set.
    .section .head, "ax"
    .globl _start
_start:
    b       1f                          // code0
    .word   0
    .quad   0                           // text_offset: at a 2 MiB boundary
    .quad   __image_size                // the composer adds the payload
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .word   0

    .section .init.text, "ax"
1:  msr     daifset, #15
    // The counter is noted here: boot_to_root begins with the kernel's first instruction.
    mrs     x28, cntpct_el0
    mrs     x1, CurrentEL
    ubfx    x25, x1, #2, #2             // another level than EL2 is told by boot_main, which knows the serial port
    mov     x27, x0                     // device tree, if any
    adrp    x26, __image_start
    // Relocate: every entry of .rela.dyn is R_AARCH64_RELATIVE (the linker is told so).
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1], #16           // offset, type
    ldr     x5, [x1], #8                // addend
    add     x5, x5, x26
    str     x5, [x26, x3]
    b       2b
3:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
4:  cmp     x1, x2
    b.hs    5f
    stp     xzr, xzr, [x1], #16
    b       4b
5:  adrp    x1, BOOT_CPU
    add     x1, x1, :lo12:BOOT_CPU
    mov     x2, {cpu_offset}
    add     x1, x1, x2
    mov     sp, x1
    mov     x0, x26
    mov     x1, x28
    mov     x2, x27
    mov     x3, x25
    bl      boot_main
stuck:
    wfe
    b       stuck

// Another CPU begins here: PSCI gives its block in x0; a release address gives 0, and the block is looked up.
    .globl secondary_entry
secondary_entry:
    msr     daifset, #15
    mrs     x1, CurrentEL
    cmp     x1, #8
    b.ne    stuck
    cbnz    x0, 1f
    mrs     x1, mpidr_el1
    and     x1, x1, #63
    adrp    x2, BLOCKS
    add     x2, x2, :lo12:BLOCKS
    ldr     x0, [x2, x1, lsl #3]
1:  mov     sp, x0
    bl      secondary_main
    b       stuck
