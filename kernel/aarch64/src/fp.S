// SPDX-License-Identifier: MIT OR Apache-2.0
// Moves floating-point registers to and from a save area: FPSR and FPCR at its first words, ZCR_EL1 after them, vectors
// from byte 64 on, predicates behind them, FFR the seventeenth. The caller has switched the traps off and, for scalable
// vectors, set ZCR_EL2 to the owner's length.
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .text

    .macro  each_pair operation
    \operation q0, q1, [x0, 64]
    \operation q2, q3, [x0, 96]
    \operation q4, q5, [x0, 128]
    \operation q6, q7, [x0, 160]
    \operation q8, q9, [x0, 192]
    \operation q10, q11, [x0, 224]
    \operation q12, q13, [x0, 256]
    \operation q14, q15, [x0, 288]
    \operation q16, q17, [x0, 320]
    \operation q18, q19, [x0, 352]
    \operation q20, q21, [x0, 384]
    \operation q22, q23, [x0, 416]
    \operation q24, q25, [x0, 448]
    \operation q26, q27, [x0, 480]
    \operation q28, q29, [x0, 512]
    \operation q30, q31, [x0, 544]
    .endm

    // Offsets count vectors (x0 = the first) and predicates (x1 = the first) of the current length.
    .macro  each_scalable operation
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \operation z\n, [x0, \n, mul vl]
    .endr
    .endm

    .macro  each_predicate operation
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \operation p\n, [x1, \n, mul vl]
    .endr
    .endm

// x0 = area.
    .globl  save_fixed
save_fixed:
    each_pair stp
    mrs     x1, fpsr
    mrs     x2, fpcr
    stp     x1, x2, [x0]
    ret

    .globl  load_fixed
load_fixed:
    each_pair ldp
    ldp     x1, x2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    ret

// x0 = area, x1 = where its predicates begin.
    .globl  save_scalable
save_scalable:
    mrs     x2, fpsr
    mrs     x3, fpcr
    mrs     x4, S3_0_C1_C2_0            // ZCR_EL1
    stp     x2, x3, [x0]
    str     x4, [x0, 16]
    add     x0, x0, 64
    each_scalable str
    each_predicate str
    rdffr   p0.b
    str     p0, [x1, 16, mul vl]
    ldr     p0, [x1]                    // a save alone changes nothing
    ret

    .globl  load_scalable
load_scalable:
    ldp     x2, x3, [x0]
    ldr     x4, [x0, 16]
    msr     fpsr, x2
    msr     fpcr, x3
    msr     S3_0_C1_C2_0, x4
    add     x0, x0, 64
    each_scalable ldr
    ldr     p0, [x1, 16, mul vl]
    wrffr   p0.b
    each_predicate ldr
    ret

// Bytes of a vector when ZCR_EL2 is x0; 0 when that is not to be had: the access came back as an exception, which
// `own_fault` knows by its address. The stack does not say where this CPU's block is while the kernel works.
    .globl  probe_length
probe_length:
    msr     S3_4_C1_C2_0, x0            // ZCR_EL2
    isb
    rdvl    x0, 1
    ret

    .globl  probe_failed
probe_failed:
    mov     x0, xzr
    msr     elr_el2, x30                // probe_length is a leaf
    eret
    dsb     nsh
    isb

// A thread that had its floating-point registers enters the kernel: everything traps again, and the vectors are the
// usual ones. Then what is left of a guarded slot.
    .macro  close name target deferred
    .globl  \name
\name:
    and     x0, x0, 0xfffffbffffffffff  // bit 42
    str     x0, [sp, {GUARD}]
    ldr     x1, [sp, {SERVER} + 8]
    msr     cptr_el2, x1
    ldr     x1, [sp, {VECTORS}]
    msr     vbar_el2, x1
    tbz     x0, 41, 1f
    hint    16                          // ESB
    mrs     x1, S3_0_C12_C1_1           // DISR_EL1
    tbnz    x1, 31, \deferred
1:  ldp     x0, x1, [sp, -16]
    b       \target
    .endm

    close   close_sync, guarded_sync, deferred_sync
    close   close_irq, guarded_irq, deferred_irq
    close   close_error, system_error, deferred_irq
