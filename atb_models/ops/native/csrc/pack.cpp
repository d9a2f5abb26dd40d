// Weights into panels.
#include "api.h"
#include "products/dots.h"
#include "simd/zip.h"
#include "team.h"

static_assert(PANEL == 16, "a panel is transposed as 16 rows");
constexpr int LINE = 64;     // bytes of a row that are read together
constexpr int AHEAD = 2048;  // bytes of the panel that are brought to the cache before they are written

// A line of `bytes` of each row: what lies beyond the outputs and inputs is zero.
static void copy_lines(const char* from, int64_t row, int outputs, int64_t bytes, char (*lines)[LINE]) {
  for (int o = 0; o < outputs; o++) {
    if (bytes >= LINE) {
      __builtin_prefetch(from + o * row + 4 * LINE);
      __builtin_memcpy(lines[o], from + o * row, LINE);
    } else {
      __builtin_memset(lines[o], 0, LINE);
      __builtin_memcpy(lines[o], from + o * row, bytes);
    }
  }
}

// `bytes` of an element; UNIT: of what stays together, one or more elements. `zero` is added to each byte. Rows often lie
// a multiple of 4096 bytes apart and compete for a few places of the first cache, so a line of each is copied before it
// is used.
template <int UNIT> static void pack_panel(const PackCall& c, int panel, int bytes, int zero = 0) {
  const int64_t row = c.source_row * bytes, inputs = (int64_t)c.inputs * bytes, filled = round_up(c.inputs, K_STEP) * bytes;
  const char* from = (const char*)c.source + panel * PANEL * row;
  char* to = (char*)c.to + (int64_t)panel * c.step * PANEL * filled;
  alignas(LINE) char lines[PANEL][LINE] = {};
  for (int64_t k = 0; k < filled; k += LINE) {
    copy_lines(from + k, row, least(PANEL, c.outputs - panel * PANEL), inputs - k, lines);
    for (int at = 0; at < LINE && k + at < filled; at += 16) {
      Bytes16 rows[PANEL];
      for (int i = 0; i < 256; i += 64) __builtin_prefetch(to + AHEAD + i, 1);
      UNROLL for (int o = 0; o < PANEL; o++) rows[o] = load_bytes(lines[o] + at);
      transpose<UNIT>(rows);
      const int count = (int)(filled - k - at < 16 ? filled - k - at : 16);  // a multiple of K_STEP in the last column
      for (int i = 0; i < count; i++) store_bytes(to + 16 * i, zero ? add_to_bytes(rows[i], zero) : rows[i]);
      to += 16 * count;
    }
  }
}

// 8 integers from -8 to 7 as 4 bytes: see dots.h.
INLINE void join_halves(const char* integers, char* to) {
  uint32_t low, high;
  __builtin_memcpy(&low, integers, 4);
  __builtin_memcpy(&high, integers + 4, 4);
  const uint32_t bytes = ((low & 0x0f0f0f0f) | ((high & 0x0f0f0f0f) << 4)) ^ 0x88888888;
  __builtin_memcpy(to, &bytes, 4);
}

// int8 to weights of 4 bits.
static void pack_panel_of_i4(const PackCall& c, int panel) {
  const int64_t filled = round_up(c.inputs, QuadsOfI4::KI);
  const char* from = (const char*)c.source + panel * PANEL * c.source_row;
  char* to = (char*)c.to + (int64_t)panel * c.step * PANEL * filled / 2;
  alignas(LINE) char lines[PANEL][LINE] = {};
  for (int64_t k = 0; k < filled; k += LINE) {
    copy_lines(from + k, c.source_row, least(PANEL, c.outputs - panel * PANEL), c.inputs - k, lines);
    for (int at = 0; at < LINE && k + at < filled; at += 32) {
      Bytes16 rows[PANEL];
      for (int o = 0; o < PANEL; o++) {
        alignas(16) char joined[16];
        for (int i = 0; i < 4; i++) join_halves(lines[o] + at + 8 * i, joined + 4 * i);
        rows[o] = load_bytes(joined);
      }
      transpose<4>(rows);
      const int count = (int)(filled - k - at < 32 ? filled - k - at : 32) / 2;
      for (int i = 0; i < count; i++) store_bytes(to + 16 * i, rows[i]);
      to += 16 * count;
    }
  }
}

API int atb_pack(const PackCall* c) {
  parallel(c->threads, [&](Team& team, int) {
    team.each(pieces(c->outputs, PANEL), [&](int64_t panel) {
      switch (c->format) {
        case FORMAT_F16: pack_panel<2>(*c, (int)panel, 2); break;
        case FORMAT_BF16: pack_panel<4>(*c, (int)panel, 2); break;
        case FORMAT_I8: pack_panel<1>(*c, (int)panel, 1); break;
        case FORMAT_I8_DOTS: pack_panel<DotsOfI8::TOGETHER>(*c, (int)panel, 1, DotsOfI8::ZERO); break;
        case FORMAT_I4: pack_panel_of_i4(*c, (int)panel); break;
        default: pack_panel<4>(*c, (int)panel, 4);
      }
    });
  });
  return DONE;
}
