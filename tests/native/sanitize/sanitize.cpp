// Runs every operation of the library over memory of exactly its size, for AddressSanitizer and UBSan, and compares
// with plain loops. Prints one line an operation; exit status 1 where one is wrong.
#include "decoder.h"
#include "latent.h"
#include "sanitize.h"
#include <initializer_list>

API double atb_limit_read(const char*, int64_t, int, int, int32_t*);
API double atb_limit_floats(int, int, int32_t*);
API double atb_limit_bf16(int, int, int32_t*);
API double atb_limit_int8(int, int, int32_t*);

static void attention(int format, int stored, int kv_heads, int group, int dim, int threads) {
  enum { B = 5, SIZE = 16, BLOCKS = 24, WIDTH = 19 };
  const int queries[B] = {1, 1, 9, 70, 1}, lengths[B] = {1, 257, 9, 290, 16}, heads = kv_heads * group;
  int32_t starts[B + 1] = {0}, *table = (int32_t*)malloc(B * WIDTH * 4);
  for (int b = 0; b < B; b++) starts[b + 1] = starts[b] + queries[b];
  for (int i = 0; i < B * WIDTH; i++) table[i] = (i * 7 + 3) % BLOCKS;
  Numbers q(starts[B] * heads * dim, format), k(BLOCKS * SIZE * kv_heads * dim, stored), v(k.count, stored),
      out(q.count, format), k_scale(BLOCKS * SIZE * kv_heads, FORMAT_F32), v_scale(k_scale.count, FORMAT_F32);
  AttentionCall c = {};
  c.q = q.data, c.k = k.data, c.v = v.data, c.out = out.data, c.table = table, c.starts = starts, c.kv_lens = lengths;
  c.q_row = heads * dim, c.k_head = c.v_head = dim, c.k_slot = c.v_slot = kv_heads * dim;
  c.k_block = c.v_block = SIZE * kv_heads * dim, c.table_row = c.table_width = WIDTH;
  c.tokens = starts[B], c.sequences = B, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = dim;
  c.block_size = SIZE, c.blocks = BLOCKS, c.format = format, c.threads = threads, c.scale = .5f;
  c.k_scale = scales(k_scale, stored, SIZE, kv_heads), c.v_scale = scales(v_scale, stored, SIZE, kv_heads);
  with_scratch(c, atb_attention_scratch, atb_attention);
  for (int b = 0; b < B; b++)
    for (int i = 0; i < queries[b]; i++)
      for (int h = 0; h < heads; h++) {
        const int64_t at = ((int64_t)(starts[b] + i) * heads + h) * dim;
        const int seen = lengths[b] - queries[b] + i + 1;
        double weights[300], total = 0, sums[256] = {};
        for (int s = 0; s < seen; s++) {
          const int64_t vector = ((int64_t)table[b * WIDTH + s / SIZE] * SIZE + s % SIZE) * kv_heads + h / group;
          const int64_t row = vector * dim;
          double dot = 0;
          for (int d = 0; d < dim; d++) dot += (double)q.floats[at + d] * k.floats[row + d];
          total += weights[s] = exp(dot * k_scale.floats[vector] * .5);
          for (int d = 0; d < dim; d++) sums[d] += weights[s] * v_scale.floats[vector] * v.floats[row + d];
        }
        for (int d = 0; d < dim; d++) compare(out.get(at + d), sums[d] / total, format);
      }
  free(table);
}

static void linear(int format, int stored, int rows, int outputs, int inputs, int threads) {
  Numbers x((int64_t)rows * inputs, format), w((int64_t)outputs * inputs, stored), bias(outputs, format),
      out((int64_t)rows * outputs, format);
  const PanelScales scales(stored, outputs, inputs);
  char* weight = packed(w, outputs, inputs, 1, 0, nullptr);
  LinearCall c = {x.data, scales.weight(weight, outputs, inputs), bias.data, out.data,
                  nullptr, inputs, outputs, rows, format, format, format, threads};
  with_scratch(c, atb_linear_scratch, atb_linear);
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < outputs; o++) {
      double sum = 0;
      for (int k = 0; k < inputs; k++) {
        const double value = w.floats[o * inputs + k];
        sum += x.floats[r * inputs + k] * scales.exact(value, k);
      }
      compare(out.get((int64_t)r * outputs + o), sum + bias.floats[o], format, stored);
    }
  free(weight);
}

static void experts(int format, int stored, int tokens, int hidden, int width, int threads) {
  enum { E = 5, K = 2 };
  Numbers x((int64_t)tokens * hidden, format), up(2 * width * hidden, stored), down(hidden * width, stored),
      out(x.count, format), weights(tokens * K, FORMAT_F32);
  int64_t *chosen = (int64_t*)malloc(tokens * K * 8), counts[E] = {};
  for (int i = 0; i < tokens * K; i++) chosen[i] = i % K ? 4 : i % 3;  // expert 3 gets none; all are one matrix
  const int wide = (width + 15) / 16 * 16, tall = (hidden + 15) / 16 * 16;
  const bool panels = stored == FORMAT_I4 || stored >= FORMAT_I8_DOTS;  // then scales lie in panels
  const PanelScales s13(stored, E * 2 * (panels ? wide : width), hidden), s2(stored, E * (panels ? tall : hidden), width);
  const int64_t up_bytes = panel_bytes(stored, hidden) * wide / 8, down_bytes = panel_bytes(stored, width) * tall / 16;
  char *ups = (char*)malloc(E * up_bytes), *downs = (char*)malloc(E * down_bytes);
  for (int e = 0; e < E; e++) {
    for (int part = 0; part < 2; part++) packed(up, width, hidden, 2, part, ups + e * up_bytes);
    packed(down, hidden, width, 1, 0, downs + e * down_bytes);
  }
  ExpertsCall c = {x.data, chosen, weights.floats, s13.weight(ups, 2 * width, hidden), s2.weight(downs, hidden, width),
                   out.data, counts, nullptr, hidden, tokens, E, K, format, threads};
  with_scratch(c, atb_experts_scratch, atb_experts);
  failures += counts[3] != 0 || counts[4] != tokens;
  double* inner = (double*)malloc(width * sizeof(double));
  for (int t = 0; t < tokens; t++) {
    double sum[2];
    for (int f = 0; f < width; f++) {
      for (int part = 0; part < 2; part++) {
        sum[part] = 0;
        for (int h = 0; h < hidden; h++)
          sum[part] += (double)x.floats[t * hidden + h] * s13.exact(up.floats[(part * width + f) * hidden + h], h);
      }
      inner[f] = sum[0] / (1 + exp(-sum[0])) * sum[1];
    }
    for (int h = 0; h < hidden; h++) {
      double y = 0;
      for (int f = 0; f < width; f++) y += inner[f] * s2.exact(down.floats[h * width + f], f);
      // silu * up was rounded once on the way, which errs with the size of what is summed
      compare(out.get((int64_t)t * hidden + h) / width, y * (weights.floats[2 * t] + weights.floats[2 * t + 1]) / width,
              format, stored);
    }
  }
  free(inner), free(chosen), free(ups), free(downs);
}

static void rows(int format, int width) {
  enum { T = 6 };
  Numbers x(T * width, format), y(x.count, format), w(width, format), out(x.count, format), sum(x.count, format);
  NormCall norm = {x.data, y.data, w.data, out.data, sum.data, width, width, T, width, format, format, 2, 1e-5f};
  failures += atb_norm(&norm) != DONE;
  for (int t = 0; t < T; t++) {
    double square = 0;
    for (int i = 0; i < width; i++) square += (double)sum.get(t * width + i) * sum.get(t * width + i);
    for (int i = t * width; i < (t + 1) * width; i++) {
      compare(sum.get(i), (double)x.floats[i] + y.floats[i], format);
      compare(out.get(i), sum.get(i) / sqrt(square / width + 1e-5) * w.floats[i - t * width], format);
    }
  }
  SharedGateCall gate = {y.data, x.data, w.data, out.data, width, width, T, width, width, format, format, 2};
  failures += atb_shared_gate(&gate) != DONE;
  for (int t = 0; t < T; t++) {
    double dot = 0;
    for (int i = 0; i < width; i++) dot += (double)x.floats[t * width + i] * w.floats[i];
    for (int i = t * width; i < (t + 1) * width; i++) compare(out.get(i), y.floats[i] / (1 + exp(-dot)), format);
  }
  Numbers both(2 * T * width, format);
  SwigluCall swiglu = {both.data, out.data, 2 * width, T, width, format, 2};
  failures += atb_swiglu(&swiglu) != DONE;
  for (int t = 0; t < T; t++)
    for (int i = 0; i < width; i++) {
      const double g = both.floats[2 * t * width + i], u = both.floats[(2 * t + 1) * width + i];
      compare(out.get(t * width + i), g / (1 + exp(-g)) * u, format);
    }
}

static void top_logits(int format, int width, int count, int threads) {
  enum { T = 3 };
  Numbers x(T * width, format);
  x.set(0, NAN), x.set(width, -INFINITY);
  int64_t* keys = (int64_t*)malloc(T * (count + 1) * sizeof(int64_t));
  TopLogitsCall c = {x.data, keys, width, T, width, count, 100, format, threads};
  failures += atb_top_logits(&c) != DONE;
  for (int t = 0; t < T; t++) {
    const int64_t* key = keys + t * (count + 1);
    failures += key[count] != (t == 0 ? 1 + (INT64_C(1) << 32) : t == 1);
    for (int k = 0; k < count; k++) {
      const int id = (int)(0xffffffffu - (uint32_t)key[k]) - 100, finite = width - (t < 2);
      if (k >= finite) {
        failures += key[k] != INT64_MIN;
        continue;
      }
      int before = 0;  // as many logits stand before it as there are greater ones, or equal ones of lower ids
      const float* row = x.floats + t * width;
      for (int i = 0; i < width; i++) before += row[i] > row[id] || (row[i] == row[id] && i < id);
      failures += before != k;
    }
  }
  free(keys);
}

static void rope(int format, int stored, int dim, int half) {
  enum { T = 5, N = 3, M = 2, SIZE = 4, BLOCKS = 3 };
  Numbers q(T * N * dim, format), k(T * M * dim, format), v(k.count, format), cosine(T * half, FORMAT_F32),
      sine(T * half, FORMAT_F32), out(q.count, format), keys(BLOCKS * SIZE * M * dim, stored), values(keys.count, stored),
      k_scale(BLOCKS * SIZE * M, FORMAT_F32), v_scale(k_scale.count, FORMAT_F32);
  const int32_t slots[T] = {11, 0, 3, 4, 7};
  RopeCall c = {q.data, k.data, v.data, cosine.floats, sine.floats, slots, out.data, keys.data, values.data,
                N * dim, M * dim, M * dim, SIZE * M * dim, M * dim, dim, SIZE * M * dim, M * dim, dim,
                T, N, M, dim, half, SIZE, BLOCKS, format, 2,
                scales(k_scale, stored, SIZE, M), scales(v_scale, stored, SIZE, M)};
  failures += atb_rope(&c) != DONE;
  for (int t = 0; t < T; t++)
    for (int h = 0; h < N + M; h++)
      for (int d = 0; d < dim; d++) {
        const Numbers& from = h < N ? q : k;
        const int64_t row = h < N ? (t * N + h) * dim : (t * M + h - N) * dim;
        double expected = from.floats[row + d];
        if (d < half)
          expected = expected * cosine.floats[t * half + d] - (double)from.floats[row + d + half] * sine.floats[t * half + d];
        else if (d < 2 * half)
          expected = expected * cosine.floats[t * half + d - half] + (double)from.floats[row + d - half] * sine.floats[t * half + d - half];
        if (h < N) {
          compare(out.get(row + d), expected, format);
          continue;
        }
        // An integer stands for what differs by half a scale at most.
        const int64_t vector = slots[t] * M + h - N;
        const double key = keys.get(vector * dim + d) * k_scale.floats[vector];
        const double value = values.get(vector * dim + d) * v_scale.floats[vector];
        if (stored == FORMAT_I8) {
          failures += !(fabs(key - expected) <= .52 * k_scale.floats[vector] + .01);
          failures += !(fabs(value - v.floats[row + d]) <= .52 * v_scale.floats[vector]);
        } else {
          compare(key, expected, format);
          compare(value, v.floats[row + d], FORMAT_F32);
        }
      }
}

static void gating(int experts, int top_k, int groups) {
  enum { T = 40 };
  Numbers scores(T * experts, FORMAT_F32), bias(experts, FORMAT_F32), weights(T * top_k, FORMAT_F32);
  int64_t* chosen = (int64_t*)malloc(T * top_k * 8);
  GatingCall c = {(const float*)scores.data, (const float*)bias.data, (float*)weights.data, chosen, nullptr, T, experts,
                  top_k, 1, groups, (groups + 1) / 2, 2, 1, 3, 0, 2};
  with_scratch(c, atb_gating_scratch, atb_gating);
  for (int t = 0; t < T; t++) {
    double sum = 0;
    for (int k = 0; k < top_k; k++) sum += weights.get(t * top_k + k);
    compare(sum, 2, FORMAT_F32);
  }
  free(chosen);
}

// One call of a sublayer, whose memory of every kind ends where its numbers end.
template <class Run> static void sublayer(SublayerCall c, const Run& run) {
  failures += run(&c) != MORE_SCRATCH;
  c.scratch = (float*)malloc(c.scratch_floats * sizeof(float));
  failures += run(&c) != DONE;
  free(c.scratch);
}

// Attention over values that are all alike gives that value, whatever the weights of the queries and keys are.
static void attention_sublayer(int format, int stored, int tokens, bool first, int threads) {
  enum { N = 4, M = 2, D = 10, H = 21, SIZE = 4 };
  const int rows = (N + 2 * M) * D, blocks = tokens / SIZE + 1;
  Numbers x(tokens * H, format), residual(x.count, format), out(x.count, format), sum(x.count, format), norm(H, format),
      w((int64_t)rows * H, stored), o(H * N * D, stored), bias(rows, format), k(blocks * SIZE * M * D, format), v(k.count, format);
  for (int64_t i = (int64_t)(N + M) * D * H; i < w.count; i++) w.set(i, 0);
  for (int i = (N + M) * D; i < rows; i++) bias.set(i, .5f);
  char *qkv = packed(w, rows, H, 1, 0, nullptr), *last = packed(o, H, N * D, 1, 0, nullptr);
  const float *ones = const_floats(rows, .01f), *angles = const_floats(tokens * D / 2, .6f);
  int32_t *slots = (int32_t*)malloc(tokens * 4), *table = (int32_t*)malloc(blocks * 4);
  for (int i = 0; i < blocks; i++) table[i] = blocks - 1 - i;
  for (int i = 0; i < tokens; i++) slots[i] = table[i / SIZE] * SIZE + i % SIZE;
  const int32_t starts[] = {0, tokens}, lengths[] = {tokens};
  const bool scaled = stored == FORMAT_I8;
  AttentionLayer l = {};
  l.norm = norm.data, l.qkv = {qkv, scaled ? ones : nullptr, rows, H, stored}, l.o = {last, scaled ? ones : nullptr, H, N * D, stored};
  l.qkv_bias = bias.data, l.qkv_bias_format = format, l.k_cache = k.data, l.v_cache = v.data;
  l.k_block = l.v_block = SIZE * M * D, l.k_slot = l.v_slot = M * D, l.k_head = l.v_head = D;
  l.heads = N, l.kv_heads = M, l.head_dim = D, l.block_size = SIZE, l.blocks = blocks;
  l.format = l.norm_format = format, l.eps = 1e-5f, l.scale = .3f;
  const AttentionStep step = {angles, angles, slots, table, starts, lengths, blocks, 1, blocks, D / 2};
  SublayerCall c = {first ? nullptr : x.data, residual.data, out.data, sum.data, nullptr, 0, H, H, tokens, threads};
  sublayer(c, [&](SublayerCall* call) { return atb_attention_sublayer(&l, &step, call); });
  for (int t = 0; t < tokens; t++)
    for (int h = 0; h < H; h++) {
      double expected = 0;
      for (int i = 0; i < N * D; i++) expected += .5 * o.floats[h * N * D + i] * (scaled ? .01 : 1);
      // what attention gives was rounded, which errs with the size of what is summed
      compare(out.get(t * H + h) / 8, expected / 8, format);
      if (!first) compare(sum.get(t * H + h), (double)x.floats[t * H + h] + residual.floats[t * H + h], format);
    }
  free(qkv), free(last), free((void*)ones), free((void*)angles), free(slots), free(table);
}

// Experts that are all alike, of weights that sum to 1, beside shared ones like them with a gate of a half: one and a
// half times what an MLP of these weights gives.
static void feed_forward_sublayer(int format, int stored, int tokens, int threads) {
  enum { E = 5, K = 2, H = 21, F = 19 };
  Numbers x(tokens * H, format), residual(x.count, format), alone(x.count, format), out(x.count, format), sum(x.count, format),
      norm(H, format), up(2 * F * H, stored), down(H * F, stored), router(E * H, FORMAT_F32), gate(H, format);
  for (int i = 0; i < H; i++) gate.set(i, 0);
  const int64_t up_bytes = 2ll * 16 * 2 * 24 * up.size(), down_bytes = 16ll * 2 * 20 * up.size();
  char *ups = (char*)malloc(E * up_bytes), *downs = (char*)malloc(E * down_bytes);
  for (int e = 0; e < E; e++) {
    for (int part = 0; part < 2; part++) packed(up, F, H, 2, part, ups + e * up_bytes);
    packed(down, H, F, 1, 0, downs + e * down_bytes);
  }
  char *both = packed(up, 2 * F, H, 1, 0, nullptr), *scores = packed(router, E, H, 1, 0, nullptr);
  const float* scales = const_floats(E * 2 * F, .01f);
  const float* given = stored == FORMAT_I8 ? scales : nullptr;
  int64_t counts[E] = {}, total = 0;
  FeedForwardLayer l = {};
  l.norm = norm.data, l.gate_up = {both, given, 2 * F, H, stored}, l.down = {downs, given, H, F, stored};
  l.format = l.norm_format = l.shared_gate_format = format, l.eps = 1e-5f;
  SublayerCall c = {x.data, residual.data, alone.data, sum.data, nullptr, 0, H, H, tokens, threads};
  const auto run = [&](SublayerCall* call) { return atb_feed_forward_sublayer(&l, call); };
  sublayer(c, run);
  l.router = {scores, nullptr, E, H, FORMAT_F32}, l.experts = E, l.top_k = K, l.groups = l.top_groups = l.group_best = 1;
  l.experts_gate_up = {ups, given, 2 * F, H, stored}, l.experts_down = {downs, given, H, F, stored};
  l.shared_gate = gate.data, l.counter = counts, l.renormalize = 1, l.scaling = 1, c.out = out.data;
  sublayer(c, run);
  for (int e = 0; e < E; e++) total += counts[e];
  failures += total != tokens * K;
  // an MLP rounds gate and up, which experts do not; that errs with the size of what is summed
  for (int i = 0; i < tokens * H; i++) compare(out.get(i) / F, 1.5 * alone.get(i) / F, format);
  free(ups), free(downs), free(both), free(scores), free((void*)scales);
}

int main() {
  for (int format : FLOATS) {
    for (int stored : {format, (int)FORMAT_I8}) {
      for (int threads : {1, 3}) {
        attention(format, stored, 2, 1, 40, threads);
        attention(format, stored, 1, 3, 128, threads);
        attention(format, stored, 2, 7, 16, threads);
      }
      report("attention");
      latent_attention(format, stored, 5, 12, 6, 7, 40, 1), latent_attention(format, stored, 2, 16, 8, 16, 33, 3);
      latent_rope(format, stored, 24, 4, 40), latent_rope(format, stored, 9, 1, 300);
      report("latent attention");
    }
    for (int stored : {format, (int)FORMAT_I8, (int)FORMAT_I4, (int)FORMAT_I8_DOTS, (int)I8_BESIDE_FLOATS}) {
      for (int rows : {1, 2, 3, 5, 7, 13, 30}) linear(format, stored, rows, 37, 301, 1 + rows % 3);
      linear(format, stored, 530, 19, 9, 2);
      linear(format, stored, 1, 200, 9, 1);  // 13 panels beside one row: in tiles of every width
      report("linear");
      for (int tokens : {1, 3, 40}) experts(format, stored, tokens, 70, 21, 1 + tokens % 3);
      report("experts");
    }
    for (int stored : {format, (int)FORMAT_I8}) {
      for (int tokens : {1, 3, 530}) attention_sublayer(format, stored, tokens, tokens == 3, 1 + tokens % 3);
      for (int tokens : {1, 3, 530}) feed_forward_sublayer(format, stored, tokens, 1 + tokens % 3);
      report("sublayers");
    }
    for (int tokens : {1, 3, 50}) decoder(format, tokens, tokens != 3, 1 + tokens % 3);
    report("decoder");
    for (int width : {1, 16, 67}) rows(format, width);
    report("rows");
    for (int width : {1, 16, 67, 300})
      for (int count : {1, 5, 64}) top_logits(format, width, count, 1 + width % 2);
    top_logits(format, 40000, 8, 3);
    report("top_logits");
    for (int stored : {format, (int)FORMAT_I8}) {
      rope(format, stored, 24, 12);
      rope(format, stored, 40, 7);
    }
    report("rope");
  }
  gating(9, 9, 1);
  gating(64, 6, 8);
  gating(7, 3, 7);
  report("gating");
  char* memory = (char*)malloc(3 << 20);
  memset(memory, 1, 3 << 20);
  int32_t together;
  const int rates = (atb_limit_read(memory, 3 << 20, 3, 2, &together) > 0) + (atb_limit_floats(3, 2, &together) > 0);
  failures += rates != 2 || atb_limit_bf16(3, 2, &together) < 0 || atb_limit_int8(3, 2, &together) < 0;
  report("limits");
  free(memory);
  return failures != 0;
}
