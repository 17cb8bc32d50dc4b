/* tests/crash/fast_clock.c - LD_PRELOAD: time runs VARVE_CLOCK_SPEED times as fast for the program, so that an hour of idleness takes ten seconds.
 *
 *     LD_PRELOAD=fast_clock.so VARVE_CLOCK_SPEED=360 varve ...
 *
 * Both clocks start right and run ahead; what waits until a time, or for a time, waits its fraction. Calls of the C library among itself are not
 * met, nor are timers of the kernel: the program under test uses neither for its background work. With VARVE_CLOCK_AHEAD=600 the wall clock is ten minutes ahead from the start.
 */
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static int (*real_nanosleep)(const struct timespec *, struct timespec *);
static int (*real_poll)(struct pollfd *, nfds_t, int);
static int64_t speed = 1, ahead, real_base, mono_base;

static int64_t ns_of(const struct timespec *t)
{
	return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static struct timespec timespec_of(int64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static int64_t really(clockid_t clock)
{
	struct timespec t;
	real_gettime(clock, &t);
	return ns_of(&t);
}

static void *next(const char *name, const char *version)
{
	void *f = version ? dlvsym(RTLD_NEXT, name, version) : NULL;
	return f ? f : dlsym(RTLD_NEXT, name);
}

__attribute__((constructor)) static void init(void)
{
	if (real_gettime)
		return;
	void *f[] = {next("clock_gettime", NULL), next("pthread_cond_timedwait", "GLIBC_2.3.2"), next("nanosleep", NULL), next("poll", NULL)};
	__builtin_memcpy(&real_timedwait, &f[1], sizeof f[1]);
	__builtin_memcpy(&real_nanosleep, &f[2], sizeof f[2]);
	__builtin_memcpy(&real_poll, &f[3], sizeof f[3]);
	__builtin_memcpy(&real_gettime, &f[0], sizeof f[0]);
	const char *s = getenv("VARVE_CLOCK_SPEED");
	if (s && atoll(s) > 0)
		speed = atoll(s);
	s = getenv("VARVE_CLOCK_AHEAD");
	if (s)
		ahead = atoll(s) * 1000000000;
	real_base = really(CLOCK_REALTIME);
	mono_base = really(CLOCK_MONOTONIC);
}

/* On which of the two clocks a time is meant: one counts from 1970, the other from the machine's start. */
static int64_t *base_of(int64_t at)
{
	return at > real_base / 2 ? &real_base : &mono_base;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
	init();
	int rc = real_gettime(clock, out);
	if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC)) {
		int64_t base = clock == CLOCK_REALTIME ? real_base : mono_base;
		*out = timespec_of(base + (ns_of(out) - base) * speed + (clock == CLOCK_REALTIME ? ahead : 0));
	}
	return rc;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mu, const struct timespec *until)
{
	init();
	int64_t base = *base_of(ns_of(until)), at = ns_of(until) - (base == real_base ? ahead : 0);
	struct timespec sooner = timespec_of(at > base ? base + (at - base) / speed : at);
	return real_timedwait(cond, mu, &sooner);
}

int nanosleep(const struct timespec *t, struct timespec *left)
{
	init();
	struct timespec shorter = timespec_of(ns_of(t) / speed);
	return real_nanosleep(&shorter, left);
}

int poll(struct pollfd *v, nfds_t n, int ms)
{
	init();
	return real_poll(v, n, ms > 0 ? (int)(ms / speed) + 1 : ms);
}
