// The greatest logits of each row.
#include "api.h"
#include "formats.h"
#include "team.h"

constexpr int64_t FORK_ELEMENTS = 1 << 15;
constexpr int BLOCK = 4 * VL;  // logits that are compared with the least of the best together

// The best so far of a row, in falling order.
struct Best {
  int64_t* keys;
  int count;

  // What a further logit must exceed: ids rise, so that one that is equal comes behind.
  float least() const {
    if (keys[count - 1] == INT64_MIN) return -__builtin_inff();
    const int32_t ordered = (int32_t)(keys[count - 1] >> 32), bits = ordered < 0 ? ordered ^ 0x7fffffff : ordered;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }

  void insert(float value, uint32_t id) {
    const float number = value + 0.f;  // -0.0 becomes 0.0
    int32_t bits;
    __builtin_memcpy(&bits, &number, 4);
    const uint32_t ordered = (uint32_t)(bits < 0 ? bits ^ 0x7fffffff : bits);
    const int64_t key = (int64_t)((uint64_t)ordered << 32 | (0xffffffffu - id));
    int place = count - 1;
    for (; place > 0 && keys[place - 1] < key; place--) keys[place] = keys[place - 1];
    keys[place] = key;
  }
};

static bool any(vi mask) {
  int64_t words[VL / 2], joined = 0;
  __builtin_memcpy(words, &mask, sizeof(words));
  for (int64_t word : words) joined |= word;
  return joined != 0;
}

static int64_t total(vi counts) {
  int64_t sum = 0;
  for (int i = 0; i < VL; i++) sum += counts[i];
  return sum;
}

template <class X> static void best_of_row(const TopLogitsCall& c, int64_t row) {
  const auto* x = (const typename X::T*)c.x + row * c.x_row;
  Best best = {c.out + row * (c.count + 1), c.count};
  for (int k = 0; k < c.count; k++) best.keys[k] = INT64_MIN;
  float least = best.least(), block[BLOCK];
  vi not_finite = splat_bits(0), greatest = splat_bits(0);
  for (int i = 0; i < c.width; i += BLOCK) {
    vi better = splat_bits(0);
    for (int j = 0; j < BLOCK && i + j < c.width; j += VL) {
      const int n = c.width - i - j;
      const vf v = n < VL ? load_part<X>(x + i + j, n) : X::load(x + i + j);
      const vi odd = ((vi)v & 0x7fffffff) >= 0x7f800000;
      not_finite -= odd;
      greatest -= odd & ((vi)v != splat_bits((int32_t)0xff800000));
      better |= (v > splat(least)) & ~odd;
      store(block + j, v);
    }
    if (!any(better)) continue;
    for (int j = 0; j < BLOCK && i + j < c.width; j++)
      if (block[j] > least && block[j] < __builtin_inff()) {
        best.insert(block[j], (uint32_t)(c.first + i + j));
        least = best.least();
      }
  }
  best.keys[c.count] = total(not_finite) + total(greatest) * (INT64_C(1) << 32);
}

API int atb_top_logits(const TopLogitsCall* c) {
  with_format(c->format, [&](auto x) {
    parallel((int64_t)c->rows * c->width < FORK_ELEMENTS ? 1 : c->threads, [&](Team& team, int) {
      team.each(c->rows, [&](int64_t row) { best_of_row<decltype(x)>(*c, row); });
    });
  });
  return DONE;
}
