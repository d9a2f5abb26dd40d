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

  // The best of those that are free; of equal ones that with the lower number, and a NaN only where nothing else is.
  static int take_best(const float* rank, float* free, int first, int end) {
    int best = -1;
    for (int i = first; i < end; i++)
      if (free[i] && (best < 0 || rank[i] > rank[best] || (rank[best] != rank[best] && rank[i] == rank[i]))) best = i;
    free[best] = 0;
    return best;
  }

  // Puts the experts outside the best groups behind all others. `worth` and `free` have room for a row each.
  void leave_groups_out(float* rank, float* worth, float* free) const {
    const int size = c.experts / c.groups;
    for (int e = 0; e < c.experts; e++) free[e] = 1;
    for (int g = 0; g < c.groups; g++) {
      worth[g] = 0;
      for (int i = 0; i < least(c.group_best, size); i++)
        worth[g] += rank[take_best(rank, free, g * size, (g + 1) * size)];
    }
    for (int g = 0; g < c.groups; g++) free[g] = 1;
    for (int i = 0; i < c.top_groups; i++) take_best(worth, free, 0, c.groups);
    for (int g = 0; g < c.groups; g++)
      for (int e = g * size; free[g] && e < (g + 1) * size; e++) rank[e] = -__builtin_inff();
  }

  void row(int64_t token, float* p, float* rank, float* worth, float* free) const {
    probabilities(c.scores + token * c.experts, p);
    for (int e = 0; e < c.experts; e++) rank[e] = c.bias ? p[e] + c.bias[e] : p[e];
    if (c.top_groups < c.groups) leave_groups_out(rank, worth, free);
    for (int e = 0; e < c.experts; e++) free[e] = 1;
    float* weights = c.weights + token * c.top_k;
    float total = 0;
    for (int k = 0; k < c.top_k; k++) {
      const int best = take_best(rank, free, 0, c.experts);
      c.chosen[token * c.top_k + k] = best;
      total += weights[k] = p[best];
    }
    for (int k = 0; k < c.top_k; k++)
      weights[k] = (c.renormalize ? weights[k] / (total + c.renormalize_eps) : weights[k]) * c.scaling;
  }
};

// Floats of a row that is filled up to whole vectors.
static int64_t row_floats(const GatingCall& c) { return round_up(c.experts + VL, 16); }

API int64_t atb_gating_scratch(const GatingCall* c) { return c->threads * 4 * row_floats(*c); }

API int atb_gating(const GatingCall* c) {
  const int threads = (int64_t)c->tokens * c->experts < FORK_ELEMENTS ? 1 : c->threads;
  parallel(threads, [&](Team& team, int thread) {
    const int64_t one = row_floats(*c);
    float* own = c->scratch + thread * 4 * one;
    team.each(c->tokens, [&](int64_t token) { Gating{*c}.row(token, own, own + one, own + 2 * one, own + 3 * one); });
  });
  return DONE;
}
