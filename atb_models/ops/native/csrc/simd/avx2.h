// AVX2 with FMA and F16C.
#pragma once

INLINE vf splat(float x) { return (vf)_mm256_set1_ps(x); }
INLINE vi splat_bits(int32_t x) { return (vi)_mm256_set1_epi32(x); }
INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }  // b where one is NaN
INLINE vf root(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vf where(vi mask, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask); }
INLINE vi nearest(vf a) { return (vi)_mm256_cvtps_epi32((__m256)a); }
INLINE vf to_float(vi a) { return (vf)_mm256_cvtepi32_ps((__m256i)a); }

INLINE vf load_half(const uint16_t* p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
INLINE void store_half(uint16_t* p, vf v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vi load_u16(const uint16_t* p) { return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE void store_u16(uint16_t* p, vi v) {
  __m128i low = _mm256_castsi256_si128((__m256i)v), high = _mm256_extracti128_si256((__m256i)v, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(low, high));
}
INLINE vf load_i8(const int8_t* p) {
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

// Sums of the lanes: halves, quarters, ... are added to each other, in this order in both functions.
INLINE float sum(vf v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE void sum_four(vf a, vf b, vf c, vf d, float* out) {
  __m256 x = _mm256_add_ps(_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20),
                           _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31));
  __m256 y = _mm256_add_ps(_mm256_permute2f128_ps((__m256)c, (__m256)d, 0x20),
                           _mm256_permute2f128_ps((__m256)c, (__m256)d, 0x31));
  __m256 z = _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
  z = _mm256_add_ps(z, _mm256_permute_ps(z, 0xb1));  // a a c c, b b d d
  __m128 low = _mm256_castps256_ps128(z), high = _mm256_extractf128_ps(z, 1);
  _mm_storeu_ps(out, _mm_movelh_ps(_mm_unpacklo_ps(low, high), _mm_unpackhi_ps(low, high)));
}

INLINE int largest_lane(vi v) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
INLINE int sum_of_lanes(vi v) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

INLINE void relax() { _mm_pause(); }

constexpr int I8_ZERO = 0;
INLINE vi widen_i8(const int8_t* p) { return (vi)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
// sum + the products of 2 int16, each at most 32768 * 32767.
INLINE vi dot_pairs_of_i16(vi sum, vi w, vi x) { return sum + (vi)_mm256_madd_epi16((__m256i)w, (__m256i)x); }
// For each two bytes the sum of their products as an int16, which must hold it; bytes of `w` have no sign.
INLINE vi pair_products(vi w, vi x) { return (vi)_mm256_maddubs_epi16((__m256i)w, (__m256i)x); }
INLINE vi add_i16(vi a, vi b) { return (vi)_mm256_add_epi16((__m256i)a, (__m256i)b); }
INLINE vi add_neighbours(vi of_i16) { return (vi)_mm256_madd_epi16((__m256i)of_i16, _mm256_set1_epi16(1)); }
