/* base/base_metrics.c - the registry behind metrics.h.
 *
 * Families are kept in an array sorted by name, the members of a family in an array sorted by their rendered labels: registering
 * is a binary search under one mutex, and the text comes out sorted without sorting. A metric is never freed, so that updates need
 * no lock: counters are one relaxed fetch-add; gauges and sums hold the bits of a double and are added to by compare-and-swap.
 *
 * A histogram counts each observation in one bucket only; the text makes the buckets cumulative and takes the count from their
 * sum, so a scrape during an update shows buckets and count that agree with each other.
 */
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/io.h"
#include "base/metrics.h"

enum kind { COUNTER, GAUGE, HISTOGRAM };

enum {
	CACHE_LINE_BYTES = 64,
	LABELS_MAX = 4,
	LABELS_TEXT_BYTES = 1024, /* of one member, rendered: four names and checked values */
	PROC_LIST_BYTES = 16 << 20,
};

/* One time series. Lives on cache lines of its own: counters of different threads must not share one. */
struct metric {
	_Atomic uint64_t bits; /* counter: the count; gauge: a double; histogram: the sum, a double */
	enum kind kind;
	const double *bounds;
	size_t n_bounds;
	char *labels;		  /* a="b",c="d", without braces; "" = none */
	_Atomic uint64_t *counts; /* HISTOGRAM: n_bounds + 1, not cumulative */
};

struct family {
	const char *name;
	const char *help;
	enum kind kind;
	struct metric **v;
	size_t n;
	size_t cap;
};

struct collector {
	void (*fn)(void *arg);
	void *arg;
};

static struct {
	pthread_mutex_t mu;
	/* guarded by mu */
	struct family *v;
	size_t n;
	size_t cap;
	struct collector *collectors;
	size_t n_collectors;
	size_t cap_collectors;
	/* held while collectors run: two scrapes never run one at the same time; taken before mu */
	pthread_mutex_t collect_mu;
} reg = {.mu = PTHREAD_MUTEX_INITIALIZER, .collect_mu = PTHREAD_MUTEX_INITIALIZER};

const double metric_latency_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30};
const size_t metric_latency_bounds_n = sizeof metric_latency_bounds / sizeof *metric_latency_bounds;

/* What is handed out when memory is short: it takes updates like any other and is never shown. */
static struct metric sink_counter = {.kind = COUNTER, .labels = ""};
static struct metric sink_gauge = {.kind = GAUGE, .labels = ""};
static struct metric sink_histogram = {.kind = HISTOGRAM, .labels = ""};

static struct metric *sink(enum kind kind)
{
	return kind == COUNTER ? &sink_counter : kind == GAUGE ? &sink_gauge : &sink_histogram;
}

/* Room for one more element; NULL = out of memory, the old array is as it was. */
static void *grown(void *v, size_t n, size_t *cap, size_t size)
{
	if (n < *cap)
		return v;
	size_t want = *cap ? *cap * 2 : 8;
	void *p = realloc(v, want * size);
	if (p)
		*cap = want;
	return p;
}

/* ---- registering ---- */

static bool family_find_locked(const char *name, size_t *at)
{
	size_t lo = 0, hi = reg.n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(reg.v[mid].name, name);
		if (c == 0) {
			*at = mid;
			return true;
		}
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	*at = lo;
	return false;
}

static bool member_find(const struct family *f, const char *labels, size_t *at)
{
	size_t lo = 0, hi = f->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(f->v[mid]->labels, labels);
		if (c == 0) {
			*at = mid;
			return true;
		}
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	*at = lo;
	return false;
}

static struct metric *metric_new(enum kind kind, const char *labels, const double *bounds, size_t n_bounds)
{
	size_t head = (sizeof(struct metric) + CACHE_LINE_BYTES - 1) & ~(size_t)(CACHE_LINE_BYTES - 1);
	size_t counts = kind == HISTOGRAM ? (n_bounds + 1) * sizeof(uint64_t) : 0;
	size_t size = head + counts + strlen(labels) + 1;
	size = (size + CACHE_LINE_BYTES - 1) & ~(size_t)(CACHE_LINE_BYTES - 1);
	char *p = aligned_alloc(CACHE_LINE_BYTES, size);
	if (!p)
		return NULL;
	memset(p, 0, size);
	struct metric *m = (struct metric *)p;
	m->kind = kind;
	m->bounds = bounds;
	m->n_bounds = n_bounds;
	m->counts = kind == HISTOGRAM ? (_Atomic uint64_t *)(p + head) : NULL;
	m->labels = p + head + counts;
	memcpy(m->labels, labels, strlen(labels) + 1);
	return m;
}

static struct metric *member_locked(const char *name, const char *help, enum kind kind, const char *labels, const double *bounds, size_t n_bounds)
{
	size_t fi, mi;
	if (!family_find_locked(name, &fi)) {
		struct family *v = grown(reg.v, reg.n, &reg.cap, sizeof *v);
		if (!v)
			return sink(kind);
		reg.v = v;
		memmove(v + fi + 1, v + fi, (reg.n - fi) * sizeof *v);
		v[fi] = (struct family){.name = name, .help = help, .kind = kind};
		reg.n++;
	}
	struct family *f = &reg.v[fi];
	ASSERT(f->kind == kind);
	if (member_find(f, labels, &mi))
		return f->v[mi];
	struct metric **v = grown(f->v, f->n, &f->cap, sizeof *v);
	if (!v)
		return sink(kind);
	f->v = v;
	struct metric *m = metric_new(kind, labels, bounds, n_bounds);
	if (!m)
		return sink(kind);
	memmove(v + mi + 1, v + mi, (f->n - mi) * sizeof(struct metric *));
	v[mi] = m;
	f->n++;
	return m;
}

struct pair {
	const char *name;
	const char *value;
};

/* a="b",c="d"; false when it does not fit, which checked label values cannot cause. */
static bool labels_render(const struct pair *pairs, size_t n, char *out, size_t size)
{
	size_t at = 0;
	for (size_t i = 0; i < n; i++) {
		int w = snprintf(out + at, size - at, "%s%s=\"", i ? "," : "", pairs[i].name);
		if (w < 0 || (size_t)w >= size - at)
			return false;
		at += (size_t)w;
		for (const char *s = pairs[i].value; *s; s++) {
			if (size - at < 4)
				return false;
			if (*s == '\\' || *s == '"' || *s == '\n') {
				out[at++] = '\\';
				out[at++] = *s == '\n' ? 'n' : *s;
			} else {
				out[at++] = *s;
			}
		}
		out[at++] = '"';
	}
	out[at] = 0;
	return true;
}

static struct metric *metric_register(
	const char *name, const char *help, enum kind kind, const struct pair *pairs, size_t n, const double *bounds, size_t n_bounds)
{
	ASSERT(n <= LABELS_MAX);
	char labels[LABELS_TEXT_BYTES];
	labels[0] = 0;
	if (!labels_render(pairs, n, labels, sizeof labels))
		return sink(kind);
	pthread_mutex_lock(&reg.mu);
	struct metric *m = member_locked(name, help, kind, labels, bounds, n_bounds);
	pthread_mutex_unlock(&reg.mu);
	return m;
}

struct metric *metric_counter(const char *name, const char *help)
{
	return metric_register(name, help, COUNTER, NULL, 0, NULL, 0);
}

struct metric *metric_gauge(const char *name, const char *help)
{
	return metric_register(name, help, GAUGE, NULL, 0, NULL, 0);
}

struct metric *metric_counter_with(const char *name, const char *help, const char *label, const char *value)
{
	return metric_register(name, help, COUNTER, &(struct pair){label, value}, 1, NULL, 0);
}

struct metric *metric_gauge_with(const char *name, const char *help, const char *label, const char *value)
{
	return metric_register(name, help, GAUGE, &(struct pair){label, value}, 1, NULL, 0);
}

struct metric *metric_counter_with2(
	const char *name, const char *help, const char *label1, const char *value1, const char *label2, const char *value2)
{
	return metric_register(name, help, COUNTER, (struct pair[]){{label1, value1}, {label2, value2}}, 2, NULL, 0);
}

struct metric *metric_histogram(const char *name, const char *help, const double *bounds, size_t n_bounds)
{
	return metric_register(name, help, HISTOGRAM, NULL, 0, bounds, n_bounds);
}

struct metric *metric_histogram_with(const char *name, const char *help, const double *bounds, size_t n_bounds, const char *label, const char *value)
{
	return metric_register(name, help, HISTOGRAM, &(struct pair){label, value}, 1, bounds, n_bounds);
}

/* Nobody has a pointer to its one member, so that may go. */
void metric_info(const char *name, const char *help, const char *label, const char *value)
{
	char labels[LABELS_TEXT_BYTES];
	size_t at;
	if (!labels_render(&(struct pair){label, value}, 1, labels, sizeof labels))
		return;
	pthread_mutex_lock(&reg.mu);
	if (family_find_locked(name, &at) && reg.v[at].n == 1) {
		struct metric *m = metric_new(GAUGE, labels, NULL, 0);
		if (m) {
			free(reg.v[at].v[0]);
			reg.v[at].v[0] = m;
		}
	} else {
		member_locked(name, help, GAUGE, labels, NULL, 0);
	}
	if (family_find_locked(name, &at) && reg.v[at].n == 1)
		metric_set(reg.v[at].v[0], 1);
	pthread_mutex_unlock(&reg.mu);
}

/* ---- updating: any thread, no lock ---- */

static void bits_add(_Atomic uint64_t *bits, double v)
{
	uint64_t old = atomic_load_explicit(bits, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(bits, &old, f64_bits(f64_of_bits(old) + v), memory_order_relaxed, memory_order_relaxed)) {
	}
}

void metric_add(struct metric *m, uint64_t n)
{
	ASSERT(m->kind == COUNTER);
	atomic_fetch_add_explicit(&m->bits, n, memory_order_relaxed);
}

void metric_set(struct metric *m, double v)
{
	ASSERT(m->kind == GAUGE);
	atomic_store_explicit(&m->bits, f64_bits(v), memory_order_relaxed);
}

void metric_gauge_add(struct metric *m, double v)
{
	ASSERT(m->kind == GAUGE);
	bits_add(&m->bits, v);
}

void metric_observe(struct metric *m, double v)
{
	ASSERT(m->kind == HISTOGRAM);
	if (UNLIKELY(!m->counts))
		return;
	size_t i = 0;
	while (i < m->n_bounds && !(v <= m->bounds[i]))
		i++;
	atomic_fetch_add_explicit(&m->counts[i], 1, memory_order_relaxed);
	bits_add(&m->bits, v);
}

double metric_value(struct metric *m)
{
	ASSERT(m->kind != HISTOGRAM);
	uint64_t bits = atomic_load_explicit(&m->bits, memory_order_relaxed);
	return m->kind == COUNTER ? (double)bits : f64_of_bits(bits);
}

/* ---- the text ---- */

void metrics_on_collect(void (*fn)(void *arg), void *arg)
{
	pthread_mutex_lock(&reg.mu);
	struct collector *v = grown(reg.collectors, reg.n_collectors, &reg.cap_collectors, sizeof *v);
	if (v) {
		reg.collectors = v;
		v[reg.n_collectors++] = (struct collector){fn, arg};
	}
	pthread_mutex_unlock(&reg.mu);
}

/* Collectors may register and update metrics, so they run without reg.mu. */
static void collect(void)
{
	pthread_mutex_lock(&reg.collect_mu);
	for (size_t i = 0;; i++) {
		pthread_mutex_lock(&reg.mu);
		bool more = i < reg.n_collectors;
		struct collector c = more ? reg.collectors[i] : (struct collector){0};
		pthread_mutex_unlock(&reg.mu);
		if (!more)
			break;
		c.fn(c.arg);
	}
	pthread_mutex_unlock(&reg.collect_mu);
}

/* The shortest decimal that reads back as v; integers without an exponent, as Go's clients write their bounds. */
static void put_f64(struct buf *out, double v)
{
	char s[40];
	if (isnan(v)) {
		buf_span(out, SPAN("NaN"));
		return;
	}
	if (isinf(v)) {
		buf_printf(out, v > 0 ? "+Inf" : "-Inf");
		return;
	}
	if (v == floor(v) && fabs(v) < 1e15) {
		buf_printf(out, "%.0f", v);
		return;
	}
	for (int digits = 1; digits <= 17; digits++) {
		snprintf(s, sizeof s, "%.*g", digits, v);
		if (f64_bits(strtod(s, NULL)) == f64_bits(v))
			break;
	}
	buf_span(out, span_cstr(s));
}

static void put_head(struct buf *out, const char *name, const char *help, enum kind kind)
{
	static const char *const types[] = {"counter", "gauge", "histogram"};
	buf_printf(out, "# HELP %s ", name);
	for (const char *s = help; *s; s++) {
		if (*s == '\\' || *s == '\n')
			buf_printf(out, "\\%c", *s == '\n' ? 'n' : '\\');
		else
			buf_u8(out, (uint8_t)*s);
	}
	buf_printf(out, "\n# TYPE %s %s\n", name, types[kind]);
}

static void put_name(struct buf *out, const char *name, const char *suffix, const char *labels)
{
	buf_printf(out, "%s%s", name, suffix);
	if (*labels)
		buf_printf(out, "{%s}", labels);
	buf_u8(out, ' ');
}

static void put_histogram(struct buf *out, const char *name, struct metric *m)
{
	uint64_t count = 0;
	for (size_t i = 0; i <= m->n_bounds; i++) {
		count += atomic_load_explicit(&m->counts[i], memory_order_relaxed);
		buf_printf(out, "%s_bucket{%s%sle=\"", name, m->labels, *m->labels ? "," : "");
		put_f64(out, i < m->n_bounds ? m->bounds[i] : (double)INFINITY);
		buf_printf(out, "\"} %" PRIu64 "\n", count);
	}
	put_name(out, name, "_sum", m->labels);
	put_f64(out, f64_of_bits(atomic_load_explicit(&m->bits, memory_order_relaxed)));
	buf_u8(out, '\n');
	put_name(out, name, "_count", m->labels);
	buf_printf(out, "%" PRIu64 "\n", count);
}

static void put_family(struct buf *out, const struct family *f)
{
	put_head(out, f->name, f->help, f->kind);
	for (size_t i = 0; i < f->n; i++) {
		struct metric *m = f->v[i];
		uint64_t bits = atomic_load_explicit(&m->bits, memory_order_relaxed);
		if (f->kind == HISTOGRAM) {
			put_histogram(out, f->name, m);
			continue;
		}
		put_name(out, f->name, "", m->labels);
		if (f->kind == COUNTER)
			buf_printf(out, "%" PRIu64, bits);
		else
			put_f64(out, f64_of_bits(bits));
		buf_u8(out, '\n');
	}
}

/* ---- process_*: as Prometheus' client libraries name them, from /proc; what cannot be read is left out ---- */

static bool proc_read(const char *path, char *text, size_t size)
{
	int fd;
	size_t got;
	if (io_open(path, IO_READ, &fd, NULL))
		return false;
	errc rc = io_pread(fd, text, size - 1, 0, &got, NULL);
	io_close(fd);
	if (rc)
		return false;
	text[got] = 0;
	return true;
}

static void put_process_value(struct buf *out, const char *name, const char *help, enum kind kind, double v)
{
	put_head(out, name, help, kind);
	buf_printf(out, "%s ", name);
	put_f64(out, v);
	buf_u8(out, '\n');
}

/* Seconds since 1970 when the machine booted, 0 when unknown. */
static double boot_time(void)
{
	char text[8192];
	int fd;
	double found = 0;
	if (io_open("/proc/stat", IO_READ, &fd, NULL))
		return 0;
	/* "btime" stands behind one line per core and one very long line of interrupts: look for it across windows of the file. */
	uint64_t off = 0;
	size_t keep = 0, got;
	while (found == 0 && io_pread(fd, text + keep, sizeof text - 1 - keep, off, &got, NULL) == OK && got > 0) {
		off += got;
		size_t n = keep + got;
		text[n] = 0;
		const char *at = strstr(text, "\nbtime ");
		if (at && strchr(at + 7, '\n'))
			found = strtod(at + 7, NULL);
		keep = n < 64 ? n : 64;
		memmove(text, text + n - keep, keep);
	}
	io_close(fd);
	return found;
}

static void put_process(struct buf *out)
{
	char text[4096];
	unsigned long long utime, stime, threads, start, vsize;
	long long rss;
	double hz = (double)sysconf(_SC_CLK_TCK);
	char *p = proc_read("/proc/self/stat", text, sizeof text) ? strrchr(text, ')') : NULL;
	/* Field 3 follows the name's parenthesis: state, then 10 fields to utime (14), stime (15), threads (20), starttime (22), vsize, rss. */
	bool known = p && sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %llu %*d %llu %llu %lld", &utime,
				  &stime, &threads, &start, &vsize, &rss) == 6;
	if (known)
		put_process_value(
			out, "process_cpu_seconds_total", "User and system CPU time spent in seconds.", COUNTER, (double)(utime + stime) / hz);

	struct rlimit lim;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0)
		put_process_value(out, "process_max_fds", "Maximum number of open file descriptors.", GAUGE, (double)lim.rlim_cur);
	struct arena arena;
	char **names;
	size_t n;
	arena_init(&arena, PROC_LIST_BYTES);
	if (io_listdir("/proc/self/fd", &arena, &names, &n, NULL) == OK && n > 0)
		put_process_value(out, "process_open_fds", "Number of open file descriptors.", GAUGE, (double)(n - 1)); /* one is the listing's */
	arena_free(&arena);

	if (known) {
		put_process_value(
			out, "process_resident_memory_bytes", "Resident memory size in bytes.", GAUGE, (double)rss * (double)sysconf(_SC_PAGESIZE));
		double boot = boot_time();
		if (boot > 0)
			put_process_value(out, "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", GAUGE,
				boot + (double)start / hz);
		put_process_value(out, "process_threads", "Number of threads.", GAUGE, (double)threads);
		put_process_value(out, "process_virtual_memory_bytes", "Virtual memory size in bytes.", GAUGE, (double)vsize);
	}
}

void metrics_write(struct buf *out)
{
	collect();
	size_t split;
	pthread_mutex_lock(&reg.mu);
	family_find_locked("process_", &split);
	for (size_t i = 0; i < split; i++)
		put_family(out, &reg.v[i]);
	pthread_mutex_unlock(&reg.mu);
	put_process(out);
	pthread_mutex_lock(&reg.mu);
	family_find_locked("process_", &split); /* another thread may have registered meanwhile */
	for (size_t i = split; i < reg.n; i++)
		put_family(out, &reg.v[i]);
	pthread_mutex_unlock(&reg.mu);
}
