// What the library shows to its caller. Tensors are addresses, sizes and strides in elements; see ../structs.py.
#pragma once
#include <stdint.h>

#define API extern "C" __attribute__((visibility("default")))

enum Format { FORMAT_F32 = 0, FORMAT_F16 = 1, FORMAT_BF16 = 2, FORMAT_I8 = 3 };

// What a call returns: 0, or what it refused before it wrote anything.
enum Status { DONE = 0, BAD_LENGTH = 1, BAD_BLOCK = 2, BAD_SLOT = 3, BAD_EXPERT = 4 };

// Attention over the paged cache. Element (p, s, m, d) of a cache is at p * block + s * slot + m * head + d.
struct AttentionCall {
  const void *q, *k, *v;
  void* out;                      // [T, N, D], contiguous
  const int32_t *table, *starts, *kv_lens;
  float* scratch;
  int64_t q_row;                  // elements from one token's queries to the next
  int64_t k_block, k_slot, k_head, v_block, v_slot, v_head;
  int64_t table_row;
  int32_t tokens, sequences, heads, kv_heads, head_dim, block_size, blocks, table_width, format,
      threads;
  float scale;
};
