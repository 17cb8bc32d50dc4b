/* base/metrics.h - varve's own metrics, and the Prometheus text they are shown in.
 *
 * A metric is registered once by name (and label values), usually at open, and kept for the life of the process: the pointer
 * stays valid, registering the same again gives the same pointer. Updates are relaxed atomics: any thread, no lock.
 * docs/metrics.md lists every name; a test holds the list against what a running server shows.
 *
 *     struct metric *syncs = metric_counter("varve_wal_fsyncs_total", "fdatasync calls of the log");
 *     metric_add(syncs, 1);
 */
#pragma once
#include "base/bytes.h"

struct metric;

/* name and help are static strings. With labels: up to 4 pairs, values copied; label values never come from clients
 * unchecked (a tenant is checked by tenant_valid, and bounded in number). Never NULL: out of memory gives a shared sink. */
struct metric *metric_counter(const char *name, const char *help);
struct metric *metric_gauge(const char *name, const char *help);
struct metric *metric_counter_with(const char *name, const char *help, const char *label, const char *value);
struct metric *metric_gauge_with(const char *name, const char *help, const char *label, const char *value);
struct metric *metric_counter_with2(
	const char *name, const char *help, const char *label1, const char *value1, const char *label2, const char *value2);

/* Buckets are upper bounds, ascending, without +Inf; borrowed for ever (static array). Observations are doubles (seconds, bytes). */
struct metric *metric_histogram(const char *name, const char *help, const double *bounds, size_t n_bounds);
struct metric *metric_histogram_with(const char *name, const char *help, const double *bounds, size_t n_bounds, const char *label, const char *value);
extern const double metric_latency_bounds[]; /* 0.5 ms ... 30 s */
extern const size_t metric_latency_bounds_n;

/* Something that is said in a label and is one thing at a time: <name>{<label>="<value>"} 1 from now on, and no more what was said before. */
void metric_info(const char *name, const char *help, const char *label, const char *value);

void metric_add(struct metric *m, uint64_t n);	   /* counters */
void metric_set(struct metric *m, double v);	   /* gauges */
void metric_gauge_add(struct metric *m, double v); /* gauges, may be negative */
void metric_observe(struct metric *m, double v);   /* histograms */
double metric_value(struct metric *m);		   /* counter or gauge; for tests and status pages */

/* Called just before the text is made, to refresh gauges that are cheap to read and costly to keep. Kept for ever. */
void metrics_on_collect(void (*fn)(void *arg), void *arg);

/* Appends text format 0.0.4, sorted by name. Also the process_* metrics (cpu, resident, open fds, start time). */
void metrics_write(struct buf *out);
