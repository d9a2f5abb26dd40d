// How the inputs of a weight are cut: into units, which have scales of their own, and those into pieces of at most
// K_BLOCK, whose sums are exact where products are of int8. Several small pieces make a block, at most K_BLOCK too.
#pragma once
#include "panels.h"

struct Cut {
  int inputs, unit;  // filled up

  int block(int at) const {
    const int left = inputs - at;
    return unit < K_BLOCK ? least(left, K_BLOCK / unit * unit) : least(left, least(K_BLOCK, unit - at % unit));
  }
  int piece() const { return least(unit, K_BLOCK); }  // inputs, but for the last of a unit
  // The number of the piece that begins at `at`, which is also that of pieces before it.
  int pieces_before(int at) const { return at / unit * pieces(unit, K_BLOCK) + pieces(at % unit, K_BLOCK); }
  int count() const { return pieces_before(inputs); }
  int units() const { return pieces(inputs, unit); }
};

// Lanes of 4 bytes that a row of activations takes beside a weight.
template <class W> INLINE int64_t row_lanes(const Cut& cut) {
  if constexpr (W::DIGITS > 0)
    return cut.inputs / W::Source::TOGETHER * W::DIGITS + cut.count() * (W::DIGITS + 2);
  else
    return cut.inputs * W::A_STEP / W::KI;
}
