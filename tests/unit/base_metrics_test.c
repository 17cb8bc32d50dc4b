/* tests/unit/base_metrics_test.c - the registry, and the text that Prometheus reads. */
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/metrics.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

static char *text_of_metrics(void)
{
	struct buf b;
	buf_init(&b, 16 << 20);
	metrics_write(&b);
	buf_u8(&b, 0);
	assert_false(b.failed);
	return (char *)b.p;
}

/* The lines of one family, in order. */
static char *family(const char *name)
{
	char *all = text_of_metrics(), *out = calloc(1, strlen(all) + 1);
	for (char *save = NULL, *line = strtok_r(all, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		const char *at = strncmp(line, "# ", 2) == 0 ? line + 7 : line;
		if (strncmp(at, name, strlen(name)) == 0) {
			strcat(out, line);
			strcat(out, "\n");
		}
	}
	free(all);
	return out;
}

static void assert_family(const char *name, const char *want)
{
	char *got = family(name);
	assert_string_equal(got, want);
	free(got);
}

static void the_text_is_the_format(void **state)
{
	(void)state;
	metric_add(metric_counter_with("varve_t1_total", "Things,\nof a kind \\ sort.", "kind", "b"), 3);
	metric_add(metric_counter_with("varve_t1_total", "ignored", "kind", "a\"\\\n"), UINT64_C(1) << 60);
	metric_add(metric_counter_with2("varve_t1_total", "ignored", "kind", "b", "x", "y"), 1);
	assert_family("varve_t1_total", "# HELP varve_t1_total Things,\\nof a kind \\\\ sort.\n"
					"# TYPE varve_t1_total counter\n"
					"varve_t1_total{kind=\"a\\\"\\\\\\n\"} 1152921504606846976\n"
					"varve_t1_total{kind=\"b\"} 3\n"
					"varve_t1_total{kind=\"b\",x=\"y\"} 1\n");
	struct metric *g = metric_gauge("varve_t2_bytes", "Bytes.");
	static const struct {
		double v;
		const char *text;
	} v[] = {{0, "0"}, {-1, "-1"}, {0.1, "0.1"}, {1e15, "1e+15"}, {123456789, "123456789"}, {1.0 / 3, "0.3333333333333333"}, {1e-9, "1e-09"},
		{(double)INFINITY, "+Inf"}, {-(double)INFINITY, "-Inf"}, {(double)NAN, "NaN"}, {999999999999999, "999999999999999"}};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
		char want[200];
		metric_set(g, v[i].v);
		snprintf(want, sizeof want, "# HELP varve_t2_bytes Bytes.\n# TYPE varve_t2_bytes gauge\nvarve_t2_bytes %s\n", v[i].text);
		assert_family("varve_t2_bytes", want);
	}
	metric_set(g, 1);
	metric_gauge_add(g, -3.5);
	assert_true(metric_value(g) == -2.5);
}

static void histograms_are_cumulative(void **state)
{
	(void)state;
	static const double bounds[] = {0.5, 1, 10};
	struct metric *h = metric_histogram_with("varve_t3_seconds", "H.", bounds, 3, "op", "x");
	static const double v[] = {0, 0.5, 0.50001, 1, 9, 10, 11, 1e9};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++)
		metric_observe(h, v[i]);
	assert_family("varve_t3_seconds", "# HELP varve_t3_seconds H.\n"
					  "# TYPE varve_t3_seconds histogram\n"
					  "varve_t3_seconds_bucket{op=\"x\",le=\"0.5\"} 2\n"
					  "varve_t3_seconds_bucket{op=\"x\",le=\"1\"} 4\n"
					  "varve_t3_seconds_bucket{op=\"x\",le=\"10\"} 6\n"
					  "varve_t3_seconds_bucket{op=\"x\",le=\"+Inf\"} 8\n"
					  "varve_t3_seconds_sum{op=\"x\"} 1000000032.00001\n"
					  "varve_t3_seconds_count{op=\"x\"} 8\n");
	struct metric *plain = metric_histogram("varve_t4_seconds", "H.", bounds, 1);
	metric_observe(plain, (double)NAN);
	assert_family("varve_t4_seconds", "# HELP varve_t4_seconds H.\n# TYPE varve_t4_seconds histogram\nvarve_t4_seconds_bucket{le=\"0.5\"} 0\n"
					  "varve_t4_seconds_bucket{le=\"+Inf\"} 1\nvarve_t4_seconds_sum NaN\nvarve_t4_seconds_count 1\n");
	for (size_t i = 1; i < metric_latency_bounds_n; i++)
		assert_true(metric_latency_bounds[i - 1] < metric_latency_bounds[i]);
}

static void same_name_same_metric(void **state)
{
	(void)state;
	struct metric *seen[300];
	char value[300][16];
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 300; i++) {
			snprintf(value[i], sizeof value[i], "t%d", (i * 7919) % 300);
			struct metric *m = metric_gauge_with("varve_t5", "G.", "tenant", value[i]);
			if (round == 0)
				seen[i] = m;
			assert_ptr_equal(m, seen[i]);
			assert_int_equal((uintptr_t)m % 64, 0);
			for (int k = 0; k < i; k++)
				assert_ptr_not_equal(seen[k], m);
		}
	}
	char *text = family("varve_t5");
	const char *last = "";
	int n = 0;
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (line[0] == '#')
			continue;
		assert_true(strcmp(last, line) < 0);
		last = line;
		n++;
	}
	assert_int_equal(n, 300);
	free(text);
}

static void families_are_sorted_and_process_is_among_them(void **state)
{
	(void)state;
	metric_gauge("a_first", "A.");
	metric_gauge("zz_last", "Z.");
	metric_gauge("process_zzz", "P.");
	char *text = text_of_metrics(), last[100] = "";
	unsigned process = 0;
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char name[100];
		if (sscanf(line, "# TYPE %99s", name) != 1)
			continue;
		assert_true(strcmp(last, name) < 0);
		strcpy(last, name);
		process += strncmp(name, "process_", 8) == 0;
	}
	assert_string_equal(last, "zz_last");
	assert_int_equal(process, 8); /* cpu, max fds, open fds, resident, start, threads, virtual, and the one above */
	free(text);
	text = text_of_metrics();
	double start = strtod(strstr(text, "\nprocess_start_time_seconds ") + 28, NULL);
	double now = (double)io_now_ms() / 1000;
	assert_true(start > now - 600 && start < now + 2);
	double rss = strtod(strstr(text, "\nprocess_resident_memory_bytes ") + 31, NULL);
	assert_true(rss > 100000);
	free(text);
	/* where there is no /proc there are no such metrics, and no failure */
	struct sim *s = sim_new(1);
	text = text_of_metrics();
	assert_null(strstr(text, "process_resident_memory_bytes"));
	assert_non_null(strstr(text, "zz_last"));
	free(text);
	sim_free(s);
}

static int collected;

/* One thing at a time: what was said before is gone. */
static void an_info_is_its_last_word(void **state)
{
	(void)state;
	metric_info("varve_test_info", "what is so", "what", "a \"b\"");
	assert_family(
		"varve_test_info", "# HELP varve_test_info what is so\n# TYPE varve_test_info gauge\nvarve_test_info{what=\"a \\\"b\\\"\"} 1\n");
	for (char word[] = "a"; word[0] <= 'z'; word[0]++)
		metric_info("varve_test_info", "what is so", "what", word);
	assert_family("varve_test_info", "# HELP varve_test_info what is so\n# TYPE varve_test_info gauge\nvarve_test_info{what=\"z\"} 1\n");
}

static void refresh(void *arg)
{
	collected++;
	metric_set(metric_gauge((const char *)arg, "Made while collecting."), collected);
}

static void collectors_may_register(void **state)
{
	(void)state;
	metrics_on_collect(refresh, "varve_t6");
	assert_family("varve_t6", "# HELP varve_t6 Made while collecting.\n# TYPE varve_t6 gauge\nvarve_t6 1\n");
	assert_family("varve_t6", "# HELP varve_t6 Made while collecting.\n# TYPE varve_t6 gauge\nvarve_t6 2\n");
}

static void *hammer(void *arg)
{
	static const double bounds[] = {1};
	(void)arg;
	struct metric *c = metric_counter("varve_t7_total", "C."), *g = metric_gauge("varve_t7_gauge", "G."),
		      *h = metric_histogram("varve_t7_seconds", "H.", bounds, 1);
	for (int i = 0; i < 20000; i++) {
		metric_add(c, 1);
		metric_gauge_add(g, 0.5);
		metric_observe(h, i & 1 ? 0.5 : 2);
		if (i % 2000 == 0)
			free(text_of_metrics());
	}
	return NULL;
}

static void updates_of_threads_all_count(void **state)
{
	(void)state;
	pthread_t t[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, hammer, NULL);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	assert_true(metric_value(metric_counter("varve_t7_total", "C.")) == 80000);
	assert_true(metric_value(metric_gauge("varve_t7_gauge", "G.")) == 40000);
	char *text = family("varve_t7_seconds");
	assert_non_null(strstr(text, "le=\"1\"} 40000\n"));
	assert_non_null(strstr(text, "_count 80000\n"));
	free(text);
}

/* Without memory there is a sink: it takes updates, is not shown, and the next registration is a real one. */
static void no_memory_gives_a_sink(void **state)
{
	(void)state;
	static const double bounds[] = {1};
	static char names[20][3][32];
	for (uint64_t n = 1; n < 20; n++) {
		static const char *const kinds[] = {"c", "g", "h"};
		for (int k = 0; k < 3; k++)
			snprintf(names[n][k], sizeof names[n][k], "varve_t8_%s%02d", kinds[k], (int)n);
		fail_alloc_at(n, false);
		struct metric *c = metric_counter(names[n][0], "C."), *g = metric_gauge(names[n][1], "G."),
			      *h = metric_histogram(names[n][2], "H.", bounds, 1);
		bool hit = fail_alloc_off() > 0;
		metric_add(c, 1);
		metric_set(g, 1);
		metric_observe(h, 1);
		c = metric_counter(names[n][0], "C.");
		metric_add(c, 1);
		assert_true(metric_value(c) >= 1);
		char *text = text_of_metrics();
		assert_non_null(strstr(text, names[n][0]));
		free(text);
		if (!hit)
			return;
	}
	fail();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_text_is_the_format),
		cmocka_unit_test(histograms_are_cumulative),
		cmocka_unit_test(same_name_same_metric),
		cmocka_unit_test(families_are_sorted_and_process_is_among_them),
		cmocka_unit_test(an_info_is_its_last_word),
		cmocka_unit_test(collectors_may_register),
		cmocka_unit_test(updates_of_threads_all_count),
		cmocka_unit_test(no_memory_gives_a_sink),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
