/* Tells ThreadSanitizer what Rust's standard library does out of its sight.
 *
 * The standard library that rustup installs is not instrumented, so where a lock is contended, a condition variable is
 * waited for, or a scope of threads ends, the sanitizer misses that two threads have synchronised, and reports races
 * that are none. And it knows nothing of fences, which the last reference to an `Arc` counts on. Instead of suppressing
 * what is reported there, which would hide real races with it, these wrappers around the standard library's functions
 * and the sanitizer's own (`-Wl,--wrap=`) say what happened. Each says no more than the function guarantees.
 *
 * LOCK, WAIT, WAIT_TIMEOUT, SCOPE_END, ONCE are the mangled names; `scripts/sanitize` finds them. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void __tsan_acquire(void *);
void __tsan_release(void *);

#define JOIN(a, b) a##b
#define REAL(name) JOIN(__real_, name)
#define WRAP(name) JOIN(__wrap_, name)

/* std::sys::sync::mutex::futex::Mutex::lock_contended(&self). Whoever unlocks does it in instrumented code. */
void REAL(LOCK)(void *mutex);
void WRAP(LOCK)(void *mutex) {
    REAL(LOCK)(mutex);
    __tsan_acquire(mutex);
}

/* std::sys::sync::condvar::futex::Condvar::wait(&self, &Mutex): unlocks the mutex and locks it again. */
void REAL(WAIT)(void *condvar, void *mutex);
void WRAP(WAIT)(void *condvar, void *mutex) {
    __tsan_release(mutex);
    REAL(WAIT)(condvar, mutex);
    __tsan_acquire(mutex);
}

/* ...::wait_timeout(&self, &Mutex, Duration) -> bool. */
bool REAL(WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t seconds, uint32_t nanoseconds);
bool WRAP(WAIT_TIMEOUT)(void *condvar, void *mutex, uint64_t seconds, uint32_t nanoseconds) {
    __tsan_release(mutex);
    bool woken = REAL(WAIT_TIMEOUT)(condvar, mutex, seconds, nanoseconds);
    __tsan_acquire(mutex);
    return woken;
}

/* std::thread::scoped::ScopeData::decrement_num_running_threads(&self, bool): releases the counter, which is one of the
 * structure's three words; the loop at the scope's end acquires it in instrumented code. */
void REAL(SCOPE_END)(void *scope, bool panicked);
void WRAP(SCOPE_END)(void *scope, bool panicked) {
    for (size_t word = 0; word < 3; word++)
        __tsan_release((char *)scope + word * sizeof(void *));
    REAL(SCOPE_END)(scope, panicked);
}

/* An acquire fence synchronises with whoever wrote what this thread has read before by an atomic operation. The last such
 * read is enough for `Arc`, which counts down and then fences: more are not remembered. */
static _Thread_local void *last_atomic;

#define COUNTED(bits)                                                                        \
    uint##bits##_t __real___tsan_atomic##bits##_fetch_sub(void *, uint##bits##_t, int);      \
    uint##bits##_t __wrap___tsan_atomic##bits##_fetch_sub(void *at, uint##bits##_t by, int order) { \
        last_atomic = at;                                                                    \
        return __real___tsan_atomic##bits##_fetch_sub(at, by, order);                        \
    }
COUNTED(32)
COUNTED(64)

#define LOADED(bits)                                                            \
    uint##bits##_t __real___tsan_atomic##bits##_load(const void *, int);        \
    uint##bits##_t __wrap___tsan_atomic##bits##_load(const void *at, int order) { \
        last_atomic = (void *)at;                                               \
        return __real___tsan_atomic##bits##_load(at, order);                    \
    }
LOADED(32)
LOADED(64)

enum { RELEASE = 3 };
void __real___tsan_atomic_thread_fence(int order);
void __wrap___tsan_atomic_thread_fence(int order) {
    __real___tsan_atomic_thread_fence(order);
    if (order != RELEASE && last_atomic)
        __tsan_acquire(last_atomic);
}
