/* chunks and index are a function of the sorted samples alone: the same samples in any order, killed midway or not, give the same bytes.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_cut_int.h"
#include "tests/support/block_model.h"
#include "tests/support/head_lab.h"

enum { RANGE = 7200000, SERIES = 12 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

enum order { IN_ORDER, REVERSED, SHUFFLED, INTERLEAVED, MOSTLY_IN_ORDER, ORDERS };

struct set {
	struct chunk_sample *v;
	uint32_t *series;
	size_t n;
};

/* Series of different density: from a sample a minute to one each 700 ms; gaps; runs of random bits that make chunks end by size. */
static struct set make_set(uint64_t seed)
{
	struct set s = {0};
	uint64_t r = seed;
	size_t cap = 200000;
	s.v = malloc(cap * sizeof *s.v);
	s.series = malloc(cap * sizeof *s.series);
	for (uint32_t k = 0; k < SERIES; k++) {
		int64_t step = k % 4 == 0 ? 700 : k % 4 == 1 ? 5000 : k % 4 == 2 ? 15000 : 60000;
		int64_t t = T0 + (int64_t)(lab_random(&r) % 100000);
		uint64_t x = 0;
		while (t < T0 + RANGE) {
			x += lab_random(&r) % 3;
			s.v[s.n] = (struct chunk_sample){t, k % 3 == 2 ? lab_random(&r) : f64_bits((double)x)};
			s.series[s.n++] = k;
			t += step + (k % 2 ? (int64_t)(lab_random(&r) % 50) : 0);
			if (lab_random(&r) % 500 == 0)
				t += step * 20;
		}
	}
	return s;
}

static void reorder(struct set *s, enum order o, uint64_t seed, uint32_t *to)
{
	uint64_t r = seed;
	for (size_t i = 0; i < s->n; i++)
		to[i] = (uint32_t)i;
	if (o == REVERSED) {
		for (size_t i = 0; i < s->n; i++)
			to[i] = (uint32_t)(s->n - 1 - i);
	} else if (o == SHUFFLED) {
		for (size_t i = s->n; i > 1; i--) {
			size_t j = lab_random(&r) % i;
			uint32_t x = to[i - 1];
			to[i - 1] = to[j];
			to[j] = x;
		}
	} else if (o == INTERLEAVED) {
		size_t n = 0;
		for (size_t stride = 0; stride < 7; stride++)
			for (size_t i = stride; i < s->n; i += 7)
				to[n++] = (uint32_t)i;
	} else if (o == MOSTLY_IN_ORDER) {
		for (size_t i = 0; i + 40 < s->n; i++) {
			if (lab_random(&r) % 50)
				continue;
			size_t j = i + lab_random(&r) % 40;
			uint32_t x = to[i];
			memmove(&to[i], &to[i + 1], (j - i) * sizeof *to);
			to[j] = x;
		}
	}
}

static struct span slurp(struct arena *a, struct ulid u, const char *file)
{
	char path[256];
	struct span s;
	struct err err = {0};
	snprintf(path, sizeof path, "data/blocks/%s/%s", ulid_text(u).s, file);
	if (io_read_file(path, GIB, a, &s, &err) != OK)
		fail_msg("%s", err.msg);
	return s;
}

static void send_all(struct lab *l, const struct set *s, const uint32_t *to, size_t from, size_t end, uint64_t *r)
{
	struct err err = {0};
	while (from < end) {
		struct lab_batch b;
		lab_batch_begin(&b, 0);
		for (size_t k = 0; k < 1 + lab_random(r) % 400 && from < end;) {
			uint32_t series = s->series[to[from]];
			lab_batch_series(&b, series, 0);
			for (; from < end && s->series[to[from]] == series && b.hs[b.n - 1].n < 100; from++, k++)
				lab_batch_sample(&b, s->v[to[from]].t, s->v[to[from]].v);
		}
		if (lab_send(l, &b, &err) != OK)
			fail_msg("send: %s", err.msg);
		lab_batch_free(&b);
	}
}

static void any_order_gives_the_same_bytes(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_FULL");
	uint32_t rounds = env && *env == '1' ? 20 : 1;
	for (uint64_t round = 0; round < rounds; round++) {
		struct arena keep;
		struct set s = make_set(42 + round);
		uint32_t *to = malloc(s.n * sizeof *to);
		struct span index = {0}, chunks = {0};
		arena_init(&keep, GIB);
		for (int o = 0; o < ORDERS * 2; o++) {
			struct lab l;
			struct err err = {0};
			uint64_t r = round * 100 + (uint64_t)o;
			bool tight = o >= ORDERS; /* raw leaves are sealed at once, and the run is killed midway */
			lab_open(&l, r, RANGE, 4 * MIB);
			l.n_series = SERIES;
			l.cfg.max_memory_bytes = tight ? 4 * MIB : GIB;
			if (lab_start(&l, &err) != OK)
				fail_msg("start: %s", err.msg);
			l.quiet_model = true;
			reorder(&s, (enum order)(o % ORDERS), r, to);
			size_t kill = tight ? lab_random(&r) % s.n : 0;
			l.cfg.max_memory_bytes = GIB;
			send_all(&l, &s, to, 0, kill, &r);
			if (tight) {
				lab_crash(&l, SIM_KEEP_ALL);
				if (lab_start(&l, &err) != OK)
					fail_msg("start: %s", err.msg);
			}
			send_all(&l, &s, to, kill, s.n, &r);
			head_cut_direct_bytes = (uint64_t)(o % 2); /* every other time through the spool */
			lab_flush(&l);
			head_cut_direct_bytes = 0;
			assert_int_equal(l.stored, s.n);
			assert_int_equal(l.n_blocks, 1);
			struct span ix = slurp(&keep, l.blocks[0], "index"), ch = slurp(&keep, l.blocks[0], "chunks/000001");
			if (o == 0) {
				index = ix;
				chunks = ch;
				/* And they are what the cutting rule makes of the sorted samples. */
				struct model m;
				char dir[256];
				snprintf(dir, sizeof dir, "data/blocks/%s", ulid_text(l.blocks[0]).s);
				model_read(&m, dir);
				assert_int_equal(m.n, SERIES);
				size_t n_chunks = 0, at = 0, seen = 0;
				for (uint32_t k = 0; k < SERIES; k++) {
					size_t n = 0, want_n;
					while (at + n < s.n && s.series[at + n] == k)
						n++;
					struct chunk *want = model_encode(&keep, s.v + at, n, RANGE, &want_n);
					at += n;
					for (size_t i = 0; i < m.n; i++) {
						if (m.v[i].n != want_n || m.v[i].chunks[0].mint != want[0].mint ||
							!span_eq(m.v[i].chunks[0].data, want[0].data))
							continue;
						seen++;
						for (size_t c = 0; c < want_n; c++)
							assert_true(span_eq(m.v[i].chunks[c].data, want[c].data));
					}
					n_chunks += want_n;
				}
				assert_int_equal(seen, SERIES);
				assert_true(n_chunks > 100);
				model_free(&m);
			} else if (!span_eq(ix, index) || !span_eq(ch, chunks)) {
				fail_msg("order %d: index %s, chunks %s (%zu, %zu bytes)", o, span_eq(ix, index) ? "same" : "differs",
					span_eq(ch, chunks) ? "same" : "differ", ch.n, chunks.n);
			}
			lab_free(&l);
		}
		arena_free(&keep);
		free(to);
		free(s.v);
		free(s.series);
	}
}

/* Series k gets its sample k late: after `late` more samples, or at the very end. Each border of a chunk is hit from both sides. */
static void one_late_sample_anywhere(void **state)
{
	(void)state;
	enum { N = 480 };
	static const uint32_t lates[] = {1, 3, 40, 130, N};
	for (size_t c = 0; c < sizeof lates / sizeof *lates; c++) {
		struct lab l;
		struct err err = {0};
		struct arena keep;
		lab_open(&l, 1, RANGE, 16 * MIB);
		l.n_series = N;
		l.quiet_model = true;
		arena_init(&keep, GIB);
		if (lab_start(&l, &err) != OK)
			fail_msg("start: %s", err.msg);
		for (uint32_t i = 0; i <= N + lates[c]; i++) {
			struct lab_batch b;
			lab_batch_begin(&b, 0);
			for (uint32_t k = 0; k < N; k++) {
				lab_batch_series(&b, k, 0);
				if (i < N && i != k)
					lab_batch_sample(&b, T0 + 1000 + (int64_t)i * 14900, f64_bits((double)(i * k)));
				if (i == k + lates[c])
					lab_batch_sample(&b, T0 + 1000 + (int64_t)k * 14900, f64_bits((double)(k * k)));
			}
			if (lab_send(&l, &b, &err) != OK)
				fail_msg("send: %s", err.msg);
			lab_batch_free(&b);
		}
		assert_int_equal(l.stored, N * N);
		lab_flush(&l);
		struct model m;
		char dir[256];
		snprintf(dir, sizeof dir, "data/blocks/%s", ulid_text(l.blocks[0]).s);
		model_read(&m, dir);
		assert_int_equal(m.n, N);
		for (size_t i = 0; i < m.n; i++) {
			unsigned host, metric;
			struct chunk_sample v[N];
			size_t want_n;
			assert_int_equal(sscanf(arena_cstr(&keep, labels_get(m.v[i].labels, SPAN("__name__"))), "metric_%u", &metric), 1);
			assert_int_equal(sscanf(arena_cstr(&keep, labels_get(m.v[i].labels, SPAN("instance"))), "host-%u", &host), 1);
			for (uint32_t k = 0; k < N; k++)
				v[k] = (struct chunk_sample){T0 + 1000 + (int64_t)k * 14900, f64_bits((double)(k * (host * 5 + metric)))};
			struct chunk *want = model_encode(&keep, v, N, RANGE, &want_n);
			if (m.v[i].n != want_n)
				fail_msg("sample %u late by %u: %zu chunks, want %zu", host * 5 + metric, lates[c], m.v[i].n, want_n);
			for (size_t k = 0; k < want_n; k++)
				if (m.v[i].chunks[k].mint != want[k].mint || !span_eq(m.v[i].chunks[k].data, want[k].data))
					fail_msg("sample %u late by %u: chunk %zu differs", host * 5 + metric, lates[c], k);
		}
		model_free(&m);
		arena_free(&keep);
		lab_free(&l);
	}
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_order_gives_the_same_bytes),
		cmocka_unit_test(one_late_sample_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
