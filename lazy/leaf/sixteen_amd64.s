#include "textflag.h"

// Sixteen chains of SHA-256 side by side, with AVX-512: a register has one word of each. a to h are in Z0 to Z7, the sixteen words of
// the message that are in use in Z8 to Z23; Z24 to Z28 are scratch.

// load reads 64 bytes of four lanes, as words; four of them make a square with those of the other lanes.
#define load(at, w0, w1, w2, w3) \
	VMOVDQU32 (at+0)*4096(SI), w0; \
	VMOVDQU32 (at+1)*4096(SI), w1; \
	VMOVDQU32 (at+2)*4096(SI), w2; \
	VMOVDQU32 (at+3)*4096(SI), w3; \
	VPSHUFB   Z28, w0, w0;         \
	VPSHUFB   Z28, w1, w1;         \
	VPSHUFB   Z28, w2, w2;         \
	VPSHUFB   Z28, w3, w3;         \
	VPUNPCKLDQ  w1, w0, Z24;       \
	VPUNPCKHDQ  w1, w0, Z25;       \
	VPUNPCKLDQ  w3, w2, Z26;       \
	VPUNPCKHDQ  w3, w2, Z27;       \
	VPUNPCKLQDQ Z26, Z24, w0;      \
	VPUNPCKHQDQ Z26, Z24, w1;      \
	VPUNPCKLQDQ Z27, Z25, w2;      \
	VPUNPCKHQDQ Z27, Z25, w3

// turn makes of the squares of four lanes each the words of all lanes.
#define turn(w0, w1, w2, w3) \
	VSHUFI32X4 $0x44, w1, w0, Z24;   \
	VSHUFI32X4 $0xee, w1, w0, Z25;   \
	VSHUFI32X4 $0x44, w3, w2, Z26;   \
	VSHUFI32X4 $0xee, w3, w2, Z27;   \
	VSHUFI32X4 $0x88, Z26, Z24, w0;  \
	VSHUFI32X4 $0xdd, Z26, Z24, w1;  \
	VSHUFI32X4 $0x88, Z27, Z25, w2;  \
	VSHUFI32X4 $0xdd, Z27, Z25, w3

// round is a round with word w and the constant k places behind R8. h becomes the new a, d the new e.
#define round(a, b, c, d, e, f, g, h, w, k) \
	VPADDD.BCST k*4(R8), w, Z24;     \
	VPADDD      Z24, h, h;           \
	VPRORD      $6, e, Z25;          \
	VPRORD      $11, e, Z26;         \
	VPRORD      $25, e, Z27;         \
	VPTERNLOGD  $0x96, Z26, Z27, Z25;\
	VMOVDQA32   e, Z26;              \
	VPTERNLOGD  $0xca, g, f, Z26;    \
	VPADDD      Z25, h, h;           \
	VPADDD      Z26, h, h;           \
	VPADDD      h, d, d;             \
	VPRORD      $2, a, Z25;          \
	VPRORD      $13, a, Z26;         \
	VPRORD      $22, a, Z27;         \
	VPTERNLOGD  $0x96, Z26, Z27, Z25;\
	VMOVDQA32   a, Z26;              \
	VPTERNLOGD  $0xe8, c, b, Z26;    \
	VPADDD      Z25, h, h;           \
	VPADDD      Z26, h, h

// extend makes of w the word sixteen behind it, of those 1, 9 and 14 behind it.
#define extend(w, w1, w9, w14) \
	VPRORD     $7, w1, Z24;          \
	VPRORD     $18, w1, Z25;         \
	VPSRLD     $3, w1, Z26;          \
	VPTERNLOGD $0x96, Z24, Z25, Z26; \
	VPADDD     Z26, w, w;            \
	VPADDD     w9, w, w;             \
	VPRORD     $17, w14, Z24;        \
	VPRORD     $19, w14, Z25;        \
	VPSRLD     $10, w14, Z26;        \
	VPTERNLOGD $0x96, Z24, Z25, Z26; \
	VPADDD     Z26, w, w

#define add(at, r) \
	VPADDD    at*64(DI), r, r; \
	VMOVDQU32 r, at*64(DI)

// func sixteen(state *[8][16]uint32, p *byte)
TEXT ·sixteen(SB), NOSPLIT, $0-16
	MOVQ state+0(FP), DI
	MOVQ p+8(FP), SI
	VMOVDQU32 0*64(DI), Z0
	VMOVDQU32 1*64(DI), Z1
	VMOVDQU32 2*64(DI), Z2
	VMOVDQU32 3*64(DI), Z3
	VMOVDQU32 4*64(DI), Z4
	VMOVDQU32 5*64(DI), Z5
	VMOVDQU32 6*64(DI), Z6
	VMOVDQU32 7*64(DI), Z7
	VBROADCASTI32X4 flip<>(SB), Z28
	MOVQ $64, CX

next:
	load(0, Z8, Z9, Z10, Z11)
	load(4, Z12, Z13, Z14, Z15)
	load(8, Z16, Z17, Z18, Z19)
	load(12, Z20, Z21, Z22, Z23)
	turn(Z8, Z12, Z16, Z20)
	turn(Z9, Z13, Z17, Z21)
	turn(Z10, Z14, Z18, Z22)
	turn(Z11, Z15, Z19, Z23)
	ADDQ $64, SI

block:
	LEAQ constants<>(SB), R8
	MOVQ $3, DX
	round(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, 0)
	round(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z9, 1)
	round(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z10, 2)
	round(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z11, 3)
	round(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z12, 4)
	round(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z13, 5)
	round(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z14, 6)
	round(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z15, 7)
	round(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 8)
	round(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 9)
	round(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 10)
	round(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 11)
	round(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 12)
	round(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 13)
	round(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 14)
	round(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 15)

more:
	ADDQ $64, R8
	extend(Z8, Z9, Z17, Z22)
	round(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, 0)
	extend(Z9, Z10, Z18, Z23)
	round(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z9, 1)
	extend(Z10, Z11, Z19, Z8)
	round(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z10, 2)
	extend(Z11, Z12, Z20, Z9)
	round(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z11, 3)
	extend(Z12, Z13, Z21, Z10)
	round(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z12, 4)
	extend(Z13, Z14, Z22, Z11)
	round(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z13, 5)
	extend(Z14, Z15, Z23, Z12)
	round(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z14, 6)
	extend(Z15, Z16, Z8, Z13)
	round(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z15, 7)
	extend(Z16, Z17, Z9, Z14)
	round(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 8)
	extend(Z17, Z18, Z10, Z15)
	round(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 9)
	extend(Z18, Z19, Z11, Z16)
	round(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 10)
	extend(Z19, Z20, Z12, Z17)
	round(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 11)
	extend(Z20, Z21, Z13, Z18)
	round(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 12)
	extend(Z21, Z22, Z14, Z19)
	round(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 13)
	extend(Z22, Z23, Z15, Z20)
	round(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 14)
	extend(Z23, Z8, Z16, Z21)
	round(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 15)
	DECQ DX
	JNZ  more

	add(0, Z0)
	add(1, Z1)
	add(2, Z2)
	add(3, Z3)
	add(4, Z4)
	add(5, Z5)
	add(6, Z6)
	add(7, Z7)
	DECQ CX
	JG   next
	JL   done

	// Behind 4,096 bytes: a bit, zeros, and their number in bits (FIPS 180-4, section 5.1.1).
	MOVL         $0x80000000, AX
	VPBROADCASTD AX, Z8
	VPXORD       Z9, Z9, Z9
	VMOVDQA32    Z9, Z10
	VMOVDQA32    Z9, Z11
	VMOVDQA32    Z9, Z12
	VMOVDQA32    Z9, Z13
	VMOVDQA32    Z9, Z14
	VMOVDQA32    Z9, Z15
	VMOVDQA32    Z9, Z16
	VMOVDQA32    Z9, Z17
	VMOVDQA32    Z9, Z18
	VMOVDQA32    Z9, Z19
	VMOVDQA32    Z9, Z20
	VMOVDQA32    Z9, Z21
	VMOVDQA32    Z9, Z22
	MOVL         $32768, AX
	VPBROADCASTD AX, Z23
	JMP          block

done:
	VZEROUPPER
	RET

// the bytes of four words turned round
DATA flip<>+0(SB)/8, $0x0405060700010203
DATA flip<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL flip<>(SB), RODATA|NOPTR, $16

// FIPS 180-4, section 4.2.2
DATA constants<>+0x00(SB)/8, $0x71374491428a2f98
DATA constants<>+0x08(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+0x10(SB)/8, $0x59f111f13956c25b
DATA constants<>+0x18(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+0x20(SB)/8, $0x12835b01d807aa98
DATA constants<>+0x28(SB)/8, $0x550c7dc3243185be
DATA constants<>+0x30(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+0x38(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+0x40(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+0x48(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+0x50(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+0x58(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+0x60(SB)/8, $0xa831c66d983e5152
DATA constants<>+0x68(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+0x70(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+0x78(SB)/8, $0x1429296706ca6351
DATA constants<>+0x80(SB)/8, $0x2e1b213827b70a85
DATA constants<>+0x88(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+0x90(SB)/8, $0x766a0abb650a7354
DATA constants<>+0x98(SB)/8, $0x92722c8581c2c92e
DATA constants<>+0xa0(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+0xa8(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+0xb0(SB)/8, $0xd6990624d192e819
DATA constants<>+0xb8(SB)/8, $0x106aa070f40e3585
DATA constants<>+0xc0(SB)/8, $0x1e376c0819a4c116
DATA constants<>+0xc8(SB)/8, $0x34b0bcb52748774c
DATA constants<>+0xd0(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+0xd8(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+0xe0(SB)/8, $0x78a5636f748f82ee
DATA constants<>+0xe8(SB)/8, $0x8cc7020884c87814
DATA constants<>+0xf0(SB)/8, $0xa4506ceb90befffa
DATA constants<>+0xf8(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
