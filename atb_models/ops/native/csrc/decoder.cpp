// A step of a decoder as one call: embeddings, rotary tables, the layers, the norm behind them and the head. Each part is
// the call that it would be alone, so the results have the bits of the parts. After the last layer's attention only the
// rows whose logits are wanted go on.
#include "sublayer.h"

struct DecoderStep {
  const DecoderModel& d;
  const DecoderCall& c;
  AttentionStep step;
  void *x, *stream;  // stream: the residual stream; x: what is to be added to it
  void *kept_x, *kept_stream, *normed;  // of the wanted rows
  float *cos, *sin;
  SublayerCall rows = {};  // of every sublayer, the scratch included
  int64_t floats;

  DecoderStep(const DecoderModel& decoder, const DecoderCall& call) : d(decoder), c(call), step(call.step) {
    step.half = d.half;
    rows.x_row = rows.residual_row = d.hidden, rows.tokens = c.tokens, rows.threads = c.threads;
    rows.scratch_floats = most();
    place(nullptr);
  }

  void place(float* memory) {
    Pieces pieces(memory);
    const int64_t bytes = element_bytes(d.format) * d.hidden, angles = (int64_t)c.tokens * d.half;
    x = pieces.take(bytes * c.tokens);
    stream = pieces.take(bytes * c.tokens);
    kept_x = pieces.take(bytes * c.rows);
    kept_stream = pieces.take(bytes * c.rows);
    normed = d.head.outputs ? pieces.take(bytes * c.rows) : c.out;
    step.cos = cos = pieces.take_floats(angles);
    step.sin = sin = pieces.take_floats(angles);
    rows.scratch = pieces.take_floats(rows.scratch_floats);
    floats = pieces.floats();
  }

  // The floats of scratch of the part that needs most.
  int64_t most() const {
    const LinearCall head = multiply();
    int64_t floats = c.rows && d.head.outputs ? atb_linear_scratch(&head) : 0;
    for (int i = 0; i < d.count; i++) {
      SublayerCall attention = rows, feed_forward = rows;
      attention.scratch_floats = feed_forward.scratch_floats = -1;  // both refuse it, and tell what they need
      atb_attention_sublayer(d.layers[i].attention, &step, &attention);
      if (i == d.count - 1) feed_forward.tokens = c.rows;
      if (feed_forward.tokens) atb_feed_forward_sublayer(d.layers[i].feed_forward, &feed_forward);
      floats = larger(floats, larger(attention.scratch_floats, feed_forward.scratch_floats));
    }
    return floats;
  }

  int status() const {
    for (int i = 0; i < c.tokens; i++)
      if (c.ids[i] < 0 || c.ids[i] >= d.vocabulary) return BAD_TOKEN;
    for (int i = 0; i < c.rows; i++)
      if (c.wanted[i] < 0 || c.wanted[i] >= c.tokens) return BAD_LENGTH;
    return DONE;
  }

  int run() const {
    select(d.embedding, c.ids, c.tokens, stream);
    const RopeTablesCall tables = {c.positions, d.frequencies, cos, sin, c.tokens, d.half, c.threads, d.rope_factor};
    atb_rope_tables(&tables);
    SublayerCall call = rows;
    call.residual = call.sum = stream, call.out = x;  // a sublayer has read its rows before it writes them
    for (int i = 0; i < d.count; i++) {
      int status = atb_attention_sublayer(d.layers[i].attention, &step, &call);
      call.x = x;
      if (i == d.count - 1) keep(call);
      if (status == DONE && call.tokens) status = atb_feed_forward_sublayer(d.layers[i].feed_forward, &call);
      if (status != DONE) return status;
    }
    if (c.rows) finish(call);
    return DONE;
  }

  void select(const void* from, const int32_t* places, int count, void* to) const {
    for (int i = 0; i < count; i++)
      __builtin_memcpy(row_of(to, i, d.hidden, d.format), row_of(from, places[i], d.hidden, d.format),
                       element_bytes(d.format) * d.hidden);
  }

  // Lets the call go on with the wanted rows alone.
  void keep(SublayerCall& call) const {
    select(x, c.wanted, c.rows, kept_x);
    select(stream, c.wanted, c.rows, kept_stream);
    call.x = call.out = kept_x, call.residual = call.sum = kept_stream, call.tokens = c.rows;
  }

  void finish(const SublayerCall& call) const {
    const NormCall norm = norm_call(call, d.norm, d.norm_format, d.eps, d.hidden, d.format, 0, c.rows, normed);
    atb_norm(&norm);
    if (d.head.outputs) head();
  }

  void head() const {
    LinearCall linear = multiply();
    linear.scratch = rows.scratch;
    atb_linear(&linear);
    if (!c.keys) return;
    const TopLogitsCall top = {c.out, c.keys, d.head.outputs, c.rows, d.head.outputs, c.count, 0, d.format, c.threads};
    atb_top_logits(&top);
  }

  LinearCall multiply() const {
    return linear_call(d.head, nullptr, 0, normed, d.format, c.rows, c.out, d.format, c.threads);
  }
};

API int atb_decoder(const DecoderModel* decoder, DecoderCall* call) {
  DecoderStep step(*decoder, *call);
  if (call->scratch_floats < step.floats) {
    call->scratch_floats = step.floats;
    return MORE_SCRATCH;
  }
  step.place(call->scratch);
  const int status = step.status();
  return status == DONE ? step.run() : status;
}
