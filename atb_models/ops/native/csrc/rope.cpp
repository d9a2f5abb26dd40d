// Rotary positions and the write to the paged cache.
#include "api.h"
#include "formats.h"
#include "sublayer.h"
#include "team.h"

constexpr int64_t FORK_ELEMENTS = 1 << 15;

// Pairs (d, d + half) rotated; what lies beyond 2 half is copied. Each product is rounded before the sum, as torch does
// it: an fma would give other bits than the reference.
template <class X>
INLINE void rotate(const typename X::T* from, const float* cos, const float* sin, int half, int head_dim,
                   typename X::T* to) {
  for (int d = 0; d < half; d += VL) {
    const int n = half - d;
    vf c, s, a, b;
    if (n < VL) {
      c = load_part<F32>(cos + d, n), s = load_part<F32>(sin + d, n);
      a = load_part<X>(from + d, n), b = load_part<X>(from + half + d, n);
      store_part<X>(to + d, a * c - b * s, n);
      store_part<X>(to + half + d, b * c + a * s, n);
    } else {
      c = load(cos + d), s = load(sin + d), a = X::load(from + d), b = X::load(from + half + d);
      X::store(to + d, a * c - b * s);
      X::store(to + half + d, b * c + a * s);
    }
  }
  const int rest = head_dim - 2 * half;
  if (rest) __builtin_memcpy(to + 2 * half, from + 2 * half, rest * sizeof(*to));
}

// A vector as int8 -> its scale, the largest magnitude / 127, or 1 where that is 0. What is no number has the largest
// bits of all and makes the scale one.
template <class X> INLINE float to_bytes(const typename X::T* from, int n, int8_t* to) {
  auto floats = [=](int d) __attribute__((always_inline)) {
    return n - d < VL ? load_part<X>(from + d, n - d) : X::load(from + d);
  };
  vi most = splat_bits(0);
  for (int d = 0; d < n; d += VL) {
    const vi bits = (vi)floats(d) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int i = 0; i < VL; i++) largest = most[i] > largest ? most[i] : largest;
  float scale;
  __builtin_memcpy(&scale, &largest, sizeof(scale));
  scale /= 127.f;
  if (scale == 0) scale = 1;
  for (int d = 0; d < n; d += VL) {
    vi number = nearest(floats(d) / splat(scale));
    number = number > 127 ? splat_bits(127) : number;
    number = number < -127 ? splat_bits(-127) : number;
    for (int i = 0; i < least(VL, n - d); i++) to[d + i] = (int8_t)number[i];
  }
  return scale;
}

INLINE int64_t place(const Scales& s, int64_t block, int64_t slot, int64_t head) {
  return block * s.block + slot * s.slot + head * s.head;
}

constexpr int MOST_BYTES = 256;  // elements of a rotated vector that becomes int8
template <class X> static void rope_token(const RopeCall& c, int64_t token) {
  typedef typename X::T T;
  const float *cos = c.cos + token * c.half, *sin = c.sin + token * c.half;
  for (int64_t h = 0; h < c.heads; h++)
    rotate<X>((const T*)c.q + token * c.q_row + h * c.head_dim, cos, sin, c.half, c.head_dim,
              (T*)c.q_out + (token * c.heads + h) * c.head_dim);
  const int64_t block = c.slots[token] / c.block_size, slot = c.slots[token] % c.block_size;
  for (int64_t h = 0; h < c.kv_heads; h++) {
    const T *k = (const T*)c.k + token * c.k_row + h * c.head_dim, *v = (const T*)c.v + token * c.v_row + h * c.head_dim;
    const int64_t k_place = block * c.k_block + slot * c.k_slot + h * c.k_head;
    const int64_t v_place = block * c.v_block + slot * c.v_slot + h * c.v_head;
    if (c.k_scale.data) {
      T rotated[MOST_BYTES];
      rotate<X>(k, cos, sin, c.half, c.head_dim, rotated);
      c.k_scale.data[place(c.k_scale, block, slot, h)] =
          to_bytes<X>(rotated, c.head_dim, (int8_t*)c.k_cache + k_place);
      c.v_scale.data[place(c.v_scale, block, slot, h)] = to_bytes<X>(v, c.head_dim, (int8_t*)c.v_cache + v_place);
    } else {
      rotate<X>(k, cos, sin, c.half, c.head_dim, (T*)c.k_cache + k_place);
      __builtin_memcpy((T*)c.v_cache + v_place, v, c.head_dim * sizeof(T));
    }
  }
}

template <class X> static void latent_rope_token(const LatentRopeCall& c, int64_t token) {
  typedef typename X::T T;
  const float *cos = c.cos + token * c.half, *sin = c.sin + token * c.half;
  for (int64_t h = 0; h < c.heads; h++)
    rotate<X>((const T*)c.q + token * c.q_row + h * c.head_dim, cos, sin, c.half, c.head_dim,
              (T*)c.q_out + (token * c.heads + h) * c.head_dim);
  const int64_t block = c.slots[token] / c.block_size, slot = c.slots[token] % c.block_size;
  const int64_t latent_place = block * c.latent_block + slot * c.latent_slot;
  const int64_t key_place = block * c.key_block + slot * c.key_slot;
  const T *latent = (const T*)c.latent + token * c.latent_row, *key = (const T*)c.key + token * c.key_row;
  if (c.key_scale.data) {
    T rotated[MOST_BYTES];
    rotate<X>(key, cos, sin, c.half, 2 * c.half, rotated);
    c.key_scale.data[place(c.key_scale, block, slot, 0)] =
        to_bytes<X>(rotated, 2 * c.half, (int8_t*)c.keys + key_place);
    c.latent_scale.data[place(c.latent_scale, block, slot, 0)] =
        to_bytes<X>(latent, c.width, (int8_t*)c.latents + latent_place);
  } else {
    rotate<X>(key, cos, sin, c.half, 2 * c.half, (T*)c.keys + key_place);
    __builtin_memcpy((T*)c.latents + latent_place, latent, c.width * sizeof(T));
  }
}

static int slots_status(const int32_t* slots, int tokens, int64_t count) {
  for (int t = 0; t < tokens; t++)
    if (slots[t] < 0 || slots[t] >= count) return BAD_SLOT;
  return DONE;
}
int rope_status(const RopeCall& c) { return slots_status(c.slots, c.tokens, (int64_t)c.blocks * c.block_size); }

API int atb_rope(const RopeCall* c) {
  const int status = rope_status(*c);
  if (status != DONE) return status;
  const int64_t elements = (int64_t)c->tokens * (c->heads + 2 * c->kv_heads) * c->head_dim;
  with_format(c->format, [&](auto x) {
    parallel(elements < FORK_ELEMENTS ? 1 : c->threads, [&](Team& team, int) {
      team.each(c->tokens, [&](int64_t token) { rope_token<decltype(x)>(*c, token); });
    });
  });
  return DONE;
}

API int atb_latent_rope(const LatentRopeCall* c) {
  const int status = slots_status(c->slots, c->tokens, (int64_t)c->blocks * c->block_size);
  if (status != DONE) return status;
  const int64_t elements = (int64_t)c->tokens * ((int64_t)c->heads * c->head_dim + 2 * c->half + c->width);
  with_format(c->format, [&](auto x) {
    parallel(elements < FORK_ELEMENTS ? 1 : c->threads, [&](Team& team, int) {
      team.each(c->tokens, [&](int64_t token) { latent_rope_token<decltype(x)>(*c, token); });
    });
  });
  return DONE;
}
