// Vectors of 16 bytes and what transposes them, the same for all levels of a machine.
#pragma once
#include "simd.h"

// zip_low<UNIT>(a, b) holds a0 b0 a1 b1 ... of the lower halves of a and b, zip_high that of the upper halves; an
// element has UNIT bytes: 1, 2 or 4.
#if defined(__aarch64__)
typedef uint8x16_t Bytes16;
INLINE Bytes16 load_bytes(const void* p) { return vld1q_u8((const uint8_t*)p); }
INLINE void store_bytes(void* p, Bytes16 v) { vst1q_u8((uint8_t*)p, v); }
template <int UNIT> INLINE Bytes16 zip_low(Bytes16 a, Bytes16 b) {
  if (UNIT == 1) return vzip1q_u8(a, b);
  if (UNIT == 2) return (Bytes16)vzip1q_u16((uint16x8_t)a, (uint16x8_t)b);
  return (Bytes16)vzip1q_u32((uint32x4_t)a, (uint32x4_t)b);
}
template <int UNIT> INLINE Bytes16 zip_high(Bytes16 a, Bytes16 b) {
  if (UNIT == 1) return vzip2q_u8(a, b);
  if (UNIT == 2) return (Bytes16)vzip2q_u16((uint16x8_t)a, (uint16x8_t)b);
  return (Bytes16)vzip2q_u32((uint32x4_t)a, (uint32x4_t)b);
}
INLINE Bytes16 add_to_bytes(Bytes16 v, int n) { return vaddq_u8(v, vdupq_n_u8((uint8_t)n)); }
// 4 integers of 4 bytes: their first bytes side by side, then their second ones, ...
INLINE Bytes16 bytes_together(Bytes16 v) {
  static const uint8_t from[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return vqtbl1q_u8(v, vld1q_u8(from));
}
#else
typedef __m128i Bytes16;
INLINE Bytes16 load_bytes(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
INLINE void store_bytes(void* p, Bytes16 v) { _mm_storeu_si128((__m128i*)p, v); }
template <int UNIT> INLINE Bytes16 zip_low(Bytes16 a, Bytes16 b) {
  return UNIT == 1 ? _mm_unpacklo_epi8(a, b) : UNIT == 2 ? _mm_unpacklo_epi16(a, b) : _mm_unpacklo_epi32(a, b);
}
template <int UNIT> INLINE Bytes16 zip_high(Bytes16 a, Bytes16 b) {
  return UNIT == 1 ? _mm_unpackhi_epi8(a, b) : UNIT == 2 ? _mm_unpackhi_epi16(a, b) : _mm_unpackhi_epi32(a, b);
}
INLINE Bytes16 add_to_bytes(Bytes16 v, int n) { return _mm_add_epi8(v, _mm_set1_epi8((char)n)); }
INLINE Bytes16 bytes_together(Bytes16 v) {
  return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}
#endif

// 16 rows of 16 / UNIT elements become 16 / UNIT rows of 16 elements. Joining the first half of all elements with the
// second in turns moves the highest bit of an element's number to its lowest place; after four times all four bits of
// the row stand below those of the column.
template <int UNIT> INLINE void transpose(Bytes16 (&rows)[16]) {
  UNROLL for (int bit = 0; bit < 4; bit++) {
    Bytes16 joined[16];
    UNROLL for (int i = 0; i < 8; i++) {
      joined[2 * i] = zip_low<UNIT>(rows[i], rows[i + 8]);
      joined[2 * i + 1] = zip_high<UNIT>(rows[i], rows[i + 8]);
    }
    UNROLL for (int i = 0; i < 16; i++) rows[i] = joined[i];
  }
}
