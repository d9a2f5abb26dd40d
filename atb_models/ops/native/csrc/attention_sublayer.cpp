// The attention of a layer as one call: norm, queries, keys and values, their norms, rotation, cache, attention, output.
#include "sublayer.h"

struct AttentionSublayer {
  const AttentionLayer& l;
  const AttentionStep& s;
  const SublayerCall& c;
  int slice, row;  // row: elements of a token's queries, keys and values
  void *normed, *qkv, *queries, *attended;
  float* desk = nullptr;  // scratch of whichever operation runs
  int64_t floats;

  AttentionSublayer(const AttentionLayer& layer, const AttentionStep& step, const SublayerCall& call, float* memory)
      : l(layer), s(step), c(call), slice(least(c.tokens, ROWS_AT_A_TIME)), row(l.qkv.outputs) {
    Pieces pieces(memory);
    const int64_t bytes = element_bytes(l.format), all = (int64_t)c.tokens * l.heads * l.head_dim;
    normed = pieces.take(bytes * slice * l.qkv.inputs);
    qkv = pieces.take(bytes * slice * row);
    queries = pieces.take(bytes * all);
    attended = pieces.take(bytes * all);
    const LinearCall first = project(slice), last = output();
    const AttentionCall attention = attend();
    int64_t most = larger(atb_linear_scratch(&first), atb_linear_scratch(&last));
    desk = pieces.take_floats(larger(most, atb_attention_scratch(&attention)));
    floats = pieces.floats();
  }

  int status() const {
    const RopeCall rope = rotate(0, c.tokens);
    const int status = rope_status(rope);
    return status == DONE ? attention_status(attend()) : status;
  }

  void run() const {
    for (int start = 0; start < c.tokens; start += slice) {
      const int rows = least(slice, c.tokens - start);
      const NormCall norm =
          norm_call(c, l.norm, l.norm_format, l.eps, l.qkv.inputs, l.format, start, rows, normed);
      const LinearCall linear = project(rows);
      const RopeCall rope = rotate(start, rows);
      atb_norm(&norm), atb_linear(&linear);
      if (l.q_norm) norm_heads(of_heads(l.q_norm, l.q_eps, rows), (void*)rope.q, row, l.heads);
      if (l.k_norm) norm_heads(of_heads(l.k_norm, l.k_eps, rows), (void*)rope.k, row, l.kv_heads);
      atb_rope(&rope);
    }
    const AttentionCall attention = attend();
    const LinearCall linear = output();
    atb_attention(&attention), atb_linear(&linear);
  }

  LinearCall with_desk(LinearCall call) const {
    call.scratch = desk;
    return call;
  }
  LinearCall project(int rows) const {
    return with_desk(
        linear_call(l.qkv, l.qkv_bias, l.qkv_bias_format, normed, l.format, rows, qkv, l.format, c.threads));
  }

  NormCall of_heads(const void* weight, float eps, int rows) const {
    NormCall norm = {};
    norm.weight = weight, norm.eps = eps, norm.rows = rows, norm.width = l.head_dim;
    norm.format = l.format, norm.weight_format = l.norm_format, norm.threads = c.threads;
    return norm;
  }

  RopeCall rotate(int start, int rows) const {
    const int64_t width = (int64_t)l.heads * l.head_dim, keys = (int64_t)l.kv_heads * l.head_dim;
    RopeCall rope = {};
    rope.q = qkv, rope.k = row_of(qkv, 1, width, l.format), rope.v = row_of(qkv, 1, width + keys, l.format);
    rope.q_row = rope.k_row = rope.v_row = row;
    rope.cos = s.cos + (int64_t)start * s.half, rope.sin = s.sin + (int64_t)start * s.half, rope.half = s.half;
    rope.slots = s.slots + start, rope.tokens = rows;
    rope.q_out = row_of(queries, start, width, l.format), rope.k_cache = l.k_cache, rope.v_cache = l.v_cache;
    rope.k_block = l.k_block, rope.k_slot = l.k_slot, rope.k_head = l.k_head;
    rope.v_block = l.v_block, rope.v_slot = l.v_slot, rope.v_head = l.v_head;
    rope.k_scale = l.k_scale, rope.v_scale = l.v_scale;
    rope.heads = l.heads, rope.kv_heads = l.kv_heads, rope.head_dim = l.head_dim;
    rope.block_size = l.block_size, rope.blocks = l.blocks, rope.format = l.format, rope.threads = c.threads;
    return rope;
  }

  AttentionCall attend() const {
    AttentionCall attention = {};
    attention.q = queries, attention.q_row = (int64_t)l.heads * l.head_dim, attention.out = attended;
    attention.k = l.k_cache, attention.k_block = l.k_block, attention.k_slot = l.k_slot, attention.k_head = l.k_head;
    attention.v = l.v_cache, attention.v_block = l.v_block, attention.v_slot = l.v_slot, attention.v_head = l.v_head;
    attention.k_scale = l.k_scale, attention.v_scale = l.v_scale;
    attention.table = s.table, attention.table_row = s.table_row, attention.table_width = s.table_width;
    attention.starts = s.starts, attention.kv_lens = s.kv_lens, attention.sequences = s.sequences;
    attention.tokens = c.tokens, attention.heads = l.heads, attention.kv_heads = l.kv_heads;
    attention.head_dim = l.head_dim, attention.block_size = l.block_size, attention.blocks = l.blocks;
    attention.format = l.format, attention.threads = c.threads, attention.scale = l.scale, attention.scratch = desk;
    return attention;
  }

  LinearCall output() const {
    return with_desk(
        linear_call(l.o, l.o_bias, l.o_bias_format, attended, l.format, c.tokens, c.out, l.format, c.threads));
  }
};

API int atb_attention_sublayer(const AttentionLayer* layer, const AttentionStep* step, SublayerCall* call) {
  const int64_t needed = AttentionSublayer(*layer, *step, *call, nullptr).floats;
  if (call->scratch_floats < needed) {
    call->scratch_floats = needed;
    return MORE_SCRATCH;
  }
  const AttentionSublayer sublayer(*layer, *step, *call, call->scratch);
  const int status = sublayer.status();
  if (status == DONE) sublayer.run();
  return status;
}
