// What the sublayers of a decoder layer share. Each runs the operations it is made of one after the other, so its results
// have their bits; what lies between them is scratch.
#pragma once
#include "api.h"
#include "simd/simd.h"

constexpr int ROWS_AT_A_TIME = 512;  // as many as Linear and the experts take: bounds the scratch

// What the call would refuse.
int attention_status(const AttentionCall& c);
int rope_status(const RopeCall& c);

// The norm of `heads` heads of each row from x on, where they are.
void norm_heads(const NormCall& norm, void* x, int64_t x_row, int heads);

// to += more, elementwise, rounded to their format.
void add_to(void* to, const void* more, int64_t elements, int format, int threads);

INLINE int64_t element_bytes(int format) { return format == FORMAT_F32 ? 4 : 2; }

// Row `row` of a matrix of elements of a format.
INLINE void* row_of(const void* matrix, int64_t row, int64_t row_elements, int format) {
  return (char*)matrix + row * row_elements * element_bytes(format);
}

// Cuts the scratch of a call into pieces. Before there is memory it counts what is needed.
class Pieces {
 public:
  explicit Pieces(float* memory) : memory_(memory) {}
  void* take(int64_t bytes) {
    void* piece = memory_ ? memory_ + floats_ : nullptr;
    floats_ += round_up(bytes, 64) / (int64_t)sizeof(float);
    return piece;
  }
  float* take_floats(int64_t floats) { return (float*)take(floats * sizeof(float)); }
  int64_t floats() const { return floats_; }

 private:
  float* memory_;
  int64_t floats_ = 0;
};

// The norm that a sublayer begins with, of `rows` rows from `start` on.
INLINE NormCall norm_call(const SublayerCall& c, const void* weight, int weight_format, float eps, int width, int format,
                          int start, int rows, void* out) {
  NormCall norm = {};
  norm.x = c.x ? row_of(c.x, start, c.x_row, format) : row_of(c.residual, start, c.residual_row, format);
  norm.x_row = c.x ? c.x_row : c.residual_row;
  if (c.x) {
    norm.residual = row_of(c.residual, start, c.residual_row, format), norm.residual_row = c.residual_row;
    norm.sum = row_of(c.sum, start, width, format);
  }
  norm.weight = weight, norm.weight_format = weight_format, norm.eps = eps;
  norm.out = out, norm.rows = rows, norm.width = width, norm.format = format, norm.threads = c.threads;
  return norm;
}

// x w^T + bias of rows that lie one after the other, into such rows.
INLINE LinearCall linear_call(const PanelWeight& weight, const void* bias, int bias_format, const void* x, int format,
                              int rows, void* out, int out_format, int threads) {
  LinearCall linear = {};
  linear.x = x, linear.weight = weight, linear.bias = bias, linear.out = out;
  linear.x_row = weight.inputs, linear.out_row = weight.outputs, linear.rows = rows;
  linear.x_format = format, linear.bias_format = bias_format, linear.out_format = out_format, linear.threads = threads;
  return linear;
}

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
