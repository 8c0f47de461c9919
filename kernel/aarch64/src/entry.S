// SPDX-License-Identifier: MIT OR Apache-2.0
// Save, ask a door, obey. SP_EL2 at rest points at this CPU's block; what lies below it is stack.
//
// Two states of the registers that a server at EL0 feels (HCR, VTTBR, CPTR, SCTLR_EL1): a guest's or a server's;
// [CPU_MODE] says which. ERET synchronises context (Arm ARM D1.4.2), so no ISB stands on these paths. After each ERET
// DSB + ISB stop straight-line speculation (Arm: CVE-2020-13844). SB would do the same where a CPU has it; these are
// never executed, only speculated, so one sequence serves all.

    .macro  leave
    eret
    dsb     nsh
    isb
    .endm

    // A slot of a table of vectors. Behind its branch there is room for a routine of at most 31 instructions that nobody
    // falls into; the assembler refuses what is longer.
    .macro  slot table, number, target
    .org    \table + \number * 128
    b       \target
    .endm

    // A slot that is the routine itself.
    .macro  own_slot table, number
    .org    \table + \number * 128
    .endm

    // A slot that first does what this CPU's predictors and errors need: [GUARD] is a function of the firmware (bits
    // 0-31), taken branches (32-39), CLRBHB (40), ESB (41); 42: a thread has its floating-point registers until now
    // (fp.S). At most 32 instructions.
    .macro  guarded number target deferred close
    .org    guarded_vectors + \number * 128
    stp     x0, x1, [sp, -16]
    msr     mdscr_el1, xzr              // a guest's single step and breakpoints are not for servers
    ldr     x0, [sp, {GUARD}]
    ubfx    x1, x0, 32, 8
    cbz     x1, 2f
1:  b       . + 4                       // taken branches push the history out (Arm: Spectre-BHB)
    subs    x1, x1, 1
    b.ne    1b
    dsb     nsh                         // nothing past this is speculated on what was there
    isb
2:  tbz     x0, 40, 3f
    hint    22                          // CLRBHB
    isb
3:  cbz     w0, 4f
    stp     x2, x3, [sp, -32]
    mov     w0, w0
    smc     0                           // DEN 0028, 2.7: x4 and up are kept
    ldp     x2, x3, [sp, -32]
4:  ldr     x0, [sp, {GUARD}]
    tbnz    x0, 42, \close
    tbz     x0, 41, 5f
    hint    16                          // ESB: what went wrong below belongs to whoever ran there
    mrs     x1, S3_0_C12_C1_1           // DISR_EL1
    tbnz    x1, 31, \deferred
5:  ldp     x0, x1, [sp, -16]
    b       \target
    .endm

    // Everything general into the running context; x0 = ESR or undefined, x1 = context afterwards.
    .macro  save_all
    ldr     x1, [sp, {CURRENT}]
    stp     x2, x3, [x1, 16]
    stp     x4, x5, [x1, 32]
    stp     x6, x7, [x1, 48]
    stp     x8, x9, [x1, 64]
    stp     x10, x11, [x1, 80]
    stp     x12, x13, [x1, 96]
    stp     x14, x15, [x1, 112]
    stp     x16, x17, [x1, 128]
    stp     x18, x19, [x1, 144]
    stp     x20, x21, [x1, 160]
    stp     x22, x23, [x1, 176]
    stp     x24, x25, [x1, 192]
    stp     x26, x27, [x1, 208]
    stp     x28, x29, [x1, 224]
    str     x30, [x1, 240]
    ldp     x2, x3, [sp, -16]
    stp     x2, x3, [x1]
    mrs     x2, elr_el2
    mrs     x3, sp_el0
    mrs     x4, spsr_el2
    stp     x2, x3, [x1, 256]
    str     x4, [x1, 272]
    .endm

    // The registers that a call may change, into the running context.
    .macro  save_scratch
    stp     x0, x1, [sp, -16]
    ldr     x0, [sp, {CURRENT}]
    stp     x2, x3, [x0, 16]
    stp     x4, x5, [x0, 32]
    stp     x6, x7, [x0, 48]
    stp     x8, x9, [x0, 64]
    stp     x10, x11, [x0, 80]
    stp     x12, x13, [x0, 96]
    stp     x14, x15, [x0, 112]
    stp     x16, x17, [x0, 128]
    str     x18, [x0, 144]
    str     x30, [x0, 240]
    ldp     x2, x3, [sp, -16]
    stp     x2, x3, [x0]
    .endm

    // The rest of what `save_all` saves; a call has left it alone.
    .macro  save_rest
    ldr     x3, [sp, {CURRENT}]
    str     x19, [x3, 152]
    stp     x20, x21, [x3, 160]
    stp     x22, x23, [x3, 176]
    stp     x24, x25, [x3, 192]
    stp     x26, x27, [x3, 208]
    stp     x28, x29, [x3, 224]
    mrs     x4, elr_el2
    mrs     x5, sp_el0
    mrs     x6, spsr_el2
    stp     x4, x5, [x3, 256]
    str     x6, [x3, 272]
    .endm

    // Notes x0 = ESR, x2 = program counter, x1 = context in this CPU's trace, with the time. Two stores of a pair, a mask
    // that goes round the ring: no other CPU ever touches it.
    .macro  note_exit
    ldr     x5, [sp, {NOTE}]
    mrs     x6, cntpct_el0
    stp     x0, x2, [x5], 16
    stp     x6, x1, [x5], 16
    and     x5, x5, {NOTE_WRAP}
    str     x5, [sp, {NOTE}]
    .endm

    // From the running thread to the one whose context + tag is in x0; x1 becomes its x0.
    .macro  switch_thread tag
    ldr     x3, [sp, {CURRENT}]
    sub     x0, x0, \tag
    mrs     x5, elr_el2
    mrs     x4, sp_el0
    stp     x5, x4, [x3, 256]
    ldp     x5, x4, [x0, 256]
    ldr     x6, [x0, 280]
    str     x0, [sp, {CURRENT}]
    msr     elr_el2, x5
    msr     sp_el0, x4
    msr     vttbr_el2, x6
    msr     spsr_el2, xzr
    mov     x0, x1
    .endm

    .section .vectors, "ax"
    .balign 2048
    .globl  vectors
vectors:
    own_slot vectors, 0                 // current EL, SP0
own_fault:
    mrs     x2, elr_el2
    adr     x0, probe_length            // lengths of vectors are being tried, and EL3 gave the access back
    sub     x0, x2, x0
    cmp     x0, 12
    b.lo    probe_failed
    mov     x0, sp
    mrs     x1, esr_el2
    mrs     x3, far_el2
    bl      own_fault_door
    b       .

    slot    vectors, 1, own_fault
// Another thread goes on; the words ride in x19-x28. x0 = its context + 1, x1 = its x0.
ride:
    switch_thread 1
    leave

    slot    vectors, 2, own_fault
// A thread that was signalled goes on instead; nothing of the caller's registers is for it. x0 = its context + 8.
overtake:
    tbnz    x0, 4, pass
    switch_thread 8
    mov     x19, xzr
    mov     x20, xzr
    mov     x21, xzr
    mov     x22, xzr
    mov     x23, xzr
    mov     x24, xzr
    mov     x25, xzr
    mov     x26, xzr
    mov     x27, xzr
    mov     x28, xzr
    b       clear_scratch

    slot    vectors, 3, own_fault
// A vCPU goes on with an answer whose words ride in x19-x28. x0 = its context + 2, x1 = what they change.
answered:
    ldr     x3, [sp, {CURRENT}]
    sub     x0, x0, 2
    mrs     x5, elr_el2
    mrs     x4, sp_el0
    stp     x5, x4, [x3, 256]
    ldr     x5, [x0, 256]
    tbz     x1, 0, 1f                   // skip the instruction
    add     x5, x5, 4
1:  tbz     x1, 1, 2f                   // program counter = m4
    mov     x5, x23
2:  tbz     x1, 2, 3f                   // x0-x3 = m6-m9
    stp     x25, x26, [x0]
    stp     x27, x28, [x0, 16]
3:  tbz     x1, 3, 4f                   // register n = m5; 31 falls into a dead place
    ubfx    x4, x1, 8, 5
    str     x24, [x0, x4, lsl 3]
4:  str     x0, [sp, {CURRENT}]
    b       enter_guest

    slot    vectors, 4, own_fault       // current EL, SPx
// The guest at x0, to be entered at x5, from a server's registers.
enter_guest:
    ldp     x1, x2, [x0, 288]           // HCR, CPTR
    ldp     x3, x4, [x0, 264]           // SP_EL0, PSTATE
    ldr     x6, [x0, 280]               // VTTBR
    ldr     x7, [x0, 304]               // SCTLR_EL1
    mov     w8, 1
    str     x8, [sp, {MODE}]
    msr     vttbr_el2, x6
    msr     sctlr_el1, x7
    msr     hcr_el2, x1
    msr     cptr_el2, x2
    msr     sp_el0, x3
    msr     spsr_el2, x4
    msr     elr_el2, x5
    b       load_general

    slot    vectors, 5, own_fault
load_general:
    ldp     x2, x3, [x0, 16]
    ldp     x4, x5, [x0, 32]
    ldp     x6, x7, [x0, 48]
    ldp     x8, x9, [x0, 64]
    ldp     x10, x11, [x0, 80]
    ldp     x12, x13, [x0, 96]
    ldp     x14, x15, [x0, 112]
    ldp     x16, x17, [x0, 128]
    ldp     x18, x19, [x0, 144]
    ldp     x20, x21, [x0, 160]
    ldp     x22, x23, [x0, 176]
    ldp     x24, x25, [x0, 192]
    ldp     x26, x27, [x0, 208]
    ldp     x28, x29, [x0, 224]
    ldr     x30, [x0, 240]
    ldp     x0, x1, [x0]
    leave

    slot    vectors, 6, own_fault
// The guest goes on behind the instruction that stopped it, or something else does.
not_delivered:
    cbnz    x0, obey
    ldr     x1, [sp, {CURRENT}]
    ldr     x2, [x1, 256]
    msr     elr_el2, x2

// What ran goes on; only scratch registers were changed.
again:
    ldr     x0, [sp, {CURRENT}]
    ldp     x2, x3, [x0, 16]
    ldp     x4, x5, [x0, 32]
    ldp     x6, x7, [x0, 48]
    ldp     x8, x9, [x0, 64]
    ldp     x10, x11, [x0, 80]
    ldp     x12, x13, [x0, 96]
    ldp     x14, x15, [x0, 112]
    ldp     x16, x17, [x0, 128]
    ldr     x18, [x0, 144]
    ldr     x30, [x0, 240]
    ldp     x0, x1, [x0]
    leave

    own_slot vectors, 7
// Only where the kernel lets its own errors in: the caller has given up what a call may change.
own_error:
    str     x29, [sp, -16]!
    mrs     x0, esr_el2
    bl      own_error_door
    ldr     x29, [sp], 16
    leave

    own_slot vectors, 8                 // lower EL, AArch64
lower_sync:                             // lower EL, AArch64
    stp     x0, x1, [sp, -16]
    mrs     x0, esr_el2
    lsr     x1, x0, 26
    cmp     x1, 0x15                    // SVC: only a server's comes here (a guest's goes to its EL1)
    b.ne    exit
server_call:
    and     w6, w0, 0xffff
    ldp     x0, x1, [sp, -16]
    mov     x7, sp
    bl      svc_door
    tbnz    x0, 0, ride
    tbnz    x0, 1, answered
    tbnz    x0, 2, slow
    tbnz    x0, 3, overtake
    mov     x0, x1
    leave

// A system call that no hot door decides: park the words, then decide.
slow:
    ldr     x3, [sp, {CURRENT}]
    stp     x19, x20, [x3, 288]
    stp     x21, x22, [x3, 304]
    stp     x23, x24, [x3, 320]
    stp     x25, x26, [x3, 336]
    stp     x27, x28, [x3, 352]
    mrs     x5, elr_el2
    mrs     x4, sp_el0
    stp     x5, x4, [x3, 256]
    mov     x0, sp
    bl      slow_door
    b       obey

    own_slot vectors, 9
irq:
    save_scratch
    mov     x0, sp
    bl      irq_door
    cbz     x0, again
irq_rest:
    save_rest
    tbz     x0, 0, obey
    b       irq_slow

    slot    vectors, 10, irq            // FIQ: routed here, never enabled
// The same, for which its hot door could not decide.
irq_slow:
    mov     x0, sp
    bl      irq_slow_door
    b       obey

// A thread gets an exit that another has handed on: the words ride in x19-x28, and the vCPU keeps them. x0 = the thread's
// context + 24, x1 = its x0.
pass:
    ldr     x3, [sp, {PASSED}]
    stp     x19, x20, [x3, 320]
    stp     x21, x22, [x3, 336]
    stp     x23, x24, [x3, 352]
    stp     x25, x26, [x3, 368]
    stp     x27, x28, [x3, 384]
    sub     x0, x0, 23
    b       ride

    slot    vectors, 11, system_error
    slot    vectors, 12, exit_32        // lower EL, AArch32
    slot    vectors, 13, irq
    slot    vectors, 14, irq
    slot    vectors, 15, system_error

    .balign 2048
    .globl  guarded_vectors
guarded_vectors:
    slot    guarded_vectors, 0, own_fault
guarded_irq:
    save_scratch
    mov     x0, sp
    bl      irq_door
    cbnz    x0, irq_rest
    mov     x0, sp
    bl      again_door
    b       again

    slot    guarded_vectors, 1, own_fault
    slot    guarded_vectors, 2, own_fault
    slot    guarded_vectors, 3, own_fault
    slot    guarded_vectors, 4, own_fault
    slot    guarded_vectors, 5, own_fault
    slot    guarded_vectors, 6, own_fault
    slot    guarded_vectors, 7, own_error
    guarded 8, guarded_sync, deferred_sync, close_sync
    guarded 9, guarded_irq, deferred_irq, close_irq
    guarded 10, guarded_irq, deferred_irq, close_irq
    guarded 11, system_error, deferred_irq, close_error
    guarded 12, exit_32, deferred_sync, close_sync
    guarded 13, guarded_irq, deferred_irq, close_irq
    guarded 14, guarded_irq, deferred_irq, close_irq
    guarded 15, system_error, deferred_irq, close_error
    .org    guarded_vectors + 2048

    .text
// A guest stopped, or a server faulted. x0 = ESR.
exit:
    save_all
    note_exit
    mov     x1, sp
    bl      exit_door
    tbz     x0, 0, not_delivered

delivered:
// A thread gets the exit of the vCPU that ran. x0 = its context + 1, x1 = badge.
    sub     x0, x0, 1
    ldr     x3, [sp, {CURRENT}]
    mrs     x4, sctlr_el1
    str     x4, [x3, 304]
    ldp     x4, x5, [sp, {SERVER}]      // HCR, CPTR
    ldr     x6, [sp, {SERVER} + 16]     // SCTLR_EL1
    ldr     x7, [x0, 280]
    ldp     x8, x9, [x0, 256]
    str     x0, [sp, {CURRENT}]
    str     xzr, [sp, {MODE}]
    msr     hcr_el2, x4
    msr     vttbr_el2, x7
    msr     cptr_el2, x5
    msr     sctlr_el1, x6
    msr     elr_el2, x8
    msr     sp_el0, x9
    msr     spsr_el2, xzr
    ldp     x19, x20, [x3, 320]
    ldp     x21, x22, [x3, 336]
    ldp     x23, x24, [x3, 352]
    ldp     x25, x26, [x3, 368]
    ldp     x27, x28, [x3, 384]
    mov     x0, x1

// What a guest or another domain had in scratch registers is not for the next one.
clear_scratch:
    mov     x1, xzr
    mov     x2, xzr
clear_from_3:
    mov     x3, xzr
    mov     x4, xzr
    mov     x5, xzr
    mov     x6, xzr
    mov     x7, xzr
    mov     x8, xzr
    mov     x9, xzr
    mov     x10, xzr
    mov     x11, xzr
    mov     x12, xzr
    mov     x13, xzr
    mov     x14, xzr
    mov     x15, xzr
    mov     x16, xzr
    mov     x17, xzr
    mov     x18, xzr
    mov     x29, xzr
    mov     x30, xzr
    leave

// After the guarded vectors, what goes on as it was gets MDSCR_EL1 back, which they took.
guarded_sync:
    stp     x0, x1, [sp, -16]
    mrs     x0, esr_el2
    lsr     x1, x0, 26
    cmp     x1, 0x15
    b.eq    server_call
    save_all
    note_exit
    mov     x1, sp
    bl      exit_door
    tbnz    x0, 0, delivered
    cbnz    x0, obey
    mov     x0, sp
    bl      again_door
    ldr     x1, [sp, {CURRENT}]
    ldr     x2, [x1, 272]               // what was done for the guest counts as its single step
    msr     spsr_el2, x2
    mov     x0, xzr
    b       not_delivered

// What comes seldom: x0 = its door, x0 and x1 are below the stack.
exit_32:
    stp     x0, x1, [sp, -16]
    adr     x0, exit_32_door
    b       seldom
system_error:
    stp     x0, x1, [sp, -16]
    adr     x0, system_error_door
seldom:
    save_all
    mov     x7, x0
    mrs     x0, esr_el2
    note_exit
    mov     x1, sp
    blr     x7
    b       obey

// An error that was found at the entry for something else.
deferred_sync:
    mrs     x0, esr_el2
    b       1f
deferred_irq:
    mov     x0, xzr
1:  save_all
    mov     x1, x0
    mov     x0, sp
    mrs     x2, S3_0_C12_C1_1
    msr     S3_0_C12_C1_1, xzr
    bl      deferred_error_door
    b       obey

// x0 = a context + what it is: 0 a guest, 4 a thread at the end of a system call, 8 a thread where it was interrupted.
    .globl obey
obey:
    and     x2, x0, 15
    bic     x0, x0, 15
    ldr     x9, [sp, {MODE}]
    ldr     x3, [sp, {CURRENT}]
    str     x0, [sp, {CURRENT}]
    cbz     x2, guest_again
    cbz     x9, 1f
    ldr     x5, [sp, {LOADED}]
    cmp     x5, x3
    b.ne    2f                          // it was unloaded, and its place may be another's
    mrs     x4, sctlr_el1               // from a guest's registers to a server's
    str     x4, [x3, 304]
2:
    ldp     x4, x5, [sp, {SERVER}]
    ldr     x6, [sp, {SERVER} + 16]
    str     xzr, [sp, {MODE}]
    msr     hcr_el2, x4
    msr     cptr_el2, x5
    msr     sctlr_el1, x6
1:  ldr     x7, [x0, 280]
    ldp     x8, x9, [x0, 256]
    msr     vttbr_el2, x7
    msr     elr_el2, x8
    msr     sp_el0, x9
    tbnz    x2, 3, 2f
    msr     spsr_el2, xzr
    ldp     x19, x20, [x0, 288]
    ldp     x21, x22, [x0, 304]
    ldp     x23, x24, [x0, 320]
    ldp     x25, x26, [x0, 336]
    ldp     x27, x28, [x0, 352]
    ldp     x1, x2, [x0, 376]
    ldr     x0, [x0, 368]
    b       clear_from_3
2:  ldr     x4, [x0, 272]
    and     x4, x4, 0xf0000000          // only the condition flags: a thread is always EL0t, AArch64, nothing masked
    msr     spsr_el2, x4
    b       load_general

guest_again:
    ldr     x5, [x0, 256]
    cbz     x9, enter_guest
    ldp     x1, x2, [x0, 288]
    ldp     x3, x4, [x0, 264]
    ldr     x6, [x0, 280]
    msr     hcr_el2, x1
    msr     cptr_el2, x2
    msr     vttbr_el2, x6
    msr     sp_el0, x3
    msr     spsr_el2, x4
    msr     elr_el2, x5
    b       load_general

// The one AT instruction, in a page of its own (isa.rs: translate). x0 = address; back: PAR_EL1.
    .section .translate, "ax"
    .balign 4096
    .globl  translate_read
translate_read:
    at      s1e1r, x0
    b       1f
    .globl  translate_write
translate_write:
    at      s1e1w, x0
1:  isb
    mrs     x0, par_el1
    ret
