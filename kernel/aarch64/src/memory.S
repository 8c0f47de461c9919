// SPDX-License-Identifier: MIT OR Apache-2.0
// What compiled code calls for larger values, two registers at a time: the compiler's own move eight bytes in three
// instructions. Every access is aligned, so that they may be called while memory is device memory (MMU off, or a frame).

    .text
// x0 to, w1 byte, x2 bytes; back: x0 to.
    .globl  memset
memset:
    mov     x3, x0
    and     x1, x1, 0xff
    mov     x4, 0x0101010101010101
    mul     x1, x1, x4
1:  tst     x3, 7
    b.eq    2f
    cbz     x2, 9f
    strb    w1, [x3], 1
    sub     x2, x2, 1
    b       1b
2:  subs    x2, x2, 64
    b.lo    4f
3:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, 16]
    stp     x1, x1, [x3, 32]
    stp     x1, x1, [x3, 48]
    add     x3, x3, 64
    subs    x2, x2, 64
    b.hs    3b
4:  tbz     x2, 5, 5f                   // what is left, in the low six bits
    stp     x1, x1, [x3], 16
    stp     x1, x1, [x3], 16
5:  tbz     x2, 4, 6f
    stp     x1, x1, [x3], 16
6:  tbz     x2, 3, 7f
    str     x1, [x3], 8
7:  and     x2, x2, 7
8:  cbz     x2, 9f
    strb    w1, [x3], 1
    sub     x2, x2, 1
    b       8b
9:  ret

// x0 to, x1 from, x2 bytes, apart from each other; back: x0 to.
    .globl  memcpy
memcpy:
    mov     x3, x0
    eor     x4, x0, x1
    tst     x4, 7
    b.ne    7f                          // they are never both aligned
1:  tst     x3, 7
    b.eq    2f
    cbz     x2, 9f
    ldrb    w4, [x1], 1
    strb    w4, [x3], 1
    sub     x2, x2, 1
    b       1b
2:  subs    x2, x2, 32
    b.lo    4f
3:  ldp     x4, x5, [x1]
    ldp     x6, x7, [x1, 16]
    add     x1, x1, 32
    stp     x4, x5, [x3]
    stp     x6, x7, [x3, 16]
    add     x3, x3, 32
    subs    x2, x2, 32
    b.hs    3b
4:  tbz     x2, 4, 5f                   // what is left, in the low five bits
    ldp     x4, x5, [x1], 16
    stp     x4, x5, [x3], 16
5:  tbz     x2, 3, 6f
    ldr     x4, [x1], 8
    str     x4, [x3], 8
6:  and     x2, x2, 7
7:  cbz     x2, 9f
8:  ldrb    w4, [x1], 1
    strb    w4, [x3], 1
    subs    x2, x2, 1
    b.ne    8b
9:  ret

// The same where they may overlap: upwards as there, where no store reaches what is still to be loaded, unless the target
// begins inside the source; then downwards.
    .globl  memmove
memmove:
    sub     x3, x0, x1
    cmp     x3, x2
    b.hs    memcpy
    orr     x4, x0, x1
    orr     x4, x4, x2
    tst     x4, 7
    b.ne    2f
1:  cbz     x2, 3f                      // whole words
    sub     x2, x2, 8
    ldr     x4, [x1, x2]
    str     x4, [x0, x2]
    b       1b
2:  sub     x2, x2, 1                   // there is a byte at least
    ldrb    w4, [x1, x2]
    strb    w4, [x0, x2]
    cbnz    x2, 2b
3:  ret
