// The routed experts of a layer as one call: rows sorted by expert, gate and up, SwiGLU, down, weighted sum.
#include "api.h"
#include "formats.h"
#include "product.h"
#include "team.h"

constexpr int SLICE = 512;     // tokens at a time: bounds the scratch
constexpr int OWN_ROWS = 32;   // up to here each thread places the rows of an item for itself and none waits
constexpr int GROUP = 8;       // panels of a work item
constexpr int SUM_COLUMNS = 512;
constexpr int64_t FORK_PRODUCTS = 1 << 17;  // below, a second thread costs more than it brings

// Rows of one expert that are multiplied together.
struct Block {
  int expert, first, rows;
};

// Which rows each expert gets. Row r of the sorted ones belongs to choice source[r] = token * K + k; row[choice] = r.
struct Routing {
  int *row, *source, *next;
  Block* blocks;
  int count = 0;

  static int64_t ints(int choices, int experts) {
    return 2 * choices + experts + 3 * (choices / ROW_BLOCK + least(choices, experts));
  }
  Routing(int* memory, int choices, int experts) {
    row = memory;
    source = row + choices;
    next = source + choices;
    blocks = (Block*)(next + experts);
  }
  void sort(const int64_t* chosen, int choices, int experts) {
    for (int e = 0; e < experts; e++) next[e] = 0;
    for (int i = 0; i < choices; i++) next[chosen[i]]++;
    count = 0;
    for (int e = 0, first = 0; e < experts; e++) {
      const int rows = next[e];
      next[e] = first;
      for (int n = pieces(rows, ROW_BLOCK), i = 0; i < n; i++) {
        const int from = (int)((int64_t)rows * i / n), to = (int)((int64_t)rows * (i + 1) / n);
        blocks[count++] = {e, first + from, to - from};
      }
      first += rows;
    }
    for (int i = 0; i < choices; i++) {
      row[i] = next[chosen[i]]++;
      source[row[i]] = i;
    }
  }
};

// W: the form of the weights, X: the format of the activations.
template <class W, class X> class Experts {
  typedef typename W::A A;
  typedef typename X::T T;

 public:
  explicit Experts(const ExpertsCall& call)
      : c(call),
        hidden((int)round_up(c.hidden(), K_STEP)),
        width((int)round_up(c.width(), K_STEP)),
        hidden_panels(pieces(c.hidden(), PANEL)),
        width_panels(pieces(c.width(), PANEL)),
        choices(least(c.tokens, SLICE) * c.top_k) {
    threads = (int64_t)choices * c.hidden() * c.width() < FORK_PRODUCTS ? 1 : c.threads;
    own = choices <= OWN_ROWS;
    sum_row = hidden_panels * PANEL + PANEL;  // no power of two, which would put all rows into the same cache sets
    lists = round_up(Routing::ints(choices, c.experts), 16);
    inputs = own ? 0 : placed_floats(choices, hidden);
    inner = placed_floats(choices, width);
    sums = (int64_t)choices * sum_row;
    desk = WIDE_FLOATS + (int64_t)least(choices, ROW_BLOCK) * 2 * GROUP * PANEL + (own ? placed_floats(choices, hidden) : 0);
  }

  int64_t scratch() const { return lists + inputs + inner + sums + threads * desk; }

  void run() const {
    if (c.counter)
      for (int64_t i = 0; i < (int64_t)c.tokens * c.top_k; i++) c.counter[c.chosen[i]]++;
    Routing routing((int*)c.scratch, choices, c.experts);
    for (int start = 0; start < c.tokens; start += SLICE) {
      const int tokens = least(SLICE, c.tokens - start);
      routing.sort(c.chosen + (int64_t)start * c.top_k, tokens * c.top_k, c.experts);
      parallel(threads, [&](Team& team, int thread) { slice(team, routing, start, tokens, thread); });
    }
  }

 private:
  static int64_t placed_floats(int rows, int filled) {
    return round_up((int64_t)rows * filled * W::A_STEP / W::KI * sizeof(A) / sizeof(float), 16);
  }
  static A* placed_row(float* placed, int row, int filled) {
    return (A*)placed + (int64_t)row * filled * W::A_STEP / W::KI;
  }

  void slice(Team& team, const Routing& routing, int start, int tokens, int thread) const {
    float* placed = c.scratch + lists;
    float* inner_rows = placed + inputs;
    float* outputs = inner_rows + inner;
    float* wide = outputs + sums + thread * desk;
    float* products = wide + WIDE_FLOATS;
    float* own_rows = products + (int64_t)least(choices, ROW_BLOCK) * 2 * GROUP * PANEL;
    if (!own) {
      team.each(routing.count, [&](int64_t i) {
        const Block& block = routing.blocks[i];
        place(routing, start, block, placed_row(placed, block.first, hidden));
      });
      team.barrier();
    }
    const int inner_groups = pieces(width_panels, GROUP), outer_groups = pieces(hidden_panels, GROUP);
    int mine = -1;  // the block whose rows lie in own_rows
    team.each((int64_t)routing.count * inner_groups, [&](int64_t i) {
      const int number = (int)(i / inner_groups);
      const Block& block = routing.blocks[number];
      if (own && mine != number) place(routing, start, block, (A*)own_rows);
      mine = number;
      const A* rows = own ? (const A*)own_rows : placed_row(placed, block.first, hidden);
      gate_up(block, (int)(i % inner_groups) * GROUP, rows, placed_row(inner_rows, block.first, width), products, wide);
    });
    team.barrier();
    team.each((int64_t)routing.count * outer_groups, [&](int64_t i) {
      const Block& block = routing.blocks[i / outer_groups];
      const int panel = (int)(i % outer_groups) * GROUP, n = least(GROUP, hidden_panels - panel);
      multiply<W>(placed_row(inner_rows, block.first, width), block.rows,
                  panels_of<W>(c.down.data, (int64_t)block.expert * hidden_panels + panel, n, width),
                  outputs + (int64_t)block.first * sum_row + panel * PANEL, sum_row, wide);
    });
    team.barrier();
    const int parts = pieces(c.hidden(), SUM_COLUMNS);
    team.each((int64_t)tokens * parts, [&](int64_t i) {
      const int token = (int)(i / parts), first = (int)(i % parts) * SUM_COLUMNS;
      weigh(routing, start, token, first, least(SUM_COLUMNS, c.hidden() - first), outputs);
    });
  }

  void place(const Routing& routing, int start, const Block& block, A* to) const {
    const Tiles tiles(block.rows);
    for (int t = 0; t < tiles.count; t++)
      for (int m = 0; m < tiles.rows(t); m++) {
        const int token = start + routing.source[block.first + tiles.first(t) + m] / c.top_k;
        place_row<W, X>((const T*)c.x + token * c.x_row, c.hidden(), hidden, placed_row((float*)to, tiles.first(t), hidden),
                        tiles.rows(t), m);
      }
  }

  // Panels `panel` to `panel + GROUP` of gate and up, which lie in turns, for a block of rows.
  void gate_up(const Block& block, int panel, const A* rows, A* to, float* products, float* wide) const {
    const int n = least(GROUP, width_panels - panel), row_floats = 2 * n * PANEL;
    multiply<W>(rows, block.rows, panels_of<W>(c.gate_up.data, 2 * ((int64_t)block.expert * width_panels + panel), 2 * n, hidden),
                products, row_floats, wide);
    const Tiles tiles(block.rows);
    for (int t = 0; t < tiles.count; t++)
      for (int m = 0; m < tiles.rows(t); m++) {
        float* row = products + (tiles.first(t) + m) * row_floats;
        T activated[GROUP * PANEL];
        for (int p = 0; p < n; p++) activate(block.expert, (panel + p) * PANEL, row + 2 * p * PANEL, activated + p * PANEL);
        place_part(activated, panel * PANEL, least(n * PANEL, c.width() - panel * PANEL),
                   placed_row((float*)to, tiles.first(t), width), tiles.rows(t), m);
      }
  }

  // silu(gate) * up of one panel, rounded to the activations' format.
  void activate(int expert, int column, const float* pair, T* to) const {
    for (int v = 0; v < PANEL; v += VL) {
      vf gate = load(pair + v), up = load(pair + PANEL + v);
      if (c.gate_up.scale) {
        const float* scale = c.gate_up.scale + (int64_t)expert * 2 * c.width() + column + v;
        const int n = c.width() - column - v;
        if (n <= 0) break;
        gate *= n < VL ? load_part<F32>(scale, n) : load(scale);
        up *= n < VL ? load_part<F32>(scale + c.width(), n) : load(scale + c.width());
      }
      X::store(to + v, gate * sigmoid(gate) * up);
    }
  }

  // `n` inputs of the down product from `column` on, for row m of a tile; what fills up the last of them is zero.
  void place_part(const T* from, int column, int n, A* tile, int rows, int m) const {
    const int filled = column + n == c.width() ? width - column : n;
    A* to = tile + (int64_t)column * rows * W::A_STEP / W::KI;
    if constexpr (W::A_STEP < W::KI || sizeof(T) == sizeof(float)) {
      place_row<W, X>(from, n, filled, to, rows, m);
    } else {
      float lanes[VL];
      for (int k = 0; k < filled; k += VL) {
        store(lanes, X::load(from + k));
        for (int i = 0; i < least(VL, filled - k); i++) to[(int64_t)(k + i) * rows + m] = k + i < n ? lanes[i] : 0;
      }
    }
  }

  // out[token] = the sum over k, in order, of weight k times the output of choice k.
  void weigh(const Routing& routing, int start, int token, int first, int n, const float* outputs) const {
    const int64_t choice = (int64_t)(start + token) * c.top_k;
    float total[SUM_COLUMNS + VL];
    for (int k = 0; k < c.top_k; k++) {
      const float* row = outputs + (int64_t)routing.row[token * c.top_k + k] * sum_row + first;
      const float* scale = c.down.scale ? c.down.scale + c.chosen[choice + k] * c.hidden() + first : nullptr;
      const vf weight = splat(c.weights[choice + k]);
      for (int i = 0; i < n; i += VL) {
        vf y = load(row + i);
        if (scale) y *= n - i < VL ? load_part<F32>(scale + i, n - i) : load(scale + i);
        store(total + i, k ? fma(weight, y, load(total + i)) : weight * y);
      }
    }
    narrow<X>(total, n, (T*)c.out + (int64_t)(start + token) * c.hidden() + first);
  }

  const ExpertsCall& c;
  int hidden, width, hidden_panels, width_panels, choices, sum_row, threads;
  bool own;
  int64_t lists, inputs, inner, sums, desk;
};

// Weights have the activations' format, or are int8: their forms are W and W8.
template <class X, class W, class W8, class Call> static int64_t with_storage(const ExpertsCall& c, const Call& call) {
  return c.gate_up.format == FORMAT_I8 ? call(Experts<W8, X>(c)) : call(Experts<W, X>(c));
}

template <class Call> static int64_t with_experts(const ExpertsCall& c, const Call& call) {
  switch (c.format) {
    case FORMAT_F16: return with_storage<F16, Plain<F16>, Plain<I8>>(c, call);
    case FORMAT_BF16: return with_storage<BF16, PairsOfBF16, I8BesideBF16>(c, call);
    default: return with_storage<F32, Plain<F32>, Plain<I8>>(c, call);
  }
}

API int64_t atb_experts_scratch(const ExpertsCall* c) {
  return with_experts(*c, [](const auto& experts) { return experts.scratch(); });
}

API int atb_experts(const ExpertsCall* c) {
  for (int64_t i = 0; i < (int64_t)c->tokens * c->top_k; i++)
    if (c->chosen[i] < 0 || c->chosen[i] >= c->experts) return BAD_EXPERT;
  with_experts(*c, [](const auto& experts) {
    experts.run();
    return (int64_t)0;
  });
  return DONE;
}
