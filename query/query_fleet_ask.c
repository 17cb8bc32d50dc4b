/* query/query_fleet_ask.c - one question to all other nodes, without a thread for any of them.
 *
 *     sender's thread:  peer's bytes ─▶ `in` (bounded; then the connection stands still) ─ signal
 *     question's:       `in` ─ taken whole ─▶ `cur` ─▶ one frame at a time, read where it stands
 *
 * Memory: the `in` of all peers take an eighth of --query.max-memory at most; `cur` is what was taken and the frame that is being read, of all peers together at most a half.
 *
 * Waiting: a peer that has room is expected to bring a MiB a second; the time that it is behind runs for all of them at once, and stands still while its buffer is full. Who is --query.peer-timeout behind fails when
 * the question has to wait for it: one that never begins, one that stops, and one that drips; of several that are silent each had the same time, so they cost it once. A long answer of a good one does not
 * fail, and what the asker's own client keeps waiting is nobody's.
 *
 * Who fails is left out: series that it gave are given, those behind are not. That is no loss as long as the answer is whole without it (query_fleet.c).
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { IN_MIN = 64 * 1024, IN_MAX = 1024 * 1024, PIECE_MAX = 64 * 1024, ERROR_BYTES = 4096, BYTE_NS = 1000 /* a MiB a second, nearly */ };
enum { IN_SHARE = 8, CUR_SHARE = 2, WARNING_BYTES = 320 };

/* The question's bytes: the calls borrow them until they have landed, which may be after the question is over. */
struct body {
	atomic_int refs;
	size_t n;
	uint8_t p[];
};

struct fleet_peer {
	struct fleet_ask *ask;
	struct span address;
	struct body *body;
	atomic_int refs; /* the question's, and its call's */
	size_t room;
	pthread_mutex_t mu;
	pthread_cond_t came;
	/* guarded by mu */
	struct buf in;
	bool stopped;		    /* there was no room */
	int64_t behind_ns, seen_ns; /* how far it is behind, as of when */
	bool landed;
	errc rc;
	int status;
	char why[ERR_MSG_BYTES];
	/* the question's thread's */
	struct http_flow *flow;
	struct buf taken, cur; /* taken: empty but in peer_fill */
	size_t at;	       /* of cur, read so far */
	uint64_t frames;
	struct arena arena, last_arena; /* of the frame; of the labels of the one before */
	struct labels last;
	bool any;
	bool failed, ended;
	char warning[WARNING_BYTES]; /* its own, or why it failed */
};

struct fleet_ask {
	struct question *qn;
	struct fleet *fleet;
	struct fleet_view view;
	struct fleet_peer **peers;
	size_t n_peers;
	struct span *missing; /* addresses */
	size_t n_missing;
	const char **warnings;
	size_t n_warnings;
	int64_t timeout_ns;
	size_t held_bytes, max_bytes; /* of all peers' cur */
};

/* ---- on the sender's thread ---- */

static void body_unref(struct body *b)
{
	if (b && atomic_fetch_sub(&b->refs, 1) == 1)
		free(b);
}

static void peer_unref(struct fleet_peer *p)
{
	if (!p || atomic_fetch_sub(&p->refs, 1) != 1)
		return;
	body_unref(p->body);
	buf_free(&p->in);
	pthread_cond_destroy(&p->came);
	pthread_mutex_destroy(&p->mu);
	free(p);
}

/* Room that is not used counts. */
static void peer_clock_locked(struct fleet_peer *p, int64_t now_ns, size_t came)
{
	if (!p->stopped)
		p->behind_ns += now_ns - p->seen_ns;
	p->behind_ns -= (int64_t)came * BYTE_NS;
	if (p->behind_ns < 0)
		p->behind_ns = 0;
	p->seen_ns = now_ns;
}

static bool peer_data(void *arg, struct span piece)
{
	struct fleet_peer *p = arg;
	pthread_mutex_lock(&p->mu);
	bool room = p->in.n == 0 || p->in.n + piece.n <= p->room;
	peer_clock_locked(p, io_mono_ns(), room ? piece.n : 0);
	p->stopped = !room;
	if (room)
		buf_put(&p->in, piece.p, piece.n); /* a failed one shows in peer_fill */
	pthread_cond_signal(&p->came);
	pthread_mutex_unlock(&p->mu);
	return room;
}

static void peer_landed(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct fleet_peer *p = arg;
	pthread_mutex_lock(&p->mu);
	p->landed = true;
	p->rc = rc;
	p->status = status;
	if (rc != OK)
		snprintf(p->why, sizeof p->why, "%s", err->msg);
	else if (status / 100 != 2)
		snprintf(p->why, sizeof p->why, "it says %d: %.*s", status, (int)(answer.n < 200 ? answer.n : 200), answer.n ? answer.p : "");
	pthread_cond_signal(&p->came);
	pthread_mutex_unlock(&p->mu);
	peer_unref(p);
}

/* ---- who fails ---- */

static void peer_drop(struct fleet_peer *p)
{
	http_flow_close(p->flow);
	p->flow = NULL;
	p->ask->held_bytes -= p->cur.cap;
	buf_free(&p->cur);
	buf_free(&p->taken);
	buf_init(&p->cur, 0);
	buf_init(&p->taken, 0);
	arena_free(&p->arena);
	arena_free(&p->last_arena);
	p->at = 0;
}

/* A warning becomes a header and a line of a log: printable, and one line. */
static void printable(char *text)
{
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
			*c = c[1] ? ' ' : 0;
}

static void peer_warn(struct fleet_peer *p, const char *what)
{
	snprintf(p->warning, sizeof p->warning, "%.*s: %s", SPAN_ARG(p->address), what);
	printable(p->warning);
	p->ask->warnings[p->ask->n_warnings++] = p->warning;
}

static void missing_add(struct fleet_ask *a, struct span address)
{
	a->missing[a->n_missing++] = address;
}

static void peer_fail(struct fleet_peer *p, const char *why)
{
	p->failed = true;
	peer_drop(p);
	missing_add(p->ask, p->address);
	/* It may have warned before: one line is enough. */
	if (p->warning[0])
		snprintf(p->warning, sizeof p->warning, "%.*s: %s", SPAN_ARG(p->address), why);
	else
		peer_warn(p, why);
	printable(p->warning);
	metric_add(p->ask->qn->q->peer_failures, 1);
	log_debug("a peer does not answer a read", LSPAN("peer", p->address), LSTR("reason", p->warning));
}

/* May the answer go on without those that are missing? */
static errc ask_judge(struct fleet_ask *a, struct err *err)
{
	struct question *qn = a->qn;
	if (fleet_view_whole(&a->view, qn->tenant, a->missing, a->n_missing))
		return OK;
	if (qn->partial && !qn->committed)
		return OK;
	return err_id(err, ERRID_INCOMPLETE, ERR_NET,
		"%zu of %zu nodes do not answer that may have samples which are not in the bucket yet, among them %s (partial_response=true gives "
		"what there is)",
		a->n_missing, a->view.n, a->n_warnings > 0 ? a->warnings[a->n_warnings - 1] : "");
}

/* After an error of a peer's: OK when it can be done without. What is this process' own (memory, the question's deadline) stays an error. */
static errc peer_error(struct fleet_peer *p, errc rc, struct err *err)
{
	if (rc == ERR_NOMEM || rc == ERR_LIMIT || (rc == ERR_TIMEOUT && err->id))
		return rc;
	char why[ERR_MSG_BYTES];
	snprintf(why, sizeof why, "%s", err->msg);
	peer_fail(p, why);
	*err = (struct err){0};
	return ask_judge(p->ask, err);
}

/* ---- bytes ---- */

/* Something came, or it is over: true. */
static bool peer_wait_locked(struct fleet_peer *p)
{
	const struct fleet_ask *a = p->ask;
	int64_t end_ns = a->qn->deadline_mono_ms * 1000000;
	while (p->in.n == 0 && !p->landed) {
		int64_t now_ns = io_mono_ns();
		peer_clock_locked(p, now_ns, 0);
		int64_t until_ns = now_ns + a->timeout_ns - p->behind_ns;
		until_ns = until_ns < end_ns ? until_ns : end_ns;
		if (until_ns <= now_ns)
			return false;
		const struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
		pthread_cond_timedwait(&p->came, &p->mu, &until);
	}
	return true;
}

/* More of the answer behind what cur has. *more false: there is no more, and the answer was whole. */
static errc peer_fill(struct fleet_peer *p, bool *more, struct err *err)
{
	errc rc = OK;
	struct fleet_ask *a = p->ask;
	*more = true;
	pthread_mutex_lock(&p->mu);
	bool came = peer_wait_locked(p);
	struct buf got = p->in;
	bool stopped = p->stopped, landed = p->landed;
	if (came) {
		p->in = p->taken;
		peer_clock_locked(p, io_mono_ns(), 0);
		p->stopped = false;
	}
	pthread_mutex_unlock(&p->mu);
	if (!came)
		return err_set(
			err, ERR_TIMEOUT, "it keeps the question waiting (--query.peer-timeout=%lld ms)", (long long)(a->timeout_ns / 1000000));
	p->taken = got;
	if (stopped)
		http_flow_more(p->flow);
	CHECK(!got.failed, ERR_NOMEM, "no memory for a peer's answer");
	if (got.n == 0 && landed) {
		CHECK(p->rc == OK && p->status / 100 == 2, p->rc == OK ? ERR_NET : p->rc == ERR_NOMEM ? ERR_NOMEM : ERR_NET, "%s", p->why);
		*more = false;
		return OK;
	}
	size_t left = p->cur.n - p->at;
	/* A large series was here: its memory is another's now. */
	if (left == 0 && p->cur.cap > 4 * p->room) {
		a->held_bytes -= p->cur.cap;
		buf_free(&p->cur);
		buf_init(&p->cur, 0);
		p->at = 0;
	}
	size_t before = p->cur.cap;
	if (p->at > 0 && left > 0)
		memmove(p->cur.p, p->cur.p + p->at, left);
	p->cur.n = left;
	p->at = 0;
	p->cur.max = before + (a->max_bytes > a->held_bytes ? a->max_bytes - a->held_bytes : 0);
	if (p->cur.max < left + got.n)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "what peers answer does not fit the memory of one read (--query.max-memory)");
	buf_put(&p->cur, got.p, got.n);
	CHECK(!p->cur.failed, ERR_NOMEM, "no memory for a peer's answer");
	a->held_bytes += p->cur.cap - before;
	buf_clear(&p->taken);
fail:
	return rc;
}

/* The next frame's payload, which stays until the next call. */
static errc peer_frame(struct fleet_peer *p, struct rd *payload, uint8_t *kind, struct err *err)
{
	errc rc = OK;
	for (;;) {
		struct span in = span_of(p->cur.p + p->at, p->cur.n - p->at), got = {NULL, 0};
		size_t used = 0;
		if (in.n > 0)
			TRY(fleet_frame(in, p->ask->max_bytes, &got, &used, err));
		if (used > 0) {
			p->at += used;
			p->frames++;
			*payload = rd_of(got.p, got.n);
			*kind = rd_u8(payload);
			return OK;
		}
		bool more;
		TRY(peer_fill(p, &more, err));
		CHECK(more, ERR_NET, "its answer broke off");
	}
fail:
	return rc;
}

/* A frame of `kind`, or the end. */
static errc peer_next(struct fleet_peer *p, uint8_t kind, struct rd *payload, bool *more, struct err *err)
{
	errc rc = OK;
	uint8_t got;
	*more = false;
	if (p->failed || p->ended)
		return OK;
	TRY(question_check_deadline(p->ask->qn, err));
	TRY(peer_frame(p, payload, &got, err));
	if (got == FLEET_END) {
		CHECK(rd_uvarint(payload) == p->frames - 1 && payload->ok && rd_left(payload) == 0, ERR_CORRUPT, "its answer lacks frames");
		p->ended = true;
		return OK;
	}
	CHECK(got == kind, ERR_CORRUPT, "a frame of kind %u stands where one of kind %u must", got, kind);
	*more = true;
fail:
	return rc;
}

/* ---- asking ---- */

static errc peer_new(struct fleet_ask *a, struct span address, size_t room, struct err *err)
{
	struct fleet_peer *p = calloc(1, sizeof *p);
	if (!p)
		return err_set(err, ERR_NOMEM, "no memory for a question to a peer");
	p->ask = a;
	p->address = address;
	p->room = room;
	atomic_init(&p->refs, 1);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->came, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&p->mu, NULL);
	p->seen_ns = io_mono_ns();
	buf_init(&p->in, room + PIECE_MAX);
	buf_init(&p->taken, room + PIECE_MAX);
	buf_init(&p->cur, a->max_bytes);
	arena_init(&p->arena, a->max_bytes);
	arena_init(&p->last_arena, MIB);
	a->peers[a->n_peers++] = p;
	return OK;
}

static errc peer_send(struct fleet_peer *p, struct body *body, int64_t deadline_ns, struct err *err)
{
	errc rc = OK;
	const struct query_fleet *cfg = fleet_config(p->ask->fleet);
	static const char target[] = "/-/peer/read";
	char tenant[256], trust[sizeof TRUST_HEADER + 2 + TRUST_HEADER_BYTES], value[TRUST_HEADER_BYTES] = "", url[512];
	char *base = cfg->url(cfg->link, p->address);
	CHECK(base, ERR_NOMEM, "no memory for a URL");
	int n = snprintf(url, sizeof url, "%s%s", base, target);
	free(base);
	CHECK(n > 0 && (size_t)n < sizeof url, ERR_INVALID, "its address is too long");
	const struct trust_words words = {.method = SPAN("POST"),
		.target = span_cstr(target),
		.tenant = p->ask->qn->tenant,
		.content_type = SPAN(FLEET_QUESTION_TYPE),
		.body = span_of(body->p, body->n)};
	if (cfg->sign)
		cfg->sign(cfg->trust, &words, value);
	snprintf(tenant, sizeof tenant, "THANOS-TENANT: %.*s", SPAN_ARG(p->ask->qn->tenant));
	snprintf(trust, sizeof trust, "%s: %s", TRUST_HEADER, value);
	const char *headers[] = {"Content-Type: " FLEET_QUESTION_TYPE, tenant, trust};
	const struct http_send call = {.method = "POST",
		.url = url,
		.headers = headers,
		.n_headers = value[0] ? 3 : 2,
		.body = words.body,
		.deadline_mono_ns = deadline_ns,
		.max_answer_bytes = ERROR_BYTES,
		.done = peer_landed,
		.data = peer_data,
		.arg = p};
	p->body = body;
	atomic_fetch_add(&body->refs, 1);
	atomic_fetch_add(&p->refs, 1);
	rc = http_flow_open(fleet_sender(p->ask->fleet), &call, &p->flow, err);
	if (rc != OK)
		atomic_fetch_sub(&p->refs, 1);
fail:
	return rc;
}

static errc body_of(const struct fleet_question *fq, struct body **out, struct err *err)
{
	struct buf b;
	buf_init(&b, LIMIT_HTTP_READ_BODY_BYTES);
	errc rc = fleet_question_encode(fq, &b, err);
	struct body *body = rc == OK ? malloc(sizeof *body + b.n) : NULL;
	if (rc == OK && !body)
		rc = err_set(err, ERR_NOMEM, "no memory for a question to peers");
	if (body) {
		atomic_init(&body->refs, 1);
		body->n = b.n;
		memcpy(body->p, b.p, b.n);
	}
	buf_free(&b);
	*out = body;
	return rc;
}

/* One that begins to answer has fixed what it will give. */
static errc peer_begun(struct fleet_peer *p, struct err *err)
{
	errc rc = OK;
	struct rd payload;
	uint8_t kind;
	struct span warning;
	TRY(peer_frame(p, &payload, &kind, err));
	CHECK(kind == FLEET_BEGIN, ERR_CORRUPT, "it does not answer as a peer does");
	TRY(fleet_begin_decode(&payload, &warning, err));
	if (warning.p) {
		char text[WARNING_BYTES];
		snprintf(text, sizeof text, "%.*s", (int)(warning.n < sizeof text ? warning.n : sizeof text - 1), warning.p);
		peer_warn(p, text);
	}
fail:
	return rc;
}

static errc ask_nodes(struct fleet_ask *a, struct body *body, struct err *err)
{
	errc rc = OK;
	struct question *qn = a->qn;
	const struct query_fleet *cfg = fleet_config(a->fleet);
	size_t room = qn->q->cfg.max_memory_bytes / IN_SHARE / (a->view.n + 1);
	room = room < IN_MIN ? IN_MIN : room > IN_MAX ? IN_MAX : room;
	for (size_t i = 0; i < a->view.n; i++) {
		struct roster_node *n = &a->view.nodes[i];
		bool down;
		if (!fleet_view_asks(a->fleet, n, &down))
			continue;
		if (n->self) {
			/* Its own log may still be read. */
			if (cfg->whole && !cfg->whole(cfg->whole_arg)) {
				missing_add(a, n->address);
				a->warnings[a->n_warnings++] = "this node still replays its log";
			}
			continue;
		}
		TRY(peer_new(a, n->address, room, err));
		struct fleet_peer *p = a->peers[a->n_peers - 1];
		struct err why = {0};
		if (down)
			peer_fail(p, "it does not answer");
		else if (peer_send(p, body, qn->deadline_mono_ms * 1000000, &why) != OK)
			peer_fail(p, why.msg);
	}
fail:
	return rc;
}

errc fleet_ask(struct question *qn, enum fleet_what what, struct span name, const struct matcher_set *sets, size_t n_sets, struct err *err)
{
	errc rc = OK;
	struct fleet_ask *a = NULL;
	struct body *body = NULL;
	struct fleet *fleet = qn->q->fleet;
	if (!fleet || qn->alone)
		return OK;
	const struct fleet_question fq = {.what = what,
		.mint = qn->mint,
		.maxt = qn->maxt,
		.left_ms = qn->deadline_mono_ms - io_mono_ms(),
		.name = name,
		.replica = qn->replica,
		.n_replica = qn->n_replica,
		.sets = sets,
		.n_sets = n_sets};
	TRY(body_of(&fq, &body, err));
	a = arena_calloc(&qn->arena, 1, sizeof *a);
	CHECK(a, ERR_NOMEM, "no memory for a question to peers (--query.max-memory)");
	*a = (struct fleet_ask){.qn = qn,
		.fleet = fleet,
		.timeout_ns = fleet_config(fleet)->peer_timeout_ms * 1000000,
		.max_bytes = qn->q->cfg.max_memory_bytes / CUR_SHARE};
	TRY(fleet_view_take(fleet, &qn->arena, &a->view, err));
	qn->ask = a;
	a->peers = arena_calloc(&qn->arena, a->view.n + 1, sizeof(struct fleet_peer *));
	a->missing = arena_calloc(&qn->arena, a->view.n + 1, sizeof *a->missing);
	a->warnings = arena_calloc(&qn->arena, a->view.n + 1, sizeof(char *));
	CHECK(a->peers && a->missing && a->warnings, ERR_NOMEM, "no memory for a question to %zu peers (--query.max-memory)", a->view.n);
	TRY(ask_nodes(a, body, err));
	/* They all work at the same time: waiting for each in turn takes as long as the slowest. */
	for (size_t i = 0; i < a->n_peers; i++) {
		struct fleet_peer *p = a->peers[i];
		struct err why = {0};
		rc = p->failed ? OK : peer_begun(p, &why);
		if (rc == ERR_NOMEM || rc == ERR_LIMIT) {
			if (err)
				*err = why;
			goto fail;
		}
		if (rc != OK)
			peer_fail(p, why.msg);
	}
	TRY(question_check_deadline(qn, err));
	TRY(ask_judge(a, err));
	if (a->n_missing > 0)
		log_debug("a read goes on without nodes that do not answer", LU64("missing", a->n_missing), LU64("nodes", a->view.n));
	metric_add(qn->q->peer_questions, a->n_peers);
fail:
	if (a && !qn->ask)
		fleet_view_free(&a->view);
	body_unref(body);
	return rc;
}

void fleet_ask_close(struct fleet_ask *a)
{
	if (!a)
		return;
	for (size_t i = 0; i < a->n_peers; i++) {
		struct fleet_peer *p = a->peers[i];
		if (!p->failed)
			peer_drop(p);
		peer_unref(p);
	}
	fleet_view_free(&a->view);
}

size_t fleet_ask_peers(const struct fleet_ask *a)
{
	return a ? a->n_peers : 0;
}

struct fleet_peer *fleet_ask_peer(struct fleet_ask *a, size_t i)
{
	return a->peers[i];
}

/* Of those that are missing nothing is said when the answer is whole without them. */
const char *fleet_ask_warning(const struct fleet_ask *a, size_t i)
{
	if (!a || fleet_view_whole(&a->view, a->qn->tenant, a->missing, a->n_missing)) {
		for (size_t k = 0; a && k < a->n_peers; k++)
			if (!a->peers[k]->failed && a->peers[k]->warning[0] && i-- == 0)
				return a->peers[k]->warning;
		return NULL;
	}
	return i < a->n_warnings ? a->warnings[i] : NULL;
}

/* ---- what they say ---- */

/* A copy. They stand behind each other in a frame: one piece of memory, with the same distances. */
static errc labels_keep(struct labels l, struct arena *arena, struct labels *out, struct err *err)
{
	errc rc = OK;
	out->n = l.n;
	out->v = arena_alloc(arena, l.n * sizeof *out->v);
	CHECK(out->v, ERR_NOMEM, "no memory for labels (--query.max-memory)");
	if (l.n == 0)
		return OK;
	const char *from = l.v[0].name.p, *to = l.v[l.n - 1].value.p + l.v[l.n - 1].value.n;
	struct span copy = arena_dup(arena, span_of(from, (size_t)(to - from)));
	CHECK(copy.p, ERR_NOMEM, "no memory for labels (--query.max-memory)");
	for (uint32_t i = 0; i < l.n; i++) {
		out->v[i].name = span_of(copy.p + (l.v[i].name.p - from), l.v[i].name.n);
		out->v[i].value = span_of(copy.p + (l.v[i].value.p - from), l.v[i].value.n);
	}
fail:
	return rc;
}

errc fleet_next_series(struct fleet_peer *p, struct ext_series *out, bool *more, struct err *err)
{
	errc rc = OK;
	struct rd payload;
	struct err why = {0};
	TRY(peer_next(p, FLEET_ONE_SERIES, &payload, more, &why));
	if (!*more)
		return OK;
	/* The labels before it stand in memory that is read over now. */
	*out = (struct ext_series){0};
	arena_reset(&p->arena);
	TRY(fleet_series_decode(&payload, &p->arena, &out->labels, &out->chunks, &out->n_chunks, &why));
	if (p->any && labels_cmp(p->last, out->labels) >= 0)
		TRY(err_set(&why, ERR_CORRUPT, "its series do not ascend"));
	arena_reset(&p->last_arena);
	TRY(labels_keep(out->labels, &p->last_arena, &p->last, &why));
	p->any = true;
	return OK;
fail:
	*more = false;
	rc = peer_error(p, rc, &why);
	if (rc != OK && err)
		*err = why;
	return rc;
}

errc fleet_each_string(struct fleet_peer *p, errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	errc rc = OK;
	struct rd payload;
	struct err why = {0};
	for (bool more = true;;) {
		TRY(peer_next(p, FLEET_STRINGS, &payload, &more, &why));
		if (!more)
			return OK;
		while (rd_left(&payload) > 0) {
			struct span s = rd_str(&payload);
			if (!payload.ok)
				TRY(err_set(&why, ERR_CORRUPT, "a name is cut off"));
			TRY(emit(arg, s, &why));
		}
	}
fail:
	rc = peer_error(p, rc, &why);
	if (rc != OK && err)
		*err = why;
	return rc;
}

errc fleet_next_exemplars(struct fleet_peer *p, struct labels *l, struct exemplar **x, size_t *n, bool *more, struct err *err)
{
	errc rc = OK;
	struct rd payload;
	struct err why = {0};
	TRY(peer_next(p, FLEET_ONE_EXEMPLARS, &payload, more, &why));
	if (!*more)
		return OK;
	arena_reset(&p->arena);
	TRY(fleet_exemplars_decode(&payload, &p->arena, l, x, n, &why));
	return OK;
fail:
	*more = false;
	rc = peer_error(p, rc, &why);
	if (rc != OK && err)
		*err = why;
	return rc;
}

errc fleet_each_metadata(struct fleet_peer *p, errc (*emit)(void *arg, const struct metadata *m, struct err *err), void *arg, struct err *err)
{
	errc rc = OK;
	struct rd payload;
	struct err why = {0};
	for (bool more = true;;) {
		TRY(peer_next(p, FLEET_FAMILIES, &payload, &more, &why));
		if (!more)
			return OK;
		while (rd_left(&payload) > 0) {
			struct metadata m;
			TRY(fleet_metadata_decode(&payload, &m, &why));
			TRY(emit(arg, &m, &why));
		}
	}
fail:
	rc = peer_error(p, rc, &why);
	if (rc != OK && err)
		*err = why;
	return rc;
}
