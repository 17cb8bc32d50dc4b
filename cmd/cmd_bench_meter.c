/* cmd/cmd_bench_meter.c - what a server's processes cost: CPU time and resident memory, read from outside.
 *
 * The kernel keeps a CPU clock for every process that anybody may read (clock_getcpuclockid), in nanoseconds; /proc/PID/stat has the same in ticks of
 * 10 ms, which is too coarse for a run of a second, and the only place that parts user from system.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_bench_int.h"

enum { SETTLE_STEP_MS = 500, SETTLE_STEPS = 6 };
static const double QUIET_CPU_S = 0.02; /* of a step: what an idle server's timers take */

static CHECKED errc read_one(uint32_t pid, struct arena *arena, struct bench_cost *c, struct err *err)
{
	errc rc = OK;
	char path[64];
	struct span text;
	clockid_t clock;
	struct timespec ts;
	CHECK(clock_getcpuclockid((pid_t)pid, &clock) == 0 && clock_gettime(clock, &ts) == 0 /* seam: the meter of another process, not a time */,
		ERR_NOTFOUND, "no process with the id %" PRIu32, pid);
	c->cpu_s += (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;

	snprintf(path, sizeof path, "/proc/%" PRIu32 "/stat", pid);
	TRY(io_read_file(path, 64 * KIB, arena, &text, err));
	/* The second field is the program's name in parentheses, which may hold anything; the third is behind the last of them. */
	const char *p = strrchr(text.p, ')');
	unsigned long long user, system, pages;
	CHECK(p && sscanf(p + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu %llu", &user, &system) == 2, ERR_CORRUPT,
		"%s: not as proc(5) says", path);
	double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
	c->user_s += (double)user * tick;
	c->system_s += (double)system * tick;

	snprintf(path, sizeof path, "/proc/%" PRIu32 "/statm", pid);
	TRY(io_read_file(path, 4 * KIB, arena, &text, err));
	CHECK(sscanf(text.p, "%*s %llu", &pages) == 1, ERR_CORRUPT, "%s: not as proc(5) says", path);
	c->rss_bytes += pages * (uint64_t)sysconf(_SC_PAGESIZE);
fail:
	return rc;
}

errc bench_meter_read(const struct bench_meter *m, struct bench_cost *out, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	arena_init(&arena, 16 * MIB);
	*out = (struct bench_cost){0};
	for (size_t i = 0; i < m->n; i++) {
		TRY(read_one(m->pids[i], &arena, out, err));
		arena_reset(&arena);
	}
fail:
	arena_free(&arena);
	return rc;
}

errc bench_meter_settle(const struct bench_meter *m, struct bench_cost *out, struct err *err)
{
	errc rc = OK;
	struct bench_cost last;
	TRY(bench_meter_read(m, out, err));
	for (int i = 0; i < SETTLE_STEPS; i++) {
		last = *out;
		io_sleep_ms(SETTLE_STEP_MS);
		TRY(bench_meter_read(m, out, err));
		if (out->cpu_s - last.cpu_s < QUIET_CPU_S)
			break;
	}
fail:
	return rc;
}

double bench_own_cpu_s(void)
{
	struct rusage u;
	if (getrusage(RUSAGE_SELF, &u) != 0)
		return 0;
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* ---- latencies ---- */

/* Below 32 a cell a nanosecond; from there 32 cells for each power of two. */
static size_t cell_of(uint64_t ns)
{
	if (ns < 32)
		return (size_t)ns;
	unsigned power = 63 - (unsigned)__builtin_clzll(ns); /* 5 .. 63 */
	size_t cell = (size_t)(power - 4) * 32 + (size_t)(ns >> (power - 5) & 31);
	return cell < BENCH_LATENCY_CELLS ? cell : BENCH_LATENCY_CELLS - 1;
}

/* The middle of a cell. */
static uint64_t cell_value(size_t cell)
{
	if (cell < 32)
		return cell;
	unsigned power = (unsigned)(cell / 32) + 4;
	uint64_t width = UINT64_C(1) << (power - 5);
	return (UINT64_C(1) << power) + (cell % 32) * width + width / 2;
}

void bench_latency_add(struct bench_latency *l, uint64_t ns)
{
	l->n++;
	l->cells[cell_of(ns)]++;
	if (ns > l->max_ns)
		l->max_ns = ns;
}

void bench_latency_merge(struct bench_latency *into, const struct bench_latency *from)
{
	into->n += from->n;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	for (size_t i = 0; i < BENCH_LATENCY_CELLS; i++)
		into->cells[i] += from->cells[i];
}

uint64_t bench_latency_at(const struct bench_latency *l, double quantile)
{
	uint64_t rank = (uint64_t)(quantile * (double)l->n), seen = 0;
	if (l->n == 0)
		return 0;
	if (rank >= l->n)
		rank = l->n - 1;
	for (size_t i = 0; i < BENCH_LATENCY_CELLS; i++) {
		seen += l->cells[i];
		if (seen > rank) {
			uint64_t v = cell_value(i);
			return v < l->max_ns ? v : l->max_ns;
		}
	}
	return l->max_ns;
}
