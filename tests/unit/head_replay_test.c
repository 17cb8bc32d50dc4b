/* What a restart finds: windows bigger than memory, cuts at every moment, segments that went, blocks that are shipped and gone.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_int.h"
#include "tests/support/head_lab.h"

enum { RANGE = 600000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

/* `per` samples for each of n series of a tenant, from *clock on. */
static void send(struct lab *l, uint32_t tenant, uint32_t first, uint32_t n, uint32_t per, int64_t step, int64_t *clock, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, tenant);
	for (uint32_t k = first; k < first + n; k++) {
		lab_batch_series(&b, k, 0);
		for (uint32_t i = 0; i < per; i++)
			lab_batch_sample(&b, *clock + (int64_t)i * step, lab_random(r));
	}
	*clock += (int64_t)per * step;
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

static void a_log_bigger_than_memory(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 5;
	int64_t clock = T0;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 100;
	must_start(&l);
	for (uint32_t i = 0; i < 300; i++) {
		int64_t at = clock;
		send(&l, i % 2, 0, 100, 10, 1000, &at, &r);
		clock += 9000; /* the next batch of the tenant comes in order, windows overlap */
		if (i % 2)
			clock += 2000;
	}
	lab_check_exact(&l, UINT64_MAX);
	struct head_status before, after;
	head_status(l.head, &before);
	l.cfg.max_memory_bytes = before.memory_bytes / 3;
	for (uint32_t round = 0; round < 3; round++) {
		lab_crash(&l, SIM_KEEP_ALL);
		must_start(&l);
		head_status(l.head, &after);
		assert_true(after.memory_bytes < before.memory_bytes / 2);
		assert_true(l.n_blocks > 0);
		lab_check_exact(&l, UINT64_MAX);
	}
	lab_flush(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_crash(&l, SIM_DROP_ALL);
	l.cfg.max_memory_bytes = GIB;
	must_start(&l);
	head_status(l.head, &after);
	assert_int_equal(after.windows, 0);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

/* A cut record that stands later in the log is known before a window would be cut for want of memory. */
static void what_is_a_block_already_is_not_cut_again(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 6;
	int64_t clock = T0;
	lab_open(&l, 2, RANGE, 4 * MIB);
	l.n_series = 100;
	must_start(&l);
	for (uint32_t i = 0; i < 60; i++)
		send(&l, 0, 0, 100, 10, 500, &clock, &r);
	struct head_status st;
	head_status(l.head, &st);
	lab_flush(&l);
	clock = T0 + 10 * RANGE;
	for (uint32_t i = 0; i < 20; i++)
		send(&l, 0, 0, 100, 10, 500, &clock, &r);
	lab_forget_blocks(&l); /* shipped and removed; the log alone knows */
	l.cfg.max_memory_bytes = st.memory_bytes / 2;
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

static void wait_for(struct lab *l, bool (*cond)(struct lab *l))
{
	for (int i = 0; i < 5000 && !cond(l); i++)
		io_sleep_ms(1);
	assert_true(cond(l));
}

static uint64_t first_before;

static bool segments_went(struct lab *l)
{
	struct wal_status st;
	wal_status(l->wal, &st);
	return st.segment_first > first_before;
}

static bool all_settled(struct lab *l)
{
	for (size_t i = 0; i < l->n_blocks; i++)
		if (!head_cut_settled(l->head, l->blocks[i]))
			return false;
	return true;
}

/* A log may have more windows of a series than were ever open at once: it is read before their cuts are met. */
static void more_windows_than_sixteen_bits_count(void **state)
{
	(void)state;
	enum { WINDOWS = 66000 };
	struct lab l;
	struct err err = {0};
	struct wal_ticket t;
	struct wal_series_enc e;
	struct buf records, wire;
	struct head_status st;
	const struct span tenant = span_cstr(lab_tenant(0));
	lab_open(&l, 3, RANGE, 16 * MIB);
	l.n_series = 1;
	l.quiet_model = true;
	must_start(&l);
	buf_init(&records, 16 * MIB);
	buf_init(&wire, 4096);
	lab_wire(0, 0, &wire);
	wal_series_begin(&e, &records, tenant);
	wal_series_put(&e, 1, span_of(wire.p, wire.n), &(struct wal_keys){0});
	wal_series_end(&e);
	for (int64_t i = 0; i < WINDOWS; i++) {
		struct wal_sample s = {.ref = 1, .t = T0 + i * RANGE, .v = 0};
		wal_samples_put(&records, &(struct wal_window){.tenant = tenant, .window = ulid_new(), .start_ms = s.t, .range_ms = RANGE}, &s, 1);
	}
	assert_false(records.failed);
	assert_int_equal(wal_reserve(l.wal, records.n, &t, &err), OK);
	assert_int_equal(wal_commit_wait(l.wal, &t, span_of(records.p, records.n), WINDOWS, &err), OK);
	buf_free(&records);
	buf_free(&wire);
	lab_crash(&l, SIM_KEEP_ALL);
	l.cfg.cut_delay_ms = INT64_MAX / 4;
	l.cfg.max_age_ms = INT64_MAX / 4;
	must_start(&l);
	head_status(l.head, &st);
	assert_int_equal(st.windows, WINDOWS);
	assert_int_equal(st.series, 1);
	lab_free(&l);
}

static bool one_block(struct lab *l)
{
	pthread_mutex_lock(&l->mu);
	bool one = l->n_blocks == 1;
	pthread_mutex_unlock(&l->mu);
	return one;
}

/* Where the log is not synced for each request its cuts are: a block whose directory may go (it is in the bucket) is not made again from older,
 * synced segments after a power cut. */
static void a_settled_cut_is_synced_in_any_mode(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 7;
	int64_t clock = T0, other = T0 + 100 * RANGE;
	struct wal_status st = {0};
	lab_open(&l, 3, RANGE, 4 * MIB);
	l.n_series = 400;
	l.sync = WAL_SYNC_OS;
	l.cfg.cut_delay_ms = 1000;
	l.cfg.max_age_ms = 1000 * RANGE;
	sim_set_now(l.sim, T0);
	must_start(&l);
	send(&l, 0, 0, 400, 10, 100, &clock, &r);
	/* The log begins another segment, so these are synced; windows of later times keep the first one. */
	for (int i = 0; st.segment_now < 2 && i < 1000; i++) {
		send(&l, 1, 0, 400, 10, 100, &other, &r);
		wal_status(l.wal, &st);
	}
	sim_set_now(l.sim, T0 + RANGE + 1000);
	wait_for(&l, one_block);
	struct ulid block = l.blocks[0];
	l.gen++;
	for (uint32_t i = 0; i < 20 && !all_settled(&l); i++) {
		for (uint32_t k = 0; k < 10; k++)
			send(&l, 2, 0, 400, 10, 100, &other, &r);
		wal_status(l.wal, &st);
		assert_int_equal(st.segment_now, 2);
		io_sleep_ms(600);
	}
	assert_true(all_settled(&l));
	lab_forget_blocks(&l);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_flush(&l);
	for (size_t i = 0; i < l.n_blocks; i++)
		assert_false(ulid_eq(l.blocks[i], block));
	lab_free(&l);
}

/* Segments go, definitions of long-lived series with them; the checkpoint has what is needed. */
static void checkpoints_keep_what_is_needed(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 7;
	int64_t clock = T0;
	lab_open(&l, 3, RANGE, 1 * MIB);
	l.n_series = 400;
	must_start(&l);
	for (uint32_t round = 0; round < 3; round++) {
		/* Tenant 1 has a window that stays open from the beginning of the round, with series of its own. */
		struct wal_status st;
		wal_status(l.wal, &st);
		first_before = st.segment_first;
		for (uint32_t i = 0; i < 40; i++)
			send(&l, 0, 0, 400, 10, 100, &clock, &r);
		lab_flush(&l);
		int64_t other = T0 + round * 1000;
		send(&l, 1, 0, 300, 1, 1, &other, &r);
		for (uint32_t i = 0; i < 10; i++)
			send(&l, 0, 0, 400, 10, 100, &clock, &r);
		wait_for(&l, segments_went);
		lab_check_exact(&l, UINT64_MAX);
		lab_crash(&l, (enum sim_loss)(round % SIM_LOSSES));
		must_start(&l);
		lab_check_exact(&l, UINT64_MAX);
	}
	/* A series that was settled before the restart still is known after the next one. */
	for (uint32_t i = 0; i < 5; i++)
		send(&l, 0, 0, 400, 10, 100, &clock, &r);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_check_exact(&l, UINT64_MAX);
	/* Blocks whose cut is settled may go. */
	lab_flush(&l);
	for (uint32_t i = 0; i < 20 && !all_settled(&l); i++) {
		for (uint32_t k = 0; k < 10; k++)
			send(&l, 2, 0, 400, 10, 100, &clock, &r);
		io_sleep_ms(600);
	}
	wait_for(&l, all_settled);
	lab_forget_blocks(&l);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

/* The power goes after any operation of: append, cut, append, rotate, checkpoint. */
static void power_cut_anywhere(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 8;
	int64_t clock = T0;
	lab_open(&l, 4, RANGE, 1 * MIB);
	l.n_series = 60;
	sim_record(l.sim);
	must_start(&l);
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 8; i++)
			send(&l, i % 3, 0, 60, 70, 200, &clock, &r);
		lab_flush(&l);
		for (uint32_t i = 0; i < 12; i++)
			send(&l, i % 2, 20, 40, 90, 100, &clock, &r);
		io_sleep_ms(50);
	}
	struct wal_status st;
	wal_status(l.wal, &st);
	lab_stop(&l);
	struct sim_tape *tape = sim_tape_take(l.sim);
	struct sim *whole = l.sim;
	uint64_t n = sim_tape_len(tape), states = 0, every = full() ? 1 : n * SIM_LOSSES / 150 + 1, skip = 3;
	for (uint64_t k = 4; k <= n; k++) {
		for (int loss = 0; loss < SIM_LOSSES; loss++) {
			if (skip++ % every)
				continue;
			l.sim = sim_tape_crash(tape, k, (enum sim_loss)loss, k);
			sim_use(l.sim);
			struct err err = {0};
			char text[200];
			if (lab_start(&l, &err) != OK)
				fail_msg("after %s, %s: %s", sim_tape_text(tape, k, text, sizeof text), sim_loss_name((enum sim_loss)loss), err.msg);
			lab_check_exact(&l, k);
			lab_stop(&l);
			sim_free(l.sim);
			states++;
		}
	}
	printf("%llu states of %llu operations, %llu segments\n", (unsigned long long)states, (unsigned long long)n,
		(unsigned long long)st.segment_now);
	sim_tape_free(tape);
	l.sim = whole;
	sim_use(whole);
	lab_free(&l);
}

struct frames {
	struct wal_frame v[4096];
	size_t n;
};

static errc frame_note(void *arg, const struct wal_frame *f, struct err *err)
{
	struct frames *x = arg;
	(void)err;
	assert_true(x->n < 4096);
	if (f->seq > 0)
		x->v[x->n++] = *f;
	return OK;
}

/* A damaged frame costs its own samples, definitions of young and of old series notwithstanding, before and after a restart. */
static void a_damaged_frame_costs_its_samples(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 9;
	int64_t clock = T0;
	lab_open(&l, 6, RANGE, 1 * MIB);
	l.n_series = 300;
	sim_record(l.sim);
	must_start(&l);
	uint64_t sent = 0;
	for (uint32_t i = 0; i < 48; i++) {
		/* Definitions are settled by what stands between two uses: three times as much as is needed. */
		if (i % 12 == 11) {
			for (uint32_t k = 0; k < 5; k++) {
				int64_t at = clock;
				send(&l, 1, 0, 100, 600, 2, &at, &r);
				clock += 1200;
				sent += 60000;
			}
		}
		send(&l, 0, i < 24 ? i * 8 : (i * 37) % 200, 100, 3, 10, &clock, &r);
		sent += 300;
		if (i == 20 || i == 40) {
			lab_stop(&l);
			must_start(&l);
		}
	}
	static struct frames frames;
	frames.n = 0;
	assert_int_equal(wal_peek(l.wal, frame_note, &frames, &err), OK);
	lab_stop(&l);
	struct sim_tape *tape = sim_tape_take(l.sim);
	struct sim *whole = l.sim;
	size_t tried = 0;
	for (size_t i = 0; i < frames.n; i += full() ? 1 : 4, tried++) {
		char path[64];
		l.sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		sim_use(l.sim);
		snprintf(path, sizeof path, "data/wal/%08llu.wal", (unsigned long long)frames.v[i].segment);
		assert_true(sim_flip(l.sim, path, frames.v[i].offset + 64 + lab_random(&r) % 16, 1));
		must_start(&l);
		struct lab_series *found = lab_gather(&l);
		uint64_t n = 0;
		for (uint32_t k = 0; k < LAB_TENANTS * LAB_SERIES; k++)
			n += found[k].n;
		lab_gather_free(found);
		if (n != sent - frames.v[i].samples)
			fail_msg("frame %zu of %zu held %u samples, %lld are lost", i, frames.n, frames.v[i].samples, (long long)(sent - n));
		lab_stop(&l);
		sim_free(l.sim);
	}
	printf("%zu of %zu frames damaged in turn\n", tried, frames.n);
	sim_tape_free(tape);
	l.sim = whole;
	sim_use(whole);
	lab_free(&l);
}

/* What a reader of the log knows of a definition when it comes to a frame. */
struct copies {
	uint64_t first, last; /* positions of frames, + 1; 0: none */
};
struct defs {
	struct copies v[100000];
	uint64_t samples, leaned; /* on earlier frames */
};

static void defs_read(struct defs *x, const struct wal_frame *f, struct span body, bool samples)
{
	struct rd rd = rd_of(body.p, body.n);
	struct wal_record rec;
	bool ok;
	while (wal_record_next(&rd, &rec, &ok)) {
		uint64_t ref;
		struct span wire;
		struct wal_series_dec sd;
		struct wal_samples_dec d;
		struct wal_sample s;
		if (rec.kind == WAL_GROUP) {
			defs_read(x, f, rec.body, samples);
		} else if (rec.kind == WAL_SERIES && !samples && wal_series_open(rec.kind, rec.body, &sd)) {
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &ok)) {
				assert_true(ref < 100000);
				x->v[ref].last = f->pos + 1;
				x->v[ref].first = x->v[ref].first ? x->v[ref].first : f->pos + 1;
			}
		} else if (rec.kind == WAL_SAMPLES && samples && wal_samples_open(rec.kind, rec.body, &d)) {
			while (wal_samples_next(&d, &s, &ok)) {
				const struct copies *c = &x->v[s.ref];
				assert_true(s.ref < 100000);
				x->samples++;
				if (c->last == f->pos + 1)
					continue;
				x->leaned++;
				if (c->last - c->first < WAL_COPY_DISTANCE_BYTES)
					fail_msg("frame %llu at %llu uses series %llu, defined at %llu and %llu only", (unsigned long long)f->seq,
						(unsigned long long)f->pos, (unsigned long long)s.ref, (unsigned long long)c->first,
						(unsigned long long)c->last);
			}
		}
	}
}

static errc defs_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	(void)err;
	defs_read(arg, f, f->payload, false);
	defs_read(arg, f, f->payload, true);
	return OK;
}

/* A frame defines every series that it uses, but for those that are defined in two frames before it, far from each other. */
static void definitions_stand_where_they_must(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 10;
	int64_t clock = T0;
	lab_open(&l, 7, RANGE, 8 * MIB);
	l.n_series = 6000;
	l.quiet_model = true;
	must_start(&l);
	/* Requests of several frames, all of new series; then small ones. */
	int64_t early = T0;
	send(&l, 2, 0, 6000, 130, 10, &early, &r);
	for (uint32_t i = 0; i < 100; i++) {
		send(&l, 0, (i * 37) % 900, 100, i % 8 == 3 ? 400 : 3, 1, &clock, &r);
		if (i == 60) {
			lab_stop(&l);
			must_start(&l);
		}
	}
	struct defs *x = calloc(1, sizeof *x);
	assert_int_equal(wal_peek(l.wal, defs_frame, x, &err), OK);
	printf("%llu samples, %llu of settled series\n", (unsigned long long)x->samples, (unsigned long long)x->leaned);
	assert_int_equal(x->samples, l.stored);
	assert_true(x->leaned > 1000);
	free(x);
	lab_free(&l);
}

struct refs {
	uint64_t used, defined; /* greatest ref of a sample, smallest ref defined from frame `from` on */
	uint64_t from;
};

static void refs_read(struct refs *x, const struct wal_frame *f, struct span body)
{
	struct rd rd = rd_of(body.p, body.n);
	struct wal_record rec;
	bool ok;
	while (wal_record_next(&rd, &rec, &ok)) {
		struct wal_series_dec sd;
		struct wal_samples_dec d;
		struct wal_sample s;
		uint64_t ref;
		struct span wire;
		if (rec.kind == WAL_GROUP)
			refs_read(x, f, rec.body);
		else if (rec.kind == WAL_SERIES && f->seq >= x->from && wal_series_open(rec.kind, rec.body, &sd))
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &ok))
				x->defined = ref < x->defined ? ref : x->defined;
		else if (rec.kind == WAL_SAMPLES && f->seq < x->from && wal_samples_open(rec.kind, rec.body, &d))
			while (wal_samples_next(&d, &s, &ok))
				x->used = s.ref > x->used ? s.ref : x->used;
	}
}

static errc refs_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	(void)err;
	refs_read(arg, f, f->payload);
	return OK;
}

/* Both frames that define a series are damaged; a later one has samples of it. Its ref is not given to another series: a checkpoint would bring that
 * one's definition in front of the old samples. */
static void a_ref_that_only_samples_tell_of_is_not_given_again(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 11;
	int64_t clock = T0, early = T0;
	lab_open(&l, 8, RANGE, 32 * MIB);
	l.n_series = 4000;
	l.quiet_model = true;
	must_start(&l);
	for (uint32_t i = 0; i < 4; i++) {
		send(&l, 0, 0, 10, 3, 1, &clock, &r);
		if (i < 2)
			send(&l, 1, 0, 1000, 600, 2, &early, &r);
	}
	static struct frames frames;
	frames.n = 0;
	assert_int_equal(wal_peek(l.wal, frame_note, &frames, &err), OK);
	lab_crash(&l, SIM_KEEP_ALL);
	for (size_t i = 0; i + 1 < frames.n; i++) {
		char path[64];
		snprintf(path, sizeof path, "data/wal/%08llu.wal", (unsigned long long)frames.v[i].segment);
		assert_true(sim_flip(l.sim, path, frames.v[i].offset + 64, 1));
	}
	must_start(&l);
	struct refs x = {.defined = UINT64_MAX, .from = frames.v[frames.n - 1].seq + 1};
	send(&l, 0, 3000, 10, 3, 1, &clock, &r);
	assert_int_equal(wal_peek(l.wal, refs_frame, &x, &err), OK);
	assert_true(x.used > 0 && x.defined < UINT64_MAX);
	assert_true(x.defined > x.used);
	lab_free(&l);
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_log_bigger_than_memory),
		cmocka_unit_test(what_is_a_block_already_is_not_cut_again),
		cmocka_unit_test(checkpoints_keep_what_is_needed),
		cmocka_unit_test(more_windows_than_sixteen_bits_count),
		cmocka_unit_test(a_settled_cut_is_synced_in_any_mode),
		cmocka_unit_test(power_cut_anywhere),
		cmocka_unit_test(a_damaged_frame_costs_its_samples),
		cmocka_unit_test(definitions_stand_where_they_must),
		cmocka_unit_test(a_ref_that_only_samples_tell_of_is_not_given_again),
	};
	cmocka_set_test_filter(getenv("VARVE_TEST"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
