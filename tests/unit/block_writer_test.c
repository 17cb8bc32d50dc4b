/* Blocks that varve writes: read back by a reader of the tests' own, equal bytes for equal input, complete or not there at all. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <openssl/sha.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block_write_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"
#include "tests/support/tmp.h"

static const int64_t T0 = 1700006400000;
static const int64_t RANGE = 7200000;

static struct ulid ulid_of(uint8_t x)
{
	struct ulid u = {{1, 0x8b, 0xcf, 0xe5, 0x68, 0}};
	u.b[15] = x;
	return u;
}

static const char *block_dir(const char *dir, struct ulid u)
{
	return tmp_path("%s/%s", dir, ulid_text(u).s);
}

static void write_ok(struct model *m, const char *dir, struct ulid u, uint64_t segment_bytes, struct block_meta *meta, uint64_t *bytes)
{
	struct err err = {0};
	if (model_write(m, dir, u, segment_bytes, meta, bytes, &err))
		fail_msg("%s", err.msg);
}

static size_t entries(const char *dir)
{
	struct arena a;
	char **names;
	size_t n = 0;
	struct err err;
	arena_init(&a, MIB);
	assert_int_equal(io_listdir(dir, &a, &names, &n, &err), OK);
	arena_free(&a);
	return n;
}

/* meta.json says what the files are: counts, sizes, SHA-256. */
static void meta_agrees(const struct model *m, const char *dir, const struct block_meta *meta, uint64_t bytes)
{
	struct arena a;
	struct err err = {0};
	struct span json;
	struct block_meta got;
	arena_init(&a, GIB);
	const char *bd = arena_cstr(&a, span_cstr(block_dir(dir, meta->ulid)));
	assert_non_null(bd);
	assert_int_equal(io_read_file(tmp_path("%s/meta.json", bd), MIB, &a, &json, &err), OK);
	if (block_meta_parse("meta.json", json, &a, &got, &err))
		fail_msg("%s", err.msg);
	uint64_t samples = 0, chunks = 0, sum = json.n;
	for (size_t i = 0; i < m->n; i++)
		for (size_t k = 0; k < m->v[i].n; k++) {
			uint32_t n;
			assert_int_equal(chunk_count(m->v[i].chunks[k].enc, m->v[i].chunks[k].data, &n, &err), OK);
			samples += n;
			chunks++;
		}
	assert_true(ulid_eq(got.ulid, meta->ulid) && got.mint == m->mint && got.maxt == m->maxt);
	assert_int_equal(got.n_samples, samples);
	assert_int_equal(got.n_chunks, chunks);
	assert_int_equal(got.n_series, m->n);
	assert_true(got.n_sources == 1 && ulid_eq(got.sources[0], got.ulid) && got.level == 1);
	assert_true(got.has_varve && got.upto_seq == UINT64_MAX && span_is(got.node, "node-1"));
	assert_true(got.n_files == meta->n_files && got.n_files == entries(tmp_path("%s/chunks", bd)) + 2);
	for (size_t i = 0; i < got.n_files; i++) {
		const struct block_file *f = &got.files[i];
		assert_true(span_eq(f->rel_path, meta->files[i].rel_path));
		assert_true(i == 0 || span_cmp(got.files[i - 1].rel_path, f->rel_path) < 0);
		if (span_is(f->rel_path, "meta.json"))
			continue;
		struct span file;
		uint8_t sha[32];
		assert_int_equal(io_read_file(tmp_path("%s/%.*s", bd, SPAN_ARG(f->rel_path)), GIB, &a, &file, &err), OK);
		assert_int_equal(file.n, f->size_bytes);
		assert_true(f->has_sha256 && meta->files[i].has_sha256);
		SHA256((const unsigned char *)file.p, file.n, sha);
		assert_memory_equal(sha, f->sha256, 32);
		sum += file.n;
	}
	assert_int_equal(sum, bytes);
	arena_free(&a);
}

static void round_trip(const struct model_config *cfg, uint64_t segment_bytes)
{
	const char *dir = tmp_dir();
	struct model m, got;
	struct block_meta meta;
	uint64_t bytes = 0;
	model_make(&m, cfg);
	write_ok(&m, dir, ulid_of(1), segment_bytes, &meta, &bytes);
	assert_int_equal(entries(dir), 1);
	model_read(&got, block_dir(dir, ulid_of(1)));
	model_assert_equal(&m, &got);
	/* the reference's places in the TOC, with nothing between series and postings */
	assert_true(got.toc.label_index == got.toc.postings && got.toc.label_table == got.toc.table);
	if (segment_bytes > 1100)
		for (size_t i = 0; i < got.n_segments; i++)
			assert_true(got.segments[i].n <= segment_bytes);
	meta_agrees(&m, dir, &meta, bytes);
	model_free(&m);
	model_free(&got);
}

static void round_trips(void **state)
{
	(void)state;
	static const size_t n_series[] = {1, 2, 3, 100, 700};
	static const uint64_t segments[] = {0, 600, 5000, 100000};
	for (size_t i = 0; i < 5; i++)
		for (size_t k = 0; k < 4; k++)
			round_trip(&(struct model_config){.n_series = n_series[i],
					   .samples = i < 3 ? 700 : 60,
					   .start_ms = T0,
					   .step_ms = 5000,
					   .range_ms = RANGE,
					   .nasty = k % 2,
					   .strange = true,
					   .seed = 7 + i},
				segments[k]);
}

/* The reference's rule for the ends of segments, series by series as its compactor hands chunks over: which chunks go together is decided
 * before any is written, with 10 bytes around each payload; `n` is what the open segment holds. Gives each chunk's segment, from 0. */
static void segments_of(const uint64_t *payload, size_t count, uint64_t size, uint64_t *n, uint32_t *segment, uint32_t *out)
{
	uint64_t batch = 0;
	uint32_t batch_no[64] = {0}, no = 0;
	bool first_batch = true;
	for (size_t i = 0; i < count; i++) {
		batch += payload[i] + 5 + 1 + 4;
		bool cut = i != 0 && batch + 8 > size;
		if (first_batch && *n > 8) {
			cut = batch + *n > size;
			if (cut)
				first_batch = false;
		}
		if (cut) {
			no++;
			batch = payload[i] + 5 + 1 + 4;
		}
		batch_no[i] = no;
	}
	if (*n == 0)
		*n = 8;
	for (size_t i = 0; i < count; i++) {
		if (batch_no[i] != (i ? batch_no[i - 1] : 0)) {
			(*segment)++;
			*n = 8;
		}
		out[i] = *segment;
		*n += uvarint_size(payload[i]) + 1 + payload[i] + 4;
	}
}

static void segments_end_as_the_references(void **state)
{
	(void)state;
	uint64_t seed = 77;
	int rounds = getenv("VARVE_FULL") ? 3000 : 60;
	printf("seed %llu\n", (unsigned long long)seed);
	for (int round = 0; round < rounds; round++) {
		struct sim *sim = sim_new(1);
		struct model m = {.n = 30, .mint = 0, .maxt = 100000000}, got;
		struct block_meta meta;
		struct err err = {0};
		uint64_t bytes, size = 300 + model_random(&seed) % 3000, n = 0;
		uint32_t segment = 0, want[30][8];
		arena_init(&m.arena, 64 * MIB);
		assert_int_equal(io_mkdirs("/b", &err), OK);
		m.v = arena_calloc(&m.arena, m.n, sizeof *m.v);
		for (size_t s = 0; s < m.n; s++) {
			struct label *l = arena_alloc(&m.arena, sizeof *l);
			*l = (struct label){SPAN("a"), span_cstr(arena_printf(&m.arena, "%04zu", s))};
			m.v[s].labels = (struct labels){l, 1};
			m.v[s].n = 1 + model_random(&seed) % 8;
			m.v[s].chunks = arena_calloc(&m.arena, m.v[s].n, sizeof(struct chunk));
			uint64_t payload[8];
			for (size_t k = 0; k < m.v[s].n; k++) {
				payload[k] = 11 + model_random(&seed) % (round % 2 ? 300 : 60);
				char *p = arena_calloc(&m.arena, 1, payload[k]);
				p[1] = 1;
				m.v[s].chunks[k] =
					(struct chunk){.mint = (int64_t)k, .maxt = (int64_t)k, .enc = CHUNK_XOR, .data = span_of(p, payload[k])};
			}
			segments_of(payload, m.v[s].n, size, &n, &segment, want[s]);
		}
		if (model_write(&m, "/b", ulid_of(1), size, &meta, &bytes, &err))
			fail_msg("%s", err.msg);
		model_read(&got, block_dir("/b", ulid_of(1)));
		model_assert_equal(&m, &got);
		assert_int_equal(got.n_segments, segment + 1);
		for (size_t s = 0; s < m.n; s++)
			for (size_t k = 0; k < m.v[s].n; k++) {
				const char *p = got.v[s].chunks[k].data.p;
				struct span in = got.segments[want[s][k]];
				assert_true(p >= in.p && p < in.p + in.n);
			}
		model_free(&m);
		model_free(&got);
		sim_free(sim);
	}
}

/* Chunks of a series that is alone at the ends of time. */
static void times_at_the_ends(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct model m = {.mint = INT64_MIN, .maxt = INT64_MAX, .n = 1}, got;
	struct block_meta meta;
	uint64_t bytes;
	size_t n;
	arena_init(&m.arena, MIB);
	struct label l[] = {{SPAN("a"), SPAN("b")}};
	struct model_series s = {.labels = {l, 1}};
	s.chunks = arena_calloc(&m.arena, 3, sizeof *s.chunks);
	s.n = 3;
	static const int64_t at[] = {INT64_MIN, 0, INT64_MAX - 1};
	for (int i = 0; i < 3; i++)
		s.chunks[i] = *model_encode(&m.arena, &(struct chunk_sample){at[i], 42}, 1, RANGE, &n);
	m.v = &s;
	write_ok(&m, dir, ulid_of(1), 0, &meta, &bytes);
	model_read(&got, block_dir(dir, ulid_of(1)));
	model_assert_equal(&m, &got);
	model_free(&m);
	model_free(&got);
}

/* The same series twice: the same bytes, however the spool and the passes over it fall. */
static void equal_input_gives_equal_bytes(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct model m, a, b;
	struct block_meta meta;
	uint64_t bytes;
	model_make(&m, &(struct model_config){.n_series = 500, .samples = 40, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE, .strange = true});
	write_ok(&m, dir, ulid_of(1), 40000, &meta, &bytes);
	model_read(&a, block_dir(dir, ulid_of(1)));
	static const size_t spool[] = {64, 300, 100000, 0, 64, 0, 64, 300}, pass[] = {0, 600, 501, 1000, 500, 0, 500, 0};
	for (uint8_t i = 0; i < 8; i++) {
		m.by_pairs = i >= 5;
		index_writer_spool_bytes = spool[i];
		index_writer_pass_postings = pass[i];
		write_ok(&m, dir, ulid_of((uint8_t)(2 + i)), 40000, &meta, &bytes);
		const char *bd = block_dir(dir, ulid_of((uint8_t)(2 + i)));
		model_read(&b, bd);
		assert_int_equal(entries(bd), 3);
		assert_true(span_eq(a.index, b.index));
		assert_int_equal(a.n_segments, b.n_segments);
		for (size_t k = 0; k < a.n_segments; k++)
			assert_true(span_eq(a.segments[k], b.segments[k]));
		model_free(&b);
	}
	index_writer_spool_bytes = index_writer_pass_postings = 0;
	model_free(&a);
	model_free(&m);
}

/* What can't be a block is refused in words and leaves nothing behind. */
static void refusals(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct model m;
	struct block_meta meta;
	uint64_t bytes;
	struct err err;
	struct block_writer *w;
	model_make(&m, &(struct model_config){.n_series = 2, .samples = 300, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE});
	struct block_writer_config cfg = {.dir = dir, .ulid = ulid_of(9)};
	struct model_series *s = &m.v[0];

	assert_int_equal(block_writer_open(&cfg, &w, &err), OK);
	meta = (struct block_meta){.mint = m.mint, .maxt = m.maxt};
	assert_int_equal(block_writer_finish(w, &meta, &bytes, &err), ERR_INVALID);
	assert_int_equal(entries(dir), 0);

	assert_int_equal(block_writer_open(&cfg, &w, &err), OK);
	assert_int_equal(block_writer_add(w, s->labels, s->chunks, 0, &err), ERR_INVALID);
	block_writer_abort(w);
	assert_int_equal(entries(dir), 0);

	struct chunk overlap[2] = {s->chunks[0], s->chunks[0]};
	assert_int_equal(block_writer_open(&cfg, &w, &err), OK);
	assert_int_equal(block_writer_add(w, s->labels, overlap, 2, &err), ERR_INVALID);
	assert_int_equal(block_writer_add(w, s->labels, s->chunks, s->n, &err), ERR_INVALID);
	assert_int_equal(block_writer_finish(w, &meta, &bytes, &err), ERR_INVALID);
	assert_int_equal(entries(dir), 0);

	struct label bad[][2] = {{{SPAN("b"), SPAN("1")}, {SPAN("a"), SPAN("1")}}, {{SPAN("a"), SPAN("1")}, {SPAN("a"), SPAN("2")}},
		{{SPAN("a"), SPAN("")}, {SPAN("b"), SPAN("1")}}, {{SPAN(""), SPAN("1")}, {SPAN("b"), SPAN("1")}}};
	for (int i = 0; i < 4; i++) {
		assert_int_equal(block_writer_open(&cfg, &w, &err), OK);
		assert_int_equal(block_writer_add(w, (struct labels){bad[i], 2}, s->chunks, s->n, &err), ERR_INVALID);
		block_writer_abort(w);
	}

	/* chunks outside the block's time */
	for (int i = 0; i < 2; i++) {
		assert_int_equal(block_writer_open(&cfg, &w, &err), OK);
		assert_int_equal(block_writer_add(w, s->labels, s->chunks, s->n, &err), OK);
		meta = (struct block_meta){.mint = s->chunks[0].mint + (i == 0), .maxt = s->chunks[s->n - 1].maxt + (i == 0)};
		assert_int_equal(block_writer_finish(w, &meta, &bytes, &err), ERR_INVALID);
		assert_int_equal(entries(dir), 0);
	}

	/* a name that is taken */
	assert_int_equal(model_write(&m, dir, ulid_of(9), 0, &meta, &bytes, &err), OK);
	assert_int_equal(block_writer_open(&cfg, &w, &err), ERR_EXISTS);
	assert_int_equal(entries(dir), 1);
	cfg.dir = tmp_path("%s/missing", dir);
	cfg.ulid = ulid_of(8);
	assert_int_equal(block_writer_open(&cfg, &w, &err), ERR_NOTFOUND);
	model_free(&m);
}

/* ---- bad days, on the simulated disk ---- */

static void small_model(struct model *m)
{
	model_make(m, &(struct model_config){
			      .n_series = 12, .samples = 200, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE, .nasty = true, .seed = 5});
	index_writer_spool_bytes = 128;
	index_writer_pass_postings = 12;
}

static void small_model_free(struct model *m)
{
	model_free(m);
	index_writer_spool_bytes = index_writer_pass_postings = 0;
}

static void dir_make(const char *dir)
{
	struct err err = {0};
	assert_int_equal(io_mkdirs(dir, &err), OK);
	assert_int_equal(io_fsync_dir("/", &err), OK);
}

/* The n-th call of each kind fails, once or for good: an error, no block, nothing left when removing works again, no descriptor. */
static void every_failing_call(void **state)
{
	(void)state;
	static const unsigned kinds[] = {SIM_OPEN, SIM_WRITE, SIM_SYNC, SIM_NAMES, SIM_LOOK, SIM_READ, SIM_ANY};
	static const int errors[] = {EIO, ENOSPC};
	struct model m;
	uint64_t states = 0;
	small_model(&m);
	for (size_t kind = 0; kind < 7; kind++)
		for (int e = 0; e < 2; e++)
			for (int sticky = 0; sticky < 2; sticky++)
				for (uint64_t n = 1;; n++) {
					struct sim *sim = sim_new(n);
					struct block_meta meta;
					uint64_t bytes;
					struct err err = {0};
					dir_make("/b");
					sim_fault(sim, &(struct sim_fault){.calls = kinds[kind], .nth = n, .error = errors[e], .sticky = sticky});
					errc rc = model_write(&m, "/b", ulid_of(1), 3000, &meta, &bytes, &err);
					uint64_t hits = sim_fault_hits(sim);
					sim_fault(sim, NULL);
					assert_int_equal(sim_open_fds(sim), 0);
					assert_true(hits > 0 || rc == OK);
					states++;
					struct io_stat st;
					assert_int_equal(io_stat(tmp_path("/b/%s", ulid_text(ulid_of(1)).s), &st, &err), OK);
					/* only a disk that refuses everything can keep a block from being taken back after its last sync failed */
					assert_true(st.exists == (rc == OK) || (sticky && kinds[kind] == SIM_ANY));
					if (rc) {
						assert_true(rc == ERR_IO || rc == ERR_NOSPACE);
						assert_true(err.msg[0] != 0 || rc == OK);
						if (!sticky && kinds[kind] != SIM_NAMES && kinds[kind] != SIM_LOOK && kinds[kind] != SIM_ANY)
							assert_int_equal(entries("/b"), 0);
						assert_int_equal(block_clean_dir("/b", &err), OK);
						assert_int_equal(entries("/b"), st.exists);
					}
					sim_free(sim);
					if (hits == 0)
						break;
				}
	printf("%llu states\n", (unsigned long long)states);
	small_model_free(&m);
}

/* Power cut after every operation, in every way of losing: no block, or the whole block; always the whole block after finish said OK. */
static void every_power_cut(void **state)
{
	(void)state;
	struct model m, got;
	struct block_meta meta;
	uint64_t bytes, states = 0;
	struct err err = {0};
	small_model(&m);
	struct sim *sim = sim_new(1);
	dir_make("/b");
	sim_record(sim);
	assert_int_equal(model_write(&m, "/b", ulid_of(1), 3000, &meta, &bytes, &err), OK);
	struct sim_tape *tape = sim_tape_take(sim);
	uint64_t len = sim_tape_len(tape);
	for (uint64_t k = 0; k <= len; k++)
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			struct sim *after = sim_tape_crash(tape, k, loss, k * 31 + loss);
			sim_use(after);
			assert_int_equal(block_clean_dir("/b", &err), OK);
			size_t n = entries("/b");
			assert_true(n == 1 || (n == 0 && k < len));
			if (n == 1) {
				model_read(&got, tmp_path("/b/%s", ulid_text(ulid_of(1)).s));
				model_assert_equal(&m, &got);
				model_free(&got);
				meta_agrees(&m, "/b", &meta, bytes);
			}
			states++;
			sim_free(after);
		}
	printf("%llu states\n", (unsigned long long)states);
	sim_tape_free(tape);
	sim_free(sim);
	small_model_free(&m);
}

/* The n-th allocation fails. */
static void every_failing_allocation(void **state)
{
	(void)state;
	struct model m;
	uint64_t n;
	small_model(&m);
	/* what the arena of the model needs is there already: only the writer's allocations fail */
	for (n = 1;; n++) {
		struct sim *sim = sim_new(n);
		struct block_meta meta;
		uint64_t bytes;
		struct err err = {0};
		dir_make("/b");
		fail_alloc_at(n, false);
		errc rc = model_write(&m, "/b", ulid_of(1), 3000, &meta, &bytes, &err);
		uint64_t hits = fail_alloc_off();
		assert_int_equal(sim_open_fds(sim), 0);
		if (hits == 0) {
			assert_int_equal(rc, OK);
			sim_free(sim);
			break;
		}
		assert_true(rc == ERR_NOMEM || rc == OK);
		if (rc)
			assert_int_equal(block_clean_dir("/b", &err), OK);
		assert_int_equal(entries("/b"), rc == OK);
		sim_free(sim);
	}
	printf("%llu allocations\n", (unsigned long long)n - 1);
	assert_true(n > 20);
	small_model_free(&m);
}

/* VARVE_FULL: CPU per series of a block of a million series, two chunks each. */
static void speed(void **state)
{
	(void)state;
	if (!getenv("VARVE_FULL"))
		skip();
	enum { N = 300000 };
	const char *dir = tmp_dir();
	struct model m;
	struct block_meta meta;
	uint64_t bytes;
	model_make(&m, &(struct model_config){.n_series = N, .samples = 120, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE});
	int64_t t0 = io_mono_ns();
	write_ok(&m, dir, ulid_of(1), 0, &meta, &bytes);
	int64_t t1 = io_mono_ns();
	printf("%.2f us a series, %.0f bytes a series, %.1f MB/s\n", (double)(t1 - t0) / N / 1e3, (double)bytes / N,
		(double)bytes / (double)(t1 - t0) * 1e3);
	model_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trips),
		cmocka_unit_test(segments_end_as_the_references),
		cmocka_unit_test(times_at_the_ends),
		cmocka_unit_test(equal_input_gives_equal_bytes),
		cmocka_unit_test(refusals),
		cmocka_unit_test(every_failing_call),
		cmocka_unit_test(every_power_cut),
		cmocka_unit_test(every_failing_allocation),
		cmocka_unit_test(speed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
