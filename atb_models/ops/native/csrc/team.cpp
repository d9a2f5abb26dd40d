// The fork is that of the OpenMP runtime which torch has loaded, so that there is one set of threads in the process;
// where there is none, threads are started for the call.
#include "team.h"
#include "api.h"
#include <pthread.h>
#include <sched.h>

// The oldest versions of these: a compiler would take those of the machine it runs on, which glibc below 2.34 lacks.
#if defined(__x86_64__)
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5\n.symver pthread_join,pthread_join@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver pthread_create,pthread_create@GLIBC_2.17\n.symver pthread_join,pthread_join@GLIBC_2.17");
#endif

typedef void (*ParallelRegion)(void (*)(void*), void*, unsigned, unsigned);
static ParallelRegion parallel_region = nullptr;
static int (*threads_in_region)() = nullptr;

constexpr int MAX_STARTED = 256;
constexpr int SPINS = 200;  // about 2 microseconds, then the core is offered to others

API void atb_use_openmp(void* parallel, void* num_threads) {
  parallel_region = (ParallelRegion)parallel;
  threads_in_region = (int (*)())num_threads;
}

void Team::barrier() {
  int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == size) {
    arrived_ = 0;
    next_ = 0;
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; spins++) {
    if (spins < SPINS)
      relax();
    else
      sched_yield();
  }
}

struct Region {
  Team team;
  TeamBody body;
  void* context;
  int entered;
  int size_known;  // whether team.size is set
};

static void enter(void* of) {
  Region* region = (Region*)of;
  int thread = __atomic_fetch_add(&region->entered, 1, __ATOMIC_RELAXED);
  while (!__atomic_load_n(&region->size_known, __ATOMIC_ACQUIRE)) sched_yield();
  region->body(region->context, region->team, thread);
}

static void enter_openmp(void* of) {
  Region* region = (Region*)of;
  // A runtime may give fewer threads than asked for; all of them see the same number.
  __atomic_store_n(&region->team.size, threads_in_region(), __ATOMIC_RELAXED);
  __atomic_store_n(&region->size_known, 1, __ATOMIC_RELEASE);
  enter(of);
}

static void* start(void* of) {
  enter(of);
  return nullptr;
}

static void fork_started(Region& region, int threads) {
  pthread_t started[MAX_STARTED];
  int count = 0;
  while (count < threads - 1 && pthread_create(&started[count], nullptr, start, &region) == 0) count++;
  region.team.size = count + 1;
  __atomic_store_n(&region.size_known, 1, __ATOMIC_RELEASE);
  enter(&region);
  for (int i = 0; i < count; i++) pthread_join(started[i], nullptr);
}

void fork_team(int threads, TeamBody body, void* context) {
  Region region{Team(1), body, context, 0, 0};
  if (threads <= 1) {
    region.size_known = 1;
    enter(&region);
  } else if (parallel_region) {
    parallel_region(enter_openmp, &region, (unsigned)threads, 0);
  } else {
    fork_started(region, threads < MAX_STARTED ? threads : MAX_STARTED);
  }
}

// Read from the file before it is loaded: which sources it was made from.
extern "C" __attribute__((visibility("default"), used)) const char atb_source_id[] = "atb-source-id:" ATB_SOURCE_ID;
