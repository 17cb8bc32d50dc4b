/* tests/support/head_lab.c - see tests/support/head_lab.h. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"
#include "head/head_int.h"

uint64_t lab_random(uint64_t *s)
{
	uint64_t x = *s += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

const char *lab_tenant(uint32_t tenant)
{
	static const char *const names[LAB_TENANTS] = {"default-tenant", "team-a", "team-b"};
	return names[tenant];
}

static void field(struct buf *out, uint8_t tag, const char *s)
{
	buf_u8(out, tag);
	buf_str(out, span_cstr(s));
}

static void label_put(struct buf *out, const char *name, const char *value, uint32_t spelling)
{
	struct buf b;
	buf_init(&b, 4096);
	if (spelling & 2) { /* value first, an unknown field behind */
		field(&b, 0x12, value);
		field(&b, 0x0a, name);
		field(&b, 0x1a, "x");
	} else {
		field(&b, 0x0a, name);
		field(&b, 0x12, value);
	}
	buf_u8(out, 0x0a);
	buf_str(out, span_of(b.p, b.n));
	buf_free(&b);
}

static uint32_t labels_of(uint32_t k, char names[5][32], char values[5][64])
{
	uint32_t n = 0;
	snprintf(names[n], 32, "__name__");
	snprintf(values[n++], 64, "metric_%u", k % 5);
	snprintf(names[n], 32, "instance");
	snprintf(values[n++], 64, "host-%u:9100", k / 5);
	if (k % 3 == 0) {
		snprintf(names[n], 32, "job");
		snprintf(values[n++], 64, "j%u", k % 2);
	}
	if (k % 4 == 1) {
		snprintf(names[n], 32, "zone");
		snprintf(values[n++], 64, "\xc3\xbc%u", k % 7);
	}
	return n;
}

/* spelling 0: canonical; bit 0: sorted the other way round; bit 1: fields in another order; bit 2: an empty label more */
void lab_wire(uint32_t k, uint32_t spelling, struct buf *out)
{
	char names[5][32], values[5][64];
	uint32_t n = labels_of(k, names, values);
	if (spelling & 4)
		label_put(out, "empty", "", spelling);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t j = spelling & 1 ? n - 1 - i : i;
		label_put(out, names[j], values[j], spelling);
	}
}

static errc on_block(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	struct lab *l = arg;
	(void)dir, (void)bytes;
	fail_alloc_pause();
	pthread_mutex_lock(&l->mu);
	if (l->refuse_blocks > 0) {
		l->refuse_blocks--;
		pthread_mutex_unlock(&l->mu);
		fail_alloc_resume();
		return err_set(err, ERR_NOSPACE, "the test takes no block");
	}
	if (l->n_blocks == l->cap_blocks) {
		l->cap_blocks = l->cap_blocks * 2 + 16;
		l->blocks = realloc(l->blocks, l->cap_blocks * sizeof *l->blocks);
	}
	l->blocks[l->n_blocks++] = meta->ulid;
	pthread_mutex_unlock(&l->mu);
	fail_alloc_resume();
	return OK;
}

static void on_cut_failed(void *arg, const struct err *why)
{
	struct lab *l = arg;
	(void)why;
	pthread_mutex_lock(&l->mu);
	l->cut_failures++;
	pthread_mutex_unlock(&l->mu);
}

void lab_open(struct lab *l, uint64_t seed, int64_t range_ms, uint64_t segment_bytes)
{
	*l = (struct lab){.seed = seed, .segment_bytes = segment_bytes, .n_series = 40};
	log_setup(getenv("VARVE_LOG") ? LOG_DEBUG : LOG_ERROR, LOG_LOGFMT);
	pthread_mutex_init(&l->mu, NULL);
	l->sim = sim_new(seed);
	assert_int_equal(io_mkdirs("data", NULL), OK);
	assert_int_equal(io_fsync_dir("/", NULL), OK);
	l->series = calloc((size_t)LAB_TENANTS * LAB_SERIES, sizeof *l->series);
	static struct label ext[] = {{{"replica", 7}, {"r1", 2}}};
	l->cfg = (struct head_config){
		.chunk_dir = "data/head",
		.block_dir = "data/blocks",
		.block_range_ms = range_ms,
		.cut_delay_ms = INT64_C(1) << 60,
		.max_age_ms = INT64_C(1) << 60,
		.max_memory_bytes = GIB,
		.wal_max_bytes = 64 * GIB,
		.labels = {64, 1024, 4096},
		.ext_labels = {ext, 1},
		.node = SPAN("lab"),
		.shards = 4,
		.on_block = on_block,
		.on_block_arg = l,
		.on_cut_failed = on_cut_failed,
	};
}

static void on_fatal(void *arg, const struct err *why)
{
	(void)why;
	((struct lab *)arg)->fatal = true;
}

/* What cmd/ does: local blocks that say which window they are of. */
static errc known_blocks(struct lab *l, struct err *err)
{
	errc rc = OK;
	struct arena a;
	char **names;
	size_t n;
	arena_init(&a, 64 * MIB);
	pthread_mutex_lock(&l->mu);
	l->n_blocks = 0;
	pthread_mutex_unlock(&l->mu);
	TRY(io_listdir("data/blocks", &a, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		struct ulid u;
		struct span json;
		struct block_meta meta;
		char path[256];
		if (!ulid_parse(span_cstr(names[i]), &u))
			continue;
		snprintf(path, sizeof path, "data/blocks/%s/meta.json", names[i]);
		TRY(io_read_file(path, MIB, &a, &json, err));
		TRY(block_meta_parse(path, json, &a, &meta, err));
		assert_true(meta.has_varve);
		TRY(head_known_cut(l->head, &(struct wal_cut){meta.window, meta.ulid, meta.upto_seq}, err));
		TRY(on_block(l, "", &meta, 0, err));
	}
fail:
	arena_free(&a);
	return rc;
}

errc lab_start(struct lab *l, struct err *err)
{
	errc rc = OK;
	struct wal_replay_stats st;
	struct wal_config wc = {.dir = "data/wal",
		.sync = l->sync,
		.sync_interval_ms = l->sync_interval_ms,
		.segment_bytes = l->segment_bytes,
		.on_fatal = on_fatal,
		.on_fatal_arg = l};
	TRY(wal_open(&wc, &l->wal, err));
	l->cfg.wal = l->wal;
	TRY(head_open(&l->cfg, &l->head, err));
	TRY(known_blocks(l, err));
	TRY(head_load(l->head, err));
	TRY(wal_replay(l->wal, head_replay_frame, l->head, NULL, &st, err));
	TRY(head_start(l->head, err));
	return OK;
fail:
	head_close(l->head);
	wal_close(l->wal);
	l->head = NULL;
	l->wal = NULL;
	return rc;
}

void lab_stop(struct lab *l)
{
	head_close(l->head);
	wal_close(l->wal);
	l->head = NULL;
	l->wal = NULL;
}

void lab_crash(struct lab *l, enum sim_loss loss)
{
	sim_power_off_after(l->sim, 0);
	lab_stop(l);
	sim_power_on(l->sim, loss, l->seed++);
}

void lab_free(struct lab *l)
{
	if (l->head)
		lab_stop(l);
	for (size_t i = 0; i < (size_t)LAB_TENANTS * LAB_SERIES; i++)
		free(l->series[i].v);
	free(l->series);
	free(l->blocks);
	sim_free(l->sim);
	pthread_mutex_destroy(&l->mu);
}

/* ---- batches ---- */

void lab_batch_begin(struct lab_batch *b, uint32_t tenant)
{
	*b = (struct lab_batch){.tenant = tenant};
	buf_init(&b->wire, GIB);
}

void lab_batch_series(struct lab_batch *b, uint32_t k, uint32_t spelling)
{
	if (b->n == b->cap) {
		b->cap = b->cap * 2 + 16;
		b->hs = realloc(b->hs, b->cap * sizeof *b->hs);
		b->series = realloc(b->series, b->cap * sizeof *b->series);
		b->wire_at = realloc(b->wire_at, (b->cap + 1) * sizeof *b->wire_at);
	}
	char names[5][32], values[5][64];
	b->wire_at[b->n] = b->wire.n;
	lab_wire(k, spelling, &b->wire);
	b->hs[b->n] = (struct head_series){.n_labels = labels_of(k, names, values) + (spelling & 4 ? 1 : 0), .first = (uint32_t)b->n_samples};
	b->series[b->n++] = k;
	b->wire_at[b->n] = b->wire.n;
}

void lab_batch_sample(struct lab_batch *b, int64_t t, uint64_t v)
{
	if (b->n_samples == b->cap_samples) {
		b->cap_samples = b->cap_samples * 2 + 64;
		b->samples = realloc(b->samples, b->cap_samples * sizeof *b->samples);
	}
	b->samples[b->n_samples++] = (struct head_sample){t, v};
	b->hs[b->n - 1].n++;
}

void lab_batch_free(struct lab_batch *b)
{
	free(b->hs);
	free(b->series);
	free(b->samples);
	free(b->wire_at);
	buf_free(&b->wire);
}

static size_t lower(const struct lab_series *s, int64_t t, uint32_t gen)
{
	size_t a = 0, n = s->n;
	while (a < n) {
		size_t mid = (a + n) / 2;
		if (s->v[mid].t < t || (s->v[mid].t == t && s->v[mid].gen < gen))
			a = mid + 1;
		else
			n = mid;
	}
	return a;
}

int lab_model_put(struct lab *l, uint32_t tenant, uint32_t k, int64_t t, uint64_t v)
{
	struct lab_series *s = &l->series[tenant * LAB_SERIES + k];
	size_t at = lower(s, t, l->gen);
	if (at < s->n && s->v[at].t == t && s->v[at].gen == l->gen)
		return s->v[at].v == v ? 1 : 2;
	if (s->n == s->cap) {
		s->cap = s->cap * 2 + 16;
		s->v = realloc(s->v, s->cap * sizeof *s->v);
	}
	memmove(&s->v[at + 1], &s->v[at], (s->n - at) * sizeof *s->v);
	s->v[at] = (struct lab_sample){t, v, l->gen, sim_ops(l->sim)};
	s->n++;
	return 0;
}

enum { SYMBOLS_SEARCHED = 200 };

/* Symbols as a sender's table has them; beyond the first 200 one may stand twice, which is legal too. */
static uint32_t symbol_of(struct span *v, size_t *n, struct span text)
{
	for (size_t i = 0; i < *n && i < SYMBOLS_SEARCHED; i++)
		if (span_eq(v[i], text))
			return (uint32_t)i;
	v[*n] = text;
	return (uint32_t)(*n)++;
}

static void spell_2(struct lab_batch *b, struct arena *a)
{
	struct labels *all = arena_alloc(a, b->n * sizeof *all);
	size_t n = 0;
	for (size_t i = 0; i < b->n; i++) {
		assert_int_equal(labels_from_wire(b->hs[i].wire, LIMIT_LABELS_DECODE, a, &all[i], NULL), OK);
		n += all[i].n;
	}
	struct span *symbols = arena_alloc(a, (2 * n + 1) * sizeof *symbols);
	symbols[0] = (struct span){"", 0};
	b->b.symbols = symbols;
	b->b.n_symbols = 1;
	for (size_t i = 0; i < b->n; i++) {
		uint32_t *refs = arena_alloc(a, 2 * all[i].n * sizeof *refs);
		for (uint32_t k = 0; k < all[i].n; k++) {
			refs[2 * k] = symbol_of(symbols, &b->b.n_symbols, all[i].v[k].name);
			refs[2 * k + 1] = symbol_of(symbols, &b->b.n_symbols, all[i].v[k].value);
		}
		b->hs[i].refs = refs;
		b->hs[i].n_labels = all[i].n;
		b->hs[i].wire.p = NULL;
	}
}

errc lab_send(struct lab *l, struct lab_batch *b, struct err *err)
{
	errc rc = OK;
	struct wal_ticket ticket;
	struct buf records;
	uint32_t n_logged = 0;
	for (size_t i = 0; i < b->n; i++)
		b->hs[i].wire = span_of(b->wire.p + b->wire_at[i], b->wire_at[i + 1] - b->wire_at[i]);
	b->b = (struct head_batch){
		.tenant = span_cstr(lab_tenant(b->tenant)),
		.series = b->hs,
		.n_series = b->n,
		.samples = b->samples,
		.n_samples = b->n_samples,
		.min_t = INT64_MIN,
		.max_t = INT64_MAX,
		.now_ms = io_now_ms(),
		.max_series = l->max_series,
		.winner = b->winner,
	};
	struct arena spelling;
	arena_init(&spelling, GIB);
	fail_alloc_pause();
	if (b->v2)
		spell_2(b, &spelling);
	fail_alloc_resume();
	size_t bound = head_batch_bound(l->head, &b->b);
	rc = wal_reserve(l->wal, bound, &ticket, err);
	if (rc != OK) {
		arena_free(&spelling);
		return rc;
	}
	buf_init(&records, bound + 1);
	struct err e = {0};
	errc verdict = head_append(l->head, &ticket, &b->b, &records, &n_logged, &e);
	rc = wal_commit_wait(l->wal, &ticket, span_of(records.p, records.n), n_logged, err);
	buf_free(&records);
	arena_free(&spelling);
	if (verdict != OK) {
		if (err)
			*err = e;
		return verdict;
	}
	uint64_t stored = 0;
	pthread_mutex_lock(&l->mu);
	for (size_t i = 0; i < b->n; i++) {
		const struct head_series *hs = &b->hs[i];
		assert_int_equal(hs->stored + hs->duplicate + hs->refused, hs->n);
		stored += hs->stored;
		l->duplicates += hs->duplicate;
		l->refused += hs->refused;
	}
	l->stored += stored;
	pthread_mutex_unlock(&l->mu);
	assert_int_equal(stored, n_logged);
	if (l->quiet_model)
		return rc;
	for (size_t i = 0; i < b->n; i++) {
		const struct head_series *hs = &b->hs[i];
		uint32_t want[3] = {0};
		for (uint32_t k = 0; k < hs->n; k++)
			want[lab_model_put(l, b->tenant, b->series[i], b->samples[hs->first + k].t, b->samples[hs->first + k].v)]++;
		if (hs->stored != want[0] || hs->duplicate != want[1] || hs->refused != want[2])
			fail_msg("series %u: stored %u duplicate %u refused %u, want %u %u %u", b->series[i], hs->stored, hs->duplicate, hs->refused,
				want[0], want[1], want[2]);
		assert_int_equal(hs->refused_id, hs->refused ? ERRID_DUPLICATE_TIMESTAMP : ERRID_NONE);
	}
	return rc;
}

/* ---- reading ---- */

static int by_time(const void *a, const void *b)
{
	const struct lab_sample *x = a, *y = b;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	return -float_winner(x->v, y->v);
}

void lab_read_source(struct lab *l, uint32_t tenant, struct source *src, struct lab_series *found)
{
	struct arena a, chunks;
	struct err err = {0};
	struct matcher m;
	struct series_iter *it;
	arena_init(&a, 64 * MIB);
	arena_init(&chunks, 64 * MIB);
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("__name__"), SPAN("metric_.*"), &a, &err), OK);
	struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX};
	if (src->ops->select(src, &m, 1, &opt, &it, &err) != OK)
		fail_msg("select: %s", err.msg);
	struct series_view v;
	bool more;
	struct buf wire, before;
	buf_init(&wire, MIB);
	buf_init(&before, MIB);
	for (;;) {
		if (it->ops->next(it, &v, &more, &err) != OK)
			fail_msg("next: %s", err.msg);
		if (!more)
			break;
		/* Which series is it? */
		uint32_t k = 0;
		buf_clear(&wire);
		labels_to_wire(v.labels, &wire);
		unsigned metric, host;
		assert_int_equal(sscanf(arena_cstr(&a, labels_get(v.labels, SPAN("__name__"))), "metric_%u", &metric), 1);
		assert_int_equal(sscanf(arena_cstr(&a, labels_get(v.labels, SPAN("instance"))), "host-%u:9100", &host), 1);
		k = host * 5 + metric;
		struct buf want;
		buf_init(&want, MIB);
		lab_wire(k, 0, &want);
		assert_int_equal(want.n, wire.n);
		assert_memory_equal(want.p, wire.p, wire.n);
		buf_free(&want);
		assert_true(k < l->n_series);
		/* Ascending and unique. */
		struct labels prev = {NULL, 0};
		if (before.n > 0) {
			assert_int_equal(labels_from_wire(span_of(before.p, before.n), 100, &a, &prev, &err), OK);
			assert_true(labels_cmp(prev, v.labels) < 0);
		}
		buf_clear(&before);
		buf_put(&before, wire.p, wire.n);
		struct lab_series *f = &found[tenant * LAB_SERIES + k];
		assert_true(v.n_chunks > 0);
		int64_t end = INT64_MIN;
		for (size_t c = 0; c < v.n_chunks; c++) {
			struct chunk_sample s[300];
			size_t n;
			assert_int_equal(v.chunks[c].enc, CHUNK_XOR);
			assert_int_equal(xor_decode(v.chunks[c].data, s, 300, &n, &err), OK);
			assert_true(n > 0 && s[0].t == v.chunks[c].mint && s[n - 1].t == v.chunks[c].maxt);
			for (size_t i = 0; i < n; i++) {
				assert_true(s[i].t > end);
				end = s[i].t;
				if (f->n == f->cap) {
					f->cap = f->cap * 2 + 16;
					f->v = realloc(f->v, f->cap * sizeof *f->v);
				}
				f->v[f->n++] = (struct lab_sample){.t = s[i].t, .v = s[i].v};
			}
		}
	}
	it->ops->close(it);
	matchers_free(&m, 1);
	buf_free(&wire);
	buf_free(&before);
	arena_free(&a);
	arena_free(&chunks);
}

void lab_read_block(struct lab *l, const char *dir, struct lab_series *found)
{
	struct arena a;
	struct err err = {0};
	struct span json;
	struct block_meta meta;
	struct block_files *files;
	struct block *b = NULL;
	struct source *src = NULL;
	char path[300];
	arena_init(&a, 64 * MIB);
	snprintf(path, sizeof path, "%s/meta.json", dir);
	if (io_read_file(path, MIB, &a, &json, &err) != OK || block_meta_parse(path, json, &a, &meta, &err) != OK)
		fail_msg("%s", err.msg);
	assert_true(meta.has_varve && meta.level == 1 && span_is(meta.source, "receive"));
	assert_true(span_is(labels_get(meta.ext_labels, SPAN("replica")), "r1"));
	struct span tenant = labels_get(meta.ext_labels, SPAN("tenant_id"));
	uint32_t t = 0;
	while (t < LAB_TENANTS && !span_is(tenant, lab_tenant(t)))
		t++;
	assert_true(t < LAB_TENANTS);
	if (block_files_dir(dir, &files, &err) != OK || block_open(files, &meta, NULL, &b, &err) != OK || block_source(b, "local", &src, &err) != OK)
		fail_msg("%s: %s", dir, err.msg);
	lab_read_source(l, t, src, found);
	src->ops->release(src);
	block_unref(b);
	arena_free(&a);
}

static void sort(struct lab_series *found)
{
	for (uint32_t s = 0; s < LAB_TENANTS * LAB_SERIES; s++)
		if (found[s].n > 1)
			qsort(found[s].v, found[s].n, sizeof *found[s].v, by_time);
}

struct lab_series *lab_gather(struct lab *l)
{
	struct lab_series *found = calloc((size_t)LAB_TENANTS * LAB_SERIES, sizeof *found);
	struct err err = {0};
	struct arena a;
	arena_init(&a, 16 * MIB);
	struct ulid seen[1024];
	size_t n_seen = 0;
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		struct source **v;
		size_t n;
		assert_int_equal(head_sources(l->head, span_cstr(lab_tenant(t)), INT64_MIN, INT64_MAX, &a, &v, &n, &err), OK);
		for (size_t i = 0; i < n; i++) {
			lab_read_source(l, t, v[i], found);
			assert_true(n_seen < 1024);
			seen[n_seen++] = v[i]->ulid;
			v[i]->ops->release(v[i]);
		}
	}
	pthread_mutex_lock(&l->mu);
	for (size_t i = 0; i < l->n_blocks; i++) {
		bool dup = false;
		for (size_t k = 0; k < n_seen; k++)
			dup = dup || ulid_eq(seen[k], l->blocks[i]);
		for (size_t k = 0; k < i; k++)
			dup = dup || ulid_eq(l->blocks[k], l->blocks[i]);
		char dir[256];
		snprintf(dir, sizeof dir, "data/blocks/%s", ulid_text(l->blocks[i]).s);
		if (!dup)
			lab_read_block(l, dir, found);
	}
	pthread_mutex_unlock(&l->mu);
	sort(found);
	arena_free(&a);
	return found;
}

void lab_gather_free(struct lab_series *found)
{
	for (uint32_t s = 0; s < LAB_TENANTS * LAB_SERIES; s++)
		free(found[s].v);
	free(found);
}

void lab_check(struct lab *l)
{
	struct lab_series *found = lab_gather(l);
	for (uint32_t s = 0; s < LAB_TENANTS * LAB_SERIES; s++) {
		struct lab_series *f = &found[s];
		struct lab_series *m = &l->series[s];
		size_t nf = 0, i = 0;
		for (size_t k = 0; k < f->n; k++)
			if (k == 0 || f->v[k].t != f->v[nf - 1].t)
				f->v[nf++] = f->v[k];
		for (size_t k = 0; k < m->n; i++) {
			uint64_t best = m->v[k].v;
			int64_t t = m->v[k].t;
			for (; k < m->n && m->v[k].t == t; k++)
				if (float_winner(m->v[k].v, best) > 0)
					best = m->v[k].v;
			if (i >= nf || f->v[i].t != t || f->v[i].v != best)
				fail_msg("series %u sample %zu: have t=%lld v=%llx of %zu, want t=%lld v=%llx", s, i,
					i < nf ? (long long)f->v[i].t : -1LL, i < nf ? (unsigned long long)f->v[i].v : 0ULL, nf, (long long)t,
					(unsigned long long)best);
		}
		if (i != nf)
			fail_msg("series %u: %zu samples that nobody sent, the first t=%lld", s, nf - i, (long long)f->v[i].t);
	}
	lab_gather_free(found);
}

void lab_compare_exact(struct lab *l, struct lab_series *found, uint64_t upto)
{
	sort(found);
	for (uint32_t s = 0; s < LAB_TENANTS * LAB_SERIES; s++) {
		const struct lab_series *f = &found[s], *m = &l->series[s];
		size_t i = 0;
		for (size_t k = 0; k < m->n; k++) {
			if (i < f->n && f->v[i].t < m->v[k].t)
				fail_msg("series %u: t=%lld was never sent, or is there twice", s, (long long)f->v[i].t);
			if (i < f->n && f->v[i].t == m->v[k].t && f->v[i].v == m->v[k].v)
				i++;
			else if (m->v[k].acked <= upto)
				fail_msg("series %u: t=%lld was acknowledged (op %llu of %llu) and is lost", s, (long long)m->v[k].t,
					(unsigned long long)m->v[k].acked, (unsigned long long)upto);
		}
		if (i != f->n)
			fail_msg("series %u: t=%lld was never sent, or is there twice", s, (long long)f->v[i].t);
	}
	lab_gather_free(found);
}

void lab_check_exact(struct lab *l, uint64_t upto)
{
	lab_compare_exact(l, lab_gather(l), upto);
}

void lab_forget_blocks(struct lab *l)
{
	for (size_t i = 0; i < l->n_blocks; i++)
		assert_int_equal(block_remove("data/blocks", l->blocks[i], NULL), OK);
	l->n_blocks = 0;
	for (uint32_t s = 0; s < LAB_TENANTS * LAB_SERIES; s++) {
		size_t n = 0;
		struct lab_series *m = &l->series[s];
		for (size_t k = 0; k < m->n; k++)
			if (m->v[k].gen == l->gen)
				m->v[n++] = m->v[k];
		m->n = n;
	}
}

void lab_flush(struct lab *l)
{
	struct err err = {0};
	if (head_flush(l->head, &err) != OK)
		fail_msg("flush: %s", err.msg);
	l->gen++;
}
