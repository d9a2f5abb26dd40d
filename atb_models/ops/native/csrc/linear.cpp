// Linear: a product of activations with a packed weight.
#include "api.h"
#include "formats.h"
#include "products/product.h"
#include "team.h"

constexpr int SLICE = 512;      // rows whose activations are placed at a time: bounds the scratch
constexpr int OWN_ROWS = 4;     // up to here each thread places all rows for itself and none waits
constexpr int GROUP = 8;        // panels of a work item at most; of few panels each thread gets several items
constexpr int LEAST_GROUP = 4;  // and at least: as many as one row meets together
constexpr int64_t FORK_PRODUCTS = 1 << 17;  // below, a second thread costs more than it brings

template <class W> class Linear {
 public:
  explicit Linear(const LinearCall& call) : c(call), inputs(inputs_of<W>(c.weight)), lanes(row_lanes<W>(inputs.cut)) {
    const int blocks = pieces(least(c.rows, SLICE), ROW_BLOCK);
    block_rows = pieces(least(c.rows, SLICE), blocks);
    threads = (int64_t)c.rows * c.weight.inputs * c.weight.outputs < FORK_PRODUCTS ? 1 : c.threads;
    own = c.rows <= OWN_ROWS || threads == 1;
    group = threads == 1 ? GROUP : most(LEAST_GROUP, least(GROUP, pieces(pieces(c.weight.outputs, PANEL), 4 * threads)));
    shared_floats = own ? 0 : placed_floats(least(c.rows, SLICE));
    own_floats = (own ? placed_floats(least(c.rows, SLICE)) : 0) + WIDE_FLOATS + block_rows * GROUP * PANEL;
  }

  int64_t scratch() const { return shared_floats + threads * own_floats; }

  void run() const {
    parallel(threads, [&](Team& team, int thread) {
      float* desk = c.scratch + shared_floats + thread * own_floats;
      float* placed = own ? desk + WIDE_FLOATS + block_rows * GROUP * PANEL : c.scratch;
      for (int start = 0; start < c.rows; start += SLICE) {
        if (start) team.barrier();
        slice(team, start, least(SLICE, c.rows - start), (int32_t*)placed, desk);
      }
    });
  }

 private:
  int64_t placed_floats(int rows) const { return round_up(rows * lanes, 16); }

  void slice(Team& team, int start, int rows, int32_t* placed, float* desk) const {
    const int blocks = pieces(rows, block_rows), panels = pieces(c.weight.outputs, PANEL), groups = pieces(panels, group);
    if (own) {
      for (int i = 0; i < blocks; i++) place(start, rows, i, placed);
    } else {
      team.each(blocks, [&](int64_t i) { place(start, rows, (int)i, placed); });
      team.barrier();
    }
    // All rows of the slice follow each other beside a group of panels, which is read from memory once.
    team.each((int64_t)groups * blocks, [&](int64_t i) {
      const int first = (int)(i % blocks) * block_rows, count = least(block_rows, rows - first);
      const int panel = (int)(i / blocks) * group, n = least(group, panels - panel);
      const int next = panel + team.size * group < panels ? panel + team.size * group : panel;
      float* sums = desk + WIDE_FLOATS;
      multiply<W>(placed + first * lanes, count, panels_of<W>(c.weight, inputs.cut, panel, n, next), sums, n * PANEL, desk);
      for (int r = 0; r < count; r++) write(start + first + r, panel * PANEL, n * PANEL, sums + r * n * PANEL);
    });
  }

  void place(int start, int rows, int block, int32_t* placed) const {
    const int first = block * block_rows, count = least(block_rows, rows - first);
    const Tiles<W> tiles(count);
    for (int t = 0; t < tiles.count; t++)
      for (int m = 0; m < tiles.rows(t); m++) {
        int32_t* tile = placed + (first + tiles.first(t)) * lanes;
        with_format(c.x_format, [&](auto x) {
          typedef decltype(x) X;
          const auto* row = (const typename X::T*)c.x + (start + first + tiles.first(t) + m) * c.x_row;
          place_row<W, X>(row, inputs, tile, tiles.rows(t), m);
        });
      }
  }

  // Scales, adds the bias, rounds: `columns` outputs from `first` on, some of the last panel's being padding.
  void write(int64_t row, int first, int columns, float* sums) const {
    const int n = least(columns, c.weight.outputs - first);
    if (W::DIGITS == 0 && c.weight.scale)
      for (int i = 0; i < n; i += VL) store(sums + i, load(sums + i) * load_floats(c.weight.scale + first + i, n - i));
    if (c.bias)
      with_format(c.bias_format, [&](auto b) {
        const auto* bias = (const typename decltype(b)::T*)c.bias + first;
        for (int i = 0; i < n; i += VL)
          store(sums + i, load(sums + i) + (n - i < VL ? load_part<decltype(b)>(bias + i, n - i) : b.load(bias + i)));
      });
    with_format(c.out_format, [&](auto o) {
      narrow<decltype(o)>(sums, n, (typename decltype(o)::T*)c.out + row * c.out_row + first);
    });
  }
  static vf load_floats(const float* p, int n) { return n < VL ? load_part<F32>(p, n) : load(p); }

  const LinearCall& c;
  Inputs inputs;
  int64_t lanes;  // of a placed row
  int block_rows, threads, group;
  bool own;
  int64_t shared_floats, own_floats;
};

API int64_t atb_linear_scratch(const LinearCall* c) {
  return with_weight(c->weight, c->x_format, [&](auto w) { return Linear<decltype(w)>(*c).scratch(); });
}

API int atb_linear(const LinearCall* c) {
  with_weight(c->weight, c->x_format, [&](auto w) {
    Linear<decltype(w)>(*c).run();
    return (int64_t)0;
  });
  return DONE;
}
