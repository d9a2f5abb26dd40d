// The choice of experts.
#include "api.h"
#include "simd/simd.h"
#include "team.h"

constexpr int64_t FORK_ELEMENTS = 1 << 12;

struct Gating {
  const GatingCall& c;

  // What the router's scores say of each expert: a probability, by which it is weighed.
  void probabilities(const float* scores, float* p) const {
    float highest = scores[0];
    for (int e = 1; e < c.experts; e++) highest = scores[e] > highest ? scores[e] : highest;
    vf total = zeros();
    for (int e = 0; e < c.experts; e += VL) {
      const int n = least(VL, c.experts - e);
      vf s = n < VL ? load_part<F32>(scores + e, n) : load(scores + e);
      vf v = c.sigmoid ? sigmoid(s) : exponential(s - splat(highest));
      store(p + e, v);
      for (int i = n; i < VL; i++) p[e + i] = 0;
      total += load(p + e);
    }
    if (c.sigmoid) return;
    const vf sum_of_all = splat(sum(total));
    for (int e = 0; e < c.experts; e += VL) store(p + e, load(p + e) / sum_of_all);
  }

  // The larger first; of equal ones the expert with the lower number, and a NaN only where nothing else is left.
  void row(int64_t token, float* p, float* rank, float* free) const {
    probabilities(c.scores + token * c.experts, p);
    for (int e = 0; e < c.experts; e++) {
      rank[e] = c.bias ? p[e] + c.bias[e] : p[e];
      free[e] = 1;
    }
    float* weights = c.weights + token * c.top_k;
    int64_t* chosen = c.chosen + token * c.top_k;
    float total = 0;
    for (int k = 0; k < c.top_k; k++) {
      int best = -1;
      for (int e = 0; e < c.experts; e++)
        if (free[e] && (best < 0 || rank[e] > rank[best] || (rank[best] != rank[best] && rank[e] == rank[e]))) best = e;
      free[best] = 0;
      chosen[k] = best;
      weights[k] = p[best];
      total += p[best];
    }
    for (int k = 0; k < c.top_k; k++)
      weights[k] = (c.renormalize ? weights[k] / (total + c.eps) : weights[k]) * c.scaling;
  }
};

// Floats of a row that is filled up to whole vectors.
static int64_t row_floats(const GatingCall& c) { return round_up(c.experts + VL, 16); }

API int64_t atb_gating_scratch(const GatingCall* c) { return c->threads * 3 * row_floats(*c); }

API int atb_gating(const GatingCall* c) {
  const int threads = (int64_t)c->tokens * c->experts < FORK_ELEMENTS ? 1 : c->threads;
  parallel(threads, [&](Team& team, int thread) {
    const int64_t one = row_floats(*c);
    float* own = c->scratch + thread * 3 * one;
    team.each(c->tokens, [&](int64_t token) { Gating{*c}.row(token, own, own + one, own + 2 * one); });
  });
  return DONE;
}
