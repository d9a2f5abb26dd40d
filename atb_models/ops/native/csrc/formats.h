// From the formats that a call names to the types that the kernels are written for.
#pragma once
#include "api.h"
#include "products/dots.h"

// Calls `call` with F32(), F16() or BF16().
template <class Call> INLINE void with_format(int format, const Call& call) {
  switch (format) {
    case FORMAT_F16: call(F16()); break;
    case FORMAT_BF16: call(BF16()); break;
    default: call(F32());
  }
}

// Calls `call` with the form of a weight beside activations of a format.
template <class Call> INLINE int64_t with_weight(const PanelWeight& weight, int activations, const Call& call) {
  switch (weight.format) {
    case FORMAT_F16: return call(Plain<F16>());
    case FORMAT_I8: return activations == FORMAT_BF16 ? call(I8BesideBF16()) : call(Plain<I8>());
    case FORMAT_BF16: return call(PairsOfBF16());
    case FORMAT_I4: return call(Dots<QuadsOfI4, 3>());
    case FORMAT_I8_DOTS:
      return weight.activations == ACTIVATIONS_FLOAT ? call(Dots<DotsOfI8, 3>()) : call(Dots<DotsOfI8, 1>());
    default: return call(Plain<F32>());
  }
}
