// Products of four warps (a warpgroup) with matrices in shared memory, which run beside other instructions: all four warps
// issue the same products, and every warp has 16 of the 64 rows. Operands from registers and accumulators are those of
// `mma`, tile after tile of 8 columns.
#pragma once
#include "ptx.cuh"

// Matrices of 8 x 8 bf16 in shared memory: `along` bytes between neighbours along the sum, `across` along the columns
struct Matrices {
  u32 low, high;
  DEVICE Matrices(const void* p, int along, int across) : low(shared_address(p) >> 4 | (u32)along >> 4 << 16), high((u32)across >> 4) {}
  DEVICE Matrices operator+(int bytes) const {
    Matrices moved = *this;
    moved.low += bytes >> 4;
    return moved;
  }
};

#define TILE_OF(how, c, j) how "f"(c[j][0]), how "f"(c[j][1]), how "f"(c[j][2]), how "f"(c[j][3])
#define TWO_OF(how, c, j) TILE_OF(how, c, j), TILE_OF(how, c, j + 1)
#define FOUR_OF(how, c, j) TWO_OF(how, c, j), TWO_OF(how, c, j + 2)
#define OPERANDS(a, b) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high)
#define REGISTERS_4 "%0,%1,%2,%3"
#define REGISTERS_8 REGISTERS_4 ",%4,%5,%6,%7"
#define REGISTERS_16 REGISTERS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define REGISTERS_24 REGISTERS_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define REGISTERS_32 REGISTERS_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define REGISTERS_48 REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
// COLUMNS, accumulators, numbers of the operands' registers, 1 where a matrix's rows run along the sum, and "ne" where the
// sum starts from 0 instead of the accumulators ("eq")
#define WGMMA(COLUMNS, ACCUMULATORS, A, LOW, HIGH, TRANSPOSED, FROM)                                               \
  "{\n.reg .pred p;\n.reg .b64 b;\nsetp." FROM ".u32 p,0,0;\nmov.b64 b,{" LOW "," HIGH "};\n"                       \
  "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32.bf16.bf16 {" ACCUMULATORS "},{" A "},b,p,1,1," TRANSPOSED ";\n}"

// c += a b: 64 x 16 of a, 16 x 8 J of b; a matrix has a row for a column
DEVICE void wgmma(float (&c)[1][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("8", REGISTERS_4, "%4,%5,%6,%7", "%8", "%9", "0", "eq") : TILE_OF("+", c, 0) : OPERANDS(a, b));
}
DEVICE void wgmma(float (&c)[2][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("16", REGISTERS_8, "%8,%9,%10,%11", "%12", "%13", "0", "eq") : TWO_OF("+", c, 0) : OPERANDS(a, b));
}
DEVICE void wgmma(float (&c)[4][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("32", REGISTERS_16, "%16,%17,%18,%19", "%20", "%21", "0", "eq") : FOUR_OF("+", c, 0) : OPERANDS(a, b));
}
DEVICE void wgmma(float (&c)[6][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("48", REGISTERS_24, "%24,%25,%26,%27", "%28", "%29", "0", "eq")
               : FOUR_OF("+", c, 0), TWO_OF("+", c, 4)
               : OPERANDS(a, b));
}
DEVICE void wgmma(float (&c)[8][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("64", REGISTERS_32, "%32,%33,%34,%35", "%36", "%37", "0", "eq")
               : FOUR_OF("+", c, 0), FOUR_OF("+", c, 4)
               : OPERANDS(a, b));
}
DEVICE void wgmma(float (&c)[12][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("96", REGISTERS_48, "%48,%49,%50,%51", "%52", "%53", "0", "eq")
               : FOUR_OF("+", c, 0), FOUR_OF("+", c, 4), FOUR_OF("+", c, 8)
               : OPERANDS(a, b));
}
// c = a b
DEVICE void wgmma_from_zero(float (&c)[4][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("32", REGISTERS_16, "%16,%17,%18,%19", "%20", "%21", "0", "ne") : FOUR_OF("=", c, 0) : OPERANDS(a, b));
}
DEVICE void wgmma_from_zero(float (&c)[8][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("64", REGISTERS_32, "%32,%33,%34,%35", "%36", "%37", "0", "ne")
               : FOUR_OF("=", c, 0), FOUR_OF("=", c, 4)
               : OPERANDS(a, b));
}
// c += a b where a matrix has a row for a step of the sum
DEVICE void wgmma_transposed(float (&c)[4][4], const u32 (&a)[4], Matrices b) {
  asm volatile(WGMMA("32", REGISTERS_16, "%16,%17,%18,%19", "%20", "%21", "1", "eq") : FOUR_OF("+", c, 0) : OPERANDS(a, b));
}

// Before products, what was written to their registers; products up to here make a group; all but the last `COUNT` groups
// are done
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int COUNT>
DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(COUNT) : "memory"); }

// Whether it holds for any thread of a warpgroup, which has the barrier `number`. The vote tells the compiler that a warp's
// lanes agree.
DEVICE bool any_of_warpgroup(bool mine, int number) {
  int any;
  asm volatile("{\n.reg .pred p,q;\nsetp.ne.s32 q,%1,0;\nbar.red.or.pred p,%2,128,q;\nselp.s32 %0,1,0,p;\n}"
               : "=r"(any)
               : "r"((int)mine), "r"(number)
               : "memory");
  return __any_sync(~0u, any);
}

// Accumulators go to registers of their own. The compiler keeps products in flight only where accumulators that two of its
// paths share do not have to be in the same registers in both.
template <int TILES_OF_8>
DEVICE void move_out(float (&c)[TILES_OF_8][4]) {
#pragma unroll
  for (int j = 0; j < TILES_OF_8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float moved;
      asm volatile("mov.f32 %0,%1;" : "=f"(moved) : "f"(c[j][i]));
      c[j][i] = moved;
    }
}
// Accumulators stay where they are up to here: they are written before the products that follow, read after a wait
template <int TILES_OF_8>
DEVICE void hold(float (&c)[TILES_OF_8][4]) {
#pragma unroll
  for (int j = 0; j < TILES_OF_8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(c[j][i])::"memory");
}
