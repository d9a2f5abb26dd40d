// Sequences with several queries: a work item is a tile of them for one KV head, over all the chunks that they see.
#pragma once
#include "places.h"
#include "../team.h"

// S, C and P as in decode.h.
template <class S, class C, class P> class Prompt {
 public:
  // `first_tile` is the call's scratch and filled here.
  Prompt(const AttentionCall& call, int32_t* first_tile)
      : c(call), dim(padded_dim(call)), shared(group(call)), tokens(tile_tokens(call)), first(first_tile) {
    first[0] = 0;
    for (int b = 0; b < c.sequences; b++) {
      const int queries = query_count(c, b);
      first[b + 1] = first[b] + (queries > 1 ? pieces(queries, tokens) : 0);
    }
  }

  int64_t items() const { return (int64_t)first[c.sequences] * c.kv_heads; }

  void item(int64_t i, Desk& desk) const {
    const int64_t tile = i / c.kv_heads;
    const int b = owner(first, c.sequences, tile);
    const int token = (first[b + 1] - 1 - (int)tile) * tokens;  // the last queries see most: they go first
    attend(b, token, least(tokens, query_count(c, b) - token), (int)(i % c.kv_heads), desk);
  }

 private:
  // Positions of the chunk from `start` on that row r sees; row r is query r / shared of the tile, at `place + ...`.
  int seen(int r, int place, int start) const { return least(CHUNK, place + r / shared + 1 - start); }

  void attend(int b, int first_token, int count, int head, Desk& desk) const {
    const int rows = count * shared, place = c.kv_lens[b] - query_count(c, b) + first_token;
    const int64_t token = c.starts[b] + first_token;
    typename P::Q* q = (typename P::Q*)desk.q;
    for (int r = 0; r < rows; r++)
      take<S, C>(query<S>(c, token + r / shared, head * shared + r % shared), c.head_dim, q + (int64_t)r * dim, dim);
    for (int start = 0; start < place + count; start += CHUNK) {
      Places<C> at;
      at.find(c, b, start, least(CHUNK, place + count - start));
      int skip = most(0, start - place) * shared;  // queries that stand before the chunk
      score_all(at, head, q, rows, skip, place, start, desk);
      soften_head<C>(c, b, start, head, seen(rows - 1, place, start), desk.scores, skip, rows, desk.now,
                     [&](int r) { return seen(r, place, start); });
      for (int64_t i = (int64_t)skip * dim; i < (int64_t)rows * dim; i += VL) store(desk.acc + i, zeros());
      add_all(at, head, rows, skip, place, start, desk);
      for (int64_t r = skip; r < rows; r++)
        join(desk.sums + r * dim, desk.all[r], desk.acc + r * dim, desk.now[r], start == 0, dim);
    }
    for (int64_t r = 0; r < rows; r++)
      finish<S>(desk.sums + r * dim, desk.all[r].total, c.head_dim,
                result<S>(c, token + r / shared, head * shared + r % shared));
  }

  void score_all(const Places<C>& at, int head, const typename P::Q* q, int rows, int skip, int place, int start,
                 Desk& desk) const {
    const int n = seen(rows - 1, place, start), lanes = P::WHOLE ? (int)round_up(c.head_dim, P::STEP) : c.head_dim;
    for (int block = 0; block < n; block += BLOCK) {
      const int end = least(block + BLOCK, n);
      const typename P::K* wide[BLOCK];
      for (int i = block; i < (int)round_up(end, KEYS); i++)
        bring<C>(at.key[i] + head * c.k_head, c.head_dim, desk.wide + (i - block) * dim, &wide[i - block]);
      in_groups(rows - skip, [&](int g, auto count) {
        const int r = skip + g, last = least(end, seen(r + decltype(count)::value - 1, place, start));
        score<P, decltype(count)::value>(q + (int64_t)r * dim, dim, wide, last - block, 0, lanes,
                                         desk.scores + (int64_t)r * CHUNK + block);
      });
    }
  }

  void add_all(const Places<C>& at, int head, int rows, int skip, int place, int start, Desk& desk) const {
    const int n = seen(rows - 1, place, start), lanes = (int)round_up(c.head_dim, VL);
    for (int block = 0; block < n; block += BLOCK) {
      const int end = least(block + BLOCK, n);
      const float* wide[BLOCK];
      for (int i = block; i < end; i++) {
        float* to = desk.wide + (i - block) * dim;
        widen<C>(at.value[i] + head * c.v_head, c.head_dim, to, lanes);
        wide[i - block] = to;
      }
      in_groups(rows - skip, [&](int g, auto count) {
        constexpr int NQ = decltype(count)::value;
        const int64_t r = skip + g;
        // What all the queries of the group see, then for each what it sees beside that: no weight meets a value
        // that its query does not see, for that may be NaN.
        const float* weights = desk.scores + r * CHUNK + block;
        const int all = most(0, least(end, seen((int)r, place, start)) - block);
        add_block<F32, NQ>(weights, wide, 0, all, lanes, desk.acc + r * dim, dim);
        UNROLL for (int m = 1; m < NQ; m++) {
          const int more = least(end, seen((int)r + m, place, start)) - block - all;
          add_block<F32, 1>(weights + m * CHUNK + all, wide + all, 0, more, lanes, desk.acc + (r + m) * dim, dim);
        }
      });
    }
  }

  const AttentionCall& c;
  int dim, shared, tokens;
  int32_t* first;
};
