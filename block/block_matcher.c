/* block/block_matcher.c - matchers compiled and asked. A pattern that block_pattern.c takes apart never meets the regex engine.
 */
#include "base/errid.h"
#include "base/limits.h"
#include "block/block_matcher.h"
#include "block/block_pattern.h"
#include "block/block_regex.h"

/* The strings of an analysis take this at most: beyond it the engine is the cheaper way. */
static const size_t ANALYSIS_BYTES = 8 * MIB;

/* The strings into the matcher's arena, one array and one text. */
static errc set_copy(struct matcher *m, const struct pattern *x, struct arena *arena, struct err *err)
{
	errc rc = OK;
	size_t bytes = 0;
	for (size_t i = 0; i < x->n; i++)
		bytes += x->v[i].n;
	struct span *set = arena_calloc(arena, x->n, sizeof *set);
	char *text = arena_alloc(arena, bytes);
	CHECK(set && text, ERR_NOMEM, "%zu literals of a matcher", x->n);
	for (size_t i = 0; i < x->n; i++) {
		memcpy(text, x->v[i].p, x->v[i].n);
		set[i] = (struct span){text, x->v[i].n};
		text += x->v[i].n;
	}
	m->set = set;
	m->n_set = x->n;
fail:
	return rc;
}

static errc pattern_compile(struct matcher *m, struct arena *arena, struct err *err)
{
	errc rc = OK;
	struct arena scratch;
	arena_init(&scratch, ANALYSIS_BYTES);
	if (m->value.n > LIMIT_QUERY_REGEX_BYTES) {
		rc = err_id(err, ERRID_BAD_MATCHER, ERR_LIMIT, "a pattern of %zu bytes for label %.*s, at most %d are taken", m->value.n,
			SPAN_ARG(m->name), (int)LIMIT_QUERY_REGEX_BYTES);
		goto fail;
	}
	struct pattern x = pattern_analyze(m->value, &scratch);
	/* ascending: what the first and the last have in common, all have */
	struct span first = x.v[0], last = x.v[x.n - 1];
	while (m->prefix.n < first.n && m->prefix.n < last.n && first.p[m->prefix.n] == last.p[m->prefix.n])
		m->prefix.n++;
	m->prefix = arena_dup(arena, span_of(first.p, m->prefix.n));
	CHECK(m->prefix.p, ERR_NOMEM, "a matcher's prefix");
	if (x.tail == TAIL_NONE) {
		TRY(set_copy(m, &x, arena, err));
	} else if (x.n == 1 && x.tail != TAIL_UNKNOWN) {
		m->prefix_rest_any = true;
		m->rest_nonempty = x.tail == TAIL_SOME;
	} else {
		char why[200];
		m->re = regex_compile(m->value.p, m->value.n, why, sizeof why);
		if (!m->re)
			rc = err_id(err, ERRID_BAD_MATCHER, ERR_INVALID, "pattern \"%.*s\" of label %.*s: %s", SPAN_ARG(m->value), SPAN_ARG(m->name),
				why);
	}
fail:
	arena_free(&scratch);
	return rc;
}

static bool pattern_matches(const struct matcher *m, struct span value)
{
	if (m->set) {
		size_t low = 0, high = m->n_set;
		while (low < high) {
			size_t mid = low + (high - low) / 2;
			int c = span_cmp(m->set[mid], value);
			if (c == 0)
				return true;
			if (c < 0)
				low = mid + 1;
			else
				high = mid;
		}
		return false;
	}
	if (!span_has_prefix(value, m->prefix))
		return false;
	if (m->prefix_rest_any)
		return !m->rest_nonempty || value.n > m->prefix.n;
	return regex_matches(m->re, value.p, value.n);
}

bool matcher_matches(const struct matcher *m, struct span value)
{
	switch (m->type) {
	case MATCH_EQ:
		return span_eq(m->value, value);
	case MATCH_NEQ:
		return !span_eq(m->value, value);
	case MATCH_RE:
		return pattern_matches(m, value);
	default:
		return !pattern_matches(m, value);
	}
}

errc matcher_init(struct matcher *m, enum matcher_type type, struct span name, struct span value, struct arena *arena, struct err *err)
{
	errc rc = OK;
	*m = (struct matcher){.type = type, .name = arena_dup(arena, name), .value = arena_dup(arena, value), .prefix = SPAN("")};
	CHECK(m->name.p && m->value.p, ERR_NOMEM, "a matcher of %zu bytes", name.n + value.n);
	if (type == MATCH_RE || type == MATCH_NRE)
		TRY(pattern_compile(m, arena, err));
	m->matches_empty = matcher_matches(m, SPAN(""));
fail:
	return rc;
}

void matchers_free(struct matcher *m, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (m[i].re)
			regex_free(m[i].re);
		m[i].re = NULL;
	}
}

bool matchers_match_labels(const struct matcher *m, size_t n, struct labels l)
{
	for (size_t i = 0; i < n; i++)
		if (!matcher_matches(&m[i], labels_get(l, m[i].name)))
			return false;
	return true;
}
