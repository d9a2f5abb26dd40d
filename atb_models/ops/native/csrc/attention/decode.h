// Sequences with one query: a work item is a chunk of the cache, for some KV heads, whose rows lie beside each other.
#pragma once
#include "places.h"
#include "../team.h"

// S: the format of queries and results, C: of the cache, P: how they meet.
template <class S, class C, class P> class Decode {
 public:
  // `first_chunk` and `memory` are the call's scratch; the former is filled here.
  Decode(const AttentionCall& call, int32_t* first_chunk, float* memory)
      : c(call), dim(padded_dim(call)), shared(group(call)), first(first_chunk) {
    first[0] = 0;
    for (int b = 0; b < c.sequences; b++) first[b + 1] = first[b] + decode_chunks(c, b);
    sums = memory;
    softmax = (Softmax*)(sums + (int64_t)first[c.sequences] * c.heads * dim);
    // Few chunks are cut between the heads as well, so that every thread has some.
    const int wanted = c.threads > 1 ? 3 * c.threads : 1, chunks = first[c.sequences];
    head_groups = most(1, chunks ? least(c.kv_heads, pieces(wanted, chunks)) : 1);
  }

  int64_t items() const { return (int64_t)first[c.sequences] * head_groups; }

  void item(int64_t i, Desk& desk) const {
    const int64_t chunk = i / head_groups;
    const int b = owner(first, c.sequences, chunk), part = (int)(i % head_groups);
    const int head0 = part * c.kv_heads / head_groups, head1 = (part + 1) * c.kv_heads / head_groups;
    const int64_t row = chunk * c.heads + head0 * shared;
    attend(b, (int)chunk - first[b], head0, head1, desk, sums + row * dim, softmax + row);
  }

  // The chunks of one sequence and head, joined; i < sequences * heads.
  void join_chunks(int64_t i, Desk& desk) const {
    const int b = (int)(i / c.heads), head = (int)(i % c.heads);
    if (first[b] == first[b + 1]) return;
    for (int chunk = first[b]; chunk < first[b + 1]; chunk++) {
      const int64_t row = (int64_t)chunk * c.heads + head;
      join(desk.sums, desk.all[0], sums + row * dim, softmax[row], chunk == first[b], dim);
    }
    finish<S>(desk.sums, desk.all[0].total, c.head_dim, result<S>(c, c.starts[b], head));
  }

 private:
  void attend(int b, int chunk, int head0, int head1, Desk& desk, float* out, Softmax* softmaxes) const {
    const int rows = (head1 - head0) * shared, n = least(CHUNK, c.kv_lens[b] - chunk * CHUNK);
    Places<C> at;
    at.find(c, b, chunk * CHUNK, n);
    typename P::Q* q = (typename P::Q*)desk.q;
    for (int r = 0; r < rows; r++)
      take<S, C>(query<S>(c, c.starts[b], head0 * shared + r), c.head_dim, q + (int64_t)r * dim, dim);
    const int together = shared > 1 ? BLOCK : KEYS;
    Fetch<typename C::T> fetch_keys(at.key, c.k_head, head0, head1 - head0, c.head_dim);
    for (int i = 0; i < n; i += together)
      for (int h = head0; h < head1; h++) {
        fetch_keys.next(together);
        score_head(at.key + i, least(together, n - i), h, q + (int64_t)(h - head0) * shared * dim,
                   desk.scores + (h - head0) * shared * CHUNK + i);
      }
    for (int h = head0; h < head1; h++) {
      const int r = (h - head0) * shared;
      soften_head<C>(c, b, chunk * CHUNK, h, n, desk.scores + (int64_t)r * CHUNK, 0, shared, softmaxes + r,
                     [=](int) { return n; });
    }
    for (int64_t i = 0; i < (int64_t)rows * dim; i += VL) store(out + i, zeros());
    Fetch<typename C::T> fetch_values(at.value, c.v_head, head0, head1 - head0, c.head_dim);
    for (int i = 0; i < n; i += together)
      for (int h = head0; h < head1; h++) {
        fetch_values.next(together);
        add_head(at.value + i, least(together, n - i), h, desk.scores + (h - head0) * shared * CHUNK + i,
                 out + (int64_t)(h - head0) * shared * dim);
      }
  }

  // The products of a KV head's queries with `count` keys.
  void score_head(const typename C::T* const* keys, int count, int head, const typename P::Q* q, float* scores) const {
    const int64_t offset = head * c.k_head;
    in_groups(shared, [&](int r, auto group) {
      score<P, decltype(group)::value>(q + (int64_t)r * dim, dim, keys, count, offset, c.head_dim, scores + r * CHUNK);
    });
  }

  // Adds `count` weighted values to the sums of a KV head's queries.
  void add_head(const typename C::T* const* values, int count, int head, const float* weights, float* sums) const {
    const int64_t offset = head * c.v_head;
    if (count == KEYS && shared == 1) return add_values<C, KEYS>(weights, values, offset, c.head_dim, sums);
    in_groups(shared, [&](int r, auto group) {
      add_block<C, decltype(group)::value>(weights + r * CHUNK, values, offset, count, c.head_dim,
                                           sums + (int64_t)r * dim, dim);
    });
  }

  const AttentionCall& c;
  int dim, shared, head_groups;
  int32_t* first;
  float* sums;
  Softmax* softmax;
};
