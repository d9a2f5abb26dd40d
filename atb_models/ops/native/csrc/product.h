// The product of many rows with many panels, in an order that suits the caches.
#pragma once
#include "panels.h"

constexpr int ROW_BLOCK = 96;  // rows whose activations for K_BLOCK inputs stay in the second-level cache

// Rows are cut into tiles of nearly equal size, the larger first.
struct Tiles {
  int count, base, larger;
  explicit Tiles(int rows) : count(pieces(rows, MAX_ROWS)), base(rows / count), larger(rows % count) {}
  int rows(int i) const { return base + (i < larger); }
  int first(int i) const { return i * base + least(i, larger); }
};

// Some panels of a packed weight; `inputs` is filled up to a multiple of K_STEP.
struct Panels {
  const char* data;
  int count, inputs;
  int64_t bytes;  // of one panel
};
template <class W> INLINE Panels panels_of(const void* weight, int64_t first, int count, int inputs) {
  const int64_t bytes = (int64_t)inputs * PANEL * W::BYTES;
  return {(const char*)weight + first * bytes, count, inputs, bytes};
}

// Floats of a thread's memory for `multiply`: a block of some panels, widened.
constexpr int WIDE_FLOATS = PANELS * K_BLOCK * PANEL;

// c = a w^T for rows whose activations lie in tiles. c has w.count * PANEL columns; `wide` has WIDE_FLOATS.
template <class W> void multiply(const void* a, int rows, const Panels& w, float* c, int64_t c_row, float* wide);

// Places one row of activations, `inputs` of format X, as row m of a tile of `rows`, with zeros up to `filled`.
template <class W, class X>
INLINE void place_row(const typename X::T* x, int inputs, int filled, typename W::A* a, int rows, int m) {
  if constexpr (sizeof(typename X::T) == 2 && W::A_STEP < W::KI) {
    uint16_t pair[2];
    for (int k = 0; k < filled; k += 2) {
      pair[0] = k < inputs ? x[k] : 0;
      pair[1] = k + 1 < inputs ? x[k + 1] : 0;
      __builtin_memcpy(&a[(int64_t)(k / 2) * rows + m], pair, sizeof pair);
    }
  } else if (rows == 1) {
    widen<X>(x, inputs, (float*)a, filled);
  } else {
    int k = 0;
    float lanes[VL];
    for (; k < inputs; k += VL) {
      const int n = least(VL, inputs - k);
      store(lanes, n == VL ? X::load(x + k) : load_part<X>(x + k, n));
      for (int i = 0; i < n; i++) ((float*)a)[(int64_t)(k + i) * rows + m] = lanes[i];
    }
    for (k = inputs; k < filled; k++) ((float*)a)[(int64_t)k * rows + m] = 0;
  }
}
