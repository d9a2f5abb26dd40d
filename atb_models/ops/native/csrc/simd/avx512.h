// AVX-512 (F, BW, VL, DQ), and the dot product of bfloat16 pairs where the compiler was told of it.
#pragma once

INLINE vf splat(float x) { return (vf)_mm512_set1_ps(x); }
INLINE vi splat_bits(int32_t x) { return (vi)_mm512_set1_epi32(x); }
INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }  // b where one is NaN
INLINE vf root(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
INLINE vf where(vi mask, vf a, vf b) {
  return (vf)_mm512_mask_mov_ps((__m512)b, _mm512_movepi32_mask((__m512i)mask), (__m512)a);
}
INLINE vi nearest(vf a) { return (vi)_mm512_cvtps_epi32((__m512)a); }
INLINE vf to_float(vi a) { return (vf)_mm512_cvtepi32_ps((__m512i)a); }

INLINE vf load_half(const uint16_t* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void store_half(uint16_t* p, vf v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vi load_u16(const uint16_t* p) { return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
INLINE void store_u16(uint16_t* p, vi v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v)); }
INLINE vf load_i8(const int8_t* p) {
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// Sums of the lanes: halves, quarters, ... are added to each other, in this order in both functions.
INLINE float sum(vf v) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
INLINE void sum_four(vf a, vf b, vf c, vf d, float* out) {
  __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44),
                           _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee));
  __m512 y = _mm512_add_ps(_mm512_shuffle_f32x4((__m512)c, (__m512)d, 0x44),
                           _mm512_shuffle_f32x4((__m512)c, (__m512)d, 0xee));
  __m512 z = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
  z = _mm512_add_ps(z, _mm512_permute_ps(z, 0x4e));
  z = _mm512_add_ps(z, _mm512_permute_ps(z, 0xb1));
  const __m512i firsts = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, z)));
}

INLINE int largest_lane(vi v) { return _mm512_reduce_max_epi32((__m512i)v); }
INLINE int sum_of_lanes(vi v) { return _mm512_reduce_add_epi32((__m512i)v); }

INLINE void relax() { _mm_pause(); }

#define HAS_INT8_DOT 1
// sum + the products of 4 bytes, those of `w` without a sign: int8 weights are stored with I8_ZERO added.
INLINE vi dot_quads(vi sum, vi w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
constexpr int I8_ZERO = 128;

#if defined(__AVX512BF16__)
#define HAS_BF16_DOT 1
// acc + a1 b1 + a0 b0 in each lane, a and b being pairs of bfloat16; tiny numbers count as zero.
INLINE vf dot_pairs(vf acc, vi a, vi b) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
// Pairs of the upper halves of two floats, `first` in the lower half: bfloat16 where the floats are exact in it.
INLINE vi join_upper_halves(vf first, vf second) {
  const __m512i moved = _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302);  // bytes 2 and 3 of a lane to 0 and 1
  return (vi)_mm512_mask_shuffle_epi8((__m512i)second, 0x3333333333333333, (__m512i)first, moved);
}
#endif
