// The parts of attention over one chunk of the cache: scores, softmax, the weighted sum of values, and joining chunks.
//
// Positions are cut into chunks of CHUNK from 0 on, wherever a query stands and however many there are. Within a chunk
// a query's values are added up in the order of their positions, and chunks are joined in order. So a query's result
// has the same bits alone, in a batch, and in a prompt cut anywhere.
#pragma once
#include "../simd/simd.h"

constexpr int CHUNK = 256;
constexpr int KEYS = 4;   // keys that are scored, or values that are added, together
constexpr int GROUP = 4;  // queries that meet them together; beside these the registers hold
constexpr int GROUP_KEYS = VL == 8 ? 2 : 4;
constexpr int GROUP_PARTS = VL == 8 ? 2 : 4;  // vectors of each sum

template <int N> struct Count { static constexpr int value = N; };

// Calls `call(first, Count<n>)` for groups of n = GROUP rows, then 2, then 1.
template <class Call> INLINE void in_groups(int rows, const Call& call) {
  int r = 0;
  for (; r + GROUP <= rows; r += GROUP) call(r, Count<GROUP>());
  for (; r + 2 <= rows; r += 2) call(r, Count<2>());
  if (r < rows) call(r, Count<1>());
}

// How queries meet keys. Q and K are their elements as they are scored: floats with keys of format S ...
template <class S> struct Widened {
  typedef float Q;
  typedef typename S::T K;
  typedef vf Lanes;
  static constexpr int STEP = VL;
  static constexpr bool WHOLE = true;  // keys that a prompt brings are zero-filled to whole vectors
  INLINE vf load_q(const Q* p) { return load(p); }
  INLINE vf load_k(const K* p) { return S::load(p); }
  INLINE vf part_k(const K* p, int n) { return load_part<S>(p, n); }
  INLINE vf dot(vf acc, vf q, vf k) { return fma(q, k, acc); }
};

// ... or both as pairs of bfloat16.
#ifdef HAS_BF16_DOT
struct Paired {
  typedef uint16_t Q;
  typedef uint16_t K;
  typedef vi Lanes;
  static constexpr int STEP = 2 * VL;
  static constexpr bool WHOLE = false;
  INLINE vi load_q(const Q* p) { return load_bits(p); }
  INLINE vi load_k(const K* p) { return load_bits(p); }
  INLINE vi part_k(const K* p, int n) {
    K lanes[STEP] = {};
    __builtin_memcpy(lanes, p, n * sizeof(K));
    return load_bits(lanes);
  }
  INLINE vf dot(vf acc, vi q, vi k) { return dot_pairs(acc, q, k); }
};

// Keys of int8 become such pairs, which hold them exactly. Elements VL apart make a pair, in queries too: that is how
// two vectors of floats are joined.
template <class X> INLINE vi distant_pairs(const typename X::T* p) {
  return join_upper_halves(X::load(p), X::load(p + VL));
}
template <class X> INLINE vi distant_pairs(const typename X::T* p, int n) {  // the first n elements, then zeros
  typename X::T lanes[2 * VL] = {};
  __builtin_memcpy(lanes, p, least(n, 2 * VL) * sizeof(lanes[0]));
  return distant_pairs<X>(lanes);
}
struct PairedBytes : Paired {
  typedef int8_t K;
  INLINE vi load_k(const K* p) { return distant_pairs<I8>(p); }
  INLINE vi part_k(const K* p, int n) { return distant_pairs<I8>(p, n); }
};
struct BroughtPairs : Paired {  // that a prompt has made of bytes
  static constexpr bool WHOLE = true;
};
#endif

// Products of NQ queries, `q_row` apart and zero-filled to whole vectors, with NK keys, at `offset` from `keys[i]`.
// Query n's go to scores[n * CHUNK ...].
template <class P, int NQ, int NK>
INLINE void score_some(const typename P::Q* q, int64_t q_row, const typename P::K* const* keys, int64_t offset,
                       int head_dim, float* scores) {
  vf acc[NQ][NK];
  UNROLL for (int n = 0; n < NQ; n++) UNROLL for (int i = 0; i < NK; i++) acc[n][i] = zeros();
  auto step = [&](int d, auto&& load_key) __attribute__((always_inline)) {
    typename P::Lanes k[NK];
    UNROLL for (int i = 0; i < NK; i++) k[i] = in_register(load_key(keys[i] + offset + d));
    UNROLL for (int n = 0; n < NQ; n++) {
      const typename P::Lanes lanes = in_register(P::load_q(q + n * q_row + d));
      UNROLL for (int i = 0; i < NK; i++) acc[n][i] = P::dot(acc[n][i], lanes, k[i]);
    }
  };
  int d = 0;
  for (; d + P::STEP <= head_dim; d += P::STEP) step(d, [](const typename P::K* p) { return P::load_k(p); });
  if (d < head_dim) step(d, [=](const typename P::K* p) { return P::part_k(p, head_dim - d); });
  if constexpr (NK == 4) {
    UNROLL for (int n = 0; n < NQ; n++) sum_four(acc[n][0], acc[n][1], acc[n][2], acc[n][3], scores + n * CHUNK);
  } else {
    UNROLL for (int n = 0; n < NQ; n += 2) {
      float four[4];
      sum_four(acc[n][0], acc[n][1], acc[n + 1][0], acc[n + 1][1], four);
      __builtin_memcpy(scores + n * CHUNK, four, 2 * sizeof(float));
      __builtin_memcpy(scores + (n + 1) * CHUNK, four + 2, 2 * sizeof(float));
    }
  }
}

// The same for `count` keys and up to the next multiple of KEYS.
template <class P, int NQ>
INLINE void score(const typename P::Q* q, int64_t q_row, const typename P::K* const* keys, int count, int64_t offset,
                  int head_dim, float* scores) {
  constexpr int NK = NQ == GROUP ? GROUP_KEYS : KEYS;
  for (int i = 0; i < (int)round_up(count, KEYS); i += NK)
    score_some<P, NQ, NK>(q, q_row, keys + i, offset, head_dim, scores + i);
}

struct Softmax {
  float largest, total;
};

// scores[i] becomes exp(scale * scores[i] - largest) for i < n and 0 up to the next whole vector. SCALED: scores are
// first multiplied by the scales of their keys, and what they become is by those of their values.
template <bool SCALED>
INLINE Softmax soften(float* scores, int n, float scale, const float* key_scales, const float* value_scales) {
  vi lane;
  UNROLL for (int i = 0; i < VL; i++) lane[i] = i;
  vf lowest = splat(-__builtin_inff()), largest = lowest;
  for (int i = 0; i < n; i += VL) {
    vf scaled = load(scores + i) * splat(scale);
    if (SCALED) scaled *= load(key_scales + i);
    scaled = where(lane < splat_bits(n - i), scaled, lowest);
    store(scores + i, scaled);
    largest = larger(scaled, largest);  // a NaN is passed over
  }
  float top = largest[0];
  UNROLL for (int i = 1; i < VL; i++) top = largest[i] > top ? largest[i] : top;
  vf total = zeros();
  for (int i = 0; i < n; i += VL) {
    vf weight = where(lane < splat_bits(n - i), exponential(load(scores + i) - splat(top)), zeros());
    total += weight;
    if (SCALED) weight = where(lane < splat_bits(n - i), weight * load(value_scales + i), weight);
    store(scores + i, weight);
  }
  return {top, sum(total)};
}

// acc += weights[0] v[0] + ... + weights[NV - 1] v[NV - 1], one after the other.
template <class S, int NV>
INLINE void add_values(const float* weights, const typename S::T* const* values, int64_t offset, int head_dim, float* acc) {
  vf w[NV];
  UNROLL for (int i = 0; i < NV; i++) w[i] = splat(weights[i]);
  auto step = [&](int d, auto&& load_value) __attribute__((always_inline)) {
    vf a = load(acc + d);
    UNROLL for (int i = 0; i < NV; i++) a = fma(w[i], load_value(values[i] + offset + d), a);
    store(acc + d, a);
  };
  int d = 0;
  for (; d + VL <= head_dim; d += VL) step(d, [](const typename S::T* p) { return S::load(p); });
  if (d < head_dim) step(d, [=](const typename S::T* p) { return load_part<S>(p, head_dim - d); });
}

// The same for NQ queries and `count` values, whose weights and sums lie CHUNK and `row` floats apart: ND vectors.
template <class S, int NQ, int ND, class Load>
INLINE void add_part(const float* weights, const typename S::T* const* values, int64_t offset, int count, float* acc,
                     int64_t row, const Load& load_value) {
  vf a[NQ][ND];
  UNROLL for (int n = 0; n < NQ; n++) UNROLL for (int j = 0; j < ND; j++) a[n][j] = load(acc + n * row + j * VL);
  for (int i = 0; i < count; i++) {
    vf v[ND];
    UNROLL for (int j = 0; j < ND; j++) v[j] = load_value(values[i] + offset + j * VL);
    UNROLL for (int n = 0; n < NQ; n++) {
      const vf w = splat(weights[n * CHUNK + i]);
      UNROLL for (int j = 0; j < ND; j++) a[n][j] = fma(w, v[j], a[n][j]);
    }
  }
  UNROLL for (int n = 0; n < NQ; n++) UNROLL for (int j = 0; j < ND; j++) store(acc + n * row + j * VL, a[n][j]);
}
template <class S, int NQ>
INLINE void add_block(const float* weights, const typename S::T* const* values, int64_t offset, int count, int head_dim,
                      float* acc, int64_t row) {
  auto whole = [](const typename S::T* p) __attribute__((always_inline)) { return S::load(p); };
  int d = 0;
  for (; d + GROUP_PARTS * VL <= head_dim; d += GROUP_PARTS * VL)
    add_part<S, NQ, GROUP_PARTS>(weights, values, offset + d, count, acc + d, row, whole);
  for (; d + VL <= head_dim; d += VL) add_part<S, NQ, 1>(weights, values, offset + d, count, acc + d, row, whole);
  auto part = [=](const typename S::T* p) __attribute__((always_inline)) { return load_part<S>(p, head_dim - d); };
  if (d < head_dim) add_part<S, NQ, 1>(weights, values, offset + d, count, acc + d, row, part);
}

// Joins a chunk's sum to those of the chunks before it.
INLINE void join(float* sums, Softmax& all, const float* chunk_sums, Softmax chunk, bool first, int padded) {
  if (first) {
    for (int d = 0; d < padded; d += VL) store(sums + d, load(chunk_sums + d));
    all = chunk;
    return;
  }
  float largest = chunk.largest > all.largest ? chunk.largest : all.largest;
  float before = exponential(all.largest - largest), now = exponential(chunk.largest - largest);
  for (int d = 0; d < padded; d += VL)
    store(sums + d, fma(load(chunk_sums + d), splat(now), load(sums + d) * splat(before)));
  all = {largest, __builtin_fmaf(chunk.total, now, all.total * before)};
}
