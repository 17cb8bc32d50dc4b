/* ingest/ingest_fleet.c - the numbers of the limits file are the fleet's: what part of them is this node's to hold.
 *
 * Series in the head. Of a tenant's S series a node stores S x its share of the tenant's ring (all shares add up to the factor, so replicas are counted once), and it
 * holds limit x share against what it has, with a tenth on top, or three standard deviations where that is more: series fall where their hashes say, and a tenant that
 * is within its limit must not be refused because one node has a few more than the mean. A node keeps what it took when a ring changes, so a share that it had counts for as
 * long as its windows may (ring_remember_ms): growing refuses nothing.
 *
 * Samples a second. They are counted where clients' requests arrive, before anything is decoded, so every node that takes some holds a part of the rate: the part of the
 * tenant's bytes that came to it lately, because a sender keeps to one router for hours and an equal part would be wrong for all. Each second every such node tells how much came
 * for each tenant that has a rate to the first few nodes of the rings, and hears what all of them together told:
 *
 *     router a ─ "acme 5000" ─▶ ┌ board of the first nodes ┐ ◀─ "acme 15000" ─ router b
 *              ◀─ "acme 20000" ─└──────────────────────────┘ ─ "acme 20000" ─▶          a holds 1/4 of acme's rate, b 3/4
 *
 * Parts add up to 1, but for the tenth of an even part that everybody has at least, so that who starts to send somewhere is not refused for it. Until a node has heard of a tenant's others, it holds
 * the whole rate: what a tenant can get out of that is what it sends in a second or two. Nobody to tell it to: the parts stay as they were.
 *
 *     POST /-/peer/rates  "varve-rates 1 <node, 16 hex digits>\n" and "<tenant> <bytes a second>\n" for each, tenants ascending
 *     200                 "varve-rates 1 <nodes>\n" and the same tenants with the sums
 *
 * Limits of one request are held where it arrives, as they are: there is nothing to divide.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/handover.h"
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "ingest/ingest_int.h"

enum { FLEET_RINGS = 32, BOARD_FRESH_MS = 10000, RATES_LINE_BYTES = TENANT_NAME_MAX + 24 };

/* A set of rings that is in force, or was. */
struct fleet_rings {
	struct ring_set *set;
	uint32_t self;	  /* UINT32_MAX: it is in none */
	double *shares;	  /* of each ring, whole */
	int64_t until_ms; /* of io_mono_ms; INT64_MAX: in force */
};
struct fleet_view {
	uint32_t n;
	struct fleet_rings v[FLEET_RINGS]; /* the newest first */
};

/* What a node said. */
struct board_row {
	struct span tenant;
	double bytes_per_s;
};
struct board_node {
	struct board_node *next;
	uint64_t id;
	int64_t heard_ms; /* of io_mono_ms */
	struct board_row *rows;
	size_t n;
	struct arena arena;
};

struct ingest_fleet {
	struct handover view; /* struct fleet_view; NULL: no fleet */
	pthread_mutex_t rings_mu;
	uint64_t id; /* of this process, for the boards */
	_Atomic uint32_t round;
	int64_t said_ms; /* of whoever says */

	pthread_mutex_t board_mu; /* guards the rest */
	struct board_node *board;
	size_t n_board;
};

/* ---- series: the rings' shares ---- */

static void view_free(struct fleet_view *v)
{
	for (uint32_t i = 0; v && i < v->n; i++) {
		ring_set_unref(v->v[i].set);
		free(v->v[i].shares);
	}
	free(v);
}

static errc shares_of(struct ring_set *set, uint32_t self, double **out, struct err *err)
{
	errc rc = OK;
	uint32_t n_rings = ring_set_n_rings(set), n_nodes = ring_set_n_nodes(set);
	double *shares = calloc(n_rings + 1, sizeof *shares), *nodes = calloc(n_nodes + 1, sizeof *nodes);
	CHECK(shares && nodes, ERR_NOMEM, "no memory for the shares of %" PRIu32 " nodes", n_nodes);
	for (uint32_t i = 0; i < n_rings && self < n_nodes; i++) {
		struct ring *r = ring_set_ring(set, i);
		rc = ring_shares(r, nodes, err);
		ring_unref(r);
		if (rc)
			goto fail;
		shares[i] = nodes[self];
	}
	*out = shares;
	shares = NULL;
fail:
	free(shares);
	free(nodes);
	return rc;
}

static errc rings_copy(struct fleet_rings *to, const struct fleet_rings *from, struct err *err)
{
	uint32_t n = ring_set_n_rings(from->set) + 1;
	*to = *from;
	to->shares = malloc(n * sizeof *to->shares);
	if (!to->shares)
		return err_set(err, ERR_NOMEM, "no memory for the shares of rings");
	memcpy(to->shares, from->shares, n * sizeof *to->shares);
	ring_set_ref(to->set);
	return OK;
}

errc ingest_fleet_rings(struct ingest *in, struct ring_set *now, uint32_t self, struct err *err)
{
	errc rc = OK;
	struct ingest_fleet *f = in->fleet;
	struct fleet_view *fresh = calloc(1, sizeof *fresh);
	int64_t now_ms = io_mono_ms();
	pthread_mutex_lock(&f->rings_mu);
	const struct fleet_view *was = atomic_load(&f->view.now);
	CHECK(fresh, ERR_NOMEM, "no memory for the shares of rings");
	if (now) {
		struct fleet_rings *r = &fresh->v[0];
		TRY(shares_of(now, self, &r->shares, err));
		r->set = ring_set_ref(now);
		r->self = self;
		r->until_ms = INT64_MAX;
		fresh->n = 1;
	}
	for (uint32_t i = 0; was && i < was->n && fresh->n < FLEET_RINGS; i++) {
		const struct fleet_rings *old = &was->v[i];
		if (old->until_ms <= now_ms)
			continue;
		TRY(rings_copy(&fresh->v[fresh->n], old, err));
		struct fleet_rings *r = &fresh->v[fresh->n++];
		if (r->until_ms == INT64_MAX)
			r->until_ms = now_ms + in->cfg.ring_remember_ms;
	}
fail:
	if (rc == OK)
		view_free(handover_swap(&f->view, fresh));
	else
		view_free(fresh);
	pthread_mutex_unlock(&f->rings_mu);
	return rc;
}

/* What part of the tenant's series this node stores by these rings. */
static double share_in(const struct fleet_rings *r, struct span tenant)
{
	struct ring *ring = NULL;
	double share = 0;
	if (r->self == UINT32_MAX || ring_for_tenant(r->set, tenant, &ring, NULL) != OK || !ring)
		return 0;
	const uint16_t *nodes;
	uint32_t n = ring_nodes(ring, &nodes), factor = ring_set_factor(r->set);
	if (n == ring_info(ring)->n_nodes)
		share = r->shares[ring_index(ring)];
	else
		/* A sub-ring: drawn for the tenant, as even as the tenth on top allows. */
		for (uint32_t k = 0; k < n && share == 0; k++)
			if (nodes[k] == r->self)
				share = factor < n ? (double)factor / n : 1;
	ring_unref(ring);
	return share;
}

uint64_t ingest_head_max(struct ingest *in, struct span tenant, const struct tenant_limits *l)
{
	uint64_t limit = l->v[TENANT_HEAD_SERIES];
	double share = 0;
	uint32_t turn;
	if (LIKELY(limit == 0))
		return 0;
	const struct fleet_view *v = handover_begin(&in->fleet->view, &turn);
	bool fleet = v && v->n > 0;
	int64_t now_ms = fleet && v->n > 1 ? io_mono_ms() : 0;
	for (uint32_t i = 0; fleet && i < v->n; i++) {
		double s = v->v[i].until_ms > now_ms ? share_in(&v->v[i], tenant) : 0;
		share = s > share ? s : share;
	}
	handover_end(&in->fleet->view, turn);
	/* 0: by other nodes' rings it stores the tenant, else nobody would have asked. */
	if (!fleet || share <= 0 || share >= 1)
		return limit;
	double mean = (double)limit * share, slack = fmax(mean / 10, 3 * sqrt(mean)), most = ceil(mean + slack);
	return most < (double)limit ? (uint64_t)most : limit;
}

/* ---- rates: telling and hearing ---- */

struct telling {
	struct arena arena;
	struct board_row *v;
	size_t n, cap;
	bool failed;
};

static void tell_one(void *arg, struct span tenant, double bytes_per_s)
{
	struct telling *t = arg;
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 64;
		struct board_row *v = arena_alloc(&t->arena, cap * sizeof *v);
		if (v && t->n > 0)
			memcpy(v, t->v, t->n * sizeof *v);
		t->v = v ? v : t->v;
		t->cap = v ? cap : t->cap;
		t->failed |= !v;
	}
	if (t->n < t->cap) {
		t->v[t->n] = (struct board_row){arena_dup(&t->arena, tenant), bytes_per_s};
		t->failed |= !t->v[t->n].tenant.p;
		t->n += t->v[t->n].tenant.p != NULL;
	}
}

static int by_tenant(const void *a, const void *b)
{
	return span_cmp(((const struct board_row *)a)->tenant, ((const struct board_row *)b)->tenant);
}

errc ingest_rates_say(struct ingest *in, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ingest_fleet *f = in->fleet;
	struct telling t = {0};
	int64_t now_ms = io_mono_ms(), passed_ms = now_ms - f->said_ms;
	arena_init(&t.arena, LIMIT_RATES_BYTES);
	f->said_ms = now_ms;
	uint32_t round = atomic_load(&f->round);
	atomic_store(&f->round, ++round ? round : 1);
	ingest_limits_tell(in->limits, atomic_load(&f->round), passed_ms > 0 ? (double)passed_ms / 1000 : 1, tell_one, &t);
	CHECK(!t.failed, ERR_NOMEM, "no memory to tell the rates of %zu tenants", t.n);
	if (t.n > 0) {
		qsort(t.v, t.n, sizeof *t.v, by_tenant);
		buf_printf(out, "varve-rates 1 %016" PRIx64 "\n", f->id);
	}
	for (size_t i = 0; i < t.n; i++)
		buf_printf(out, "%.*s %.0f\n", SPAN_ARG(t.v[i].tenant), t.v[i].bytes_per_s);
	CHECK(!out->failed, ERR_NOMEM, "no memory to tell the rates of %zu tenants", t.n);
fail:
	arena_free(&t.arena);
	return rc;
}

static bool line_next(struct span *rest, struct span *line)
{
	const char *end = rest->n > 0 ? memchr(rest->p, '\n', rest->n) : NULL;
	if (!end)
		return false;
	*line = span_of(rest->p, (size_t)(end - rest->p));
	*rest = span_of(end + 1, rest->n - line->n - 1);
	return true;
}

/* "<tenant> <number>" */
static bool row_parse(struct span line, struct board_row *out)
{
	const char *space = line.n > 0 ? memchr(line.p, ' ', line.n) : NULL;
	int64_t n;
	if (!space)
		return false;
	out->tenant = span_of(line.p, (size_t)(space - line.p));
	if (!tenant_valid(out->tenant) || !span_to_i64(span_of(space + 1, line.n - out->tenant.n - 1), &n) || n < 0)
		return false;
	out->bytes_per_s = (double)n;
	return true;
}

void ingest_rates_heard(struct ingest *in, struct span answer)
{
	static const char head[] = "varve-rates 1 ";
	struct span line;
	struct board_row row;
	int64_t nodes;
	if (!line_next(&answer, &line) || !span_has_prefix(line, span_cstr(head)) ||
		!span_to_i64(span_of(line.p + sizeof head - 1, line.n - (sizeof head - 1)), &nodes) || nodes < 1)
		return;
	while (line_next(&answer, &line))
		if (row_parse(line, &row))
			ingest_limits_told(in->limits, atomic_load(&in->fleet->round), row.tenant, row.bytes_per_s, 0.1 / (double)nodes);
}

/* ---- the board ---- */

static bool head_parse(struct span line, uint64_t *id)
{
	static const char head[] = "varve-rates 1 ";
	if (!span_has_prefix(line, span_cstr(head)) || line.n != sizeof head - 1 + 16)
		return false;
	*id = 0;
	for (size_t i = sizeof head - 1; i < line.n; i++) {
		char c = line.p[i];
		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
		*id = *id << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return true;
}

static void node_free(struct board_node *n)
{
	if (!n)
		return;
	arena_free(&n->arena);
	free(n);
}

static errc node_parse(struct span text, struct board_node **out, struct err *err)
{
	errc rc = OK;
	struct span line;
	size_t lines = 0;
	struct board_node *n = calloc(1, sizeof *n);
	if (!n)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
	arena_init(&n->arena, 8 * (size_t)LIMIT_RATES_BYTES);
	for (size_t i = 0; i < text.n; i++)
		lines += text.p[i] == '\n';
	struct span rest = arena_dup(&n->arena, text);
	n->rows = arena_alloc(&n->arena, lines * sizeof *n->rows);
	if (!rest.p || !n->rows) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for the rates of %zu tenants", lines);
		goto fail;
	}
	if (!line_next(&rest, &line) || !head_parse(line, &n->id)) {
		rc = err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "rates do not begin with \"varve-rates 1 \" and a node");
		goto fail;
	}
	while (line_next(&rest, &line)) {
		struct board_row *row = &n->rows[n->n];
		if (!row_parse(line, row) || (n->n > 0 && span_cmp(row[-1].tenant, row->tenant) >= 0)) {
			rc = err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "rates, line %zu: no tenant and number behind those before", n->n + 2);
			goto fail;
		}
		n->n++;
	}
	n->heard_ms = io_mono_ms();
	*out = n;
	n = NULL;
fail:
	node_free(n);
	return rc;
}

/* In its place, and those away that were not heard of lately. */
static errc board_put_locked(struct ingest_fleet *f, struct board_node *n, struct err *err)
{
	int64_t since_ms = n->heard_ms - BOARD_FRESH_MS;
	for (struct board_node **at = &f->board; *at;) {
		struct board_node *old = *at;
		if (old->id != n->id && old->heard_ms >= since_ms) {
			at = &old->next;
			continue;
		}
		*at = old->next;
		node_free(old);
		f->n_board--;
	}
	if (f->n_board == LIMIT_RATES_NODES)
		return err_id(err, ERRID_OVERLOADED, ERR_LIMIT, "more than %d nodes tell their rates", LIMIT_RATES_NODES);
	n->next = f->board;
	f->board = n;
	f->n_board++;
	return OK;
}

/* Both ascend: one walk over each node's rows. */
static void board_sum_locked(const struct ingest_fleet *f, const struct board_node *mine, double *sums)
{
	for (const struct board_node *n = f->board; n; n = n->next)
		for (size_t i = 0, k = 0; i < mine->n && k < n->n;) {
			int c = span_cmp(mine->rows[i].tenant, n->rows[k].tenant);
			if (c == 0)
				sums[i] += n->rows[k].bytes_per_s;
			i += c <= 0;
			k += c >= 0;
		}
}

errc ingest_rates_board(struct ingest *in, struct span text, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ingest_fleet *f = in->fleet;
	struct board_node *n = NULL;
	TRY(node_parse(text, &n, err));
	double *sums = arena_calloc(&n->arena, n->n + 1, sizeof *sums);
	if (!sums) {
		node_free(n);
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for sums");
	}
	pthread_mutex_lock(&f->board_mu);
	rc = board_put_locked(f, n, err);
	if (rc == OK) {
		board_sum_locked(f, n, sums);
		buf_printf(out, "varve-rates 1 %zu\n", f->n_board);
		for (size_t i = 0; i < n->n; i++)
			buf_printf(out, "%.*s %.0f\n", SPAN_ARG(n->rows[i].tenant), sums[i]);
	} else
		node_free(n);
	pthread_mutex_unlock(&f->board_mu);
	if (rc == OK && out->failed)
		rc = err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for an answer");
fail:
	return rc;
}

void ingest_rates_hear(void *arg, struct http_request *r)
{
	struct err err = {0};
	struct buf out;
	buf_init(&out, LIMIT_RATES_BYTES);
	if (ingest_rates_board(arg, http_body(r), &out, &err) == OK)
		http_answer(r, 200, NULL, span_of(out.p, out.n));
	else
		http_error_of(r, &err);
	buf_free(&out);
}

/* ---- life ---- */

errc ingest_fleet_open(struct ingest_fleet **out, struct err *err)
{
	struct ingest_fleet *f = aligned_alloc(64, (sizeof *f + 63) / 64 * 64);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for the limits of a fleet");
	memset(f, 0, sizeof *f);
	f->id = io_random_u64();
	f->said_ms = io_mono_ms();
	pthread_mutex_init(&f->rings_mu, NULL);
	pthread_mutex_init(&f->board_mu, NULL);
	*out = f;
	return OK;
}

void ingest_fleet_close(struct ingest_fleet *f)
{
	if (!f)
		return;
	view_free(atomic_load(&f->view.now));
	while (f->board) {
		struct board_node *n = f->board;
		f->board = n->next;
		node_free(n);
	}
	pthread_mutex_destroy(&f->rings_mu);
	pthread_mutex_destroy(&f->board_mu);
	free(f);
}
