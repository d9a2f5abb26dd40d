// Products of int8 activations with weights of 8 or 4 bits. Sums of up to K_BLOCK inputs are exact int32.
//
// A lane of a vector belongs to an output and holds TOGETHER inputs. A panel of int8 lies as [K / TOGETHER][16][TOGETHER];
// one of 4 bits as [K / 8][16][4], byte j holding input j in its lower half and input j + 4 in its upper half. Where the
// instructions take weights without a sign, ZERO was added to them; sums start from what that adds, see digits.h.
//
// An activation is one int8, or, where it is to keep the precision of a float, an integer of 3 DIGITS to the base 256.
// Rows lie as [K / TOGETHER][DIGITS][rows] lanes, then as [piece][DIGITS + 2][rows] facts: the numbers that the sums of
// each digit start from, what a unit of the last digit is worth and the sum of the activations, both float. A piece is
// what one scale of the weight covers, at most K_BLOCK inputs.
#pragma once
#include "panels.h"

// Sources of weights. `load` gives vector v, of the inputs' first or second half, of a panel at b.
struct QuadsOfI8 {
  typedef QuadsOfI8 Wide;
  static constexpr int KI = 4, BITS = 8, TOGETHER = 4, HALVES = 1, ZERO = I8_ZERO;
  INLINE vi load(const char* b, int v, int) { return load_bits(b + v * VL * 4); }
};
struct QuadsOfI4 {
  typedef QuadsOfI8 Wide;
  static constexpr int KI = 8, BITS = 4, TOGETHER = 4, HALVES = 2, ZERO = 8;
  INLINE vi load(const char* b, int v, int half) {
    const vi both = load_bits(b + v * VL * 4);
    return (half ? both >> 4 : both) & splat_bits(0x0f0f0f0f);
  }
};
#if defined(HAS_INT8_DOT)
typedef QuadsOfI8 DotsOfI8;
#else
// Without an instruction for 4 products in a lane: pairs of int16.
struct PairsOfI16 {
  typedef PairsOfI16 Wide;
  static constexpr int KI = 2, BITS = 16, TOGETHER = 2, HALVES = 1, ZERO = 0;
  INLINE vi load(const char* b, int v, int) { return load_bits(b + v * VL * 4); }
};
struct PairsOfI8 {
  typedef PairsOfI16 Wide;
  static constexpr int KI = 2, BITS = 8, TOGETHER = 2, HALVES = 1, ZERO = 0;
  INLINE vi load(const char* b, int v, int) { return widen_i8((const int8_t*)b + v * VL * 2); }
};
typedef PairsOfI8 DotsOfI8;
#endif

template <class S, int D> struct Dots {
  typedef int32_t A;
  typedef S Source;
  typedef Dots<typename S::Wide, D> Wide;
  static constexpr int DIGITS = D, KI = S::KI, BITS = S::BITS, FILL = S::BITS == 4 ? 8 : K_STEP;
#if defined(__AVX512F__)
  static constexpr int ROWS = D == 1 ? MAX_ROWS : 4, ALONE = 8;
  static constexpr int beside(int rows) { return rows <= (D == 1 ? 4 : 1) ? 4 : 2; }
#elif defined(__AVX2__)
  static constexpr int ROWS = D == 1 ? MAX_ROWS : 1, ALONE = D == 1 ? 4 : 1;
  static constexpr int beside(int rows) { return D == 1 ? panels_beside(rows) : 1; }
#else
  static constexpr int ROWS = D == 1 ? MAX_ROWS : 2, ALONE = D == 1 ? 4 : 2;
  static constexpr int beside(int rows) { return D == 1 ? panels_beside(rows) : rows == 1 ? 2 : 1; }
#endif
  // Bytes before a panel that is read once; 4 bits, with more to compute for each byte, are fetched earlier.
  static constexpr int AHEAD = D == 1 ? FETCH : 2 * FETCH, DIRECT = ROWS, WAITING = 4;
  static constexpr bool WIDEN = S::BITS != S::Wide::BITS;
};

// What a piece's exact sums are worth, added to c; or they are added to it as int32, where activations have one digit.
template <int D, int MR, int NP>
INLINE void finish_piece(const vi (&acc)[D][MR][NP][NV], const Part& part, const int32_t* facts, const float* scale,
                         const float* offset, bool first) {
  UNROLL for (int m = 0; m < MR; m++)
    UNROLL for (int p = 0; p < NP; p++) UNROLL for (int v = 0; v < NV; v++) {
      float* to = part.c + m * part.c_row + p * PANEL + v * VL;
      if constexpr (D == 1) {
        store_bits(to, first ? acc[0][m][p][v] : load_bits(to) + acc[0][m][p][v]);
      } else {
        const float *worth = (const float*)facts + D * MR, *sum = worth + MR;
        const int64_t at = p * part.scale_panel + v * VL;
        const vf high = to_float((acc[2][m][p][v] << 8) + acc[1][m][p][v]);
        vf y = fma(high, splat(256.f), to_float(acc[0][m][p][v])) * splat(worth[m]);
        if (offset) y = fma(load(offset + at), splat(-sum[m]), y);
        store(to, first ? y * load(scale + at) : fma(y, load(scale + at), load(to)));
      }
    }
}

#if defined(HAS_INT8_DOT)
template <class S> INLINE vi dot(S, vi sum, vi w, vi x) { return dot_quads(sum, w, x); }
#else
template <class S> INLINE vi dot(S, vi sum, vi w, vi x) { return dot_pairs_of_i16(sum, w, x); }
#endif

// Sums of `inputs` of a piece.
template <class W, bool STREAM, int MR, int NP>
INLINE void add_products(vi (&acc)[W::DIGITS][MR][NP][NV], const int32_t*& a, const char*& b, int inputs,
                         const Part& part, const char*& ahead) {
  typedef typename W::Source S;
  constexpr int D = W::DIGITS, STEP = S::KI > K_STEP ? S::KI : K_STEP;
  for (int k = 0; k < inputs; k += STEP) {
    if (STREAM) {
      fetch<STEP * PANEL * S::BITS / 8, NP, MR <= W::WAITING>(part, ahead);
    } else {
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + 64, 0, 2);
      ahead += 128;
    }
    UNROLL for (int s = 0; s < STEP / S::KI; s++) {
      UNROLL for (int half = 0; half < S::HALVES; half++) {
        vi w[NP][NV];
        UNROLL for (int p = 0; p < NP; p++)
          UNROLL for (int v = 0; v < NV; v++) w[p][v] = S::load(b + p * part.panel_bytes, v, half);
        UNROLL for (int d = 0; d < D; d++) UNROLL for (int m = 0; m < MR; m++) {
          const vi x = splat_bits(a[d * MR + m]);
          UNROLL for (int p = 0; p < NP; p++)
            UNROLL for (int v = 0; v < NV; v++) acc[d][m][p][v] = dot(S(), acc[d][m][p][v], w[p][v], x);
        }
        a += D * MR;
      }
      b += S::KI * PANEL * S::BITS / 8;
    }
  }
}

#if !defined(HAS_INT8_DOT)
// The same for weights that take 4 bits, beside a single row and panel. Pairs of products are added as int16: with up to
// 15 * 128 each, 16 of them fit. The sums are kept in registers, where the compiler would first make all products.
constexpr int RUN = 32;                   // inputs
constexpr int RUN_AHEAD = 3 * FETCH;      // bytes, into the first cache: there is but one panel on its way

template <class S, bool STREAM, int N>
INLINE void add_run(vi (&acc)[3][1][1][NV], const int32_t* a, const char* b, const char* ahead) {
  vi sum[3][NV];
  UNROLL for (int i = 0; i < N / 4; i++) {
    const char* at = b + i / S::HALVES * 64;
    if (STREAM && i % S::HALVES == 0) __builtin_prefetch(at + RUN_AHEAD, 0, 3);
    if (!STREAM && i % 2 == 0) __builtin_prefetch(ahead + i * 32, 0, 2);
    vi w[NV];
    UNROLL for (int v = 0; v < NV; v++) w[v] = in_register(S::load(at, v, i % S::HALVES));
    UNROLL for (int d = 0; d < 3; d++) {
      const vi x = in_register(splat_bits(a[3 * i + d]));
      UNROLL for (int v = 0; v < NV; v++) {
        const vi pairs = pair_products(w[v], x);
        sum[d][v] = in_register(i ? add_i16(sum[d][v], pairs) : pairs);
      }
    }
  }
  UNROLL for (int d = 0; d < 3; d++)
    UNROLL for (int v = 0; v < NV; v++) acc[d][0][0][v] += add_neighbours(sum[d][v]);
}

template <class S, bool STREAM>
INLINE void add_runs(vi (&acc)[3][1][1][NV], const int32_t*& a, const char*& b, int inputs, const char*& ahead) {
  constexpr int BYTES = PANEL * S::BITS / 8;
  int k = 0;
  for (; k + RUN <= inputs; k += RUN, a += RUN / 4 * 3, b += RUN * BYTES, ahead += RUN * 8)
    add_run<S, STREAM, RUN>(acc, a, b, ahead);
  for (; k < inputs; k += 8, a += 6, b += 8 * BYTES, ahead += 64) add_run<S, STREAM, 8>(acc, a, b, ahead);
}
#endif

template <class W, bool STREAM, int MR, int NP> static void dots_tile(const Part& part) {
  constexpr int D = W::DIGITS;
  const int32_t *a = (const int32_t*)part.rows, *facts = part.facts;
  const char *b = part.panels, *ahead = part.ahead;
  const float *scale = part.scale, *offset = part.offset;
  for (int left = part.inputs; left > 0; left -= part.piece) {
    vi acc[D][MR][NP][NV];
    UNROLL for (int d = 0; d < D; d++) UNROLL for (int m = 0; m < MR; m++) UNROLL for (int p = 0; p < NP; p++)
      UNROLL for (int v = 0; v < NV; v++) acc[d][m][p][v] = splat_bits(facts[d * MR + m]);
    const int inputs = least(left, part.piece);
    if (STREAM && D == 3) {
      UNROLL for (int p = 0; p < NP; p++) __builtin_prefetch(scale + p * part.scale_panel + 2 * PANEL, 0, 3);
      if (offset) UNROLL for (int p = 0; p < NP; p++) __builtin_prefetch(offset + p * part.scale_panel + 2 * PANEL, 0, 3);
    }
#if !defined(HAS_INT8_DOT)
    if constexpr (D == 3 && W::Source::TOGETHER == 4)
      add_runs<typename W::Source, STREAM>(acc, a, b, inputs, ahead);
    else
#endif
      add_products<W, STREAM, MR, NP>(acc, a, b, inputs, part, ahead);
    finish_piece<D>(acc, part, facts, scale, offset, part.first && left == part.inputs);
    facts += (D + 2) * MR;
    scale += PANEL;
    if (offset) offset += PANEL;
  }
}
