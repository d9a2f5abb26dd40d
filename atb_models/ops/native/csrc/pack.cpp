// Weights into panels.
#include "api.h"
#include "panels.h"
#include "team.h"

template <class T, int KI> static void pack_panel(const PackCall& c, int panel) {
  const int filled = (int)round_up(c.inputs, K_STEP), outputs = least(PANEL, c.outputs - panel * PANEL);
  const T* from = (const T*)c.source + (int64_t)panel * PANEL * c.source_row;
  T* to = (T*)c.to + (int64_t)panel * c.step * PANEL * filled;
  for (int k = 0; k < filled; k += KI)
    for (int o = 0; o < PANEL; o++)
      for (int i = 0; i < KI; i++)
        *to++ = o < outputs && k + i < c.inputs ? from[o * c.source_row + k + i] : (T)0;
}

API int atb_pack(const PackCall* c) {
  parallel(c->threads, [&](Team& team, int) {
    team.each(pieces(c->outputs, PANEL), [&](int64_t panel) {
      switch (c->format) {
        case FORMAT_F16: pack_panel<uint16_t, 1>(*c, (int)panel); break;
        case FORMAT_BF16: pack_panel<uint16_t, 2>(*c, (int)panel); break;
        case FORMAT_I8: pack_panel<int8_t, 1>(*c, (int)panel); break;
        default: pack_panel<float, 1>(*c, (int)panel);
      }
    });
  });
  return DONE;
}
