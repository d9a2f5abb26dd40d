// The parts of attention over one chunk of the cache: scores, softmax, the weighted sum of values, and joining chunks.
//
// Positions are cut into chunks of CHUNK from 0 on, wherever a query stands and however many there are. Within a chunk
// a query's values are added up in the order of their positions, and chunks are joined in order. So a query's result
// has the same bits alone, in a batch, and in a prompt cut anywhere.
#pragma once
#include "../simd/simd.h"

constexpr int CHUNK = 256;
constexpr int KEYS = 4;                    // keys that are scored, or values that are added, together
constexpr int QUERIES = VL == 8 ? 2 : 4;   // queries beside them: what the registers hold

template <int N> struct Count { static constexpr int value = N; };

// Calls `call(first, Count<n>)` for groups of n = QUERIES rows, then 2, then 1.
template <class Call> INLINE void in_groups(int rows, const Call& call) {
  int r = 0;
  if (QUERIES == 4)
    for (; r + 4 <= rows; r += 4) call(r, Count<4>());
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
#endif

// Products of NQ queries, `q_row` apart and zero-filled to whole vectors, with KEYS keys, at `offset` from `keys[i]`.
// Query n's go to scores[n * CHUNK ...].
template <class P, int NQ>
INLINE void score(const typename P::Q* q, int64_t q_row, const typename P::K* const* keys, int64_t offset, int head_dim,
                  float* scores) {
  vf acc[NQ][KEYS];
  UNROLL for (int n = 0; n < NQ; n++) UNROLL for (int i = 0; i < KEYS; i++) acc[n][i] = zeros();
  auto step = [&](int d, auto&& load_key) __attribute__((always_inline)) {
    typename P::Lanes k[KEYS];
    UNROLL for (int i = 0; i < KEYS; i++) k[i] = load_key(keys[i] + offset + d);
    UNROLL for (int n = 0; n < NQ; n++) {
      typename P::Lanes lanes = P::load_q(q + n * q_row + d);
      UNROLL for (int i = 0; i < KEYS; i++) acc[n][i] = P::dot(acc[n][i], lanes, k[i]);
    }
  };
  int d = 0;
  for (; d + P::STEP <= head_dim; d += P::STEP) step(d, [](const typename P::K* p) { return P::load_k(p); });
  if (d < head_dim) step(d, [=](const typename P::K* p) { return P::part_k(p, head_dim - d); });
  UNROLL for (int n = 0; n < NQ; n++) sum_four(acc[n][0], acc[n][1], acc[n][2], acc[n][3], scores + n * CHUNK);
}

struct Softmax {
  float largest, total;
};

// scores[i] becomes exp(scale * scores[i] - largest) for i < n and 0 up to the next whole vector.
INLINE Softmax soften(float* scores, int n, float scale) {
  vi lane;
  UNROLL for (int i = 0; i < VL; i++) lane[i] = i;
  vf lowest = splat(-__builtin_inff()), largest = lowest;
  for (int i = 0; i < n; i += VL) {
    vf scaled = load(scores + i) * splat(scale);
    store(scores + i, scaled);
    largest = larger(where(lane < splat_bits(n - i), scaled, lowest), largest);  // a NaN is passed over
  }
  float top = largest[0];
  UNROLL for (int i = 1; i < VL; i++) top = largest[i] > top ? largest[i] : top;
  vf total = zeros();
  for (int i = 0; i < n; i += VL) {
    vf weight = where(lane < splat_bits(n - i), exponential(load(scores + i) - splat(top)), zeros());
    store(scores + i, weight);
    total += weight;
  }
  return {top, sum(total)};
}

// acc[n] += weights[n][0] v[0] + ... + weights[n][NV - 1] v[NV - 1], one after the other, for NQ queries.
template <class S, int NQ, int NV>
INLINE void accumulate(const float* weights, const typename S::T* const* values, int64_t offset, int head_dim,
                       float* acc, int64_t acc_row) {
  vf w[NQ][NV];
  UNROLL for (int n = 0; n < NQ; n++) UNROLL for (int i = 0; i < NV; i++) w[n][i] = splat(weights[n * CHUNK + i]);
  auto step = [&](int d, auto&& load_value) __attribute__((always_inline)) {
    vf v[NV];
    UNROLL for (int i = 0; i < NV; i++) v[i] = load_value(values[i] + offset + d);
    UNROLL for (int n = 0; n < NQ; n++) {
      vf a = load(acc + n * acc_row + d);
      UNROLL for (int i = 0; i < NV; i++) a = fma(w[n][i], v[i], a);
      store(acc + n * acc_row + d, a);
    }
  };
  int d = 0;
  for (; d + VL <= head_dim; d += VL) step(d, [](const typename S::T* p) { return S::load(p); });
  if (d < head_dim) step(d, [=](const typename S::T* p) { return load_part<S>(p, head_dim - d); });
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
