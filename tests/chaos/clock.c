/* The clock of one process, set while it runs: preloaded into it, and told by a file.

libfaketime would do, but its clock_nanosleep fails with EINVAL under Python 3.11 (0.9.10), which
ends every time.sleep. Only the time of day moves: monotonic clocks stay, and so do waits until a
time of day, whose ends are brought back to the kernel's clock.

CLOCKS is a folder with a file for each process, NAME of `from tuneloop.NAME.main import main`,
of one signed 64-bit integer: by how many nanoseconds the clock is ahead. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const long long none;
static const volatile long long *ahead = &none;

__attribute__((constructor)) static void open_clock(void) {
    char line[4096] = "", name[64], path[4096];
    const char *folder = getenv("CLOCKS"), *own = getenv("CLOCK");
    int file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t size = file < 0 ? 0 : read(file, line, sizeof line - 1);
    for (ssize_t i = 0; i < size; i++)
        if (!line[i]) line[i] = ' ';
    close(file);
    const char *found = strstr(line, "from tuneloop.");
    if (folder && found && sscanf(found, "from tuneloop.%63[a-z].main", name) == 1) {
        snprintf(path, sizeof path, "%s/%s", folder, name);
        setenv("CLOCK", path, 1); /* Its children have its clock. */
        own = path;
    }
    if (!own || (file = open(own, O_RDONLY)) < 0) return;
    void *mapped = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) ahead = mapped;
    close(file);
}

static struct timespec moved(struct timespec time, long long by) {
    long long sum = time.tv_sec * SECOND + time.tv_nsec + by;
    if (sum < 0) sum = 0;
    return (struct timespec){sum / SECOND, sum % SECOND};
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *time = moved(*time, *ahead);
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *time = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *time) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (time) *time = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict end) {
    /* Bit 1: a condition of the monotonic clock, in glibc since 2.25. */
    if (cond->__data.__wrefs & 2) return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, end);
    struct timespec real = moved(*end, -*ahead);
    return pthread_cond_clockwait(cond, mutex, CLOCK_REALTIME, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict end) {
    struct timespec real = moved(*end, -*ahead);
    return sem_clockwait(semaphore, CLOCK_REALTIME, &real);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict end) {
    struct timespec real = moved(*end, -*ahead);
    return pthread_mutex_clocklock(mutex, CLOCK_REALTIME, &real);
}

/* gRPC and Abseil wait by the system call itself. */
long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    long a[6];
    va_list given;
    va_start(given, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
    va_end(given);
    struct timespec end;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        end = moved(*(struct timespec *)a[3], -*ahead);
        a[3] = (long)&end;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
