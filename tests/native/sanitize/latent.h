// Latent attention: its cache and its results against plain loops, with keys and values expanded.
#pragma once
#include "sanitize.h"

static void latent_attention(int format, int stored, int heads, int nope, int rotary, int value, int latent,
                             int threads) {
  enum { B = 5, SIZE = 16, BLOCKS = 24, WIDTH = 19 };
  const int queries[B] = {1, 1, 9, 70, 1}, lengths[B] = {1, 257, 9, 290, 16}, width = rotary + nope;
  int32_t starts[B + 1] = {0}, *table = (int32_t*)malloc(B * WIDTH * 4);
  for (int b = 0; b < B; b++) starts[b + 1] = starts[b] + queries[b];
  for (int i = 0; i < B * WIDTH; i++) table[i] = (i * 7 + 3) % BLOCKS;
  Numbers q(starts[B] * heads * width, format), maps((int64_t)heads * (nope + value) * latent, format),
      latents(BLOCKS * SIZE * latent, stored), keys(BLOCKS * SIZE * rotary, stored),
      out(starts[B] * heads * value, format), scale(BLOCKS * SIZE, FORMAT_F32), key_scale(scale.count, FORMAT_F32);
  LatentCall c = {};
  c.q = q.data, c.maps = maps.data, c.latents = latents.data, c.keys = keys.data, c.out = out.data;
  c.table = table, c.starts = starts, c.kv_lens = lengths, c.q_row = heads * width;
  c.latent_block = SIZE * latent, c.latent_slot = latent, c.key_block = SIZE * rotary, c.key_slot = rotary;
  c.table_row = c.table_width = WIDTH, c.tokens = starts[B], c.sequences = B, c.heads = heads, c.nope = nope;
  c.rotary = rotary, c.value = value, c.latent = latent, c.block_size = SIZE, c.blocks = BLOCKS;
  c.format = format, c.threads = threads, c.scale = .3f;
  c.latent_scale = scales(scale, stored, SIZE, 1), c.key_scale = scales(key_scale, stored, SIZE, 1);
  with_scratch(c, atb_latent_attention_scratch, atb_latent_attention);
  double* expanded = (double*)malloc(300 * (nope + value) * sizeof(double));
  for (int b = 0; b < B; b++)
    for (int h = 0; h < heads; h++) {
      for (int s = 0; s < lengths[b]; s++) {
        const int64_t vector = (int64_t)table[b * WIDTH + s / SIZE] * SIZE + s % SIZE;
        for (int o = 0; o < nope + value; o++) {
          double sum = 0;
          const float *map = maps.floats + ((int64_t)h * (nope + value) + o) * latent, *x = latents.floats + vector * latent;
          for (int z = 0; z < latent; z++) sum += (double)map[z] * x[z];
          expanded[s * (nope + value) + o] = sum * scale.floats[vector];
        }
      }
      for (int i = 0; i < queries[b]; i++) {
        const float* query = q.floats + ((int64_t)(starts[b] + i) * heads + h) * width;
        double total = 0, sums[32] = {};
        for (int s = 0; s < lengths[b] - queries[b] + i + 1; s++) {
          const int64_t vector = (int64_t)table[b * WIDTH + s / SIZE] * SIZE + s % SIZE;
          const double* of_token = expanded + s * (nope + value);
          double dot = 0;
          for (int y = 0; y < rotary; y++)
            dot += (double)query[y] * keys.floats[vector * rotary + y] * key_scale.floats[vector];
          for (int k = 0; k < nope; k++) dot += query[rotary + k] * of_token[k];
          const double weight = exp(dot * .3);
          total += weight;
          for (int v = 0; v < value; v++) sums[v] += weight * of_token[nope + v];
        }
        for (int v = 0; v < value; v++)
          compare(out.get(((starts[b] + i) * heads + h) * value + v), sums[v] / total, format);
      }
    }
  free(table), free(expanded);
}

static void latent_rope(int format, int stored, int dim, int half, int width) {
  enum { T = 5, N = 3, SIZE = 4, BLOCKS = 3 };
  const int rotary = 2 * half;
  Numbers q(T * N * dim, format), latent(T * width, format), key(T * rotary, format), cosine(T * half, FORMAT_F32),
      sine(T * half, FORMAT_F32), out(q.count, format), latents(BLOCKS * SIZE * width, stored),
      keys(BLOCKS * SIZE * rotary, stored), scale(BLOCKS * SIZE, FORMAT_F32), key_scale(scale.count, FORMAT_F32);
  const int32_t slots[T] = {11, 0, 3, 4, 7};
  LatentRopeCall c = {q.data, latent.data, key.data, cosine.floats, sine.floats, slots, out.data, latents.data, keys.data,
                      N * dim, width, rotary, SIZE * width, width, SIZE * rotary, rotary,
                      T, N, dim, half, width, SIZE, BLOCKS, format, 2,
                      scales(scale, stored, SIZE, 1), scales(key_scale, stored, SIZE, 1)};
  failures += atb_latent_rope(&c) != DONE;
  const double slack = stored == FORMAT_I8 ? .52 : 0;  // an integer stands for what differs by half a scale at most
  for (int t = 0; t < T; t++) {
    auto turned = [&](const float* x, int d) {
      const int pair = d < half ? d : d - half;
      if (d >= rotary) return (double)x[d];
      const double other = d < half ? -(double)x[d + half] : (double)x[d - half];
      return (double)x[d] * cosine.floats[t * half + pair] + other * sine.floats[t * half + pair];
    };
    for (int i = 0; i < N * dim; i++)
      compare(out.get(t * N * dim + i), turned(q.floats + (t * N + i / dim) * dim, i % dim), format);
    for (int i = 0; i < rotary + width; i++) {
      const bool is_key = i < rotary;
      const double step = (is_key ? key_scale : scale).floats[slots[t]];
      const double ours = (is_key ? keys.get(slots[t] * rotary + i) : latents.get(slots[t] * width + i - rotary)) * step;
      const double exact = is_key ? turned(key.floats + t * rotary, i) : latent.floats[t * width + i - rotary];
      if (stored == FORMAT_I8)
        failures += !(fabs(ours - exact) <= slack * step + .01);
      else
        compare(ours, exact, format);
    }
  }
}
