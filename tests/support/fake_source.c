/* tests/support/fake_source.c - see fake_source.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/fake_source.h"

struct fake_iter {
	struct series_iter base;
	struct fake_source *f;
	const struct matcher *m;
	size_t n, at, calls;
	struct select_options opt;
	struct chunk *chunks; /* of the series given last */
	char *bytes;	      /* and their payloads: freed by the next call, as a block's are */
};

static bool wanted(const struct fake_series *s, const struct fake_iter *it)
{
	bool any = false;
	for (size_t i = 0; i < s->n_chunks; i++)
		any |= s->chunks[i].maxt >= it->opt.mint && s->chunks[i].mint <= it->opt.maxt;
	return any && matchers_match_labels(it->m, it->n, s->labels);
}

static errc next(struct series_iter *base, struct series_view *out, bool *more, struct err *err)
{
	struct fake_iter *it = (struct fake_iter *)base;
	free(it->chunks);
	free(it->bytes);
	it->chunks = NULL;
	it->bytes = NULL;
	*more = false;
	if (++it->calls == it->f->fail_at)
		return err_set(err, it->f->fail_code, "the fake source fails");
	while (it->at < it->f->n && !wanted(&it->f->v[it->at], it))
		it->at++;
	if (it->at == it->f->n)
		return OK;
	const struct fake_series *s = &it->f->v[it->at++];
	*out = (struct series_view){.labels = s->labels, .deleted = s->deleted, .n_deleted = s->n_deleted};
	*more = true;
	if (it->opt.skip_chunks)
		return OK;
	size_t bytes = 0;
	for (size_t i = 0; i < s->n_chunks; i++)
		bytes += s->chunks[i].data.n;
	fail_alloc_pause();
	it->chunks = malloc((s->n_chunks + 1) * sizeof *it->chunks);
	it->bytes = malloc(bytes + 1);
	fail_alloc_resume();
	assert_true(it->chunks && it->bytes);
	bytes = 0;
	for (size_t i = 0; i < s->n_chunks; i++) {
		const struct chunk *c = &s->chunks[i];
		if (c->maxt < it->opt.mint || c->mint > it->opt.maxt)
			continue;
		it->chunks[out->n_chunks] = *c;
		memcpy(it->bytes + bytes, c->data.p, c->data.n);
		it->chunks[out->n_chunks++].data.p = it->bytes + bytes;
		bytes += c->data.n;
	}
	out->chunks = it->chunks;
	return OK;
}

static void iter_close(struct series_iter *base)
{
	struct fake_iter *it = (struct fake_iter *)base;
	it->f->closed++;
	free(it->chunks);
	free(it->bytes);
	free(it);
}

static const struct series_iter_ops iter_ops = {next, iter_close};

static errc do_select(
	struct source *base, const struct matcher *m, size_t n, const struct select_options *opt, struct series_iter **out, struct err *err)
{
	fail_alloc_pause();
	struct fake_iter *it = calloc(1, sizeof *it);
	fail_alloc_resume();
	(void)err;
	assert_non_null(it);
	*it = (struct fake_iter){.base = {&iter_ops}, .f = (struct fake_source *)base, .m = m, .n = n, .opt = *opt};
	it->f->opened++;
	*out = &it->base;
	return OK;
}

static errc listing(struct source *base, const struct span *name, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	struct fake_source *f = (struct fake_source *)base;
	const struct fake_iter it = {.f = f, .m = m, .n = n, .opt = *opt};
	for (size_t i = 0; i < f->n; i++) {
		if (!wanted(&f->v[i], &it))
			continue;
		for (uint32_t k = 0; k < f->v[i].labels.n; k++) {
			const struct label *l = &f->v[i].labels.v[k];
			errc rc = !name ? emit(arg, l->name, err) : span_eq(*name, l->name) ? emit(arg, l->value, err) : OK;
			if (rc != OK)
				return rc;
		}
	}
	return OK;
}

static errc label_names(struct source *s, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	return listing(s, NULL, m, n, opt, emit, arg, err);
}

static errc label_values(struct source *s, struct span name, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	return listing(s, &name, m, n, opt, emit, arg, err);
}

static void release(struct source *base)
{
	((struct fake_source *)base)->releases++;
}

static const struct source_ops ops = {do_select, label_names, label_values, release};

static int by_labels(const void *a, const void *b)
{
	return labels_cmp(((const struct fake_series *)a)->labels, ((const struct fake_series *)b)->labels);
}

void fake_source_init(struct fake_source *f, struct fake_series *v, size_t n)
{
	*f = (struct fake_source){.v = v, .n = n};
	f->base = (struct source){.ops = &ops, .mint = INT64_MIN, .maxt = INT64_MAX, .kind = "local"};
	if (n > 1)
		qsort(v, n, sizeof *v, by_labels);
}
