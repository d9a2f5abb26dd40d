// The product of many rows with many panels, in an order that suits the caches.
#pragma once
#include "digits.h"
#include "dots.h"

constexpr int ROW_BLOCK = 96;  // rows whose activations for K_BLOCK inputs stay in the second-level cache

// Rows are cut into tiles of nearly equal size, the larger first.
template <class W> struct Tiles {
  int count, base, larger;
  explicit Tiles(int rows) : count(pieces(rows, W::ROWS)), base(rows / count), larger(rows % count) {}
  int rows(int i) const { return base + (i < larger); }
  int first(int i) const { return i * base + least(i, larger); }
};

// Some panels of a packed weight. scale, offset, bias: of products of int8, from the first panel on.
struct Panels {
  const char* data;
  int count;
  int64_t bytes;     // of one panel
  const char* next;  // what this thread will probably read afterwards
  Cut cut;
  const float *scale, *offset;
  const int32_t* bias;
};
template <class W>
INLINE Panels panels_of(const PanelWeight& w, const Cut& cut, int64_t first, int count, int64_t next) {
  const int64_t bytes = (int64_t)cut.inputs * PANEL * W::BITS / 8, scales = first * cut.units() * PANEL;
  return {(const char*)w.data + first * bytes, count, bytes, (const char*)w.data + next * bytes, cut, w.scale + scales, w.offset ? w.offset + scales : nullptr,
          w.quant_bias ? w.quant_bias + first * PANEL : nullptr};
}

// Floats of a thread's memory for `multiply`: a block of some panels, widened.
constexpr int WIDE_FLOATS = PANELS * K_BLOCK * PANEL;

// c = x w^T for rows whose activations lie in tiles, row_lanes for each; of products of int8 all scales are in it, of
// FORMAT_I8 they are left to the caller. c has w.count * PANEL columns; `wide` has WIDE_FLOATS.
template <class W> void multiply(const int32_t* rows_in_tiles, int rows, const Panels& w, float* c, int64_t c_row, float* wide);

// Places one row of activations of format X as row m of a tile of `rows`.
template <class W, class X>
INLINE void place_row(const typename X::T* x, const Inputs& of, int32_t* tile, int rows, int m) {
  const int inputs = of.count, filled = of.cut.inputs;
  if constexpr (W::DIGITS > 0) {
    place_int8<W, X>(x, of, tile, rows, m);
  } else if constexpr (sizeof(typename X::T) == 2 && W::A_STEP < W::KI) {
    uint16_t pair[2];
    for (int k = 0; k < filled; k += 2) {
      pair[0] = k < inputs ? x[k] : 0;
      pair[1] = k + 1 < inputs ? x[k + 1] : 0;
      __builtin_memcpy(&tile[(int64_t)(k / 2) * rows + m], pair, sizeof pair);
    }
  } else if (rows == 1) {
    widen<X>(x, inputs, (float*)tile, filled);
  } else {
    int k = 0;
    float lanes[VL], *a = (float*)tile;
    for (; k < inputs; k += VL) {
      const int n = least(VL, inputs - k);
      store(lanes, n == VL ? X::load(x + k) : load_part<X>(x + k, n));
      for (int i = 0; i < n; i++) a[(int64_t)(k + i) * rows + m] = lanes[i];
    }
    for (k = inputs; k < filled; k++) a[(int64_t)k * rows + m] = 0;
  }
}
