// Attention over the cache of latents in the absorbed form. Of a token all heads share one key, its latent followed by
// its rotary key, and one value, its latent. A query's part without a position becomes a latent by its head's map of
// keys, and a sum of latents the head's values by that of values.
//
// Chunks and the order within them are those of attend.h, and a product with a map is added up in one order always: a
// query's result has the same bits alone, in a batch, and in a prompt cut anywhere.
#pragma once
#include "places.h"
#include "../team.h"

constexpr int TOGETHER = 16;  // sequences with one query whose products with a head's maps are a work item

INLINE int key_dim(const LatentCall& c) { return (int)round_up(c.latent + c.rotary, 32); }
INLINE int sum_dim(const LatentCall& c) { return (int)round_up(c.latent, 32); }
INLINE int query_count(const LatentCall& c, int b) { return c.starts[b + 1] - c.starts[b]; }

// What a call works on: tiles of the queries of prompts, and chunks of the cache of sequences with one query.
struct LatentWork {
  int32_t *first_tile, *single, *first_chunk;  // of each sequence; sequences with one query, and of each of these
  int singles = 0;
  static int64_t floats(const LatentCall& c) { return round_up(3 * c.sequences + 2, 16); }
  LatentWork(const LatentCall& c, float* memory) : first_tile((int32_t*)memory) {
    single = first_tile + c.sequences + 1;
    first_chunk = single + c.sequences;
    first_tile[0] = first_chunk[0] = 0;
    for (int b = 0; b < c.sequences; b++) {
      const int queries = query_count(c, b);
      first_tile[b + 1] = first_tile[b] + (queries > 1 ? pieces(queries, ROWS) : 0);
      if (queries != 1) continue;
      single[singles] = b;
      first_chunk[singles + 1] = first_chunk[singles] + pieces(c.kv_lens[b], CHUNK);
      singles++;
    }
  }
  int chunks() const { return first_chunk[singles]; }
};

// A thread's own memory, for ROWS queries.
struct LatentDesk {
  float *q, *scores, *acc, *sums, *wide;
  Softmax *now, *all;
  static int64_t floats(const LatentCall& c) {
    return round_up(ROWS * (key_dim(c) + CHUNK + 2 * sum_dim(c) + 4) + BLOCK * key_dim(c), 16);
  }
  LatentDesk(const LatentCall& c, float* memory) : q(memory) {
    scores = q + ROWS * key_dim(c);
    acc = scores + ROWS * CHUNK;
    sums = acc + ROWS * sum_dim(c);
    wide = sums + ROWS * sum_dim(c);
    now = (Softmax*)(wide + BLOCK * key_dim(c));
    all = now + ROWS;
  }
};

// S: the format of queries, maps and results, C: of the cache.
template <class S, class C> class Latents {
 public:
  // `memory` holds what chunks leave to be joined and, before it, absorbed queries of sequences with one.
  Latents(const LatentCall& call, const LatentWork& of, float* memory)
      : c(call), work(of), dim(key_dim(call)), row(sum_dim(call)), absorbed(memory) {
    sums = absorbed + (int64_t)work.singles * c.heads * dim;
    softmax = (Softmax*)(sums + (int64_t)work.chunks() * c.heads * row);
    const int wanted = c.threads > 1 ? 3 * c.threads : 1, chunks = most(1, work.chunks());
    head_groups = most(pieces(c.heads, ROWS), least(c.heads, pieces(wanted, chunks)));
  }
  static int64_t floats(const LatentCall& c, int64_t singles, int64_t chunks) {
    return round_up(c.heads * (singles * key_dim(c) + chunks * (sum_dim(c) + 2)), 16);
  }

  // Sequences with one query: their absorbed queries, chunks, and results, each after all of the one before.
  int64_t groups() const { return (int64_t)pieces(work.singles, TOGETHER) * c.heads; }
  void absorb_group(int64_t i, LatentDesk& desk) const {
    const int head = (int)(i % c.heads), from = (int)(i / c.heads) * TOGETHER;
    float* to = absorbed + ((int64_t)from * c.heads + head) * dim;
    absorb(head, least(TOGETHER, work.singles - from), token_of(from), to, (int64_t)c.heads * dim, desk);
  }
  int64_t chunk_items() const { return (int64_t)work.chunks() * head_groups; }
  void chunk_item(int64_t i, LatentDesk& desk) const {
    const int64_t chunk = i / head_groups;
    const int s = owner(work.first_chunk, work.singles, chunk), part = (int)(i % head_groups);
    const int head0 = part * c.heads / head_groups, head1 = (part + 1) * c.heads / head_groups;
    const int start = ((int)chunk - work.first_chunk[s]) * CHUNK, b = work.single[s];
    const int n = least(CHUNK, c.kv_lens[b] - start);
    const int64_t place = chunk * c.heads + head0;
    over_chunk(b, start, n, absorbed + ((int64_t)s * c.heads + head0) * dim, head1 - head0, 0, sums + place * row,
               softmax + place, [=](int) { return n; }, desk);
  }
  void join_group(int64_t i, LatentDesk& desk) const {
    const int head = (int)(i % c.heads), from = (int)(i / c.heads) * TOGETHER;
    const int count = least(TOGETHER, work.singles - from);
    for (int r = 0; r < count; r++) {
      const int first = work.first_chunk[from + r];
      for (int chunk = first; chunk < work.first_chunk[from + r + 1]; chunk++) {
        const int64_t place = (int64_t)chunk * c.heads + head;
        join(desk.sums + r * row, desk.all[r], sums + place * row, softmax[place], chunk == first, row);
      }
    }
    results(head, count, token_of(from), desk);
  }

  // A tile of a prompt's queries, for one head, over all the chunks that they see.
  int64_t tiles() const { return (int64_t)work.first_tile[c.sequences] * c.heads; }
  void tile(int64_t i, LatentDesk& desk) const {
    const int64_t number = i / c.heads;
    const int b = owner(work.first_tile, c.sequences, number), head = (int)(i % c.heads);
    const int from = (work.first_tile[b + 1] - 1 - (int)number) * ROWS;  // the last queries see most: they go first
    const int queries = query_count(c, b), count = least(ROWS, queries - from);
    const int place = c.kv_lens[b] - queries + from;
    const int64_t token = c.starts[b] + from;
    auto token_at = [=](int r) { return token + r; };
    absorb(head, count, token_at, desk.q, dim, desk);
    for (int start = 0; start < place + count; start += CHUNK) {
      const int skip = most(0, start - place);  // queries that stand before the chunk
      over_chunk(b, start, least(CHUNK, place + count - start), desk.q, count, skip, desk.acc, desk.now,
                 [=](int r) { return least(CHUNK, place + r + 1 - start); }, desk);
      for (int r = skip; r < count; r++)
        join(desk.sums + r * row, desk.all[r], desk.acc + r * row, desk.now[r], start == 0, row);
    }
    results(head, count, token_at, desk);
  }

 private:
  typedef typename S::T T;

  auto token_of(int from) const {
    return [=](int r) { return (int64_t)c.starts[work.single[from + r]]; };
  }
  const T* map(int head, int i) const { return (const T*)c.maps + ((int64_t)head * (c.nope + c.value) + i) * c.latent; }

  // The queries of some tokens as they meet keys: the latent of their part without a position, then the rotary part.
  template <class Token>
  void absorb(int head, int rows, const Token& token, float* to, int64_t to_row, LatentDesk& desk) const {
    const T* keys[CHUNK];
    for (int i = 0; i < c.nope; i++) keys[i] = map(head, i);
    for (int r = 0; r < rows; r++) {
      widen<S>(query(token(r), head) + c.rotary, c.nope, desk.scores + r * CHUNK, c.nope);
      for (int d = 0; d < dim; d += VL) store(to + r * to_row + d, zeros());
    }
    in_groups(rows, [&](int r, auto count) {
      add_block<S, decltype(count)::value>(desk.scores + r * CHUNK, keys, 0, c.nope, c.latent, to + r * to_row, to_row);
    });
    for (int r = 0; r < rows; r++) widen<S>(query(token(r), head), c.rotary, to + r * to_row + c.latent, c.rotary);
  }
  const T* query(int64_t token, int head) const {
    return (const T*)c.q + token * c.q_row + (int64_t)head * (c.rotary + c.nope);
  }

  // The results of the sums of latents at the desk.
  template <class Token> void results(int head, int rows, const Token& token, LatentDesk& desk) const {
    const T* values[CHUNK + KEYS];
    for (int i = 0; i < (int)round_up(c.value, KEYS); i++) values[i] = map(head, c.nope + least(i, c.value - 1));
    for (int r = 0; r < rows; r++) {
      const vf share = splat(1.f / desk.all[r].total);
      for (int d = 0; d < row; d += VL) store(desk.sums + r * row + d, load(desk.sums + r * row + d) * share);
    }
    in_groups(rows, [&](int r, auto count) {
      score<Widened<S>, decltype(count)::value>(desk.sums + r * row, row, values, c.value, 0, c.latent,
                                                desk.scores + r * CHUNK);
    });
    for (int r = 0; r < rows; r++)
      narrow<S>(desk.scores + r * CHUNK, c.value, (T*)c.out + (token(r) * c.heads + head) * c.value);
  }

  // What `rows` queries, but for the first `skip`, have of the `n` positions from `start` on: sums of latents, `row`
  // floats apart, and softmaxes. Query r sees seen(r) of them, and no fewer than those before it.
  template <class Seen>
  void over_chunk(int b, int start, int n, const float* q, int rows, int skip, float* to, Softmax* softmaxes,
                  const Seen& seen, LatentDesk& desk) const {
    for (int block = 0; block < n; block += BLOCK) {
      const int end = least(block + BLOCK, n);
      const float* wide[BLOCK];
      for (int i = block; i < (int)round_up(end, KEYS); i++)
        wide[i - block] = bring_key(b, start + least(i, n - 1), desk.wide + (i - block) * dim);
      in_groups(rows - skip, [&](int g, auto count) {
        const int r = skip + g, last = least(end, seen(r + decltype(count)::value - 1));
        score<Widened<F32>, decltype(count)::value>(q + (int64_t)r * dim, dim, wide, last - block, 0, dim,
                                                    desk.scores + r * CHUNK + block);
      });
    }
    for (int r = skip; r < rows; r++) {
      softmaxes[r] = soften<false>(desk.scores + r * CHUNK, seen(r), c.scale, nullptr, nullptr);
      for (int d = 0; d < row; d += VL) store(to + r * row + d, zeros());
    }
    for (int block = 0; block < n; block += BLOCK) add_block_of(b, start, block, n, rows, skip, to, seen, desk);
  }

  template <class Seen>
  void add_block_of(int b, int start, int block, int n, int rows, int skip, float* to, const Seen& seen,
                    LatentDesk& desk) const {
    const int end = least(block + BLOCK, n);
    const float* wide[BLOCK];
    for (int i = block; i < end; i++) wide[i - block] = bring_latent(b, start + i, desk.wide + (i - block) * dim);
    in_groups(rows - skip, [&](int g, auto count) {
      constexpr int NQ = decltype(count)::value;
      const int r = skip + g;
      // As in prompt.h: no weight meets a latent that its query does not see, for that may be no number.
      const float* weights = desk.scores + r * CHUNK + block;
      const int all = most(0, least(end, seen(r)) - block);
      add_block<F32, NQ>(weights, wide, 0, all, row, to + (int64_t)r * row, row);
      UNROLL for (int m = 1; m < NQ; m++) {
        const int more = least(end, seen(r + m)) - block - all;
        add_block<F32, 1>(weights + m * CHUNK + all, wide + all, 0, more, row, to + (int64_t)(r + m) * row, row);
      }
    });
  }

  // Of a position as floats: its latent, zero-filled; or followed by its rotary key.
  const float* bring_latent(int b, int position, float* to) const {
    widened(c.latents, c.latent_block, c.latent_slot, c.latent_scale, b, position, c.latent, to, row);
    return to;
  }
  const float* bring_key(int b, int position, float* to) const {
    widened(c.latents, c.latent_block, c.latent_slot, c.latent_scale, b, position, c.latent, to, c.latent);
    widened(c.keys, c.key_block, c.key_slot, c.key_scale, b, position, c.rotary, to + c.latent, dim - c.latent);
    return to;
  }
  void widened(const void* plane, int64_t block_step, int64_t slot_step, const Scales& scales, int b, int position,
               int n, float* to, int padded) const {
    const int64_t block = c.table[b * c.table_row + position / c.block_size], slot = position % c.block_size;
    widen<C>((const typename C::T*)plane + block * block_step + slot * slot_step, n, to, padded);
    if constexpr (of_bytes<C>) {
      const float scale = scales.data[block * scales.block + slot * scales.slot];
      for (int d = 0; d < n; d++) to[d] *= scale;
    }
  }

  const LatentCall& c;
  const LatentWork& work;
  int dim, row, head_groups;  // floats of a key and of a sum
  float *absorbed, *sums;
  Softmax* softmax;
};
