// A step of a decoder against the calls that it is made of, for sanitize.cpp.
#pragma once
#include "sanitize.h"
#include <initializer_list>

// Layers that have their weights in common; the planes of their caches lie one after the other.
struct SmallDecoder {
  enum { N = 4, M = 2, D = 10, HALF = D / 2, H = 21, F = 19, V = 37, SIZE = 4, LAYERS = 2 };
  int format, blocks;
  Numbers embedding, norm, qkv, o, up, down, last, planes;
  char* panels[5];
  const float* frequencies;
  AttentionLayer attention = {};
  AttentionLayer attentions[LAYERS];
  FeedForwardLayer feed_forward = {};
  SublayerPair layers[LAYERS];
  DecoderModel decoder;

  SmallDecoder(int of, int count, bool has_head)
      : format(of), blocks(count), embedding(V * H, of), norm(H, of), qkv((N + 2 * M) * D * H, of), o(H * N * D, of),
        up(2 * F * H, of), down(H * F, of), last(V * H, of), planes(2 * LAYERS * count * SIZE * M * D, of),
        frequencies(const_floats(HALF, .3f)) {
    attention.norm = feed_forward.norm = norm.data;
    attention.qkv = weight(0, qkv, (N + 2 * M) * D, H), attention.o = weight(1, o, H, N * D);
    feed_forward.gate_up = weight(2, up, 2 * F, H), feed_forward.down = weight(3, down, H, F);
    attention.k_block = attention.v_block = SIZE * M * D, attention.k_slot = attention.v_slot = M * D;
    attention.k_head = attention.v_head = D, attention.heads = N, attention.kv_heads = M, attention.head_dim = D;
    attention.block_size = SIZE, attention.blocks = blocks, attention.scale = .3f;
    attention.format = attention.norm_format = feed_forward.format = feed_forward.norm_format = format;
    attention.eps = feed_forward.eps = 1e-5f;
    for (int i = 0; i < LAYERS; i++) {
      attentions[i] = attention, layers[i] = {&attentions[i], &feed_forward};
      attentions[i].k_cache = plane(2 * i), attentions[i].v_cache = plane(2 * i + 1);
    }
    const PanelWeight head = weight(4, last, V, H), none = {};
    decoder = {embedding.data, norm.data, frequencies, layers, has_head ? head : none, V, H, HALF, LAYERS, format,
               format,         1e-5f,     1};
  }
  ~SmallDecoder() {
    for (char* memory : panels) free(memory);
    free((void*)frequencies);
  }
  PanelWeight weight(int place, const Numbers& from, int outputs, int inputs) {
    panels[place] = packed(from, outputs, inputs, 1, 0, nullptr);
    return {panels[place], nullptr, outputs, inputs, format};
  }
  char* plane(int i) { return planes.data + (int64_t)i * blocks * SIZE * M * D * planes.size(); }
};

// A prompt in blocks that lie backwards.
struct Prompt {
  int tokens, blocks, rows;
  int32_t *ids, *positions, *slots, *table, *wanted, starts[2], lengths[1];
  explicit Prompt(int of) : tokens(of), blocks(of / SmallDecoder::SIZE + 1), rows(of < 3 ? 1 : 3), starts{0, of}, lengths{of} {
    for (int32_t** list : {&ids, &positions, &slots}) *list = (int32_t*)malloc(tokens * 4);
    table = (int32_t*)malloc(blocks * 4), wanted = (int32_t*)malloc(rows * 4);
    for (int i = 0; i < blocks; i++) table[i] = blocks - 1 - i;
    for (int i = 0; i < tokens; i++) {
      ids[i] = i * 5 % SmallDecoder::V, positions[i] = i;
      slots[i] = table[i / SmallDecoder::SIZE] * SmallDecoder::SIZE + i % SmallDecoder::SIZE;
    }
    for (int i = 0; i < rows; i++) wanted[i] = i < 2 && rows > 1 ? i : tokens - 1;
  }
  ~Prompt() {
    for (int32_t* list : {ids, positions, slots, table, wanted}) free(list);
  }
  AttentionStep step() const { return {nullptr, nullptr, slots, table, starts, lengths, blocks, 1, blocks, 0}; }
};

// Into `expected` what the norm gives, by the calls of the layers.
static void run_parts(const SmallDecoder& w, const Prompt& p, DecoderCall c, Numbers& expected) {
  enum { H = SmallDecoder::H, HALF = SmallDecoder::HALF };
  Numbers x(p.tokens * H, w.format), stream(x.count, w.format);
  const int64_t row = (int64_t)H * x.size();
  float* angles = (float*)malloc(2 * p.tokens * HALF * sizeof(float));
  const RopeTablesCall tables = {p.positions, w.frequencies, angles, angles + p.tokens * HALF, p.tokens, HALF, c.threads, 1};
  failures += atb_rope_tables(&tables) != DONE;
  for (int i = 0; i < p.tokens * HALF; i++) {
    const double angle = (float)p.positions[i / HALF] * w.frequencies[i % HALF];
    compare(tables.cos[i], cos(angle), FORMAT_F32), compare(tables.sin[i], sin(angle), FORMAT_F32);
  }
  c.step.cos = tables.cos, c.step.sin = tables.sin, c.step.half = HALF;
  for (int i = 0; i < p.tokens; i++) memcpy(stream.data + i * row, w.embedding.data + p.ids[i] * row, row);
  SublayerCall call = {nullptr, stream.data, x.data, stream.data, c.scratch, c.scratch_floats, H, H, p.tokens, c.threads};
  for (const SublayerPair& layer : w.layers) {
    failures += atb_attention_sublayer(layer.attention, &c.step, &call) != DONE;
    call.x = x.data;
    for (int i = 0; &layer == &w.layers[SmallDecoder::LAYERS - 1] && i < p.rows; i++) {  // rising, none before its place
      memmove(x.data + i * row, x.data + p.wanted[i] * row, row);
      memmove(stream.data + i * row, stream.data + p.wanted[i] * row, row);
      call.tokens = p.rows;
    }
    failures += atb_feed_forward_sublayer(layer.feed_forward, &call) != DONE;
  }
  NormCall norm = {x.data, stream.data, w.norm.data, expected.data, stream.data, H, H, p.rows, H, w.format, w.format,
                   c.threads, 1e-5f};
  failures += atb_norm(&norm) != DONE;
  free(angles);
}

static void decoder(int format, int tokens, bool has_head, int threads) {
  enum { V = SmallDecoder::V, H = SmallDecoder::H, TOP = 3 };
  const Prompt p(tokens);
  const SmallDecoder w(format, p.blocks, has_head);
  Numbers out(p.rows * (has_head ? V : H), format), expected(p.rows * H, format), logits(p.rows * V, format);
  const int64_t key_bytes = p.rows * (TOP + 1) * sizeof(int64_t);
  int64_t *keys = (int64_t*)malloc(key_bytes), *best = (int64_t*)malloc(key_bytes);
  DecoderCall c = {p.ids, p.positions, p.wanted, p.step(), out.data, has_head ? keys : nullptr, nullptr, 0, tokens, p.rows,
                   TOP,   threads};
  failures += atb_decoder(&w.decoder, &c) != MORE_SCRATCH;
  c.scratch = (float*)malloc(c.scratch_floats * sizeof(float));
  p.ids[tokens - 1] += V;
  failures += atb_decoder(&w.decoder, &c) != BAD_TOKEN;
  p.ids[tokens - 1] -= V;
  failures += atb_decoder(&w.decoder, &c) != DONE;
  run_parts(w, p, c, expected);
  if (has_head) {
    LinearCall linear = {expected.data, w.decoder.head, nullptr, logits.data, c.scratch, H, V, p.rows, format, 0, format, threads};
    const TopLogitsCall top = {logits.data, best, V, p.rows, V, TOP, 0, format, threads};
    failures += atb_linear(&linear) != DONE || atb_top_logits(&top) != DONE || memcmp(best, keys, key_bytes) != 0;
  }
  const Numbers& given = has_head ? logits : expected;
  failures += memcmp(given.data, out.data, given.count * given.size()) != 0;
  free(c.scratch), free(keys), free(best);
}
