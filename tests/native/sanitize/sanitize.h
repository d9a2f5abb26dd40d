// Numbers in memory of exactly their size, and how results are compared, for sanitize.cpp.
#pragma once
#include "api.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__)
typedef __fp16 Half;
#else
typedef _Float16 Half;
#endif

static uint32_t state = 1;
static float random_float() {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / (1 << 23) - 1;
}

// Floats, and the same numbers in a format: memory that ends where the numbers end.
struct Numbers {
  int64_t count;
  int format;
  float* floats;
  char* data;
  Numbers(int64_t n, int f) : count(n), format(f), floats((float*)malloc(n * 4)), data((char*)malloc(n * size())) {
    for (int64_t i = 0; i < n; i++) set(i, random_float());
  }
  ~Numbers() {
    free(floats);
    free(data);
  }
  bool integers() const { return format == FORMAT_I8 || format == FORMAT_I4 || format >= FORMAT_I8_DOTS; }
  int size() const { return format == FORMAT_F32 ? 4 : integers() ? 1 : 2; }
  void set(int64_t i, float x) {
    if (format == FORMAT_F32) {
      memcpy(data + 4 * i, &x, 4);
    } else if (integers()) {
      data[i] = (char)(signed char)(x * (format == FORMAT_I4 ? 8 : 100));
    } else if (format == FORMAT_BF16) {
      uint32_t bits;
      memcpy(&bits, &x, 4);
      const uint16_t high = (uint16_t)(bits >> 16);
      memcpy(data + 2 * i, &high, 2);
    } else {
      const Half half = (Half)x;
      memcpy(data + 2 * i, &half, 2);
    }
    floats[i] = get(i);
  }
  float get(int64_t i) const {
    if (integers()) return (float)(signed char)data[i];
    if (format == FORMAT_F32) {
      float x;
      memcpy(&x, data + 4 * i, 4);
      return x;
    }
    uint16_t bits;
    memcpy(&bits, data + 2 * i, 2);
    if (format == FORMAT_F16) {
      Half half;
      memcpy(&half, &bits, 2);
      return (float)half;
    }
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
  }
};

static double tolerance(int format) { return format == FORMAT_F32 ? 1e-5 : format == FORMAT_F16 ? 2e-3 : 2e-2; }
static int failures = 0;
static double worst = 0;
// int8 activations are wrong by up to a 254th of the largest, whatever the format.
static void compare(double ours, double exact, int format, int stored = FORMAT_F32) {
  const double error = fabs(ours - exact) / (1 + fabs(exact)) / (stored == FORMAT_I8_DOTS ? .1 : tolerance(format));
  if (!(error <= worst)) worst = error;
}
static void report(const char* name) {
  printf("%s: %.2f of the tolerance\n", name, worst);
  failures += !(worst <= 1);
  worst = 0;
}
template <class Call> static void with_scratch(Call& call, int64_t (*size)(const Call*), int (*run)(const Call*)) {
  call.scratch = (float*)malloc(size(&call) * sizeof(float));
  failures += run(&call) != DONE;
  free(call.scratch);
}

static const int FLOATS[] = {FORMAT_F32, FORMAT_F16, FORMAT_BF16};

// Stored like FORMAT_I8_DOTS, beside floats.
enum { I8_BESIDE_FLOATS = 100 };

static int64_t panel_bytes(int format, int inputs) {
  if (format == FORMAT_I4) return (int64_t)8 * ((inputs + 7) / 8 * 8);
  return (int64_t)16 * ((inputs + 3) / 4 * 4) * (format == FORMAT_F32 ? 4 : format == FORMAT_F16 || format == FORMAT_BF16 ? 2 : 1);
}

static char* packed(const Numbers& from, int outputs, int inputs, int step, int part, char* into) {
  const int64_t panel = panel_bytes(from.format, inputs);
  char* to = into ? into : (char*)malloc(panel * ((outputs + 15) / 16) * step);
  PackCall c = {from.data + (int64_t)part * outputs * inputs * from.size(), to + part * panel, inputs, outputs, inputs,
                step, from.format == I8_BESIDE_FLOATS ? (int)FORMAT_I8_DOTS : from.format, 2};
  failures += atb_pack(&c) != DONE;
  return to;
}

// Scales of a packed weight, those of panels being all the same but for the unit of inputs; and what a unit's is.
struct PanelScales {
  enum { UNIT = 8 };
  int format, units, activations;
  Numbers scale, offset;
  static bool by_unit(int stored) { return stored == FORMAT_I4 || stored == I8_BESIDE_FLOATS; }
  PanelScales(int stored, int outputs, int inputs)
      : format(stored == I8_BESIDE_FLOATS ? (int)FORMAT_I8_DOTS : stored),
        units(by_unit(stored) ? (inputs + UNIT - 1) / UNIT : 1),
        activations(by_unit(stored) ? ACTIVATIONS_FLOAT : ACTIVATIONS_TOKEN),
        scale((int64_t)(stored == FORMAT_I8 ? outputs : (outputs + 15) / 16 * 16 * units), FORMAT_F32),
        offset(scale.count, FORMAT_F32) {
    for (int64_t i = 0; i < scale.count; i++) scale.set(i, value(i)), offset.set(i, (float)(unit(i) % 3 - 1));
  }
  int unit(int64_t i) const { return (int)(i / 16 % units); }
  float value(int64_t i) const { return .01f * (float)(1 + unit(i) % 2); }
  // What a stored number beside an input stands for.
  double exact(double value, int input) const {
    if (format == FORMAT_I8) return value * .01f;
    if (format != FORMAT_I4 && format != FORMAT_I8_DOTS) return value;
    const int of = activations == ACTIVATIONS_FLOAT ? input / UNIT : 0;
    return (value - (of % 3 - 1)) * (.01f * (float)(1 + of % 2));
  }
  PanelWeight weight(const char* data, int outputs, int inputs) const {
    PanelWeight w = {};
    w.data = data, w.outputs = outputs, w.inputs = inputs, w.format = format, w.unit = UNIT;
    w.activations = activations;
    if (format == FORMAT_I8 || format == FORMAT_I4 || format == FORMAT_I8_DOTS) w.scale = scale.floats;
    if (format == FORMAT_I4 || format == FORMAT_I8_DOTS) w.offset = offset.floats;
    return w;
  }
};

static const float* const_floats(int count, float value) {
  float* made = (float*)malloc(count * sizeof(float));
  for (int i = 0; i < count; i++) made[i] = value;
  return made;
}

// Scales of int8 vectors, none for floats; they multiply what the vectors hold.
static Scales scales(Numbers& of, int stored, int size, int heads) {
  for (int64_t i = 0; i < of.count; i++) of.set(i, stored == FORMAT_I8 ? .005f * (3 + of.floats[i]) : 1);
  return {stored == FORMAT_I8 ? of.floats : nullptr, size * heads, heads, 1};
}
