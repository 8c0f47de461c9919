// SPDX-License-Identifier: MIT OR Apache-2.0
// Every register from and to memory. x0 = vectors, x1 = predicates (FFR the seventeenth), x2 = FPSR and FPCR.
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .text

    .macro  fixed operation
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \operation q\n, [x0, \n * 16]
    .endr
    .endm

    .macro  scalable operation
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \operation z\n, [x0, \n, mul vl]
    .endr
    .endm

    .macro  predicates operation
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \operation p\n, [x1, \n, mul vl]
    .endr
    .endm

    .globl  put_status
put_status:
    ldp     x3, x4, [x2]
    msr     fpsr, x3
    msr     fpcr, x4
    ret

    .globl  take_status
take_status:
    mrs     x3, fpsr
    mrs     x4, fpcr
    stp     x3, x4, [x2]
    ret

    .globl  put_fixed
put_fixed:
    fixed   ldr
    b       put_status

    .globl  take_fixed
take_fixed:
    fixed   str
    b       take_status

    .globl  put_scalable
put_scalable:
    scalable ldr
    ldr     p0, [x1, 16, mul vl]
    wrffr   p0.b
    predicates ldr
    b       put_status

    .globl  take_scalable
take_scalable:
    scalable str
    predicates str
    rdffr   p0.b
    str     p0, [x1, 16, mul vl]
    ldr     p0, [x1]
    b       take_status

    .globl  vector_bytes
vector_bytes:
    rdvl    x0, 1
    ret
