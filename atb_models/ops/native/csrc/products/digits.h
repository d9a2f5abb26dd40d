// Activations as int8, for dots.h.
#pragma once
#include "../api.h"
#include "cut.h"
#include "../simd/zip.h"

// What rows of activations become beside a weight. scale, offset: those of ACTIVATIONS_STATIC, of the weight's matrix.
struct Inputs {
  int count;
  Cut cut;
  int activations;
  const float *scale, *offset;
};
template <class W> INLINE Inputs inputs_of(const PanelWeight& w) {
  const int filled = (int)round_up(w.inputs, W::FILL), unit = W::DIGITS == 3 ? least(w.unit, filled) : filled;
  return {w.inputs, {filled, most(unit, W::FILL)}, w.activations, w.input_scale, w.input_offset};
}

constexpr int NOT_FINITE = 0x7f800000;  // bits of an absolute value from which on it is infinite or no number

INLINE vi first_lanes(vi v, int n) {
  int32_t lanes[VL];
  store_bits(lanes, v);
  for (int i = n; i < VL; i++) lanes[i] = 0;
  return load_bits(lanes);
}
INLINE vi larger_bits(vi a, vi b) { return (vi)where(a > b, (vf)a, (vf)b); }

// A row of a tile: row m of `rows`.
template <class W> struct TileRow {
  static constexpr int D = W::DIGITS, TOGETHER = W::Source::TOGETHER;
  int32_t* tile;
  int rows, m;

  // VL integers, in their lowest D bytes, from input k on; those from `end` on are not written.
  void put(vi integers, int k, int end) const {
    alignas(64) int32_t from[VL];
    store_bits(from, integers);
    const int n = least(VL, end - k);
    for (int i = 0; i < n; i += TOGETHER) {
      int32_t to[4], *place = tile + (k + i) / TOGETHER * D * rows + m;
      if constexpr (TOGETHER == 4) {
        store_bytes(to, bytes_together(load_bytes(from + i)));
      } else {
        for (int d = 0; d < D; d++) to[d] = ((int8_t)(from[i] >> 8 * d) & 0xffff) | (int8_t)(from[i + 1] >> 8 * d) * 65536;
      }
      if (rows == 1)
        __builtin_memcpy(place, to, D * sizeof *to);
      else
        for (int d = 0; d < D; d++) place[d * rows] = to[d];
    }
  }
  int32_t* facts(const Cut& cut, int piece) const {
    return tile + (cut.inputs / TOGETHER * D + (int64_t)piece * (D + 2)) * rows + m;
  }
  void note(const Cut& cut, int piece, const int (&sums)[D], float worth, float total) const {
    int32_t* to = facts(cut, piece);
    for (int d = 0; d < D; d++) to[d * rows] = -W::Source::ZERO * sums[d];
    __builtin_memcpy(to + D * rows, &worth, sizeof worth);
    __builtin_memcpy(to + (D + 1) * rows, &total, sizeof total);
  }
  // Of all pieces, with the first.
  void set_total(const Cut& cut, float total) const {
    __builtin_memcpy(facts(cut, 0) + (D + 1) * rows, &total, sizeof total);
  }
};

// A piece as integers of 3 digits: x / worth to the nearest, `worth` being the power of two with which the largest is
// from 2^21 to 2^22. Halves, and bfloat16 even more so, lose nothing unless they are 2^-11 of the largest. A digit is
// from -128 to 127: to subtract them the 128s are added first, then every byte loses its own.
template <class W>
INLINE void place_digits(const TileRow<W>& to, const Cut& cut, int piece, const float* x, int at, int inputs) {
  constexpr int ROUNDED = 21, SMALLEST = -100, MIDDLE = 0x808080;
  vi best = splat_bits(0);
  for (int i = 0; i < inputs; i += VL) best = larger_bits(load_bits(x + i) & 0x7fffffff, best);
  const int bits = largest_lane(best);
  const int exponent = most((bits >> 23) - 127, SMALLEST);
  const int times_bits = (127 + ROUNDED - exponent) << 23, worth_bits = (127 - ROUNDED + exponent) << 23;
  float times, worth;
  __builtin_memcpy(&times, &times_bits, sizeof times);
  __builtin_memcpy(&worth, &worth_bits, sizeof worth);
  if (bits >= NOT_FINITE) worth = __builtin_nanf("");
  vi even = splat_bits(0), odd = even;  // sums of the bytes with the 128s in them, as pairs of 16 bits
  for (int i = 0; i < inputs; i += VL) {
    const vi shifted = nearest(load(x + i) * splat(times)) + MIDDLE;
    to.put(shifted ^ MIDDLE, at + i, at + inputs);
    even += shifted & 0x00ff00ff;
    odd += (shifted >> 8) & 0xff;
  }
  const int zeros = 128 * (int)round_up(inputs, VL);
  const int sums[3] = {sum_of_lanes(even & 0xffff) - zeros, sum_of_lanes(odd) - zeros, sum_of_lanes(even >> 16) - zeros};
  to.note(cut, piece, sums, worth, (float)(sums[2] * 65536 + sums[1] * 256 + sums[0]) * worth);
}

// The largest magnitude of a row, as the bits of a float: beyond NOT_FINITE where something in it is no number.
template <class X> INLINE int largest_bits(const typename X::T* x, int inputs) {
  vi best = splat_bits(0);
  for (int i = 0; i < inputs; i += VL)
    best = larger_bits((vi)(inputs - i < VL ? load_part<X>(x + i, inputs - i) : X::load(x + i)) & 0x7fffffff, best);
  return largest_lane(best);
}

// A row as one int8 for each input. What is no number, or infinite without a limit, makes the row's scale no number.
template <class W, class X> INLINE void place_bytes(const TileRow<W>& to, const typename X::T* x, const Inputs& of) {
  const bool fixed = of.activations == ACTIVATIONS_STATIC;
  const int bits = largest_bits<X>(x, of.count);
  float scale = 1;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  scale = fixed || !bits ? 1 : scale / 127;
  const bool broken = bits > NOT_FINITE || (bits == NOT_FINITE && !fixed);
  const vf divisor = splat(fixed ? *of.scale : scale), offset = splat(fixed ? *of.offset : 0);
  int total = 0;
  for (int at = 0, piece = 0, n; at < of.cut.inputs; at += n, piece++) {
    n = of.cut.block(at);
    vi sum = splat_bits(0);
    for (int i = 0; i < n; i += VL) {
      const int there = broken ? 0 : least(VL, of.count - at - i);
      vi integers = splat_bits(0);
      if (there > 0) {
        const vf v = (there < VL ? load_part<X>(x + at + i, there) : X::load(x + at + i)) / divisor + offset;
        integers = nearest(larger(splat(-128.f), -larger(splat(-127.f), -v)));
        if (there < VL) integers = first_lanes(integers, there);
      }
      to.put(integers, at + i, at + n);
      sum += integers;
    }
    const int sums[1] = {sum_of_lanes(sum)};
    total += sums[0];
    to.note(of.cut, piece, sums, broken ? __builtin_nanf("") : scale, 0);
  }
  to.set_total(of.cut, (float)total);
}

// Row m of a tile of `rows`: one row of activations of format X beside a weight of int8 products.
template <class W, class X>
static void place_int8(const typename X::T* x, const Inputs& of, int32_t* tile, int rows, int m) {
  const TileRow<W> to{tile, rows, m};
  if constexpr (W::DIGITS == 1) {
    place_bytes<W, X>(to, x, of);
  } else {
    for (int at = 0, piece = 0, n; at < of.cut.inputs; at += n, piece++) {
      n = least(of.cut.block(at), of.cut.piece());
      float floats[K_BLOCK + VL];
      widen<X>(x + at, most(0, least(n, of.count - at)), floats, (int)round_up(n, VL));
      place_digits<W>(to, of.cut, piece, floats, at, n);
    }
  }
}
