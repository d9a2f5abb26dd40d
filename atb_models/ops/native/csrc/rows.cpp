// Operations on rows that need no weight matrix: norms, SwiGLU, the shared expert's gate.
#include "api.h"
#include "formats.h"
#include "sublayer.h"
#include "team.h"

// Elements below which a second thread costs more than it brings.
constexpr int64_t FORK_ELEMENTS = 1 << 15;

template <class Work> static void each_row(int rows, int64_t width, int threads, const Work& work) {
  parallel(rows * width < FORK_ELEMENTS ? 1 : threads, [&](Team& team, int) {
    team.each(rows, [&](int64_t row) { work(row); });
  });
}

template <class X> INLINE vf load_some(const typename X::T* p, int n) {
  return n < VL ? load_part<X>(p, n) : X::load(p);
}
template <class X> INLINE void store_some(typename X::T* p, vf v, int n) {
  if (n < VL)
    store_part<X>(p, v, n);
  else
    X::store(p, v);
}

template <class X, class W> static void norm_row(const NormCall& c, int64_t row) {
  typedef typename X::T T;
  const T* x = (const T*)c.x + row * c.x_row;
  if (c.residual) {
    const T* residual = (const T*)c.residual + row * c.residual_row;
    T* total = (T*)c.sum + row * c.width;
    for (int i = 0; i < c.width; i += VL)
      store_some<X>(total + i, load_some<X>(x + i, c.width - i) + load_some<X>(residual + i, c.width - i), c.width - i);
    x = total;
  }
  vf squares[4] = {zeros(), zeros(), zeros(), zeros()};
  for (int i = 0; i < c.width; i += VL) {
    vf v = load_some<X>(x + i, c.width - i);
    squares[i / VL % 4] = fma(v, v, squares[i / VL % 4]);
  }
  const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / c.width;
  const vf scale = splat(1.f) / root(splat(mean + c.eps));
  T* out = (T*)c.out + row * c.width;
  for (int i = 0; i < c.width; i += VL) {
    const int n = c.width - i;
    store_some<X>(out + i, load_some<X>(x + i, n) * scale * load_some<W>((const typename W::T*)c.weight + i, n), n);
  }
}

API int atb_norm(const NormCall* c) {
  with_format(c->format, [&](auto x) {
    with_format(c->weight_format, [&](auto w) {
      each_row(c->rows, c->width, c->threads, [&](int64_t row) { norm_row<decltype(x), decltype(w)>(*c, row); });
    });
  });
  return DONE;
}

void norm_heads(const NormCall& c, void* x, int64_t x_row, int heads) {
  with_format(c.format, [&](auto x_format) {
    with_format(c.weight_format, [&](auto weight_format) {
      typedef decltype(x_format) X;
      each_row(c.rows * heads, c.width, c.threads, [&](int64_t head) {
        NormCall own = c;
        own.x = own.out = (typename X::T*)x + head / heads * x_row + head % heads * c.width;
        norm_row<X, decltype(weight_format)>(own, 0);
      });
    });
  });
}

API int atb_swiglu(const SwigluCall* c) {
  with_format(c->format, [&](auto x) {
    typedef decltype(x) X;
    each_row(c->rows, 2 * c->width, c->threads, [&](int64_t row) {
      const auto* gate = (const typename X::T*)c->x + row * c->x_row;
      auto* out = (typename X::T*)c->out + row * c->width;
      for (int i = 0; i < c->width; i += VL) {
        const int n = c->width - i;
        const vf g = load_some<X>(gate + i, n);
        store_some<X>(out + i, g * sigmoid(g) * load_some<X>(gate + c->width + i, n), n);
      }
    });
  });
  return DONE;
}

template <class X, class W> static void gate_row(const SharedGateCall& c, int64_t row) {
  typedef typename X::T T;
  const T *x = (const T*)c.x + row * c.x_row, *shared = (const T*)c.shared + row * c.shared_row;
  vf products[4] = {zeros(), zeros(), zeros(), zeros()};
  for (int i = 0; i < c.width; i += VL) {
    const int n = c.width - i;
    vf& product = products[i / VL % 4];
    product = fma(load_some<X>(x + i, n), load_some<W>((const typename W::T*)c.weight + i, n), product);
  }
  const vf gate = sigmoid(splat(sum((products[0] + products[1]) + (products[2] + products[3]))));
  T* out = (T*)c.out + row * c.shared_width;
  for (int i = 0; i < c.shared_width; i += VL)
    store_some<X>(out + i, load_some<X>(shared + i, c.shared_width - i) * gate, c.shared_width - i);
}

API int atb_shared_gate(const SharedGateCall* c) {
  with_format(c->format, [&](auto x) {
    with_format(c->weight_format, [&](auto w) {
      each_row(c->rows, c->width, c->threads, [&](int64_t row) { gate_row<decltype(x), decltype(w)>(*c, row); });
    });
  });
  return DONE;
}

void add_to(void* to, const void* more, int64_t elements, int format, int threads) {
  constexpr int PIECE = 1 << 11;
  with_format(format, [&](auto x) {
    typedef decltype(x) X;
    each_row(pieces(elements, PIECE), PIECE, threads, [&](int64_t piece) {
      auto* sum = (typename X::T*)to + piece * PIECE;
      const auto* term = (const typename X::T*)more + piece * PIECE;
      const int count = least(PIECE, (int)(elements - piece * PIECE));
      for (int i = 0; i < count; i += VL)
        store_some<X>(sum + i, load_some<X>(sum + i, count - i) + load_some<X>(term + i, count - i), count - i);
    });
  });
}
