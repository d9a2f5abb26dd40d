// What the library shows to its caller. Tensors are addresses, sizes and strides in elements; see ../structs.py.
#pragma once
#include <stdint.h>

#define API extern "C" __attribute__((visibility("default")))

// FORMAT_I8 lies in a weight as floats do; FORMAT_I4 and FORMAT_I8_DOTS are for products of int8, see dots.h.
enum Format { FORMAT_F32 = 0, FORMAT_F16 = 1, FORMAT_BF16 = 2, FORMAT_I8 = 3, FORMAT_I4 = 4, FORMAT_I8_DOTS = 5 };

// What meets a weight for products of int8: floats; int8 by a scale of each row, its largest magnitude / 127; or int8 by
// a given scale and offset.
enum Activations { ACTIVATIONS_FLOAT = 0, ACTIVATIONS_TOKEN = 1, ACTIVATIONS_STATIC = 2 };

// What a call returns: 0, or what it refused before it wrote anything.
enum Status {
  DONE = 0,
  BAD_LENGTH = 1,
  BAD_BLOCK = 2,
  BAD_SLOT = 3,
  BAD_EXPERT = 4,
  MORE_SCRATCH = 5,
  BAD_TOKEN = 6,
};

// The scales of the vectors of a cache that is int8; no data where it holds floats. That of vector (p, s, m) is at
// p * block + s * slot + m * head.
struct Scales {
  float* data;
  int64_t block, slot, head;
};

// Attention over the paged cache. Element (p, s, m, d) of a cache is at p * block + s * slot + m * head + d.
struct AttentionCall {
  const void *q, *k, *v;
  void* out;  // [T, N, D], contiguous
  const int32_t *table, *starts, *kv_lens;
  float* scratch;
  int64_t q_row;  // elements from one token's queries to the next
  int64_t k_block, k_slot, k_head, v_block, v_slot, v_head;
  int64_t table_row;
  int32_t tokens, sequences, heads, kv_heads, head_dim, block_size, blocks, table_width, format, threads;
  float scale;
  Scales k_scale, v_scale;
};

// Attention over the paged cache of latents (see attention/latent.h). `maps` are each head's rows of keys, then of
// values, [N, nope + value, latent]. A query has `rotary` values, which meet rotary keys, then `nope`, which meet a
// head's own.
// Element (p, s, d) of a cache is at p * block + s * slot + d.
struct LatentCall {
  const void *q, *maps, *latents, *keys;
  void* out;  // [T, N, value], contiguous
  const int32_t *table, *starts, *kv_lens;
  float* scratch;
  int64_t q_row;  // elements from one token's queries to the next
  int64_t latent_block, latent_slot, key_block, key_slot;
  int64_t table_row;
  int32_t tokens, sequences, heads, nope, rotary, value, latent, block_size, blocks, table_width, format, threads;
  float scale;
  Scales latent_scale, key_scale;
};

// A weight [outputs, inputs], or a stack of them, in panels (see products/panels.h). What a storage needs beside its values is
// described here and nowhere else.
struct PanelWeight {
  const void* data;
  // FORMAT_I8: of each output. FORMAT_I4, FORMAT_I8_DOTS: [panel][units of inputs][16].
  const float* scale;
  int32_t outputs, inputs, format;
  // Of FORMAT_I4 and FORMAT_I8_DOTS alone.
  int32_t unit, activations;
  const float* offset;                      // as many as scales, subtracted from the integers first, or null
  const float *input_scale, *input_offset;  // of each matrix, for ACTIVATIONS_STATIC
  const int32_t* quant_bias;                // [panel][16], added to the integer sums, or null
};

// out = x w^T + bias.
struct LinearCall {
  const void* x;
  PanelWeight weight;
  const void* bias;
  void* out;
  float* scratch;
  int64_t x_row, out_row;
  int32_t rows, x_format, bias_format, out_format, threads;
};

// A matrix of `outputs` rows of `inputs` elements, for FORMAT_I4 int8 from -8 to 7, into panels. Of several matrices with
// the same shape, panel p of matrix i becomes panel p * step + i: a gate and its up matrix are packed with step 2.
struct PackCall {
  const void* source;
  void* to;
  int64_t source_row;
  int32_t outputs, inputs, step, format, threads;
};

// The routed experts: for each of a token's `top_k` choices down(silu(gate x) * up x), summed with its weights.
struct ExpertsCall {
  const void* x;
  const int64_t* chosen;  // [T, K]
  const float* weights;   // [T, K]
  PanelWeight gate_up, down;  // [E, 2 F, H] and [E, H, F], of one format
  void* out;                   // [T, H], contiguous
  int64_t* counter;            // [E], to which each expert's rows are added, or null
  float* scratch;
  int64_t x_row;
  int32_t tokens, experts, top_k, format, threads;
  int hidden() const { return down.outputs; }
  int width() const { return down.inputs; }
};

// RMS norm of x, or of x + residual, which then goes to `sum`.
struct NormCall {
  const void *x, *residual, *weight;
  void *out, *sum;  // [T, H], contiguous
  int64_t x_row, residual_row;
  int32_t rows, width, format, weight_format, threads;
  float eps;
};

// silu(gate) * up of rows that hold gate, then up, each `width` wide.
struct SwigluCall {
  const void* x;
  void* out;  // [T, F], contiguous
  int64_t x_row;
  int32_t rows, width, format, threads;
};

// shared * sigmoid(x . weight), row by row.
struct SharedGateCall {
  const void *shared, *x, *weight;
  void* out;  // [T, shared_width], contiguous
  int64_t shared_row, x_row;
  int32_t rows, width, shared_width, format, weight_format, threads;
};

// factor times cos and sin of position * inverse frequency.
struct RopeTablesCall {
  const int32_t* positions;
  const float* frequencies;  // [half]
  float *cos, *sin;          // [T, half], contiguous
  int32_t tokens, half, threads;
  float factor;
};

// Turns the pairs (d, d + half) of queries and keys by their token's angle; keys and values go to their slots.
struct RopeCall {
  const void *q, *k, *v;
  const float *cos, *sin;  // [T, half], contiguous
  const int32_t* slots;
  void *q_out, *k_cache, *v_cache;  // q_out [T, N, D], contiguous
  int64_t q_row, k_row, v_row;
  int64_t k_block, k_slot, k_head, v_block, v_slot, v_head;
  int32_t tokens, heads, kv_heads, head_dim, half, block_size, blocks, format, threads;
  Scales k_scale, v_scale;
};

// The same for latent attention: the first 2 half values of each query are turned, and those of the one key, which goes
// to its slot beside the latent.
struct LatentRopeCall {
  const void *q, *latent, *key;
  const float *cos, *sin;  // [T, half], contiguous
  const int32_t* slots;
  void *q_out, *latents, *keys;  // q_out [T, N, D], contiguous
  int64_t q_row, latent_row, key_row;
  int64_t latent_block, latent_slot, key_block, key_slot;
  int32_t tokens, heads, head_dim, half, width, block_size, blocks, format, threads;  // width: of a latent
  Scales latent_scale, key_scale;
};

// The `count` greatest finite logits of each row as keys, and a count of those that are not finite, see top_logits.py.
struct TopLogitsCall {
  const void* x;
  int64_t* out;  // [L, count + 1], contiguous
  int64_t x_row;
  int32_t rows, width, count, first, format, threads;
};

// The `top_k` experts of each row of scores. Sigmoid: scores become sigmoids, else the softmax over all experts; `bias`
// is added for the choice only. Experts are in `groups` equal runs; those outside the `top_groups` best are not chosen
// while there are others. A group is worth the sum of its `group_best` best (1 or 2) choices. The weights are divided by
// their sum + renormalize_eps where `renormalize`, then multiplied by `scaling`.
struct GatingCall {
  const float *scores, *bias;  // [T, E], contiguous
  float* weights;              // [T, K]
  int64_t* chosen;             // [T, K]
  float* scratch;
  int32_t tokens, experts, top_k, sigmoid, groups, top_groups, group_best, renormalize, threads;
  float renormalize_eps, scaling;
};

// The rows that a sublayer of a decoder layer works on in one call. It norms x + residual, which goes to `sum`, and
// writes what is to be added to that to `out`.
struct SublayerCall {
  const void *x, *residual;  // x: null in the first layer, where the residual is normed and `sum` is not written
  void *out, *sum;           // [T, H], contiguous
  float* scratch;
  int64_t scratch_floats;  // that there are; after MORE_SCRATCH: that are needed
  int64_t x_row, residual_row;
  int32_t tokens, threads;
};

// The attention of a layer: what does not change from step to step.
struct AttentionLayer {
  const void* norm;    // [H]
  PanelWeight qkv, o;  // [(N + 2 M) D, H] and [H, N D]
  const void *q_norm, *k_norm;  // of each head's query and key, [D], or null
  const void *qkv_bias, *o_bias;
  void *k_cache, *v_cache;
  int64_t k_block, k_slot, k_head, v_block, v_slot, v_head;
  int32_t heads, kv_heads, head_dim, block_size, blocks, format, norm_format, qkv_bias_format, o_bias_format;
  float eps, q_eps, k_eps, scale;
  Scales k_scale, v_scale;
};

// What all the layers' attention takes of a step.
struct AttentionStep {
  const float *cos, *sin;  // [T, half], contiguous
  const int32_t *slots, *table, *starts, *kv_lens;
  int64_t table_row;
  int32_t sequences, table_width, half;
};

// The feed-forward of a layer: an MLP, or routed experts and beside them maybe an MLP of shared experts.
struct FeedForwardLayer {
  const void* norm;             // [H]
  PanelWeight gate_up, down;   // of the MLP, [2 F, H] and [H, F]; no outputs where there is none
  PanelWeight router;          // [E, H], float32; no outputs where there are no routed experts
  PanelWeight experts_gate_up, experts_down;
  const float* router_bias;     // [E], or null
  const void* shared_gate;      // [H], or null
  int64_t* counter;             // as in ExpertsCall
  int32_t experts, top_k, sigmoid, groups, top_groups, group_best, renormalize;  // as in GatingCall
  int32_t format, norm_format, shared_gate_format;
  float eps, renormalize_eps, scaling;
};

// The two of a layer.
struct SublayerPair {
  const AttentionLayer* attention;
  const FeedForwardLayer* feed_forward;
};

// A decoder: what does not change from step to step.
struct DecoderModel {
  const void* embedding;     // [V, H]
  const void* norm;          // [H]
  const float* frequencies;  // [half]
  const SublayerPair* layers;
  PanelWeight head;  // [V, H]; no outputs where somebody else multiplies by it
  int32_t vocabulary, hidden, half, count, format, norm_format;
  float eps, rope_factor;
};

// A step of a decoder. `step` comes without tables, which are made from the positions.
struct DecoderCall {
  const int32_t *ids, *positions;
  const int32_t* wanted;  // [L], the tokens whose logits are wanted
  AttentionStep step;
  void* out;      // [L, V] logits, or [L, H] normed rows where the decoder has no head, contiguous
  int64_t* keys;  // [L, count + 1] of the `count` greatest logits, as in TopLogitsCall, or null
  float* scratch;
  int64_t scratch_floats;  // as in SublayerCall
  int32_t tokens, rows, count, threads;
};

// Each function runs a call; each `_scratch` gives the floats of scratch that the call needs.
API int64_t atb_attention_scratch(const AttentionCall*);
API int atb_attention(const AttentionCall*);
API int64_t atb_latent_attention_scratch(const LatentCall*);
API int atb_latent_attention(const LatentCall*);
API int64_t atb_linear_scratch(const LinearCall*);
API int atb_linear(const LinearCall*);
API int atb_pack(const PackCall*);
API int64_t atb_experts_scratch(const ExpertsCall*);
API int atb_experts(const ExpertsCall*);
API int atb_norm(const NormCall*);
API int atb_swiglu(const SwigluCall*);
API int atb_shared_gate(const SharedGateCall*);
API int atb_rope_tables(const RopeTablesCall*);
API int atb_rope(const RopeCall*);
API int atb_latent_rope(const LatentRopeCall*);
API int atb_top_logits(const TopLogitsCall*);
API int64_t atb_gating_scratch(const GatingCall*);
API int atb_gating(const GatingCall*);
API int atb_attention_sublayer(const AttentionLayer*, const AttentionStep*, SublayerCall*);
API int atb_feed_forward_sublayer(const FeedForwardLayer*, SublayerCall*);
API int atb_decoder(const DecoderModel*, DecoderCall*);
