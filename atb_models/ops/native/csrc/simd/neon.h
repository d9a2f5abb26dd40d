// Armv8.2 with half-precision conversions; the dot product of bfloat16 pairs where the compiler was told of it.
#pragma once

INLINE vf splat(float x) { return (vf)vdupq_n_f32(x); }
INLINE vi splat_bits(int32_t x) { return (vi)vdupq_n_s32(x); }
INLINE vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vf larger(vf a, vf b) {  // b where one is NaN
  return (vf)vbslq_f32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}
INLINE vf root(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
INLINE vf where(vi mask, vf a, vf b) { return (vf)vbslq_f32((uint32x4_t)mask, (float32x4_t)a, (float32x4_t)b); }
INLINE vi nearest(vf a) { return (vi)vcvtnq_s32_f32((float32x4_t)a); }
INLINE vf to_float(vi a) { return (vf)vcvtq_f32_s32((int32x4_t)a); }

INLINE vf load_half(const uint16_t* p) { return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE void store_half(uint16_t* p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v))); }
INLINE vi load_u16(const uint16_t* p) { return (vi)vmovl_u16(vld1_u16(p)); }
INLINE void store_u16(uint16_t* p, vi v) { vst1_u16(p, vmovn_u32((uint32x4_t)v)); }
INLINE vf load_i8(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}

// Sums of the lanes: neighbours are added, then the pairs, in this order in both functions.
INLINE float sum(vf v) {
  float32x4_t pairs = vpaddq_f32((float32x4_t)v, (float32x4_t)v);
  return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}
INLINE void sum_four(vf a, vf b, vf c, vf d, float* out) {
  vst1q_f32(out, vpaddq_f32(vpaddq_f32((float32x4_t)a, (float32x4_t)b), vpaddq_f32((float32x4_t)c, (float32x4_t)d)));
}

INLINE int largest_lane(vi v) { return vmaxvq_s32((int32x4_t)v); }
INLINE int sum_of_lanes(vi v) { return vaddvq_s32((int32x4_t)v); }

INLINE void relax() { asm volatile("yield"); }

#define HAS_INT8_DOT 1
// sum + the products of 4 int8.
INLINE vi dot_quads(vi sum, vi w, vi x) { return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
constexpr int I8_ZERO = 0;

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_BF16_DOT 1
INLINE vf dot_pairs(vf acc, vi a, vi b) {
  return (vf)vbfdotq_f32((float32x4_t)acc, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
// Pairs of the upper halves of two floats, `first` in the lower half: bfloat16 where the floats are exact in it.
INLINE vi join_upper_halves(vf first, vf second) { return (vi)vtrn2q_u16((uint16x8_t)first, (uint16x8_t)second); }
#endif
