// What this machine can do at most: loops that do nothing but read, or multiply and add, in registers.
//
// All threads run a loop for a while, in pieces of a few microseconds. Time is cut into windows, and the pieces of those
// threads are counted that no other process interrupted in a window. Of the windows with the most such threads the best
// gives the rate. Of multiplications the threads that are missing in it count as much as those that are there. Of reads
// they do not: the memory is shared, so one thread alone reads more than its part.
// The loops are functions of their own, so that a test can look at their instructions.
#include "api.h"
#include "simd/simd.h"
#include "team.h"
#include <time.h>

#define LOOP extern "C" __attribute__((visibility("default"), noinline))

// Sums that do not depend on each other: enough to hide an instruction's latency. Beside them two factors in registers.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int CHAINS = 12;
#else
constexpr int CHAINS = 16;
#endif

constexpr int PLACES = 4;  // read at a time, as kernels do
constexpr int64_t PLACE = 1 << 17, PART = PLACES * PLACE;
constexpr int64_t STEPS = 500;
constexpr int MOST_WINDOWS = 1024, ATTEMPTS = 3, READ_ATTEMPTS = 2;
constexpr int64_t WINDOW_NS = 1000000, PAUSE_NS = 250000;
constexpr int32_t FACTOR = 0x3f8d3f8d;  // about 1.1 as a float and as a pair of bfloat16

// The compiler must take `x` for changed, so that it can neither leave out a step nor join two.
#if defined(__x86_64__)
#define OPAQUE(x) asm volatile("" : "+v"(x))
#else
#define OPAQUE(x) asm volatile("" : "+w"(x))
#endif

LOOP void atb_loop_read(const char* p) {
  vi seen[PLACES] = {};
  for (int64_t i = 0; i < PLACE; i += 64)
    UNROLL for (int j = 0; j < PLACES; j++) {
      __builtin_prefetch(p + j * PLACE + i + 1024, 0, 2);  // into the second-level cache: more at a time are on their way
      UNROLL for (int k = 0; k < 64; k += (int)sizeof(vi)) seen[j] ^= load_bits(p + j * PLACE + i + k);
    }
  UNROLL for (int j = 0; j < PLACES; j++) OPAQUE(seen[j]);
}

template <class V, class Step> INLINE void run_chains(const Step& step) {
  V chain[CHAINS] = {}, a = (V)splat_bits(FACTOR), b = (V)splat_bits(FACTOR);
  OPAQUE(a);
  OPAQUE(b);
  for (int64_t s = 0; s < STEPS; s++) UNROLL for (int i = 0; i < CHAINS; i++) {
    chain[i] = step(chain[i], a, b);
    OPAQUE(chain[i]);
  }
}

LOOP void atb_loop_floats() {
  run_chains<vf>([](vf c, vf a, vf b) { return fma(a, b, c); });
}

#ifdef HAS_BF16_DOT
LOOP void atb_loop_bf16() {
  run_chains<vf>([](vf c, vf a, vf b) { return dot_pairs(c, (vi)a, (vi)b); });
}
#endif

#ifdef HAS_INT8_DOT
LOOP void atb_loop_int8() {
  run_chains<vi>([](vi c, vi a, vi b) { return dot_quads(c, a, b); });
}
#endif

static int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * (int64_t)1000000000 + time.tv_nsec;
}

struct Window {
  int64_t pieces, threads;  // of the threads that were not interrupted in it
};

// Runs `piece(i)` on the calling thread until `windows` are over, and enters what it did into those without a pause.
template <class Piece>
static void fill_windows(Window* of, int windows, int64_t since, int64_t* next, const Piece& piece) {
  int64_t in = 0, pieces = 0, last = since;  // a late start is a pause
  bool paused = false;
  while (in < windows) {
    piece(__atomic_fetch_add(next, 1, __ATOMIC_RELAXED));
    const int64_t now = now_ns(), window = (now - since) / WINDOW_NS;
    const bool pause = now - last > PAUSE_NS;
    if (window != in) {
      if (!paused && !pause) {
        __atomic_fetch_add(&of[in].pieces, pieces, __ATOMIC_RELAXED);
        __atomic_fetch_add(&of[in].threads, 1, __ATOMIC_RELAXED);
      }
      in = window;
      pieces = 0;
      paused = false;
    }
    paused |= pause;
    pieces++;
    last = now;
  }
}

// Pieces per second of the threads of the best window; `together` becomes their number, 0 where pieces take longer than a
// pause, as in an emulator: then all that was done counts. `of` becomes the number of threads that were started.
template <class Piece>
static double best_rate(int windows, int threads, int attempts, int32_t* together, int* of, const Piece& piece) {
  windows = least(most(windows, 1), MOST_WINDOWS);
  Window best = {}, all[MOST_WINDOWS] = {};
  int size = 1;
  int64_t since = 0, next = 0;
  for (int attempt = 0; best.threads == 0 ? attempt < ATTEMPTS : best.threads < size && attempt < attempts; attempt++) {
    for (Window& window : all) window = Window{};
    since = next = 0;
    parallel(threads, [&](Team& team, int) {
      team.barrier();
      int64_t unset = 0;
      __atomic_compare_exchange_n(&since, &unset, now_ns(), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
      __atomic_store_n(&size, team.size, __ATOMIC_RELAXED);
      fill_windows(all, windows, __atomic_load_n(&since, __ATOMIC_RELAXED), &next, piece);
    });
    for (int i = 0; i < windows; i++)
      if (all[i].threads > best.threads || (all[i].threads == best.threads && all[i].pieces > best.pieces))
        best = all[i];
  }
  *together = (int32_t)best.threads;
  *of = size;
  return best.threads == 0 ? next * 1e9 / (now_ns() - since) : best.pieces * (1e9 / WINDOW_NS);
}

static double chains_rate(int windows, int threads, int32_t* together, void (*loop)(), double lane_operations) {
  int of = 1;
  const double loops = best_rate(windows, threads, 1, together, &of, [&](int64_t) { loop(); });
  return (*together ? loops / *together * of : loops) * lane_operations * VL * CHAINS * STEPS;
}

// Each measures for `windows` of a millisecond on `threads` threads.
// Bytes per second; of `from` whole parts are read, one after the other, again and again.
API double atb_limit_read(const char* from, int64_t bytes, int windows, int threads, int32_t* together) {
  const int64_t parts = bytes / PART;
  if (parts == 0) return 0;
  int of = 1;
  const auto read = [&](int64_t i) { atb_loop_read(from + i % parts * PART); };
  return PART * best_rate(windows, threads, READ_ATTEMPTS, together, &of, read);
}

// Operations per second, a multiplication and an addition counting two; 0 where the set has no such instruction.
API double atb_limit_floats(int windows, int threads, int32_t* together) {
  return chains_rate(windows, threads, together, atb_loop_floats, 2);
}

API double atb_limit_bf16(int windows, int threads, int32_t* together) {
#ifdef HAS_BF16_DOT
  return chains_rate(windows, threads, together, atb_loop_bf16, 4);
#else
  (void)windows, (void)threads, (void)together;
  return 0;
#endif
}

API double atb_limit_int8(int windows, int threads, int32_t* together) {
#ifdef HAS_INT8_DOT
  return chains_rate(windows, threads, together, atb_loop_int8, 8);
#else
  (void)windows, (void)threads, (void)together;
  return 0;
#endif
}
