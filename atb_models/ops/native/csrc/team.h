// Threads that work on one call. Every call is one fork; inside it work is handed out by a counter, because users run
// more ranks than cores: a thread that the system has put aside keeps the others waiting for one item, not for its share.
#pragma once
#include "simd/simd.h"

class Team {
 public:
  explicit Team(int threads) : size(threads) {}

  // Runs `work(item)` for each item of a stage, whichever thread is free. All threads must call it with the same count.
  template <class Work> void each(int64_t items, const Work& work) {
    for (int64_t i; (i = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED)) < items;) work(i);
  }
  // Waits until all threads are here; the next stage's items may then be handed out.
  void barrier();

  int size;

 private:
  alignas(64) int64_t next_ = 0;
  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
};

typedef void (*TeamBody)(void* context, Team& team, int thread);

// Runs `body` on up to `threads` threads and returns when all are done. team.size says how many there are.
void fork_team(int threads, TeamBody body, void* context);

template <class Body> void parallel(int threads, const Body& body) {
  auto call = [](void* context, Team& team, int thread) { (*(const Body*)context)(team, thread); };
  fork_team(threads, call, (void*)&body);
}
