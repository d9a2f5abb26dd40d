// The loops of `multiply`.
#include "product.h"

template <class W> INLINE const void* activations(const void* a, int rows, int input) {
  return (const typename W::A*)a + (int64_t)input * rows * W::A_STEP / W::KI;
}

template <class S> INLINE void widen_panel(Plain<S>, const char* from, int inputs, float* to) {
  for (int i = 0; i < inputs * PANEL; i += VL) store(to + i, S::load((const typename S::T*)from + i));
}
INLINE void widen_panel(Pairs, const char* from, int inputs, float* to) {
  for (int k = 0; k < inputs; k += 2) UNROLL for (int v = 0; v < NV; v++) {
    vi pairs = load_bits(from + (k * PANEL + 2 * v * VL) * 2);
    store(to + k * PANEL + v * VL, first_of_pair(pairs));
    store(to + (k + 1) * PANEL + v * VL, second_of_pair(pairs));
  }
}
#ifdef HAS_BF16_DOT
template <class S> INLINE void widen_panel(DotPairs<S>, const char* from, int inputs, float* to) {
  for (int k = 0; k < inputs; k += 2)
    UNROLL for (int v = 0; v < NV; v++)
      store_bits(to + k / 2 * PANEL + v * VL, load_pairs(S(), from + k * PANEL * sizeof(typename S::T), v));
}
#endif

// All inputs of some panels, then the next panels: for the rows of one tile, beside which the weight is read once.
template <class W> static void multiply_once(const void* a, int rows, const Panels& w, float* c, int64_t c_row) {
  const int beside = panels_beside(rows), most_beside = rows == 1 ? W::ALONE : beside;
  for (int p = 0, n; p < w.count; p += n) {
    const int left = w.count - p;
    n = left >= most_beside ? most_beside : left >= beside ? beside : 1;
    const Tile tile = find_tile<W, true>(rows, n);
    for (int k = 0; k < w.inputs; k += K_BLOCK)
      tile(activations<W>(a, rows, k), w.data + p * w.bytes + (int64_t)k * PANEL * W::BYTES, w.bytes,
           least(K_BLOCK, w.inputs - k), c + p * PANEL, c_row, k == 0, nullptr);
  }
}

// A block of inputs of some panels for all rows, then the next panels, then the next block. Where W is widened, a block
// is so once for all rows.
template <class W>
static void multiply_blocks(const void* a, int rows, const Panels& w, float* c, int64_t c_row, float* wide) {
  typedef typename W::Wide V;
  constexpr int64_t WIDE_PANEL = (int64_t)K_BLOCK * PANEL * V::BYTES;
  const Tiles tiles(rows);
  for (int k = 0; k < w.inputs; k += K_BLOCK) {
    const int inputs = least(K_BLOCK, w.inputs - k), bytes = inputs * PANEL * W::BYTES;
    const char* block = w.data + (int64_t)k * PANEL * W::BYTES;
    for (int p = 0, n; p < w.count; p += n) {
      n = p + PANELS <= w.count ? PANELS : 1;
      const char* b = block + p * w.bytes;
      int64_t stride = w.bytes;
      if constexpr (W::WIDEN) {
        for (int q = 0; q < n; q++)
          widen_panel(W(), b + q * w.bytes, inputs, wide + q * WIDE_PANEL / (int)sizeof(float));
        b = (const char*)wide;
        stride = WIDE_PANEL;
      }
      // While these are multiplied, the next ones come into the cache: each tile fetches a share.
      const char* next = p + n < w.count ? block + (p + n) * w.bytes : block + bytes;
      for (int t = 0; t < tiles.count; t++) {
        const int count = tiles.rows(t), share = inputs * 32 * (t / PANELS);
        const char* ahead = share < bytes ? next + (t % PANELS) * w.bytes + share : (const char*)wide;
        const void* at = (const typename W::A*)a + (int64_t)tiles.first(t) * w.inputs * W::A_STEP / W::KI;
        find_tile<V, false>(count, n)(activations<W>(at, count, k), b, stride, inputs,
                                           c + tiles.first(t) * c_row + p * PANEL, c_row, k == 0, ahead);
      }
    }
  }
}

template <class W> void multiply(const void* a, int rows, const Panels& w, float* c, int64_t c_row, float* wide) {
  if (rows <= W::DIRECT)
    multiply_once<W>(a, rows, w, c, c_row);
  else
    multiply_blocks<W>(a, rows, w, c, c_row, wide);
}

template void multiply<Plain<F32>>(const void*, int, const Panels&, float*, int64_t, float*);
template void multiply<Plain<F16>>(const void*, int, const Panels&, float*, int64_t, float*);
template void multiply<Plain<I8>>(const void*, int, const Panels&, float*, int64_t, float*);
template void multiply<Pairs>(const void*, int, const Panels&, float*, int64_t, float*);
#ifdef HAS_BF16_DOT
template void multiply<DotPairs<BF16>>(const void*, int, const Panels&, float*, int64_t, float*);
template void multiply<DotPairs<I8>>(const void*, int, const Panels&, float*, int64_t, float*);
#endif
