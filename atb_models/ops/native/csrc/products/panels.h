// Packed weights, and the product of a few rows with a few panels of them.
//
// A panel holds 16 outputs. Format S lies as [K][16]; bfloat16 as [K / 2][16][2], the order of the instructions that
// multiply pairs; for products of int8 see dots.h. K is filled up with zeros to a multiple of FILL, the last panel with
// zero outputs.
//
// An output is summed in blocks of K_BLOCK inputs: one chain of additions from zero within a block, in the inputs'
// order, then block is added to block. Every form below does exactly that, so rows do not depend on their number.
#pragma once
#include "../simd/simd.h"

constexpr int PANEL = 16;
constexpr int NV = PANEL / VL;
constexpr int K_STEP = 4;
constexpr int K_BLOCK = 256;

// Rows that the registers hold beside panels, and how many panels beside a number of rows.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 12;
constexpr int panels_beside(int rows) { return rows <= 4 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 6;
constexpr int panels_beside(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#else
constexpr int MAX_ROWS = 6;
constexpr int panels_beside(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#endif
constexpr int PANELS = panels_beside(MAX_ROWS);
static_assert(PANELS == 1 || panels_beside(MAX_ROWS / 2) == PANELS, "rows of several tiles all take PANELS panels");

constexpr int FETCH = 1024;  // bytes that a panel which is read once is fetched before it is needed

// What a tile multiplies: `inputs` (at most K_BLOCK) of some rows and panels. c[m][16 p + i] = or += the sums.
struct Part {
  const void* rows;  // the activations of these inputs
  const char* panels;
  int64_t panel_bytes;
  int inputs;
  float* c;
  int64_t c_row;
  bool first;         // nothing is in c yet
  const char* ahead;  // fetched into the cache meanwhile
  const char* turn;   // where what is ahead of panels that come from memory goes on elsewhere, `jump` bytes on
  int64_t jump;
  // Of products of int8:
  const int32_t* facts;
  int piece;  // inputs
  const float *scale, *offset;
  int64_t scale_panel;  // elements from one panel's scales to the next
};

// Forms of a weight whose elements take BITS. Beside it activations lie as [K][rows] floats, or as [K / 2][rows] pairs of
// bfloat16: A_STEP elements of type A for each row and KI inputs. A tile has ROWS rows at most, and beside(rows) panels.
// WIDEN: beside more than DIRECT rows it pays to give it the form Wide first. WAITING: rows up to which the product
// waits for the memory. ALONE: panels beside a single row; of int8, whose panels have half the bytes, more are on their
// way together.
struct Floats {
  static constexpr int DIGITS = 0, FILL = K_STEP, ROWS = MAX_ROWS, AHEAD = FETCH;
  static constexpr int beside(int rows) { return panels_beside(rows); }
};
template <class S> struct Plain : Floats {
  typedef float A;
  typedef Plain<F32> Wide;
  static constexpr int KI = 1, BITS = 8 * sizeof(typename S::T), A_STEP = 1, DIRECT = MAX_ROWS, WAITING = 2,
                       ALONE = panels_beside(1);
  static constexpr bool WIDEN = BITS < 32;
  template <int MR, int NP>
  INLINE void step(vf (&acc)[MR][NP][NV], const float* a, const char* b, int64_t panel_bytes) {
    // Few rows beside many panels: the rows' inputs stay in registers, a panel's do not.
    if constexpr (MR <= 2 || (MR == 3 && NP > 1)) {
      vf x[MR];
      UNROLL for (int m = 0; m < MR; m++) x[m] = splat(a[m]);
      UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) {
        const vf w = S::load((const typename S::T*)(b + p * panel_bytes) + v * VL);
        UNROLL for (int m = 0; m < MR; m++) acc[m][p][v] = fma(x[m], w, acc[m][p][v]);
      }
      return;
    }
    vf w[NP][NV];
    UNROLL for (int p = 0; p < NP; p++)
      UNROLL for (int v = 0; v < NV; v++) w[p][v] = S::load((const typename S::T*)(b + p * panel_bytes) + v * VL);
    UNROLL for (int m = 0; m < MR; m++) {
      vf x = splat(a[m]);
      UNROLL for (int p = 0; p < NP; p++)
        UNROLL for (int v = 0; v < NV; v++) acc[m][p][v] = fma(x, w[p][v], acc[m][p][v]);
    }
  }
};

INLINE vf first_of_pair(vi pairs) { return (vf)(pairs << 16); }
INLINE vf second_of_pair(vi pairs) { return (vf)(pairs & splat_bits((int32_t)0xffff0000)); }

struct Pairs : Floats {
  typedef float A;
  typedef Plain<F32> Wide;
  static constexpr int KI = 2, BITS = 16, A_STEP = 2, DIRECT = VL == 8 ? 4 : MAX_ROWS, WAITING = 2,
                       ALONE = panels_beside(1);
  static constexpr bool WIDEN = true;
  template <int MR, int NP>
  INLINE void step(vf (&acc)[MR][NP][NV], const float* a, const char* b, int64_t panel_bytes) {
    if constexpr (MR == 3 && NP > 1) {  // the registers hold one input of each row, so the panels are loaded twice
      UNROLL for (int second = 0; second < 2; second++) {
        vf x[MR];
        UNROLL for (int m = 0; m < MR; m++) x[m] = in_register(splat(a[second * MR + m]));
        UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) {
          const vi pairs = load_bits(b + p * panel_bytes + v * VL * 4);
          const vf w = second ? second_of_pair(pairs) : first_of_pair(pairs);
          UNROLL for (int m = 0; m < MR; m++) acc[m][p][v] = fma(x[m], w, acc[m][p][v]);
        }
      }
      return;
    }
    vi w[NP][NV];
    UNROLL for (int p = 0; p < NP; p++)
      UNROLL for (int v = 0; v < NV; v++) w[p][v] = load_bits(b + p * panel_bytes + v * VL * 4);
    UNROLL for (int m = 0; m < MR; m++) {
      vf x = splat(a[m]), y = splat(a[MR + m]);
      UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) {
        acc[m][p][v] = fma(x, first_of_pair(w[p][v]), acc[m][p][v]);
        acc[m][p][v] = fma(y, second_of_pair(w[p][v]), acc[m][p][v]);
      }
    }
  }
};

#ifdef HAS_BF16_DOT
// Vector v of the pairs of a panel at `b`: 2 inputs of VL outputs. Every int8 is exact in bfloat16.
INLINE vi load_pairs(BF16, const char* b, int v) { return load_bits(b + v * VL * 4); }
INLINE vi load_pairs(I8, const char* b, int v) {
  const int8_t* first = (const int8_t*)b + v * VL;
  return join_upper_halves(I8::load(first), I8::load(first + PANEL));
}

template <class S> struct DotPairs : Floats {
  typedef int32_t A;  // a pair of bfloat16
  typedef DotPairs<BF16> Wide;
  static constexpr int KI = 2, BITS = 8 * sizeof(typename S::T), A_STEP = 1, DIRECT = MAX_ROWS, WAITING = 4,
                       ALONE = BITS == 8 ? 8 : panels_beside(1);
  static constexpr bool WIDEN = BITS < 16;
  template <int MR, int NP>
  INLINE void step(vf (&acc)[MR][NP][NV], const int32_t* a, const char* b, int64_t panel_bytes) {
    vi w[NP][NV];
    UNROLL for (int p = 0; p < NP; p++)
      UNROLL for (int v = 0; v < NV; v++) w[p][v] = load_pairs(S(), b + p * panel_bytes, v);
    UNROLL for (int m = 0; m < MR; m++) {
      vi x = splat_bits(a[m]);
      UNROLL for (int p = 0; p < NP; p++)
        UNROLL for (int v = 0; v < NV; v++) acc[m][p][v] = dot_pairs(acc[m][p][v], x, w[p][v]);
    }
  }
};
#endif

// What bfloat16 activations use beside weights of their own format, and beside int8.
#ifdef HAS_BF16_DOT
typedef DotPairs<BF16> PairsOfBF16;
typedef DotPairs<I8> I8BesideBF16;
#else
typedef Pairs PairsOfBF16;
typedef Plain<I8> I8BesideBF16;
#endif

// `bytes` of each of NP panels from `ahead` on: for few rows, which wait for the memory, into the second-level cache,
// because the first has fewer places for what is on its way; for more rows, which compute, into the first.
template <int BYTES, int NP, bool WAITS> INLINE void fetch(const Part& part, const char*& ahead) {
  UNROLL for (int p = 0; p < NP; p++)
    UNROLL for (int at = 0; at < BYTES; at += 64) __builtin_prefetch(ahead + p * part.panel_bytes + at, 0, WAITS ? 2 : 3);
  ahead += BYTES;
  if (ahead == part.turn) ahead += part.jump;
}

// MR rows and NP panels. STREAM: the panels come from memory, and are fetched before they are needed; else
// they are in the cache, and 2 lines of `ahead` are fetched for each step.
template <class W, bool STREAM, int MR, int NP> static void floats_tile(const Part& part) {
  const typename W::A* a = (const typename W::A*)part.rows;
  const char *b = part.panels, *ahead = part.ahead;
  const int64_t panel_bytes = part.panel_bytes;
  const int inputs = part.inputs;
  vf acc[MR][NP][NV];
  UNROLL for (int m = 0; m < MR; m++)
    UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) acc[m][p][v] = zeros();
  for (int k = 0; k < inputs; k += K_STEP) {
    if (STREAM) {
      fetch<K_STEP * PANEL * W::BITS / 8, NP, MR <= W::WAITING>(part, ahead);
    } else {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + 64, 0, 2);
      ahead += 128;
    }
    UNROLL for (int s = 0; s < K_STEP / W::KI; s++) {
      W::template step<MR, NP>(acc, a, b, panel_bytes);
      a += W::A_STEP * MR;
      b += W::KI * PANEL * W::BITS / 8;
    }
  }
  UNROLL for (int m = 0; m < MR; m++)
    UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) {
      float* to = part.c + m * part.c_row + p * PANEL + v * VL;
      store(to, part.first ? acc[m][p][v] : load(to) + acc[m][p][v]);
    }
}
