// The routed experts of a layer as one call: rows sorted by expert, gate and up, SwiGLU, down, weighted sum.
#include "api.h"
#include "formats.h"
#include "products/product.h"
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
  typedef typename X::T T;

 public:
  explicit Experts(const ExpertsCall& call)
      : c(call),
        hidden(inputs_of<W>(c.gate_up)),
        width(inputs_of<W>(c.down)),
        hidden_lanes(row_lanes<W>(hidden.cut)),
        width_lanes(row_lanes<W>(width.cut)),
        hidden_panels(pieces(c.hidden(), PANEL)),
        width_panels(pieces(c.width(), PANEL)),
        choices(least(c.tokens, SLICE) * c.top_k) {
    threads = (int64_t)choices * c.hidden() * c.width() < FORK_PRODUCTS ? 1 : c.threads;
    own = choices <= OWN_ROWS;
    sum_row = hidden_panels * PANEL + PANEL;  // no power of two, which would put all rows into the same cache sets
    lists = round_up(Routing::ints(choices, c.experts), 16);
    const int64_t rows = round_up(choices * (hidden_lanes > width_lanes ? hidden_lanes : width_lanes), 16);
    inner = round_up((int64_t)choices * c.width() * sizeof(T) / sizeof(float) + 1, 16);
    sums = (int64_t)choices * sum_row;
    placed = own ? 0 : rows;
    desk = WIDE_FLOATS + (int64_t)least(choices, ROW_BLOCK) * 2 * GROUP * PANEL + (own ? rows : 0);
  }

  int64_t scratch() const { return lists + placed + inner + sums + threads * desk; }

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
  void slice(Team& team, const Routing& routing, int start, int tokens, int thread) const {
    int32_t* rows = (int32_t*)c.scratch + lists;
    T* inner_rows = (T*)(rows + placed);  // [choices, F]: silu(gate) * up, rounded to the activations' format
    float* outputs = (float*)rows + placed + inner;
    float* wide = outputs + sums + thread * desk;
    float* products = wide + WIDE_FLOATS;
    if (own) rows = (int32_t*)products + (int64_t)least(choices, ROW_BLOCK) * 2 * GROUP * PANEL;
    const int inner_groups = pieces(width_panels, GROUP), outer_groups = pieces(hidden_panels, GROUP);
    const auto token_row = [&](int row) { return (const T*)c.x + (start + routing.source[row] / c.top_k) * c.x_row; };
    product(team, routing, inner_groups, hidden, hidden_lanes, rows, token_row, [&](const Item& item, const Item& next, const int32_t* placed_rows) {
      gate_up(item, next, placed_rows, inner_rows, products, wide);
    });
    const auto inner_row = [&](int row) { return inner_rows + (int64_t)row * c.width(); };
    product(team, routing, outer_groups, width, width_lanes, rows, inner_row, [&](const Item& item, const Item& next, const int32_t* placed_rows) {
      const int n = least(GROUP, hidden_panels - item.panel);
      multiply<W>(placed_rows, item.block->rows,
                  panels_of<W>(c.down, width.cut, item.first(hidden_panels), n, next.first(hidden_panels)),
                  outputs + (int64_t)item.block->first * sum_row + item.panel * PANEL, sum_row, wide);
    });
    const int parts = pieces(c.hidden(), SUM_COLUMNS);
    team.each((int64_t)tokens * parts, [&](int64_t i) {
      const int token = (int)(i / parts), first = (int)(i % parts) * SUM_COLUMNS;
      weigh(routing, start, token, first, least(SUM_COLUMNS, c.hidden() - first), outputs);
    });
  }

  // A block of rows beside panels of its expert's matrix.
  struct Item {
    const Block* block;
    int panel;
    int64_t first(int panels) const { return (int64_t)block->expert * panels + panel; }
  };

  // `work(item, next, rows)` for each block and each of the `groups` of panels that it meets, the block's rows being
  // placed at `rows`: all rows before the first item, or, where each thread has its own, those of the item. `next` is
  // what the thread will probably get afterwards.
  template <class Row, class Work>
  void product(Team& team, const Routing& routing, int groups, const Inputs& inputs, int64_t lanes, int32_t* rows,
               const Row& row, const Work& work) const {
    if (!own) {
      team.each(routing.count, [&](int64_t i) {
        const Block& block = routing.blocks[i];
        place(block, inputs, lanes, rows + block.first * lanes, row);
      });
      team.barrier();
    }
    const Block* mine = nullptr;  // whose rows are this thread's
    const int64_t items = (int64_t)routing.count * groups;
    const auto item = [&](int64_t i) { return Item{&routing.blocks[i / groups], (int)(i % groups) * GROUP}; };
    team.each(items, [&](int64_t i) {
      const Block* block = item(i).block;
      if (own && mine != block) place(*block, inputs, lanes, rows, row);
      mine = block;
      work(item(i), item(i + team.size < items ? i + team.size : i), own ? rows : rows + block->first * lanes);
    });
    team.barrier();
  }

  template <class Row>
  void place(const Block& block, Inputs inputs, int64_t lanes, int32_t* to, const Row& row) const {
    if (inputs.activations == ACTIVATIONS_STATIC) {
      inputs.scale += block.expert;
      inputs.offset += block.expert;
    }
    const Tiles<W> tiles(block.rows);
    for (int t = 0; t < tiles.count; t++)
      for (int m = 0; m < tiles.rows(t); m++)
        place_row<W, X>(row(block.first + tiles.first(t) + m), inputs, to + tiles.first(t) * lanes, tiles.rows(t), m);
  }

  // GROUP panels of gate and as many of up, which lie in turns, for a block of rows.
  void gate_up(const Item& item, const Item& next, const int32_t* rows, T* to, float* products, float* wide) const {
    const Block& block = *item.block;
    const int panel = item.panel, n = least(GROUP, width_panels - panel), row_floats = 2 * n * PANEL;
    multiply<W>(rows, block.rows,
                panels_of<W>(c.gate_up, hidden.cut, 2 * item.first(width_panels), 2 * n, 2 * next.first(width_panels)),
                products, row_floats, wide);
    const int columns = least(n * PANEL, c.width() - panel * PANEL);
    for (int r = 0; r < block.rows; r++) {
      T activated[GROUP * PANEL];
      for (int p = 0; p < n; p++)
        activate(block.expert, (panel + p) * PANEL, products + r * row_floats + 2 * p * PANEL, activated + p * PANEL);
      __builtin_memcpy(to + (int64_t)(block.first + r) * c.width() + panel * PANEL, activated, columns * sizeof(T));
    }
  }

  // silu(gate) * up of one panel, rounded to the activations' format.
  void activate(int expert, int column, const float* pair, T* to) const {
    for (int v = 0; v < PANEL; v += VL) {
      vf gate = load(pair + v), up = load(pair + PANEL + v);
      if (W::DIGITS == 0 && c.gate_up.scale) {
        const float* scale = c.gate_up.scale + (int64_t)expert * 2 * c.width() + column + v;
        const int n = c.width() - column - v;
        if (n <= 0) break;
        gate *= n < VL ? load_part<F32>(scale, n) : load(scale);
        up *= n < VL ? load_part<F32>(scale + c.width(), n) : load(scale + c.width());
      }
      X::store(to + v, gate * sigmoid(gate) * up);
    }
  }

  // out[token] = the sum over k, in order, of weight k times the output of choice k.
  void weigh(const Routing& routing, int start, int token, int first, int n, const float* outputs) const {
    const int64_t choice = (int64_t)(start + token) * c.top_k;
    const bool scaled = W::DIGITS == 0 && c.down.scale;
    float total[SUM_COLUMNS + VL];
    for (int k = 0; k < c.top_k; k++) {
      const float* row = outputs + (int64_t)routing.row[token * c.top_k + k] * sum_row + first;
      const float* scale = scaled ? c.down.scale + c.chosen[choice + k] * c.hidden() + first : nullptr;
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
  Inputs hidden, width;
  int64_t hidden_lanes, width_lanes;  // of a placed row
  int hidden_panels, width_panels, choices, sum_row, threads;
  bool own;
  int64_t lists, placed, inner, sums, desk;
};

// Of floats weights have the activations' format, and the form W; W8 is that of FORMAT_I8.
template <class X, class W, class W8, class Call> static int64_t with_storage(const ExpertsCall& c, const Call& call) {
  switch (c.gate_up.format) {
    case FORMAT_I8: return call(Experts<W8, X>(c));
    case FORMAT_I4: return call(Experts<Dots<QuadsOfI4, 3>, X>(c));
    case FORMAT_I8_DOTS:
      return c.gate_up.activations == ACTIVATIONS_FLOAT ? call(Experts<Dots<DotsOfI8, 3>, X>(c))
                                                        : call(Experts<Dots<DotsOfI8, 1>, X>(c));
    default: return call(Experts<W, X>(c));
  }
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
