// What the forms of attention share: where keys and values lie, and a thread's own memory.
#pragma once
#include "../api.h"
#include "attend.h"

constexpr int ROWS = 64;   // queries, times the heads that share keys, of a work item of a prompt
constexpr int BLOCK = 16;  // positions that several queries meet together

template <class C> constexpr bool of_bytes = false;  // whether a cache of this format has scales
template <> constexpr bool of_bytes<I8> = true;

INLINE int padded_dim(const AttentionCall& c) { return (int)round_up(c.head_dim, 32); }
INLINE int group(const AttentionCall& c) { return c.heads / c.kv_heads; }
INLINE int tile_tokens(const AttentionCall& c) { return most(1, ROWS / group(c)); }
INLINE int query_count(const AttentionCall& c, int b) { return c.starts[b + 1] - c.starts[b]; }
INLINE int decode_chunks(const AttentionCall& c, int b) {
  return query_count(c, b) == 1 ? pieces(c.kv_lens[b], CHUNK) : 0;
}
INLINE int item_rows(const AttentionCall& c) { return most(c.heads, tile_tokens(c) * group(c)); }

template <class S> INLINE const typename S::T* query(const AttentionCall& c, int64_t token, int64_t head) {
  return (const typename S::T*)c.q + token * c.q_row + head * c.head_dim;
}
template <class S> INLINE typename S::T* result(const AttentionCall& c, int64_t token, int64_t head) {
  return (typename S::T*)c.out + (token * c.heads + head) * c.head_dim;
}

// A thread's own memory.
struct Desk {
  float *q, *scores, *acc, *sums, *wide;
  Softmax *now, *all;
  static int64_t floats(const AttentionCall& c) {
    int64_t rows = item_rows(c), dim = padded_dim(c);
    return round_up(rows * (3 * dim + CHUNK + 4) + BLOCK * dim, 16);
  }
  Desk(const AttentionCall& c, float* memory) {
    int64_t rows = item_rows(c), dim = padded_dim(c);
    q = memory;
    scores = q + rows * dim;
    acc = scores + rows * CHUNK;
    sums = acc + rows * dim;
    wide = sums + rows * dim;
    now = (Softmax*)(wide + BLOCK * dim);
    all = now + rows;
  }
};

// Prepares a query of format S and a key of a cache of format C for the form that scores them.
template <class S, class C> INLINE void take(const typename S::T* from, int n, float* to, int padded) {
  widen<S>(from, n, to, padded);
}
template <class C> INLINE void bring(const typename C::T* from, int n, float* to, const float** row) {
  widen<C>(from, n, to, (int)round_up(n, VL));
  *row = to;
}
#ifdef HAS_BF16_DOT
constexpr int PAIRS = 2 * VL;
template <class S, class C> INLINE void take(const typename S::T* from, int n, uint16_t* to, int padded) {
  if constexpr (of_bytes<C>) {
    for (int d = 0; d < padded; d += PAIRS) store_bits(to + d, distant_pairs<S>(from + d, most(0, n - d)));
  } else {
    __builtin_memcpy(to, from, n * sizeof(*to));
    for (int i = n; i < padded; i++) to[i] = 0;
  }
}
template <class C> INLINE void bring(const typename C::T* from, int n, float* to, const uint16_t** row) {
  if constexpr (of_bytes<C>) {
    uint16_t* pairs = (uint16_t*)to;
    int d = 0;
    for (; d + PAIRS <= n; d += PAIRS) store_bits(pairs + d, distant_pairs<I8>(from + d));
    if (d < n) store_bits(pairs + d, distant_pairs<I8>(from + d, n - d));
    *row = pairs;
  } else {
    *row = from;
  }
}
#endif

// Which sequence an item belongs to: the last whose first item is not beyond it.
INLINE int owner(const int32_t* first_item, int sequences, int64_t item) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    (first_item[middle] <= item ? low : high) = middle;
  }
  return low;
}

constexpr int AHEAD = 12;  // positions between what is computed and what is fetched

// Fetches what is computed AHEAD positions later: while a head of some rows is computed, as many pairs of row and head,
// in the order of the memory. The processor then sees one stream and reads on by itself; asked for a head of each row,
// which lie pages apart, it did not.
template <class T> class Fetch {
 public:
  Fetch(const T* const* rows, int64_t head_stride, int head0, int heads, int n)
      : row_(rows + AHEAD), stride_(head_stride), start_(head0 * head_stride), at_(start_), heads_(heads), n_(n) {}
  void next(int pairs) {
    for (int j = 0; j < pairs; j++) {
      for (int i = 0; i < n_; i += 64 / (int)sizeof(T)) __builtin_prefetch(*row_ + at_ + i, 0, 2);
      at_ += stride_;
      if (++head_ == heads_) head_ = 0, at_ = start_, row_++;
    }
  }

 private:
  const T* const* row_;
  int64_t stride_, start_, at_;
  int heads_, n_, head_ = 0;
};

// The keys and values of `n` positions from `first` on in a cache of format C: those of the first head.
template <class C> struct Places {
  typedef typename C::T T;
  static constexpr int BEYOND = AHEAD + BLOCK;
  const T *key[CHUNK + BEYOND], *value[CHUNK + BEYOND];
  void find(const AttentionCall& c, int b, int first, int n) {
    const int32_t* table = c.table + b * c.table_row;
    for (int i = 0; i < n; i++) {
      int64_t block = table[(first + i) / c.block_size], slot = (first + i) % c.block_size;
      key[i] = (const T*)c.k + block * c.k_block + slot * c.k_slot;
      value[i] = (const T*)c.v + block * c.v_block + slot * c.v_slot;
    }
    // Beyond the end the last key is scored with its group and left out; after it the first values are fetched.
    for (int i = 0; i < BEYOND; i++) {
      key[n + i] = i < KEYS ? key[n - 1] : value[least(i - KEYS, n - 1)];
      value[n + i] = value[n - 1];
    }
  }
};

// The scales of one head's keys and values at the same positions, and 1 beyond them.
struct HeadScales {
  float key[CHUNK], value[CHUNK];
  void find(const AttentionCall& c, int b, int first, int n, int head) {
    const int32_t* table = c.table + b * c.table_row;
    for (int i = 0, run; i < n; i += run) {
      const int64_t block = table[(first + i) / c.block_size], slot = (first + i) % c.block_size;
      run = least(c.block_size - (int)slot, n - i);
      copy(c.k_scale, block, slot, head, run, key + i);
      copy(c.v_scale, block, slot, head, run, value + i);
    }
    for (int i = n; i < (int)round_up(n, VL); i++) key[i] = value[i] = 1;
  }

 private:
  static void copy(const Scales& scales, int64_t block, int64_t slot, int64_t head, int n, float* to) {
    const float* from = scales.data + block * scales.block + slot * scales.slot + head * scales.head;
    for (int i = 0; i < n; i++) to[i] = from[i * scales.slot];
  }
};

// Softens `rows` rows of scores, CHUNK floats apart, of queries that share a head of a cache of format C: each up to
// what `seen(r)` says.
template <class C, class Seen>
INLINE void soften_head(const AttentionCall& c, int b, int start, int head, int n, float* scores, int from, int rows,
                        Softmax* softmaxes, const Seen& seen) {
  if constexpr (of_bytes<C>) {
    HeadScales scales;
    scales.find(c, b, start, n, head);
    for (int r = from; r < rows; r++)
      softmaxes[r] = soften<true>(scores + (int64_t)r * CHUNK, seen(r), c.scale, scales.key, scales.value);
  } else {
    for (int r = from; r < rows; r++)
      softmaxes[r] = soften<false>(scores + (int64_t)r * CHUNK, seen(r), c.scale, nullptr, nullptr);
  }
}

// Writes a query's result: its sum of values over its sum of weights.
template <class S> INLINE void finish(float* sums, float total, int head_dim, typename S::T* out) {
  vf share = splat(1.f / total);
  int d = 0;
  for (; d + VL <= head_dim; d += VL) S::store(out + d, load(sums + d) * share);
  if (d < head_dim) store_part<S>(out + d, load(sums + d) * share, head_dim - d);
}
