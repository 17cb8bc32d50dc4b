/* A digest is of what is there, however it came: any order, twice, over restarts, with conflicts resolved; and any single change shows.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs many more.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "head/head_int.h"
#include "tests/support/head_lab.h"
#include "tests/support/repair_lab.h"

enum { RANGE = 600000, SAMPLES = 3000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;
static uint64_t seed;
static bool full;

struct item {
	uint32_t k;
	struct rlab_sample s;
};

static struct item *make_items(struct rlab *l, uint32_t n)
{
	struct item *v = calloc(n, sizeof *v);
	for (uint32_t i = 0; i < n; i++) {
		v[i].k = (uint32_t)(lab_random(&l->random) % RLAB_SERIES);
		v[i].s = rlab_random(l, 0, v[i].k, T0 + (int64_t)(lab_random(&l->random) % RANGE));
	}
	return v;
}

static void shuffle(struct item *v, uint32_t n, uint64_t *r)
{
	for (uint32_t i = n; i > 1; i--) {
		uint32_t k = (uint32_t)(lab_random(r) % i);
		struct item x = v[i - 1];
		v[i - 1] = v[k];
		v[k] = x;
	}
}

static void send(struct rlab *l, uint32_t node, const struct item *v, uint32_t n)
{
	for (uint32_t i = 0; i < n;) {
		struct rlab_request q;
		uint32_t end = i + 1 + (uint32_t)(lab_random(&l->random) % 200);
		rlab_begin(&q, 0);
		for (; i < n && i < end; i++)
			rlab_put(&q, v[i].k, &v[i].s);
		rlab_send(l, node, &q, true);
		rlab_end(&q);
	}
}

static bool equal(struct rlab *l)
{
	struct digest_bucket a = rlab_digest(l, 0, 1, 0, T0), b = rlab_digest(l, 1, 0, 0, T0);
	return digest_bucket_eq(&a, &b);
}

static void however_it_came(void **st)
{
	(void)st;
	for (uint64_t s = seed; s < seed + (full ? 200 : 8); s++) {
		struct rlab l;
		rlab_open(&l, s, 2, 2, 2, RANGE, T0);
		struct item *v = make_items(&l, SAMPLES);
		/* Some times twice, with other values: one of them stays. */
		for (uint32_t i = 0; i < SAMPLES / 10; i++) {
			uint32_t a = (uint32_t)(lab_random(&l.random) % SAMPLES), b = (uint32_t)(lab_random(&l.random) % SAMPLES);
			v[a].k = v[b].k;
			v[a].s = rlab_random(&l, 0, v[b].k, v[b].s.t);
		}
		send(&l, 0, v, SAMPLES);
		shuffle(v, SAMPLES, &l.random);
		send(&l, 1, v, SAMPLES / 2);
		assert_false(equal(&l));
		rlab_stop(&l, 1);
		rlab_start(&l, 1);
		send(&l, 1, v + SAMPLES / 4, SAMPLES - SAMPLES / 4);
		assert_true(equal(&l));
		rlab_stop(&l, 0);
		rlab_start(&l, 0);
		assert_true(equal(&l));
		/* As its dictionary says, too. */
		for (uint32_t i = 0; i < SAMPLES; i++)
			rlab_note(&l, 0, v[i].k, &v[i].s, 3);
		rlab_check(&l, T0, T0 + RANGE);
		free(v);
		rlab_free(&l);
	}
}

/* One sample more; another time; another value, by one bit; another series; a histogram with another hint. */
static void any_single_change_shows(void **st)
{
	(void)st;
	for (uint64_t s = seed; s < seed + (full ? 500 : 30); s++)
		for (int change = 0; change < 5; change++) {
			struct rlab l;
			rlab_open(&l, s, 2, 2, 2, RANGE, T0);
			struct item *v = make_items(&l, 60), was;
			send(&l, 0, v, 60);
			uint32_t i = (uint32_t)(lab_random(&l.random) % 60);
			was = v[i];
			switch (change) {
			case 0:
				v[i] = v[(i + 1) % 60];
				break;
			case 1:
				v[i].s.t = was.s.t == T0 ? T0 + 1 : was.s.t - 1;
				break;
			case 2:
				for (i = 0; v[i].s.is_hist; i++)
					;
				v[i].s.v ^= UINT64_C(1) << lab_random(&l.random) % 64;
				break;
			case 3:
				v[i].k = was.k < 10 ? (was.k + 1) % 10 : was.k < 15 ? 10 + (was.k - 9) % 5 : 15 + (was.k - 14) % 45;
				break;
			default:
				for (i = 0; i < 60 && (!v[i].s.is_hist || (v[i].s.packed.p[0] & 6) != 0 || (v[i].s.packed.p[0] & 8) != 0); i++)
					;
				if (i == 60)
					break;
				char *p = arena_alloc(&l.arena, v[i].s.packed.n);
				memcpy(p, v[i].s.packed.p, v[i].s.packed.n);
				p[0] |= 2; /* a reset was said */
				v[i].s.packed.p = p;
				break;
			}
			send(&l, 1, v, 60);
			if (i < 60)
				assert_false(equal(&l));
			free(v);
			rlab_free(&l);
		}
}

/* Two layouts of a histogram are the same, as long as the bytes of both heads are of one histogram. */
static void a_layout_does_not_show(void **st)
{
	(void)st;
	uint32_t tried = 0;
	for (uint64_t s = seed; s < seed + 40; s++) {
		struct rlab l;
		struct arena a;
		struct buf b;
		struct err err = {0};
		enum sample_kind kind;
		struct histogram h, other;
		rlab_open(&l, s, 2, 2, 2, RANGE, T0);
		arena_init(&a, 64 * MIB);
		buf_init(&b, MIB);
		struct item v = {3, rlab_random(&l, 0, 3, T0 + 5)};
		assert_int_equal(histogram_unpack(v.s.packed, &a, &kind, &h, &err), OK);
		send(&l, 0, &v, 1);
		if (h.schema != HIST_SCHEMA_CUSTOM && h.sum != STALE_NAN_BITS && h.n_pos_spans > 0) {
			hist_relayout(&a, kind, &h, &other);
			histogram_pack(kind, &other, &b);
			v.s.packed = span_of(b.p, b.n);
			tried++;
		}
		send(&l, 1, &v, 1);
		assert_true(equal(&l));
		buf_free(&b);
		arena_free(&a);
		rlab_free(&l);
	}
	assert_true(tried > 5);
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *f = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : 1;
	full = f && *f == '1';
	printf("seed %" PRIu64 "\n", seed);
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(however_it_came),
		cmocka_unit_test(any_single_change_shows),
		cmocka_unit_test(a_layout_does_not_show),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
