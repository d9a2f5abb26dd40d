// PagedAttention: checks a call and hands its items to the threads.
#include "decode.h"
#include "prompt.h"
#include "../sublayer.h"

// Floats of the call's scratch: the first items of the sequences, then what chunks of decoding leave to be joined.
static int64_t list_floats(const AttentionCall& c) { return round_up(2 * (c.sequences + 1), 16); }
static int64_t partial_floats(const AttentionCall& c) {
  int64_t chunks = 0;
  for (int b = 0; b < c.sequences; b++) chunks += decode_chunks(c, b);
  return round_up(chunks * c.heads * (padded_dim(c) + 2), 16);
}

template <class S, class C, class DecodeForm, class PromptForm> static void attend(const AttentionCall& c) {
  int32_t* lists = (int32_t*)c.scratch;
  float* partial = c.scratch + list_floats(c);
  const Prompt<S, C, PromptForm> prompt(c, lists);
  const Decode<S, C, DecodeForm> decode(c, lists + c.sequences + 1, partial);
  float* desks = partial + partial_floats(c);
  const int64_t own = Desk::floats(c);
  parallel(c.threads, [&](Team& team, int thread) {
    Desk desk(c, desks + thread * own);
    // One stage, so that nobody waits between prompts and decoding; the longest items go first.
    team.each(prompt.items() + decode.items(), [&](int64_t i) {
      if (i < prompt.items())
        prompt.item(i, desk);
      else
        decode.item(i - prompt.items(), desk);
    });
    if (!decode.items()) return;
    team.barrier();
    team.each((int64_t)c.sequences * c.heads, [&](int64_t i) { decode.join_chunks(i, desk); });
  });
}

static void attend_floats(const AttentionCall& c) {
  switch (c.format) {
    case FORMAT_F16: return attend<F16, F16, Widened<F16>, Widened<F32>>(c);
    case FORMAT_BF16:
#ifdef HAS_BF16_DOT
      return attend<BF16, BF16, Paired, Paired>(c);
#else
      return attend<BF16, BF16, Widened<BF16>, Widened<F32>>(c);
#endif
    default: return attend<F32, F32, Widened<F32>, Widened<F32>>(c);
  }
}

static void attend_bytes(const AttentionCall& c) {
  switch (c.format) {
    case FORMAT_F16: return attend<F16, I8, Widened<I8>, Widened<F32>>(c);
    case FORMAT_BF16:
#ifdef HAS_BF16_DOT
      return attend<BF16, I8, PairedBytes, BroughtPairs>(c);
#else
      return attend<BF16, I8, Widened<I8>, Widened<F32>>(c);
#endif
    default: return attend<F32, I8, Widened<I8>, Widened<F32>>(c);
  }
}

int attention_status(const AttentionCall& c) {
  if (c.starts[0] != 0 || c.starts[c.sequences] != c.tokens) return BAD_LENGTH;
  for (int b = 0; b < c.sequences; b++) {
    const int kv_len = c.kv_lens[b], used = pieces(kv_len, c.block_size);
    if (query_count(c, b) < 0 || kv_len < query_count(c, b) || used > c.table_width) return BAD_LENGTH;
    for (int i = 0; i < used; i++) {
      const int block = c.table[b * c.table_row + i];
      if (block < 0 || block >= c.blocks) return BAD_BLOCK;
    }
  }
  return DONE;
}

API int64_t atb_attention_scratch(const AttentionCall* c) {
  return list_floats(*c) + partial_floats(*c) + c->threads * Desk::floats(*c);
}

API int atb_attention(const AttentionCall* c) {
  const int status = attention_status(*c);
  if (status != DONE) return status;
  if (c->k_scale.data)
    attend_bytes(*c);
  else
    attend_floats(*c);
  return DONE;
}
