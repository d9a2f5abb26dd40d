/* A pretend Ascend device: the part of the ACL runtime that torch_npu uses to bring a device up, and for memory, copies,
 * streams, events and graphs. Device memory is host memory. Streams are synchronous: work is finished when a call returns.
 * No operator runs here. The prototypes are those of the headers in the torch_npu wheel: a change of one does not compile.
 *
 * SOFT_NPU_DEVICES: how many there are (0: a driver without devices), which ASCEND_RT_VISIBLE_DEVICES narrows;
 * SOFT_NPU_MEM_GIB: memory of each; SOFT_NPU_TRACE=1: name on stderr the functions of CANN that are not here but reached.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "acl/acl.h"
#include "acl/acl_op_compiler.h"

#define OK ACL_SUCCESS
#define NO_DEVICE 507899
#define NO_CONTEXT 107002
#define BAD_PARAM 107000
#define MOST 64
#define IN_CAPTURE ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

int soft_npu_absent(const char *name, int result) {
    if (number("SOFT_NPU_TRACE", 0)) fprintf(stderr, "[soft npu] %s is not here\n", name);
    return result;
}

/* As the driver does it: the list counts up to the first number that does not exist. */
static int devices(void) {
    int existing = (int)number("SOFT_NPU_DEVICES", 1), visible = 0;
    const char *list = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (!list || !*list) return existing;
    for (char *end; *list; list = *end ? end + 1 : end) {
        long id = strtol(list, &end, 10);
        if (end == list || id < 0 || id >= existing) break;
        visible++;
    }
    return visible;
}

static long synchronisations;                  /* read by counts.py */
long soft_npu_synchronisations(void) { return synchronisations; }
void soft_npu_reset(void) { synchronisations = 0; }

/* Graph capture: graphs.py, which keeps the calls, is told what happens; 0 means that it may. */
enum what { BEGIN, END, REPLAY, GROUP_BEGIN, GROUP_END, UPDATE_BEGIN, UPDATE_END, WAIT, RESET, SET };
static int (*told)(enum what, void *);
static aclrtStream captured;                   /* the stream that is being captured */
static char *graph, *group;                    /* the newest ones: numbers */
void soft_npu_tell(int (*whom)(enum what, void *)) { told = whom; }
static aclError tell(enum what what, void *handle) { return told && told(what, handle) == 0 ? OK : BAD_PARAM; }
static aclError wait_for(void) { return captured ? IN_CAPTURE : (synchronisations++, OK); }

/* ---- bring-up */
static char contexts[MOST];                    /* their addresses are the handles */
static __thread int current = -1;

const char *aclGetRecentErrMsg(void) { return "soft npu: there is no CANN here"; }
const char *aclrtGetSocName(void) { const char *s = getenv("SOFT_NPU_SOC"); return s && *s ? s : "Ascend910B4"; }
aclError aclInit(const char *config) { return devices() ? OK : NO_DEVICE; }
aclError aclrtGetDeviceCount(uint32_t *n) { *n = devices(); return OK; }
aclError aclrtSetDevice(int32_t d) {
    if (d < 0 || d >= devices() || d >= MOST) return NO_DEVICE;
    current = d;
    return OK;
}
aclError aclrtGetDevice(int32_t *d) {
    if (!devices()) return NO_DEVICE;
    if (current < 0) return NO_CONTEXT;        /* as the real one before a device is set */
    *d = current;
    return OK;
}
aclError aclrtGetCurrentContext(aclrtContext *c) {
    if (current < 0) return NO_CONTEXT;
    *c = &contexts[current];
    return OK;
}
aclError aclrtSetCurrentContext(aclrtContext c) {
    long d = (char *)c - contexts;
    if (d < 0 || d >= MOST) return BAD_PARAM;
    current = (int)d;
    return OK;
}
aclError aclrtGetPrimaryCtxState(int32_t d, uint32_t *flags, int32_t *active) {
    if (flags) *flags = 0;
    if (active) *active = current == d;
    return OK;
}
aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t *const logical) { *logical = user; return OK; }
aclError aclrtDeviceGetBareTgid(int32_t *pid) { *pid = getpid(); return OK; }
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t a, int32_t b) { *can = a != b; return OK; }
aclError aclGetDeviceCapability(uint32_t d, aclDeviceInfo info, int64_t *value) { *value = 0; return OK; }
aclError aclrtGetDeviceInfo(uint32_t d, aclrtDevAttr attribute, int64_t *value) { *value = 0; return OK; }
static int64_t parameters[MOST];
aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) { parameters[option & 63] = value; return OK; }
aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t *value) { *value = parameters[option & 63]; return OK; }
size_t aclGetCompileoptSize(aclCompileOpt option) { return 8; }
aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t n) { if (n) memset(value, 0, n); return OK; }

/* ---- memory */
struct block { char *start; size_t size; int device; };
static struct block *blocks;
static size_t count, room, used[MOST];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t total(void) { return (size_t)number("SOFT_NPU_MEM_GIB", 4) << 30; }
aclError aclrtGetMemInfo(aclrtMemAttr attribute, size_t *free_, size_t *total_) {
    if (current < 0) return NO_CONTEXT;
    *total_ = total();
    *free_ = used[current] < *total_ ? *total_ - used[current] : 0;
    return OK;
}
static aclError enter(char *start, size_t size) {
    memset(start, 0xA5, size);                 /* nobody may rely on zeros */
    pthread_mutex_lock(&lock);
    if (count == room) blocks = realloc(blocks, (room = room * 2 + 16) * sizeof *blocks);
    blocks[count++] = (struct block){start, size, current};
    pthread_mutex_unlock(&lock);
    return OK;
}
static struct block leave(const void *start) {
    struct block gone = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count && !gone.start; i++)
        if (blocks[i].start == start) { gone = blocks[i]; blocks[i] = blocks[--count]; }
    pthread_mutex_unlock(&lock);
    return gone;
}
static aclError take(size_t size) {
    if (current < 0) return NO_CONTEXT;
    if (used[current] + size > total()) return ACL_ERROR_RT_MEMORY_ALLOCATION;
    used[current] += size;
    return OK;
}
aclError aclrtMalloc(void **pointer, size_t size, aclrtMemMallocPolicy policy) {
    size = size ? (size + 511) / 512 * 512 : 512;
    aclError error = take(size);
    if (error) return error;
    *pointer = aligned_alloc(512, size);
    return *pointer ? enter(*pointer, size) : ACL_ERROR_RT_MEMORY_ALLOCATION;
}
aclError aclrtMallocAlign32(void **p, size_t n, aclrtMemMallocPolicy policy) { return aclrtMalloc(p, n, policy); }
aclError aclrtFree(void *pointer) {
    struct block gone = leave(pointer);
    used[gone.device] -= gone.size;
    free(gone.start);
    return gone.start || !pointer ? OK : BAD_PARAM;
}
/* Expandable segments: addresses are reserved first, and memory is mapped into them piece by piece. */
aclError aclrtReserveMemAddress(void **start, size_t size, size_t alignment, void *expected, uint64_t flags) {
    *start = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *start == MAP_FAILED ? BAD_PARAM : OK;
}
aclError aclrtMallocPhysical(aclrtDrvMemHandle *handle, size_t size, const aclrtPhysicalMemProp *prop, uint64_t flags) {
    aclError error = take(size);
    struct block *piece = malloc(sizeof *piece);
    *piece = (struct block){NULL, size, current};
    *handle = (aclrtDrvMemHandle)piece;
    return error;
}
aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
    struct block *piece = (struct block *)handle;
    used[piece->device] -= piece->size;
    free(piece);
    return OK;
}
aclError aclrtMapMem(void *start, size_t size, size_t offset, aclrtDrvMemHandle handle, uint64_t flags) {
    return mprotect(start, size, PROT_READ | PROT_WRITE) ? BAD_PARAM : enter(start, size);
}
aclError aclrtUnmapMem(void *start) {
    struct block gone = leave(start);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return gone.start && mmap(start, gone.size, PROT_NONE, flags, -1, 0) == start ? OK : BAD_PARAM;
}
static int device_of(const char *pointer) {    /* -1: not a device's memory */
    int device = -1;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count && device < 0; i++)
        if (pointer >= blocks[i].start && pointer < blocks[i].start + blocks[i].size) device = blocks[i].device;
    pthread_mutex_unlock(&lock);
    return device;
}
aclError aclrtPointerGetAttributes(const void *pointer, aclrtPtrAttributes *attributes) {
    int device = device_of(pointer);
    *attributes = (aclrtPtrAttributes){0};
    attributes->location.id = device < 0 ? 0 : (uint32_t)device;
    attributes->location.type = device < 0 ? ACL_MEM_LOCATION_TYPE_UNREGISTERED : ACL_MEM_LOCATION_TYPE_DEVICE;
    return OK;
}
aclError aclrtMallocHost(void **pointer, size_t size) { *pointer = malloc(size ? size : 1); return *pointer ? OK : NO_DEVICE; }
aclError aclrtFreeHost(void *pointer) { free(pointer); return OK; }

/* The direction of a copy must agree with where the pointers are. */
aclError aclrtMemcpy(void *to, size_t room_, const void *from, size_t size, aclrtMemcpyKind kind) {
    if (captured) return IN_CAPTURE;
    int to_device = device_of(to) >= 0, from_device = device_of(from) >= 0;
    aclrtMemcpyKind actual = to_device ? (from_device ? ACL_MEMCPY_DEVICE_TO_DEVICE : ACL_MEMCPY_HOST_TO_DEVICE)
                                       : (from_device ? ACL_MEMCPY_DEVICE_TO_HOST : ACL_MEMCPY_HOST_TO_HOST);
    if (size > room_ || (kind <= ACL_MEMCPY_DEVICE_TO_DEVICE && kind != actual)) return BAD_PARAM;
    memmove(to, from, size);
    return OK;
}
#define ASYNC(name) aclError name(void *to, size_t room_, const void *from, size_t size, aclrtMemcpyKind kind, aclrtStream s) \
    { return aclrtMemcpy(to, room_, from, size, kind); }
ASYNC(aclrtMemcpyAsync)
ASYNC(aclrtMemcpyAsyncWithCondition)
aclError aclrtMemset(void *p, size_t room_, int32_t value, size_t size) {
    return size > room_ ? BAD_PARAM : (memset(p, value, size), OK);
}
aclError aclrtMemsetAsync(void *p, size_t room_, int32_t v, size_t n, aclrtStream s) { return aclrtMemset(p, room_, v, n); }

/* ---- streams and events: everything is finished already */
static int streams;
aclError aclrtCreateStream(aclrtStream *s) { *s = malloc(sizeof streams); *(int *)*s = streams++; return OK; }
aclError aclrtCreateStreamWithConfig(aclrtStream *s, uint32_t priority, uint32_t flags) { return aclrtCreateStream(s); }
aclError aclrtDestroyStream(aclrtStream s) { free(s); return OK; }
aclError aclrtDestroyStreamForce(aclrtStream s) { return aclrtDestroyStream(s); }
aclError aclrtStreamGetId(aclrtStream s, int32_t *id) { *id = s ? *(int *)s : -1; return OK; }
aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus *status) { *status = ACL_STREAM_STATUS_COMPLETE; return OK; }
aclError aclrtSynchronizeStream(aclrtStream s) { return wait_for(); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t ms) { return wait_for(); }
aclError aclrtSynchronizeDevice(void) { return wait_for(); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t ms) { return wait_for(); }
aclError aclrtSynchronizeEvent(aclrtEvent e) { return wait_for(); }
aclError aclrtGetStreamOverflowSwitch(aclrtStream s, uint32_t *flag) { *flag = 0; return OK; }

aclError aclrtCreateEventExWithFlag(aclrtEvent *e, uint32_t flag) { *e = calloc(1, sizeof(struct timespec)); return OK; }
aclError aclrtCreateEventWithFlag(aclrtEvent *e, uint32_t flag) { return aclrtCreateEventExWithFlag(e, flag); }
aclError aclrtDestroyEvent(aclrtEvent e) { free(e); return OK; }
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s) { clock_gettime(CLOCK_MONOTONIC, e); return OK; }
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus *status) { *status = ACL_EVENT_RECORDED_STATUS_COMPLETE; return OK; }
aclError aclrtQueryEventWaitStatus(aclrtEvent e, aclrtEventWaitStatus *status) { *status = ACL_EVENT_WAIT_STATUS_COMPLETE; return OK; }
aclError aclrtEventElapsedTime(float *ms, aclrtEvent begin, aclrtEvent end) {
    struct timespec *a = begin, *b = end;
    return *ms = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) * 1e-6), OK;
}

/* ---- graphs */
aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode) { captured = s, graph++; return tell(BEGIN, s); }
aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI *g) { captured = NULL; return tell(END, *g = graph); }
aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus *status, aclmdlRI *g) {
    *status = captured && s == captured ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    if (g) *g = graph;
    return OK;
}
aclError aclmdlRIExecuteAsync(aclmdlRI g, aclrtStream s) { return tell(REPLAY, g); }
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream s) { return tell(GROUP_BEGIN, s); }
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream s, aclrtTaskGrp *g) { return tell(GROUP_END, *g = ++group); }
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream s, aclrtTaskGrp g) { return tell(UPDATE_BEGIN, g); }
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream s) { return tell(UPDATE_END, s); }
/* Events between a graph and the host are words of memory: a replay waits for 1 and makes it 0. */
aclError aclrtValueWait(void *word, uint64_t value, uint32_t flag, aclrtStream s) { return tell(WAIT, word); }
aclError aclrtValueWrite(void *word, uint64_t value, uint32_t flag, aclrtStream s) {
    if (captured && s == captured) return tell(RESET, word);
    return *(uint64_t *)word = value, tell(SET, word);
}
