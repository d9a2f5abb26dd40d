// Vectors of floats for the instruction set that this file is compiled for.
//
// vf and vi are compiler vectors of VL lanes, so + - * on them need no names. What the compilers lack has one inline
// function each, spelt in the header of the set. A multiplication and an addition are never joined by the compiler
// (-ffp-contract=off): where `fma` stands, every level and every form of a kernel rounds once.
#pragma once
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(VL * 4), aligned(1), may_alias));

INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
INLINE void store(float* p, vf v) { *(vf_unaligned*)p = v; }
INLINE vi load_bits(const void* p) { return *(const vi_unaligned*)p; }
INLINE void store_bits(void* p, vi v) { *(vi_unaligned*)p = v; }

// `x`, which the compiler must take for changed: it keeps it in a register and does not load it again for every use.
template <class V> INLINE V in_register(V x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#else
  asm("" : "+w"(x));
#endif
  return x;
}

#if defined(__AVX512F__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__aarch64__)
#include "neon.h"
#else
#error "no instruction set that the kernels know"
#endif

INLINE vf zeros() { return splat(0.f); }
INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }
INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE int pieces(int64_t n, int64_t of) { return (int)((n + of - 1) / of); }

// e^x within 2 units in the last place; e^-86 where x is smaller, infinity above 88.7, NaN for NaN.
// n = round(x / ln 2), then the Taylor polynomial of e^r, |r| <= ln(2) / 2, and n added to the exponent.
INLINE vf exponential(vf x) {
  vf bounded = larger(splat(-86.f), x);
  vi n = nearest(bounded * splat(1.44269504f));
  vf r = fma(to_float(n), splat(-0.693145752f), bounded);  // ln 2 in two parts: the first times n is exact
  r = fma(to_float(n), splat(-1.42860677e-6f), r);
  vf p = splat(1.f / 5040);
  p = fma(p, r, splat(1.f / 720));
  p = fma(p, r, splat(1.f / 120));
  p = fma(p, r, splat(1.f / 24));
  p = fma(p, r, splat(1.f / 6));
  p = fma(p, r, splat(.5f));
  p = fma(p, r, splat(1.f));
  p = fma(p, r, splat(1.f));
  vf scaled = (vf)((vi)p + ((n - 1) << 23)) * splat(2.f);  // n = 128 alone does not fit an exponent
  return where(x > splat(88.72283f), splat(__builtin_inff()), where(x != x, x, scaled));
}

INLINE float exponential(float x) { return exponential(splat(x))[0]; }
INLINE vf sigmoid(vf x) { return splat(1.f) / (splat(1.f) + exponential(-x)); }

// Number formats in memory. `load` gives floats, `store` rounds to the nearest, ties to even.
struct F32 {
  typedef float T;
  INLINE vf load(const T* p) { return ::load(p); }
  INLINE void store(T* p, vf v) { ::store(p, v); }
};
struct F16 {
  typedef uint16_t T;
  INLINE vf load(const T* p) { return load_half(p); }
  INLINE void store(T* p, vf v) { store_half(p, v); }
};
struct BF16 {
  typedef uint16_t T;
  INLINE vf load(const T* p) { return (vf)(load_u16(p) << 16); }
  INLINE void store(T* p, vf v) {
    vi bits = (vi)v;
    vi even = bits + 0x7fff + ((bits >> 16) & 1);
    vi nan = (bits >> 16) | 0x40;  // a carry out of a NaN's fraction would make it another number
    store_u16(p, (vi)where(v != v, (vf)nan, (vf)((vi)even >> 16)) & 0xffff);
  }
};
struct I8 {
  typedef int8_t T;
  INLINE vf load(const T* p) { return load_i8(p); }
};

// The first n < VL lanes; the others are zero and their memory is not touched.
template <class X> INLINE vf load_part(const typename X::T* p, int n) {
  typename X::T lanes[VL] = {};
  __builtin_memcpy(lanes, p, n * sizeof(lanes[0]));
  return X::load(lanes);
}
template <class X> INLINE void store_part(typename X::T* p, vf v, int n) {
  typename X::T lanes[VL];
  X::store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(lanes[0]));
}

// n elements of format X as floats, `to` being zero-filled up to `padded`.
template <class X> INLINE void widen(const typename X::T* from, int n, float* to, int padded) {
  int i = 0;
  for (; i + VL <= n; i += VL) store(to + i, X::load(from + i));
  if (i < n) {
    float rest[VL];
    store(rest, load_part<X>(from + i, n - i));
    for (int j = 0; i < n; i++, j++) to[i] = rest[j];
  }
  for (; i < padded; i++) to[i] = 0;
}

// n floats to format X.
template <class X> INLINE void narrow(const float* from, int n, typename X::T* to) {
  int i = 0;
  for (; i + VL <= n; i += VL) X::store(to + i, load(from + i));
  if (i < n) store_part<X>(to + i, load_part<F32>(from + i, n - i), n - i);
}
