/* Replicas hold the same samples again: random fleets with random damage, repaired from each other, end with equal digests and with the winner of everything that was written; from any stop
 * in between, and whatever garbles their answers; what is cut, or older than the ring, is left alone.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs many more.
 */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "head/head_int.h"
#include "tests/support/head_lab.h"
#include "tests/support/repair_lab.h"

enum { RANGE = 600000, WINDOWS = 2 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;
static uint64_t seed;
static bool full;

/* The ring comes into force before all samples. */
static void open_fleet(struct rlab *l, uint64_t s, uint32_t n, uint32_t in_ring, uint32_t factor)
{
	rlab_open(l, s, n, in_ring, factor, RANGE, T0 - RANGE);
	for (uint32_t i = 0; i < n; i++)
		rlab_step(l, i); /* they know of each other */
	sim_set_now(l->sim, T0 + WINDOWS * RANGE + 60000);
}

/* Node i alone, until it wants nothing. */
static void settle(struct rlab *l, uint32_t i)
{
	for (int n = 0; n < 30; n++) {
		rlab_step(l, i);
		if (n > 0 && rlab_settled(l, i))
			return;
	}
	fail_msg("seed %" PRIu64 ": node %u does not come to rest", l->seed, i);
}

/* Samples in any order; of each, owners get it with odds of `whole` in 8; now and then some of the others another value. */
static void write_some(struct rlab *l, uint32_t n, uint32_t whole)
{
	struct rlab_request q[RLAB_TENANTS][RLAB_NODES];
	for (uint32_t t = 0; t < RLAB_TENANTS; t++)
		for (uint32_t i = 0; i < l->n; i++)
			rlab_begin(&q[t][i], t);
	for (uint32_t x = 0; x < n; x++) {
		uint32_t tenant = (uint32_t)(lab_random(&l->random) % RLAB_TENANTS), k = (uint32_t)(lab_random(&l->random) % RLAB_SERIES);
		int64_t t = T0 + (int64_t)(lab_random(&l->random) % (WINDOWS * RANGE / 1000)) * 1000;
		uint32_t owners = rlab_owners(l, tenant, k), some = 0;
		bool known = false;
		for (size_t i = 0; i < l->series[tenant][k].n; i++)
			known |= l->series[tenant][k].v[i].t == t;
		if (known)
			continue;
		for (uint32_t i = 0; i < l->n; i++)
			if (owners >> i & 1 && l->v[i].up && lab_random(&l->random) % 8 < whole)
				some |= 1u << i;
		for (uint32_t turn = 0; turn < 2 && some; turn++) {
			struct rlab_sample s = rlab_random(l, tenant, k, t);
			rlab_note(l, tenant, k, &s, some);
			for (uint32_t i = 0; i < l->n; i++)
				if (some >> i & 1)
					rlab_put(&q[tenant][i], k, &s);
			uint32_t rest = owners & ~some;
			some = 0;
			if (lab_random(&l->random) % 10 == 0)
				for (uint32_t i = 0; i < l->n; i++)
					if (rest >> i & 1 && l->v[i].up)
						some |= 1u << i;
		}
	}
	for (uint32_t t = 0; t < RLAB_TENANTS; t++)
		for (uint32_t i = 0; i < l->n; i++) {
			if (l->v[i].up)
				rlab_send(l, i, &q[t][i], false);
			rlab_end(&q[t][i]);
		}
}

static void random_fleets_agree(void **st)
{
	(void)st;
	uint64_t stored = 0;
	for (uint64_t s = seed; s < seed + (full ? 300 : 12); s++) {
		struct rlab l;
		uint64_t r = s;
		uint32_t factor = 2 + (uint32_t)(lab_random(&r) % 4), n = factor + (uint32_t)(lab_random(&r) % (RLAB_NODES - factor + 1));
		open_fleet(&l, s, n, n, factor);
		for (uint32_t round = 0; round < 2; round++) {
			write_some(&l, 2000, 4 + (uint32_t)(lab_random(&r) % 4));
			uint32_t again = (uint32_t)(lab_random(&r) % n);
			rlab_stop(&l, again);
			rlab_start(&l, again);
			rlab_repair(&l);
			rlab_check(&l, T0, T0 + WINDOWS * RANGE);
		}
		for (uint32_t i = 0; i < n; i++)
			stored += l.v[i].repair->counts.stored;
		/* And once they agree nothing goes over the wire any more. */
		uint64_t bytes[RLAB_NODES];
		for (uint32_t i = 0; i < n; i++)
			bytes[i] = l.v[i].repair->counts.bytes;
		rlab_repair(&l);
		for (uint32_t i = 0; i < n; i++)
			assert_int_equal(l.v[i].repair->counts.bytes, bytes[i]);
		rlab_free(&l);
	}
	printf("%" PRIu64 " samples were given back\n", stored);
	assert_true(stored > 1000);
}

static void a_lost_disk_is_filled_again(void **st)
{
	(void)st;
	for (uint32_t factor = 2; factor <= 5; factor++) {
		struct rlab l;
		open_fleet(&l, seed + factor, 5, 5, factor);
		write_some(&l, 4000, 8);
		rlab_check(&l, T0, T0 + WINDOWS * RANGE);
		rlab_stop(&l, 2);
		rlab_wipe(&l, 2);
		rlab_start(&l, 2);
		settle(&l, 2);
		assert_true(l.v[2].repair->counts.stored > 500);
		/* What the first replica gave comes again only where it shares a bucket with something else. */
		assert_true(l.v[2].repair->counts.duplicate < l.v[2].repair->counts.stored / 2);
		rlab_check(&l, T0, T0 + WINDOWS * RANGE);
		for (uint32_t i = 0; i < 5; i++)
			assert_true(i == 2 || l.v[i].repair->counts.stored == 0);
		rlab_free(&l);
	}
}

/* Stopped at each question in turn, and begun again with what the disk has. */
static void stopped_anywhere_it_goes_on(void **st)
{
	(void)st;
	struct rlab l;
	open_fleet(&l, seed, 3, 3, 3);
	write_some(&l, 3000, 5);
	for (uint32_t at = 0; at < (full ? 200 : 25); at++) {
		uint32_t i = at % 3;
		repair_all(l.v[i].repair);
		l.v[i].asks_left = at / 3;
		rlab_step(&l, i);
		rlab_stop(&l, i);
		rlab_start(&l, i);
		if (at == 12)
			write_some(&l, 500, 5);
	}
	rlab_repair(&l);
	rlab_check(&l, T0, T0 + WINDOWS * RANGE);
	rlab_free(&l);
}

static void garbled_answers_are_refused_and_asked_for_again(void **st)
{
	(void)st;
	struct rlab l;
	open_fleet(&l, seed + 77, 4, 4, 3);
	write_some(&l, 3000, 5);
	l.garbage = 12;
	for (int i = 0; i < 6; i++)
		for (uint32_t k = 0; k < 4; k++) {
			if (i == 0)
				repair_all(l.v[k].repair);
			rlab_step(&l, k);
		}
	l.garbage = 0;
	rlab_repair(&l);
	rlab_check(&l, T0, T0 + WINDOWS * RANGE);
	rlab_free(&l);
}

/* A compares with B and finds nothing to take, but that B has less: B is told, and takes it, and does not tell A in turn. */
static void who_lacks_something_is_told(void **st)
{
	(void)st;
	struct rlab l;
	struct rlab_request q;
	open_fleet(&l, seed + 19, 2, 2, 2);
	settle(&l, 0);
	settle(&l, 1);
	rlab_begin(&q, 0);
	for (uint32_t k = 0; k < RLAB_SERIES; k++)
		rlab_float(&q, k, T0 + k, k);
	rlab_send(&l, 0, &q, false);
	rlab_end(&q);
	repair_all(l.v[0].repair);
	settle(&l, 0);
	assert_int_equal(l.v[0].repair->counts.stored, 0);
	assert_int_equal(l.v[1].repair->peers[0].want, WANT_TOLD);
	settle(&l, 1);
	assert_int_equal(l.v[1].repair->counts.stored, RLAB_SERIES);
	assert_int_equal(l.v[0].repair->peers[0].want, 0);
	struct digest_bucket a = rlab_digest(&l, 0, 1, 0, T0), b = rlab_digest(&l, 1, 0, 0, T0);
	assert_true(digest_bucket_eq(&a, &b) && a.samples == RLAB_SERIES);
	rlab_free(&l);
}

/* While a node is down the others go on, say what is missing, and make up for it later. */
static void a_node_that_is_down_is_waited_for(void **st)
{
	(void)st;
	struct rlab l;
	struct buf json;
	open_fleet(&l, seed + 5, 3, 3, 2);
	write_some(&l, 2000, 8);
	rlab_stop(&l, 0);
	rlab_stop(&l, 1);
	rlab_wipe(&l, 1);
	rlab_start(&l, 1);
	for (int i = 0; i < 3; i++)
		rlab_step(&l, 1);
	assert_false(rlab_settled(&l, 1));
	buf_init(&json, MIB);
	repair_json(l.v[1].repair, &json);
	buf_u8(&json, 0);
	assert_non_null(strstr((const char *)json.p, "\"complete\":false"));
	assert_non_null(strstr((const char *)json.p, "it does not answer"));
	buf_free(&json);
	rlab_start(&l, 0);
	for (int i = 0; i < 3; i++)
		rlab_step(&l, 1);
	assert_true(rlab_settled(&l, 1));
	rlab_check(&l, T0, T0 + WINDOWS * RANGE);
	rlab_free(&l);
}

/* Who joins holds nothing from before, and is not made to. */
static void what_is_older_than_the_ring_is_left_alone(void **st)
{
	(void)st;
	struct rlab l;
	open_fleet(&l, seed + 9, 4, 3, 3);
	write_some(&l, 2000, 8);
	rlab_ring(&l, 4, 3);
	sim_set_now(l.sim, T0 + RANGE / 2 + 1 + LIMIT_REPAIR_LATE_MS);
	for (uint32_t i = 0; i < 4; i++)
		repair_ready(l.v[i].repair); /* since is now, but for late senders */
	sim_set_now(l.sim, T0 + WINDOWS * RANGE + 60000);
	rlab_stop(&l, 3);
	rlab_start(&l, 3);
	settle(&l, 3);
	/* Of the first window it has what lies behind the change. */
	struct head_walk *w;
	struct err err = {0};
	assert_int_equal(head_walk_open(l.v[3].head, SPAN("team-a"), T0, RANGE, &w, &err), OK);
	for (bool more = true; more;) {
		struct labels x;
		struct head_place place;
		struct head_samples s;
		assert_int_equal(head_walk_next(w, &x, &place, &more, &err), OK);
		if (!more)
			break;
		assert_int_equal(head_walk_samples(w, INT64_MIN, INT64_MAX, MIB, &s, &err), OK);
		assert_true(s.n_floats == 0 || s.floats[0].t > T0 + RANGE / 2);
		assert_true(s.n_hists == 0 || s.hists[0].t > T0 + RANGE / 2);
	}
	head_walk_close(w);
	rlab_free(&l);
}

static void a_window_that_was_cut_is_left_alone(void **st)
{
	(void)st;
	struct rlab l;
	open_fleet(&l, seed + 11, 3, 3, 3);
	write_some(&l, 1000, 5);
	l.cut = true;
	rlab_repair(&l);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(l.v[i].repair->counts.bytes, 0);
		assert_true(l.v[i].repair->counts.windows_cut > 0);
	}
	rlab_free(&l);
}

static void hints_come_first_and_what_they_dropped_is_made_up_for(void **st)
{
	(void)st;
	struct rlab l;
	open_fleet(&l, seed + 13, 3, 3, 3);
	write_some(&l, 1000, 5);
	l.v[1].owes = (struct repair_owed){.pending_bytes = 1000, .from_ms = T0, .to_ms = T0 + 5000};
	rlab_stop(&l, 0);
	rlab_start(&l, 0);
	rlab_step(&l, 0);
	rlab_step(&l, 0);
	assert_false(rlab_settled(&l, 0));
	assert_int_equal(l.v[1].repaired_ms, 0);
	l.v[1].owes.pending_bytes = 0;
	for (int i = 0; i < 4; i++)
		rlab_step(&l, 0);
	assert_true(rlab_settled(&l, 0));
	assert_int_equal(l.v[1].repaired_ms, T0 + 5000);
	rlab_repair(&l);
	rlab_check(&l, T0, T0 + WINDOWS * RANGE);
	rlab_free(&l);
}

struct told {
	size_t n;
};
static errc one_family(void *arg, const struct metadata *m, struct err *err)
{
	(void)err;
	assert_true(m->type == METRIC_COUNTER && span_is(m->help, "how many"));
	((struct told *)arg)->n++;
	return OK;
}

static void metadata_comes_with_what_is_given_back(void **st)
{
	(void)st;
	struct rlab l;
	struct rlab_request q;
	struct err err = {0};
	struct told told = {0};
	open_fleet(&l, seed + 15, 3, 3, 3);
	write_some(&l, 500, 8);
	for (uint32_t i = 0; i < 3; i++) {
		rlab_begin(&q, 1);
		for (int k = 0; k < 50; k++) {
			char name[32];
			snprintf(name, sizeof name, "metric_%d", k);
			rlab_metadata(&q, name, METRIC_COUNTER, "how many");
		}
		rlab_send(&l, i, &q, false);
		rlab_end(&q);
	}
	rlab_stop(&l, 1);
	rlab_wipe(&l, 1);
	rlab_start(&l, 1);
	settle(&l, 1);
	assert_int_equal(head_metadata_read(l.v[1].head, SPAN("team-a"), (struct span){NULL, 0}, one_family, &told, &err), OK);
	assert_int_equal(told.n, 50);
	rlab_free(&l);
}

/* Samples by the hundred thousand in one series, and many series: pieces end in the middle of either. */
static void pieces_end_anywhere(void **st)
{
	(void)st;
	struct rlab l;
	struct rlab_request q;
	open_fleet(&l, seed + 17, 2, 2, 2);
	for (uint32_t k = 20; k < 23; k++)
		for (int64_t t = 0; t < 200000; t += 1000) {
			rlab_begin(&q, 0);
			for (int64_t x = t; x < t + 900; x++)
				rlab_float(&q, k, T0 + x, (uint64_t)(x * 7919));
			rlab_send(&l, 0, &q, false);
			rlab_end(&q);
		}
	repair_all(l.v[1].repair);
	settle(&l, 1);
	assert_int_equal(l.v[1].repair->counts.stored, 3 * 200 * 900);
	assert_int_equal(l.v[1].repair->counts.duplicate, 0);
	assert_true(l.v[1].asked > 8);
	struct digest_bucket a = rlab_digest(&l, 0, 1, 0, T0), b = rlab_digest(&l, 1, 0, 0, T0);
	assert_true(digest_bucket_eq(&a, &b) && a.samples == 3 * 200 * 900);
	rlab_free(&l);
}

/* ---- messages ---- */

static void messages_say_what_they_were_told_and_no_bit_less(void **st)
{
	(void)st;
	uint64_t r = seed;
	struct err err = {0};
	struct arena a;
	struct buf out[4];
	struct repair_window w[] = {{SPAN("a"), -7200000, 7200000, 5, true}, {SPAN("team-b"), 0, 60000, UINT64_MAX, false}};
	struct repair_windows ws = {77, 12345, 9, w, 2}, ws2;
	struct repair_digest_answer d = {.epoch = 3, .open = true}, d2;
	struct repair_piece p = {.epoch = 5, .more = true, .cursor = {1, 2, {3, 4}, -5}, .series = 6, .samples = 7, .frame = SPAN("frame")}, p2;
	struct repair_owed o = {1, 2, 3}, o2;
	for (int i = 0; i < 40; i++)
		d.buckets[lab_random(&r) % DIGEST_BUCKETS] = (struct digest_bucket){1, 1 + lab_random(&r) % 100, {lab_random(&r), lab_random(&r)}};
	arena_init(&a, MIB);
	for (int i = 0; i < 4; i++)
		buf_init(&out[i], MIB);
	assert_int_equal(repair_windows_encode(&ws, &out[0], &err), OK);
	assert_int_equal(repair_digest_encode(&d, &out[1], &err), OK);
	assert_int_equal(repair_piece_encode(&p, &out[2], &err), OK);
	assert_int_equal(repair_owed_encode(&o, &out[3], &err), OK);
	assert_int_equal(repair_windows_decode(span_of(out[0].p, out[0].n), &a, &ws2, &err), OK);
	assert_true(ws2.epoch == 77 && ws2.since_ms == 12345 && ws2.next == 9 && ws2.n == 2);
	assert_true(
		span_is(ws2.v[1].tenant, "team-b") && ws2.v[1].samples == UINT64_MAX && !ws2.v[1].cut && ws2.v[0].cut && ws2.v[0].start == -7200000);
	assert_int_equal(repair_digest_decode(span_of(out[1].p, out[1].n), &d2, &err), OK);
	assert_true(d2.epoch == 3 && d2.open && !d2.cut && memcmp(d2.buckets, d.buckets, sizeof d.buckets) == 0);
	assert_int_equal(repair_piece_decode(span_of(out[2].p, out[2].n), &p2, &err), OK);
	assert_true(p2.more && p2.cursor.place.local == 4 && p2.cursor.t == -5 && span_is(p2.frame, "frame") && p2.samples == 7);
	assert_int_equal(repair_owed_decode(span_of(out[3].p, out[3].n), &o2, &err), OK);
	assert_true(o2.pending_bytes == 1 && o2.from_ms == 2 && o2.to_ms == 3);
	for (int m = 0; m < 4; m++)
		for (size_t i = 0; i < out[m].n * 8; i++) {
			out[m].p[i / 8] ^= (uint8_t)(1 << i % 8);
			struct span bad = span_of(out[m].p, out[m].n);
			errc rc = m == 0   ? repair_windows_decode(bad, &a, &ws2, &err)
				  : m == 1 ? repair_digest_decode(bad, &d2, &err)
				  : m == 2 ? repair_piece_decode(bad, &p2, &err)
					   : repair_owed_decode(bad, &o2, &err);
			assert_true(rc == ERR_INVALID || rc == ERR_UNSUPPORTED);
			out[m].p[i / 8] ^= (uint8_t)(1 << i % 8);
		}
	char text[REPAIR_CURSOR_TEXT];
	struct repair_cursor c;
	repair_cursor_text(&p.cursor, text);
	assert_true(repair_cursor_parse(span_cstr(text), &c) && memcmp(&c, &p.cursor, sizeof c) == 0);
	text[7] = 'g';
	assert_false(repair_cursor_parse(span_cstr(text), &c));
	for (int i = 0; i < 4; i++)
		buf_free(&out[i]);
	arena_free(&a);
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *f = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : 1;
	full = f && *f == '1';
	printf("seed %" PRIu64 "\n", seed);
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_say_what_they_were_told_and_no_bit_less),
		cmocka_unit_test(random_fleets_agree),
		cmocka_unit_test(a_lost_disk_is_filled_again),
		cmocka_unit_test(stopped_anywhere_it_goes_on),
		cmocka_unit_test(garbled_answers_are_refused_and_asked_for_again),
		cmocka_unit_test(who_lacks_something_is_told),
		cmocka_unit_test(a_node_that_is_down_is_waited_for),
		cmocka_unit_test(what_is_older_than_the_ring_is_left_alone),
		cmocka_unit_test(a_window_that_was_cut_is_left_alone),
		cmocka_unit_test(hints_come_first_and_what_they_dropped_is_made_up_for),
		cmocka_unit_test(metadata_comes_with_what_is_given_back),
		cmocka_unit_test(pieces_end_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
