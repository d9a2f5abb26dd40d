// The loops of `multiply`.
#include "product.h"

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

template <class S, int D> INLINE void widen_panel(Dots<S, D>, const char* from, int inputs, float* to) {
  constexpr int VECTOR = VL * 4, BYTES = S::KI * PANEL * S::BITS / 8;  // of the widened ones, and of those that S takes
  char* wide = (char*)to;
  for (int k = 0; k < inputs; k += S::KI, from += BYTES)
    UNROLL for (int half = 0; half < S::HALVES; half++)
      UNROLL for (int v = 0; v < NV; v++, wide += VECTOR) store_bits(wide, S::load(from, v, half));
}

// The tile of `rows` rows beside `panels`: 1, W::beside(rows), or W::ALONE beside one row. Panels in the cache meet at
// least half of W::ROWS.
typedef void (*Tile)(const Part&);
template <class W, bool STREAM, int MR, int NP> INLINE Tile tile_of() {
  if constexpr (W::DIGITS > 0)
    return dots_tile<W, STREAM, MR, NP>;
  else
    return floats_tile<W, STREAM, MR, NP>;
}
template <class W, bool STREAM> static Tile find_tile(int rows, int panels) {
#define ROWS_CASE(n)                                                                    \
  case n:                                                                               \
    if constexpr (n <= W::ROWS && (STREAM || n >= W::ROWS / 2)) {                        \
      if (panels == 1) return tile_of<W, STREAM, n, 1>();                               \
      if (panels == W::beside(n)) return tile_of<W, STREAM, n, W::beside(n)>();         \
      return tile_of<W, STREAM, n, n == 1 ? W::ALONE : W::beside(n)>();                 \
    }                                                                                   \
    break;
  switch (rows) {
    ROWS_CASE(1)
    ROWS_CASE(2)
    ROWS_CASE(3)
    ROWS_CASE(4)
    ROWS_CASE(5)
    ROWS_CASE(6)
#if defined(__AVX512F__)
    ROWS_CASE(7)
    ROWS_CASE(8)
    ROWS_CASE(9)
    ROWS_CASE(10)
    ROWS_CASE(11)
    ROWS_CASE(12)
#endif
  }
#undef ROWS_CASE
  return nullptr;
}

// What a tile of `rows` works on: the inputs of a block from k on, of panels from `panel` on.
template <class W>
INLINE Part part_of(const int32_t* tile, int rows, const Panels& w, int k, int panel, float* c, int64_t c_row) {
  Part part = {};
  const Cut& cut = w.cut;
  part.inputs = cut.block(k);
  part.c = c + panel * PANEL;
  part.c_row = c_row;
  part.first = k == 0;
  if constexpr (W::DIGITS > 0) {
    constexpr int TOGETHER = W::Source::TOGETHER, D = W::DIGITS;
    part.rows = tile + (int64_t)k / TOGETHER * D * rows;
    part.facts = tile + (cut.inputs / TOGETHER * D + (int64_t)cut.pieces_before(k) * (D + 2)) * rows;
    part.piece = cut.piece();
    part.scale_panel = cut.units() * PANEL;
    part.scale = w.scale + panel * part.scale_panel + k / cut.unit * PANEL;
    part.offset = w.offset ? w.offset + (part.scale - w.scale) : nullptr;
  } else {
    part.rows = tile + (int64_t)k * rows * W::A_STEP / W::KI;
  }
  return part;
}

// All inputs of some panels, then the next panels: for the rows of one tile, beside which the weight is read once.
template <class W> static void multiply_once(const int32_t* tile, int rows, const Panels& w, float* c, int64_t c_row) {
  const int beside = W::beside(rows), most_beside = rows == 1 ? W::ALONE : beside;
  for (int p = 0, n; p < w.count; p += n) {
    const int left = w.count - p;
    n = left >= most_beside ? most_beside : left >= beside ? beside : 1;
    const Tile run = find_tile<W, true>(rows, n);
    for (int k = 0; k < w.cut.inputs; k += w.cut.block(k)) {
      Part part = part_of<W>(tile, rows, w, k, p, c, c_row);
      part.panels = w.data + p * w.bytes + (int64_t)k * PANEL * W::BITS / 8;
      part.panel_bytes = w.bytes;
      part.turn = w.data + (p + 1) * w.bytes;
      part.jump = p + n < w.count ? (n - 1) * w.bytes : w.next - part.turn;
      part.ahead = part.panels + W::AHEAD;
      if (part.ahead >= part.turn) part.ahead += part.jump;
      run(part);
    }
  }
}

// A block of inputs of some panels for all rows, then the next panels, then the next block. Where W is widened, a block
// is so once for all rows.
template <class W>
static void multiply_blocks(const int32_t* a, int rows, const Panels& w, float* c, int64_t c_row, float* wide) {
  typedef typename W::Wide V;
  constexpr int PANELS = W::beside(W::ROWS);
  static_assert(PANELS == 1 || W::beside(W::ROWS / 2) == PANELS, "rows of several tiles all take PANELS panels");
  constexpr int64_t WIDE_PANEL = (int64_t)K_BLOCK * PANEL * V::BITS / 8;
  static_assert(PANELS * WIDE_PANEL <= WIDE_FLOATS * (int64_t)sizeof(float), "they fit into `wide`");
  const Tiles<W> tiles(rows);
  const int64_t lanes = row_lanes<W>(w.cut);
  for (int k = 0; k < w.cut.inputs; k += w.cut.block(k)) {
    const int inputs = w.cut.block(k), bytes = inputs * PANEL * W::BITS / 8;
    const char* block = w.data + (int64_t)k * PANEL * W::BITS / 8;
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
        const int share = inputs * 32 * (t / PANELS);
        Part part = part_of<W>(a + tiles.first(t) * lanes, tiles.rows(t), w, k, p, c + tiles.first(t) * c_row, c_row);
        part.panels = b;
        part.panel_bytes = stride;
        part.ahead = share < bytes ? next + (t % PANELS) * w.bytes + share : (const char*)wide;
        find_tile<V, false>(tiles.rows(t), n)(part);
      }
    }
  }
}

// Integer sums of whole rows become floats, with all that belongs to them.
template <class W> static void settle(const int32_t* a, int rows, const Panels& w, float* c, int64_t c_row) {
  const Tiles<W> tiles(rows);
  const int64_t lanes = row_lanes<W>(w.cut), facts = w.cut.inputs / W::Source::TOGETHER;
  for (int t = 0; t < tiles.count; t++)
    for (int m = 0; m < tiles.rows(t); m++) {
      const int32_t* tile = a + tiles.first(t) * lanes;
      const float* of_row = (const float*)tile + (facts + 1) * tiles.rows(t) + m;
      const vf scale = splat(of_row[0]), total = splat(of_row[tiles.rows(t)]);
      float* row = c + (tiles.first(t) + m) * c_row;
      for (int i = 0; i < w.count * PANEL; i += VL) {
        const vi sums = load_bits(row + i);
        vf y = to_float(w.bias ? sums + load_bits(w.bias + i) : sums);
        if (w.offset) y -= total * load(w.offset + i);
        store(row + i, y * scale * load(w.scale + i));
      }
    }
}

template <class W> void multiply(const int32_t* a, int rows, const Panels& w, float* c, int64_t c_row, float* wide) {
  if (rows <= W::DIRECT)
    multiply_once<W>(a, rows, w, c, c_row);
  else
    multiply_blocks<W>(a, rows, w, c, c_row, wide);
  if constexpr (W::DIGITS == 1) settle<W>(a, rows, w, c, c_row);
}

#define MULTIPLY(...) template void multiply<__VA_ARGS__>(const int32_t*, int, const Panels&, float*, int64_t, float*)
MULTIPLY(Plain<F32>);
MULTIPLY(Plain<F16>);
MULTIPLY(Plain<I8>);
MULTIPLY(Pairs);
#ifdef HAS_BF16_DOT
MULTIPLY(DotPairs<BF16>);
MULTIPLY(DotPairs<I8>);
#endif
MULTIPLY(Dots<QuadsOfI4, 3>);
MULTIPLY(Dots<DotsOfI8, 3>);
MULTIPLY(Dots<DotsOfI8, 1>);
