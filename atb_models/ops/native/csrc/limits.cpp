// What this machine can do at most: loops that do nothing but read, or multiply and add, in registers.
#include "api.h"
#include "simd/simd.h"
#include "team.h"

constexpr int CHAINS = 12;  // independent of each other: enough to hide an instruction's latency

// The compiler must take `x` for changed, so that it can neither leave out a step nor join two.
#if defined(__x86_64__)
#define OPAQUE(x) asm volatile("" : "+v"(x))
#else
#define OPAQUE(x) asm volatile("" : "+w"(x))
#endif

// Reads `bytes` once, in parts that are handed to the threads; of a part several places at a time, as kernels do.
API void atb_read_memory(const char* from, int64_t bytes, int threads) {
  parallel(threads, [&](Team& team, int) {
    constexpr int PLACES = 4;
    constexpr int64_t PLACE = 1 << 18, PART = PLACES * PLACE;
    team.each(bytes / PART, [&](int64_t part) {
      const char* p = from + part * PART;
      vi seen[PLACES] = {};
      for (int64_t i = 0; i < PLACE; i += 64)
        UNROLL for (int j = 0; j < PLACES; j++) {
          __builtin_prefetch(p + j * PLACE + i + 2048);
          UNROLL for (int k = 0; k < 64; k += (int)sizeof(vi)) seen[j] ^= load_bits(p + j * PLACE + i + k);
        }
      UNROLL for (int j = 0; j < PLACES; j++) OPAQUE(seen[j]);
    });
  });
}

template <class V, class Step> static void run_chains(int64_t steps, int threads, const Step& step) {
  parallel(threads, [&](Team& team, int) {
    team.each(threads, [&](int64_t) {
      V chain[CHAINS] = {}, a = {}, b = {};
      UNROLL for (int i = 0; i < CHAINS; i++) OPAQUE(chain[i]);
      OPAQUE(a);
      OPAQUE(b);
      for (int64_t s = 0; s < steps; s++) UNROLL for (int i = 0; i < CHAINS; i++) {
        chain[i] = step(chain[i], a, b);
        OPAQUE(chain[i]);
      }
    });
  });
}

// The three return the operations done, a multiplication and an addition counting two, or 0 where the set lacks them.
API double atb_multiply_floats(int64_t steps, int threads) {
  run_chains<vf>(steps, threads, [](vf c, vf a, vf b) { return fma(a, b, c); });
  return 2. * VL * CHAINS * steps * threads;
}

API double atb_dot_bf16(int64_t steps, int threads) {
#ifdef HAS_BF16_DOT
  run_chains<vf>(steps, threads, [](vf c, vf a, vf b) { return dot_pairs(c, (vi)a, (vi)b); });
  return 4. * VL * CHAINS * steps * threads;
#else
  (void)steps, (void)threads;
  return 0;
#endif
}

API double atb_dot_int8(int64_t steps, int threads) {
#if defined(__AVX512VNNI__)
  run_chains<vi>(steps, threads,
                 [](vi c, vi a, vi b) { return (vi)_mm512_dpbusd_epi32((__m512i)c, (__m512i)a, (__m512i)b); });
  return 8. * VL * CHAINS * steps * threads;
#elif defined(__ARM_FEATURE_DOTPROD)
  run_chains<vi>(steps, threads,
                 [](vi c, vi a, vi b) { return (vi)vdotq_s32((int32x4_t)c, (int8x16_t)a, (int8x16_t)b); });
  return 8. * VL * CHAINS * steps * threads;
#else
  (void)steps, (void)threads;
  return 0;
#endif
}
