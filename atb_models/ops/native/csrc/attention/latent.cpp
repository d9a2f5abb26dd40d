// LatentAttention: checks a call and hands its items to the threads.
#include "latent.h"
#include "../sublayer.h"

template <class S, class C> static void attend(const LatentCall& c) {
  const LatentWork work(c, c.scratch);
  float* memory = c.scratch + LatentWork::floats(c);
  const Latents<S, C> latents(c, work, memory);
  float* desks = memory + Latents<S, C>::floats(c, work.singles, work.chunks());
  const int64_t own = LatentDesk::floats(c);
  parallel(c.threads, [&](Team& team, int thread) {
    LatentDesk desk(c, desks + thread * own);
    if (work.singles) {
      team.each(latents.groups(), [&](int64_t i) { latents.absorb_group(i, desk); });
      team.barrier();
    }
    // One stage, so that nobody waits between prompts and decoding; the longest items go first.
    team.each(latents.tiles() + latents.chunk_items(), [&](int64_t i) {
      if (i < latents.tiles())
        latents.tile(i, desk);
      else
        latents.chunk_item(i - latents.tiles(), desk);
    });
    if (!work.singles) return;
    team.barrier();
    team.each(latents.groups(), [&](int64_t i) { latents.join_group(i, desk); });
  });
}

static int latent_status(const LatentCall& c) {
  AttentionCall lists = {};
  lists.table = c.table, lists.starts = c.starts, lists.kv_lens = c.kv_lens, lists.table_row = c.table_row;
  lists.tokens = c.tokens, lists.sequences = c.sequences, lists.block_size = c.block_size, lists.blocks = c.blocks;
  lists.table_width = c.table_width;
  return attention_status(lists);
}

API int64_t atb_latent_attention_scratch(const LatentCall* c) {
  int64_t singles = 0, chunks = 0;
  for (int b = 0; b < c->sequences; b++)
    if (query_count(*c, b) == 1) singles++, chunks += pieces(c->kv_lens[b], CHUNK);
  return LatentWork::floats(*c) + Latents<F32, F32>::floats(*c, singles, chunks) + c->threads * LatentDesk::floats(*c);
}

API int atb_latent_attention(const LatentCall* c) {
  const int status = latent_status(*c);
  if (status != DONE) return status;
  const bool bytes = c->latent_scale.data;
  switch (c->format) {
    case FORMAT_F16: bytes ? attend<F16, I8>(*c) : attend<F16, F16>(*c); break;
    case FORMAT_BF16: bytes ? attend<BF16, I8>(*c) : attend<BF16, BF16>(*c); break;
    default: bytes ? attend<F32, I8>(*c) : attend<F32, F32>(*c);
  }
  return DONE;
}
