/* cmd/cmd_ring_simulate.c - `varve ring simulate`: what growing will cost, before there is a node.
 *
 *     --nodes=3,5,9 ──a ring of made-up addresses for each──▶ how even it is; what the step to it from the one before moves
 *
 * Both are exact, by the arcs of the rings, and so say nothing about any series. With --series as many are placed one by one as well, on every ring at once, and counted: the same figures from the
 * other side, as a fleet would have them.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/json.h"
#include "base/limits.h"
#include "cmd/cmd_ring_int.h"

enum { STEPS_MAX = 64, THREADS_MAX = 64, ZONES_MAX = 100 };
static const uint64_t SERIES_MAX = 100000000000;
static const uint64_t PIECE = 65536; /* series that a thread takes at a time */

struct step {
	uint32_t n;
	struct ring_set *set;
	struct ring *ring;
	uint32_t *number;   /* of the set's nodes: which of the made-up ones each is */
	double most, least; /* over the mean */
	struct ring_change change;
	uint64_t *count; /* replicas, by number */
	uint64_t moved;
};

struct simulation {
	struct step steps[STEPS_MAX];
	uint32_t n_steps, factor;
	uint64_t series, next; /* next: taken by threads, a piece at a time */
};

/* ---- rings ---- */

/* malloc'd: the i-th made-up node. */
static errc address_of(const char *pattern, uint32_t i, char **out, struct err *err)
{
	const char *at = strstr(pattern, "{}");
	*out = NULL;
	if (!at)
		return err_set(err, ERR_INVALID, "--endpoint=%s has no {} where the number goes", pattern);
	if (asprintf(out, "%.*s%" PRIu32 "%s", (int)(at - pattern), pattern, i, at + 2) < 0) {
		*out = NULL;
		return err_set(err, ERR_NOMEM, "no memory");
	}
	return OK;
}

static errc ring_text(const struct ring_tool *t, uint32_t n, struct buf *b, struct err *err)
{
	errc rc = OK;
	char *address = NULL;
	buf_printf(b, "[{\"endpoints\":[");
	for (uint32_t i = 0; i < n; i++) {
		TRY(address_of(t->endpoint, i, &address, err));
		buf_printf(b, "%s\n{\"address\":", i ? "," : "");
		buf_json_string(b, span_cstr(address));
		if (t->zones > 1)
			buf_printf(b, ",\"az\":\"zone-%" PRIu64 "\"", i % t->zones);
		buf_printf(b, "}");
		free(address);
	}
	buf_printf(b, "]}]");
	CHECK(!b->failed, ERR_NOMEM, "no memory");
fail:
	return rc;
}

static errc step_open(struct ring_tool *t, struct step *s, struct err *err)
{
	errc rc = OK;
	struct buf b;
	struct ring_options opt = {.replication_factor = (uint32_t)t->factor};
	char name[32], *address = NULL;
	buf_init(&b, LIMIT_RING_FILE_BYTES);
	ring_algorithm_parse(t->algorithm, &opt.algorithm);
	TRY(ring_text(t, s->n, &b, err));
	snprintf(name, sizeof name, "%" PRIu32 " nodes", s->n);
	TRY(ring_set_parse(name, span_of(b.p, b.n), &opt, &s->set, err));
	s->ring = ring_set_ring(s->set, 0);
	s->number = arena_calloc(&t->arena, s->n, sizeof *s->number);
	s->count = arena_calloc(&t->arena, s->n, sizeof *s->count);
	CHECK(s->number && s->count, ERR_NOMEM, "no memory");
	/* The set sorts by address, where varve-10 stands before varve-2. */
	for (uint32_t i = 0; i < s->n; i++) {
		uint32_t node;
		TRY(address_of(t->endpoint, i, &address, err));
		CHECK(ring_set_find(s->set, span_cstr(address), &node), ERR_INVALID, "--endpoint=%s: %s is no address", t->endpoint, address);
		s->number[node] = i;
		free(address);
		address = NULL;
	}
fail:
	free(address);
	buf_free(&b);
	return rc;
}

static errc step_judge(struct ring_tool *t, const struct step *was, struct step *s, struct err *err)
{
	errc rc = OK;
	double *shares = arena_calloc(&t->arena, s->n, sizeof *shares);
	CHECK(shares, ERR_NOMEM, "no memory");
	TRY(ring_shares(s->ring, shares, err));
	s->least = shares[0];
	for (uint32_t k = 0; k < s->n; k++) {
		s->most = shares[k] > s->most ? shares[k] : s->most;
		s->least = shares[k] < s->least ? shares[k] : s->least;
	}
	s->most *= s->n / (double)t->factor;
	s->least *= s->n / (double)t->factor;
	if (was)
		TRY(ring_compare(was->ring, s->ring, &s->change, err));
fail:
	return rc;
}

/* ---- series, one by one ---- */

struct counter {
	struct simulation *sim;
	pthread_t thread;
	uint64_t *count[STEPS_MAX], moved[STEPS_MAX];
};

static bool one_of(uint32_t x, const uint32_t *v, uint32_t n)
{
	for (uint32_t k = 0; k < n; k++)
		if (v[k] == x)
			return true;
	return false;
}

static void place(struct counter *c, struct ring_hash *h, uint64_t i)
{
	const struct simulation *sim = c->sim;
	uint32_t old[LIMIT_RING_FACTOR], now[LIMIT_RING_FACTOR], n = sim->factor;
	char text[24];
	int len = snprintf(text, sizeof text, "%012" PRIu64, i);
	ring_hash_add(h, SPAN("__name__"), SPAN("http_requests_total"));
	ring_hash_add(h, SPAN("job"), SPAN("simulation"));
	ring_hash_add(h, SPAN("series"), span_of(text, (size_t)len));
	uint64_t hash = ring_hash_end(h);
	for (uint32_t s = 0; s < sim->n_steps; s++) {
		const struct step *step = &sim->steps[s];
		ring_owners(step->ring, hash, now);
		for (uint32_t k = 0; k < n; k++) {
			now[k] = step->number[now[k]];
			c->count[s][now[k]]++;
			c->moved[s] += s > 0 && !one_of(now[k], old, n);
		}
		memcpy(old, now, n * sizeof *old);
	}
}

static void *count_main(void *arg)
{
	struct counter *c = arg;
	struct ring_hash h;
	ring_hash_begin(&h, SPAN("default-tenant"));
	for (;;) {
		uint64_t from = __atomic_fetch_add(&c->sim->next, PIECE, __ATOMIC_RELAXED), to = from + PIECE;
		if (from >= c->sim->series)
			return NULL;
		for (uint64_t i = from; i < to && i < c->sim->series; i++)
			place(c, &h, i);
	}
}

static errc count_series(struct ring_tool *t, struct simulation *sim, struct err *err)
{
	errc rc = OK;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t n = cores < 1 ? 1 : cores > THREADS_MAX ? THREADS_MAX : (uint32_t)cores, started = 0;
	struct counter *v = arena_calloc(&t->arena, n, sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory");
	for (uint32_t i = 0; i < n; i++) {
		v[i].sim = sim;
		for (uint32_t s = 0; s < sim->n_steps; s++) {
			v[i].count[s] = arena_calloc(&t->arena, sim->steps[s].n, sizeof(uint64_t));
			CHECK(v[i].count[s], ERR_NOMEM, "no memory");
		}
	}
	while (started < n && pthread_create(&v[started].thread, NULL, count_main, &v[started]) == 0)
		started++;
	if (started == 0)
		count_main(&v[0]);
	for (uint32_t i = 0; i < started; i++)
		pthread_join(v[i].thread, NULL);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t s = 0; s < sim->n_steps; s++) {
			for (uint32_t k = 0; k < sim->steps[s].n; k++)
				sim->steps[s].count[k] += v[i].count[s][k];
			sim->steps[s].moved += v[i].moved[s];
		}
fail:
	return rc;
}

/* ---- the answer ---- */

struct counted {
	uint64_t most;
	double most_over_mean, moved;
};

static struct counted counted_of(const struct simulation *sim, const struct step *s)
{
	struct counted c = {0};
	double slots = (double)sim->series * sim->factor;
	for (uint32_t k = 0; k < s->n; k++)
		c.most = s->count[k] > c.most ? s->count[k] : c.most;
	c.most_over_mean = (double)c.most / (slots / s->n);
	c.moved = (double)s->moved / slots;
	return c;
}

static void put_json(struct buf *b, const struct simulation *sim)
{
	buf_printf(b, "{\"replication_factor\":%" PRIu32 ",\"series\":%" PRIu64 ",\"steps\":[", sim->factor, sim->series);
	for (uint32_t i = 0; i < sim->n_steps; i++) {
		const struct step *s = &sim->steps[i];
		buf_printf(b, "%s\n{\"nodes\":%" PRIu32 ",\"max_over_mean\":%.6f,\"min_over_mean\":%.6f,\"moved\":%.9f,\"ideal\":%.9f", i ? "," : "",
			s->n, s->most, s->least, s->change.moved, s->change.ideal);
		if (sim->series) {
			struct counted c = counted_of(sim, s);
			buf_printf(b, ",\"counted\":{\"max_over_mean\":%.6f,\"moved\":%.9f,\"series_of_fullest\":%" PRIu64 "}", c.most_over_mean,
				c.moved, c.most);
		}
		buf_printf(b, "}");
	}
	buf_printf(b, "]}\n");
}

static void put_table(struct buf *b, const struct simulation *sim)
{
	buf_printf(b,
		"replication factor %" PRIu32 "; moved: of all replicas, those that come to a node that did not have the series\n\n"
		"nodes  fullest/mean  emptiest/mean    moved    ideal",
		sim->factor);
	buf_printf(b, sim->series ? "  counted: fullest/mean    moved  series of the fullest\n" : "\n");
	for (uint32_t i = 0; i < sim->n_steps; i++) {
		const struct step *s = &sim->steps[i];
		buf_printf(b, "%5" PRIu32 "  %12.3f  %13.3f", s->n, s->most, s->least);
		if (i)
			buf_printf(b, "  %5.1f %%  %5.1f %%", 100 * s->change.moved, 100 * s->change.ideal);
		else
			buf_printf(b, "        -        -");
		if (sim->series) {
			struct counted c = counted_of(sim, s);
			buf_printf(b, "  %21.3f  ", c.most_over_mean);
			if (i)
				buf_printf(b, "%5.1f %%", 100 * c.moved);
			else
				buf_printf(b, "      -");
			buf_printf(b, "  %21" PRIu64, c.most);
		}
		buf_printf(b, "\n");
	}
}

static errc steps_of(const char *text, uint64_t factor, struct simulation *sim, struct err *err)
{
	errc rc = OK;
	for (const char *p = text; *p || p == text;) {
		char *end;
		unsigned long n = strtoul(p, &end, 10);
		CHECK(end != p && *p >= '0' && *p <= '9' && (*end == ',' || *end == 0) && n >= factor && n >= 1 && n <= LIMIT_RING_ENDPOINTS,
			ERR_INVALID, "--nodes=%s must be numbers from the replication factor to %d, as 3,5,9", text, LIMIT_RING_ENDPOINTS);
		CHECK(sim->n_steps < STEPS_MAX, ERR_INVALID, "--nodes has more than %d numbers", STEPS_MAX);
		sim->steps[sim->n_steps++].n = (uint32_t)n;
		p = *end ? end + 1 : end;
		CHECK(*end == 0 || *p, ERR_INVALID, "--nodes=%s ends with a comma", text);
	}
fail:
	return rc;
}

errc ring_simulate(struct ring_tool *t, struct err *err)
{
	errc rc = OK;
	struct simulation *sim = arena_calloc(&t->arena, 1, sizeof *sim);
	CHECK(sim, ERR_NOMEM, "no memory");
	CHECK(t->factor >= 1 && t->factor <= LIMIT_RING_FACTOR, ERR_INVALID, "--replication-factor=%" PRIu64 " must be between 1 and %d", t->factor,
		LIMIT_RING_FACTOR);
	CHECK(t->series <= SERIES_MAX, ERR_INVALID, "--series=%" PRIu64 " is more than %" PRIu64, t->series, SERIES_MAX);
	CHECK(t->zones >= 1 && t->zones <= ZONES_MAX, ERR_INVALID, "--zones=%" PRIu64 " must be between 1 and %d", t->zones, ZONES_MAX);
	sim->factor = (uint32_t)t->factor;
	sim->series = t->series;
	TRY(steps_of(t->nodes, t->factor, sim, err));
	for (uint32_t i = 0; i < sim->n_steps; i++) {
		TRY(step_open(t, &sim->steps[i], err));
		TRY(step_judge(t, i ? &sim->steps[i - 1] : NULL, &sim->steps[i], err));
	}
	if (sim->series)
		TRY(count_series(t, sim, err));
	if (t->json)
		put_json(&t->out, sim);
	else
		put_table(&t->out, sim);
fail:
	for (uint32_t i = 0; sim && i < sim->n_steps; i++) {
		ring_unref(sim->steps[i].ring);
		ring_set_unref(sim->steps[i].set);
	}
	return rc;
}
