// Cosines and sines of rotary positions. The angle is a float32 product; what follows is computed in double, so that the
// results are those of float32 rounded once, for angles of any size that positions have.
#include "api.h"
#include "simd/simd.h"
#include "team.h"

// pi / 2 in three parts, the first two of 33 bits: times a whole number below 2^20 they are exact.
constexpr double HALF_PI_1 = 0x1.921fb544p+0, HALF_PI_2 = 0x1.0b4611a6p-34, HALF_PI_3 = 0x1.3198a2e037073p-69;
constexpr double TWO_OVER_PI = 0x1.45f306dc9c883p-1;
constexpr double ROUNDER = 0x1.8p+52;  // what is added to it loses its fraction
constexpr int FORK_ANGLES = 1 << 12;   // below it a second thread costs more than it brings

// Taylor's series; up to pi / 4 the first term that is left out is below 2^-44 of the result.
INLINE double series(double x2, const double* terms, int count) {
  double sum = terms[count - 1];
  for (int i = count - 2; i >= 0; i--) sum = sum * x2 + terms[i];
  return sum;
}
constexpr double SINE[] = {1, -1. / 6, 1. / 120, -1. / 5040, 1. / 362880, -1. / 39916800, 1. / 6227020800};
constexpr double COSINE[] = {1,           -1. / 2,       1. / 24,        -1. / 720,
                             1. / 40320, -1. / 3628800, 1. / 479001600, -1. / 87178291200};

INLINE void turn(float angle, float factor, float& to_cos, float& to_sin) {
  const double rounded = angle * TWO_OVER_PI + ROUNDER, quarters = rounded - ROUNDER;
  const double x = ((angle - quarters * HALF_PI_1) - quarters * HALF_PI_2) - quarters * HALF_PI_3, x2 = x * x;
  const float s = (float)(x * series(x2, SINE, 7)), c = (float)series(x2, COSINE, 8);
  const int quarter = (int)((int64_t)quarters & 3);
  const float turned_cos = quarter & 1 ? s : c, turned_sin = quarter & 1 ? c : s;
  to_cos = (quarter == 1 || quarter == 2 ? -turned_cos : turned_cos) * factor;
  to_sin = (quarter >= 2 ? -turned_sin : turned_sin) * factor;
}

API int atb_rope_tables(const RopeTablesCall* c) {
  const int threads = (int64_t)c->tokens * c->half < FORK_ANGLES ? 1 : c->threads;
  parallel(threads, [&](Team& team, int) {
    team.each(c->tokens, [&](int64_t row) {
      const float position = (float)c->positions[row];
      float *cos = c->cos + row * c->half, *sin = c->sin + row * c->half;
      for (int i = 0; i < c->half; i++) turn(position * c->frequencies[i], c->factor, cos[i], sin[i]);
    });
  });
  return DONE;
}
