// The feed-forward of a layer as one call: norm, then an MLP, or the choice of experts, the experts and the shared ones.
#include "sublayer.h"

struct FeedForwardSublayer {
  const FeedForwardLayer& l;
  const SublayerCall& c;
  bool routed, mlp;
  int slice, hidden;
  void *normed, *gate_up = nullptr, *inner = nullptr, *shared = nullptr;
  float *scores = nullptr, *weights = nullptr;
  int64_t* chosen = nullptr;
  float* desk = nullptr;  // scratch of whichever operation runs
  int64_t floats;

  FeedForwardSublayer(const FeedForwardLayer& layer, const SublayerCall& call, float* memory)
      : l(layer), c(call), routed(l.router.outputs > 0), mlp(l.gate_up.outputs > 0),
        slice(least(c.tokens, ROWS_AT_A_TIME)), hidden(routed ? l.router.inputs : l.gate_up.inputs) {
    Pieces pieces(memory);
    const int64_t bytes = element_bytes(l.format);
    int64_t most = 0;
    normed = pieces.take(bytes * slice * hidden);
    if (mlp) {
      gate_up = pieces.take(bytes * slice * l.gate_up.outputs);
      inner = pieces.take(bytes * slice * l.down.inputs);
      if (routed) shared = pieces.take(bytes * slice * hidden);
      const LinearCall first = expand(slice), last = contract(slice, shared);
      most = larger(atb_linear_scratch(&first), atb_linear_scratch(&last));
    }
    if (routed) {
      scores = pieces.take_floats((int64_t)slice * l.experts);
      weights = pieces.take_floats((int64_t)slice * l.top_k);
      chosen = (int64_t*)pieces.take((int64_t)slice * l.top_k * sizeof(int64_t));
      const LinearCall router = score(slice);
      const GatingCall gating = choose(slice);
      const ExpertsCall experts = compute(slice, nullptr);
      most = larger(larger(most, atb_linear_scratch(&router)),
                    larger(atb_gating_scratch(&gating), atb_experts_scratch(&experts)));
    }
    desk = pieces.take_floats(most);
    floats = pieces.floats();
  }

  void run() const {
    for (int start = 0; start < c.tokens; start += slice) {
      const int rows = least(slice, c.tokens - start);
      void* out = row_of(c.out, start, hidden, l.format);
      const NormCall norm = norm_call(c, l.norm, l.norm_format, l.eps, hidden, l.format, start, rows, normed);
      atb_norm(&norm);
      if (routed) {
        const LinearCall router = score(rows);
        const GatingCall gating = choose(rows);
        const ExpertsCall experts = compute(rows, out);
        atb_linear(&router), atb_gating(&gating), atb_experts(&experts);
      }
      if (mlp) run_mlp(rows, out);
    }
  }

  void run_mlp(int rows, void* out) const {
    void* to = routed ? shared : out;
    const LinearCall first = expand(rows), last = contract(rows, to);
    const SwigluCall swiglu = {gate_up, inner, l.gate_up.outputs, rows, l.down.inputs, l.format, c.threads};
    atb_linear(&first), atb_swiglu(&swiglu), atb_linear(&last);
    if (l.shared_gate) {
      const SharedGateCall gate = {shared, normed, l.shared_gate, shared, hidden, hidden, rows, hidden, hidden,
                                   l.format, l.shared_gate_format, c.threads};
      atb_shared_gate(&gate);
    }
    if (routed) add_to(out, shared, (int64_t)rows * hidden, l.format, c.threads);
  }

  LinearCall with_desk(LinearCall call) const {
    call.scratch = desk;
    return call;
  }
  LinearCall expand(int rows) const {
    return with_desk(linear_call(l.gate_up, nullptr, 0, normed, l.format, rows, gate_up, l.format, c.threads));
  }
  LinearCall contract(int rows, void* to) const {
    return with_desk(linear_call(l.down, nullptr, 0, inner, l.format, rows, to, l.format, c.threads));
  }
  LinearCall score(int rows) const {
    return with_desk(linear_call(l.router, nullptr, 0, normed, l.format, rows, scores, FORMAT_F32, c.threads));
  }

  GatingCall choose(int rows) const {
    return {scores, l.router_bias, weights, chosen, desk, rows, l.experts, l.top_k, l.sigmoid, l.groups, l.top_groups,
            l.group_best, l.renormalize, c.threads, l.renormalize_eps, l.scaling};
  }

  ExpertsCall compute(int rows, void* out) const {
    return {normed, chosen, weights, l.experts_gate_up, l.experts_down, out, l.counter, desk, hidden, rows, l.experts,
            l.top_k, l.format, c.threads};
  }
};

API int atb_feed_forward_sublayer(const FeedForwardLayer* layer, SublayerCall* call) {
  const int64_t needed = FeedForwardSublayer(*layer, *call, nullptr).floats;
  if (call->scratch_floats < needed) {
    call->scratch_floats = needed;
    return MORE_SCRATCH;
  }
  FeedForwardSublayer(*layer, *call, call->scratch).run();
  return DONE;
}
