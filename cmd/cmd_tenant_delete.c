/* cmd/cmd_tenant_delete.c - DELETE /-/tenants/NAME: everything that was stored of a tenant before it goes; what is written after it stays.
 *
 *     asked ─▶ cutting: its windows become blocks, ─▶ marking: every block that was begun before ─▶ waiting: --tenant.delete-delay ─▶ removing: meta.json ─▶ done
 *              exemplars and metadata go               has its deletion-mark.json                   from the asking                     first, the mark last
 *
 * Reads see nothing of it from the start: blocks that were begun before the asking are in no plan (catalog_hide), and its windows are blocks a moment later. "Begun" is the time in a
 * block's ULID, which is that of its window: so nobody has to compare samples, a block that is still being shipped is known as well as one in the bucket, and what comes in
 * meanwhile opens windows of its own. Writes that arrive while it is cutting may go with it.
 *
 * Until the delay is over an operator can take the marks away again: with the objects deletion-mark.json gone and the line out of DATA-DIR/tenant-deletions before a start, all is as it was.
 *
 * The file has a line for each:  <tenant> <asked, ms> <remove at, ms> <0, or when it was done, ms>
 * It is the job: every step looks at what there is, so a step that was cut off is taken again. A job that is done is kept for a week: what other nodes ship late is found then.
 *
 * Each node does its part: its own windows, and the bucket, which all see; marking and removing twice is the same. Who is asked tells every node of its rings, until each has said that it knows (POST
 * /-/peer/tenant-delete?asked=<ms>, the tenant in THANOS-TENANT); who was told tells nobody.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/tenant.h"
#include "cluster/link.h"
#include "cluster/roster.h"
#include "cmd/cmd_int.h"

enum { STEP_MS = 1000, LOOK_AGAIN_MS = 600000, DELETIONS_MAX = 10000, TELL_MS = 2000, DELETE_AHEAD_MS = 60000 /* clocks */ };

#define KEPT_MS (7 * 86400 * INT64_C(1000))

enum deletion_state { CUTTING, MARKING, WAITING, REMOVING, DONE };
static const char *const state_names[] = {"cutting", "marking", "waiting", "removing", "done"};

struct deletion {
	struct deletion *next;
	char tenant[TENANT_NAME_MAX + 1];
	int64_t asked_ms, remove_ms, done_ms;
	enum deletion_state state;
	int64_t look_ms; /* of io_mono_ms: not before */
	uint64_t blocks, marked, removed;
	bool tell;	 /* there are nodes that do not know yet */
	char error[200]; /* of the last step; empty: it worked */
};

static struct {
	struct server *s;
	const char *path;
	pthread_t thread;
	bool runs;
	pthread_mutex_t mu;
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop;
	struct deletion *first; /* guarded by mu, as all of them are */
	size_t n;
} job = {.mu = PTHREAD_MUTEX_INITIALIZER};

/* ---- the file ---- */

static errc file_write_locked(struct err *err)
{
	struct buf b;
	buf_init(&b, 4 * MIB);
	buf_printf(&b, "varve-tenant-deletions 1\n");
	for (const struct deletion *d = job.first; d; d = d->next)
		buf_printf(&b, "%s %" PRId64 " %" PRId64 " %" PRId64 "\n", d->tenant, d->asked_ms, d->remove_ms, d->done_ms);
	errc rc = b.failed ? err_set(err, ERR_NOMEM, "no memory for %s", job.path) : io_write_file(job.path, span_of(b.p, b.n), err);
	buf_free(&b);
	return rc;
}

static struct deletion *find_locked(struct span tenant)
{
	for (struct deletion *d = job.first; d; d = d->next)
		if (span_eq(span_cstr(d->tenant), tenant))
			return d;
	return NULL;
}

static errc file_read(struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct io_stat st;
	struct span text;
	arena_init(&a, 8 * MIB);
	TRY(io_stat(job.path, &st, err));
	if (!st.exists)
		goto fail;
	TRY(io_read_file(job.path, 4 * MIB, &a, &text, err));
	int at = 0;
	CHECK(sscanf(text.p, "varve-tenant-deletions 1\n%n", &at) == 0 && at > 0, ERR_CORRUPT, "%s is no list of tenants that are deleted", job.path);
	for (const char *p = text.p + at; *p; p += at) {
		struct deletion *d = calloc(1, sizeof *d);
		CHECK(d, ERR_NOMEM, "no memory for %s", job.path);
		at = 0;
		d->next = job.first;
		job.first = d;
		job.n++;
		CHECK(sscanf(p, "%128s %" SCNd64 " %" SCNd64 " %" SCNd64 "\n%n", d->tenant, &d->asked_ms, &d->remove_ms, &d->done_ms, &at) == 4 &&
				at > 0 && tenant_valid(span_cstr(d->tenant)),
			ERR_CORRUPT, "%s: a line is not \"<tenant> <asked> <remove> <done>\"", job.path);
		d->state = d->done_ms ? DONE : CUTTING;
		d->tell = !d->done_ms; /* whoever was told before says so */
		TRY(catalog_hide(job.s->catalog, span_cstr(d->tenant), d->asked_ms, err));
	}
fail:
	arena_free(&a);
	return rc;
}

/* ---- steps: of a copy, without the lock; what they find out is put back ---- */

static bool mine(const struct deletion *d, const struct catalog_block *b)
{
	return span_eq(b->tenant, span_cstr(d->tenant)) && ulid_time_ms(b->ulid) <= d->asked_ms;
}

static errc mark(struct server *s, const struct deletion *d, struct ulid u, struct err *err)
{
	char key[64], text[256];
	snprintf(key, sizeof key, "%s/deletion-mark.json", ulid_text(u).s);
	int n = snprintf(text, sizeof text, "{\"id\":\"%s\",\"version\":1,\"deletion_time\":%" PRId64 ",\"details\":\"tenant deleted\"}\n",
		ulid_text(u).s, d->asked_ms / 1000);
	errc rc = bucket_put_if_absent(s->bucket, key, span_of(text, (size_t)n), err);
	if (rc == ERR_UNSUPPORTED)
		rc = bucket_put_bytes(s->bucket, key, span_of(text, (size_t)n), err);
	return rc == ERR_EXISTS ? OK : rc;
}

/* meta.json first, so that nobody takes what is left for a block; the mark last, so that a removal that was cut off is seen. */
static errc remove_objects(struct server *s, const struct catalog_block *b, struct arena *a, struct err *err)
{
	errc rc = OK;
	struct block_file *files;
	size_t n;
	const struct ulid_text ulid = ulid_text(b->ulid);
	TRY(catalog_objects(b, a, &files, &n, err));
	for (int pass = 0; pass < 3; pass++)
		for (size_t i = 0; i < n + 2; i++) {
			struct span rel = i < n ? files[i].rel_path : i == n ? SPAN("meta.json") : SPAN("deletion-mark.json");
			int when = span_is(rel, "meta.json") ? 0 : span_is(rel, "deletion-mark.json") ? 2 : 1;
			char *key = when == pass ? arena_printf(a, "%s/%.*s", ulid.s, SPAN_ARG(rel)) : NULL;
			if (when != pass)
				continue;
			CHECK(key, ERR_NOMEM, "no memory");
			TRY(bucket_delete(s->bucket, key, err));
		}
fail:
	return rc;
}

/* Shipped, and its objects are gone: another node was faster. It is shipped again, since only from there it goes as others do. */
static errc again(struct server *s, const struct catalog_block *b, struct err *err)
{
	errc rc = b->state == BLOCK_LIVE ? catalog_set_local_state(s->catalog, b->ulid, BLOCK_LOCAL, "", err) : OK;
	shipper_notify(s->shipper);
	return rc;
}

/* Marks, or removes, all that is there. *left: blocks that are not in the bucket yet, or, when they are removed, still have their directories here. */
static errc over_blocks(struct server *s, struct deletion *d, bool removing, uint64_t *left, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct catalog_block *v;
	size_t n;
	arena_init(&a, GIB);
	*left = d->blocks = 0;
	*(removing ? &d->removed : &d->marked) = 0;
	TRY(catalog_list(s->catalog, &a, &v, &n, err));
	for (size_t i = 0; i < n; i++) {
		if (!mine(d, &v[i]))
			continue;
		d->blocks++;
		if (!v[i].in_bucket) {
			*left += v[i].state != BLOCK_QUARANTINED;
			TRY(again(s, &v[i], err));
			continue;
		}
		if (removing && v[i].local) {
			++*left;
			shipper_notify(s->shipper);
		} else if (removing) {
			TRY(remove_objects(s, &v[i], &a, err));
			d->removed++;
		} else {
			if (!v[i].marked)
				TRY(mark(s, d, v[i].ulid, err));
			d->marked++;
		}
	}
fail:
	arena_free(&a);
	return rc;
}

/* All nodes of the rings, each for itself. false: one did not answer, and is told again. */
static bool tell_nodes(struct server *s, const struct deletion *d)
{
	struct err err = {0};
	struct arena a;
	struct roster_node *v = NULL;
	size_t n = 0;
	bool all = true;
	char target[96];
	arena_init(&a, 64 * MIB);
	snprintf(target, sizeof target, TENANT_DELETE_PATH "?asked=%" PRId64, d->asked_ms);
	all = roster_nodes(s->roster, &a, &v, &n, &err) == OK;
	for (size_t i = 0; i < n && !atomic_load(&s->stopping); i++) {
		struct buf answer;
		int status = 0;
		const struct link_call call = {
			.address = v[i].address,
			.method = "POST",
			.target = target,
			.tenant = span_cstr(d->tenant),
			.deadline_mono_ns = io_mono_ns() + TELL_MS * INT64_C(1000000),
			.max_answer_bytes = 64 * KIB,
		};
		if (v[i].self || !v[i].stores || v[i].state == NODE_DRAINED)
			continue;
		buf_init(&answer, 64 * KIB);
		bool knows = link_ask(s->link, &call, &status, &answer, &err) == OK && status == 202;
		if (!knows)
			log_warn("a node does not know yet that a tenant is deleted", LSTR("tenant", d->tenant), LSPAN("node", v[i].address),
				LI64("status", status), LERR(&err));
		all &= knows || !v[i].in_ring;
		buf_free(&answer);
	}
	arena_free(&a);
	return all;
}

static errc step(struct server *s, struct deletion *d, struct err *err)
{
	errc rc = OK;
	uint64_t left = 0;
	int64_t now_ms = io_now_ms();
	struct deletion late;
	if (d->tell && s->roster)
		d->tell = !tell_nodes(s, d);
	switch (d->state) {
	case CUTTING:
		if (s->head)
			TRY(head_flush_tenant(s->head, span_cstr(d->tenant), d->asked_ms, err));
		shipper_notify(s->shipper);
		d->state = MARKING;
		break;
	case MARKING:
	case WAITING:
		TRY(over_blocks(s, d, false, &left, err));
		d->state = now_ms >= d->remove_ms && left == 0 ? REMOVING : left == 0 ? WAITING : MARKING;
		d->look_ms = d->state != WAITING || d->tell
				     ? 0
				     : io_mono_ms() + (d->remove_ms - now_ms < LOOK_AGAIN_MS ? d->remove_ms - now_ms : LOOK_AGAIN_MS);
		break;
	case REMOVING:
		TRY(over_blocks(s, d, true, &left, err));
		if (left > 0)
			break;
		d->state = DONE;
		d->done_ms = now_ms;
		log_info("a tenant was deleted", LSTR("tenant", d->tenant), LU64("blocks", d->removed));
		break;
	case DONE:
		/* What came late. */
		late = *d;
		TRY(over_blocks(s, &late, true, &left, err));
		d->look_ms = io_mono_ms() + LOOK_AGAIN_MS;
		break;
	}
fail:
	return rc;
}

/* ---- the thread ---- */

static bool due_locked(struct deletion *out)
{
	int64_t now = io_mono_ms();
	for (struct deletion *d = job.first; d; d = d->next)
		if (d->look_ms <= now) {
			*out = *d;
			return true;
		}
	return false;
}

/* What the step found, unless it was asked for again meanwhile: then it begins anew. */
static void put_back_locked(const struct deletion *was, errc rc, const struct err *why)
{
	struct err err = {0};
	for (struct deletion **at = &job.first; *at; at = &(*at)->next) {
		struct deletion *d = *at;
		if (strcmp(d->tenant, was->tenant) != 0 || d->asked_ms != was->asked_ms)
			continue;
		bool finished = was->state == DONE && d->state != DONE;
		struct deletion *next = d->next;
		*d = *was;
		d->next = next;
		if (d->look_ms <= io_mono_ms())
			d->look_ms = io_mono_ms() + STEP_MS;
		snprintf(d->error, sizeof d->error, "%.199s", rc != OK ? why->msg : "");
		if (finished && file_write_locked(&err) != OK)
			log_warn("the list of deleted tenants could not be written", LERR(&err));
		if (d->state == DONE && io_now_ms() - d->done_ms > KEPT_MS) {
			(void)!catalog_hide(job.s->catalog, span_cstr(d->tenant), INT64_MIN, NULL);
			*at = d->next;
			job.n--;
			free(d);
			if (file_write_locked(&err) != OK)
				log_warn("the list of deleted tenants could not be written", LERR(&err));
		}
		return;
	}
}

static void *job_main(void *arg)
{
	struct server *s = arg;
	pthread_mutex_lock(&job.mu);
	while (!job.stop) {
		struct deletion d;
		if (atomic_load(&s->phase) == PHASE_READY && due_locked(&d)) {
			struct err err = {0};
			pthread_mutex_unlock(&job.mu);
			errc rc = step(s, &d, &err);
			if (rc != OK && rc != ERR_CANCELED)
				log_warn("deleting a tenant is tried again", LSTR("tenant", d.tenant), LSTR("state", state_names[d.state]),
					LERR(&err));
			pthread_mutex_lock(&job.mu);
			put_back_locked(&d, rc, &err);
			continue;
		}
		int64_t until = io_mono_ns() + STEP_MS * INT64_C(1000000);
		struct timespec t = {until / 1000000000, until % 1000000000};
		pthread_cond_timedwait(&job.wake, &job.mu, &t);
	}
	pthread_mutex_unlock(&job.mu);
	return NULL;
}

errc tenant_delete_start(struct server *s, struct err *err)
{
	errc rc = OK;
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&job.wake, &attr);
	pthread_condattr_destroy(&attr);
	job.s = s;
	job.path = arena_printf(&s->arena, "%s/tenant-deletions", s->dir.path);
	CHECK(job.path, ERR_NOMEM, "no memory");
	TRY(file_read(err));
	CHECK(pthread_create(&job.thread, NULL, job_main, s) == 0, ERR_NOMEM, "a thread could not be started");
	job.runs = true;
fail:
	return rc;
}

void tenant_delete_stop(void)
{
	if (job.runs) {
		pthread_mutex_lock(&job.mu);
		job.stop = true;
		pthread_cond_signal(&job.wake);
		pthread_mutex_unlock(&job.mu);
		pthread_join(job.thread, NULL);
		job.runs = false;
	}
	while (job.first) {
		struct deletion *d = job.first;
		job.first = d->next;
		free(d);
	}
}

bool tenant_delete_covers(struct server *s, struct ulid block)
{
	bool covers = false;
	struct arena a;
	struct catalog_block b;
	pthread_mutex_lock(&job.mu);
	bool any = job.first != NULL;
	pthread_mutex_unlock(&job.mu);
	if (!any)
		return false;
	arena_init(&a, MIB);
	if (catalog_get(s->catalog, block, &a, &b, NULL) == OK) {
		pthread_mutex_lock(&job.mu);
		const struct deletion *d = find_locked(b.tenant);
		covers = d && mine(d, &b);
		pthread_mutex_unlock(&job.mu);
	}
	arena_free(&a);
	return covers;
}

errc tenant_delete(struct server *s, struct span tenant, int64_t asked_ms, bool tell, struct err *err)
{
	errc rc = OK;
	ASSERT(tenant_valid(tenant));
	pthread_mutex_lock(&job.mu);
	struct deletion *d = find_locked(tenant), *made = NULL, before = {.state = DONE};
	if (d && d->asked_ms >= asked_ms)
		goto fail; /* it is known */
	if (d)
		before = *d;
	else {
		CHECK(job.n < DELETIONS_MAX, ERR_LIMIT, "%d tenants are being deleted, or were lately", DELETIONS_MAX);
		d = made = calloc(1, sizeof *d);
		CHECK(d, ERR_NOMEM, "no memory");
		memcpy(d->tenant, tenant.p, tenant.n);
		d->next = job.first;
		job.first = d;
		job.n++;
	}
	d->state = CUTTING;
	d->tell = tell;
	d->asked_ms = asked_ms;
	d->remove_ms = asked_ms + s->flags->tenant_delete_delay_ms;
	d->done_ms = d->look_ms = 0;
	d->marked = d->removed = 0;
	d->error[0] = 0;
	rc = file_write_locked(err);
	if (rc == OK)
		rc = catalog_hide(s->catalog, tenant, asked_ms, err);
	if (rc != OK && made) {
		job.first = made->next;
		job.n--;
		free(made);
	} else if (rc != OK)
		*d = before;
	pthread_cond_signal(&job.wake);
	if (rc == OK)
		log_info("a tenant is deleted", LSPAN("tenant", tenant), LI64("remove_at", asked_ms + s->flags->tenant_delete_delay_ms));
fail:
	pthread_mutex_unlock(&job.mu);
	return rc;
}

/* ---- the endpoint ---- */

static void put_state(struct span tenant, struct buf *out)
{
	pthread_mutex_lock(&job.mu);
	const struct deletion *d = find_locked(tenant);
	if (!d)
		buf_printf(out, "null");
	else {
		buf_printf(out,
			"{\"state\":\"%s\",\"asked\":%" PRId64 ",\"removeAt\":%" PRId64 ",\"blocks\":%" PRIu64 ",\"marked\":%" PRIu64
			",\"removed\":%" PRIu64 ",\"error\":",
			state_names[d->state], d->asked_ms, d->remove_ms, d->blocks, d->marked, d->removed);
		buf_json_string(out, span_cstr(d->error));
		buf_printf(out, "}");
	}
	pthread_mutex_unlock(&job.mu);
}

void tenant_route(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct span tenant = http_path_arg(r);
	struct err err = {0};
	errc rc = OK;
	struct buf out;
	buf_init(&out, 64 * KIB);
	if (!tenant_valid(tenant)) {
		rc = err_id(&err, ERRID_TENANT, ERR_INVALID, "\"%.*s\" is no tenant's name", SPAN_ARG(tenant));
		goto fail;
	}
	TRY(http_parse_params(r, &err));
	if (http_method(r) == HTTP_DELETE) {
		if (!span_eq(http_param(r, "confirm", 0), tenant)) {
			rc = err_id(&err, ERRID_BAD_PARAMETER, ERR_INVALID, "everything of tenant %.*s would be deleted: say so with ?confirm=%.*s",
				SPAN_ARG(tenant), SPAN_ARG(tenant));
			goto fail;
		}
		TRY(tenant_delete(s, tenant, io_now_ms(), true, &err));
	}
	struct head_usage u = {.series = 0};
	if (s->head)
		head_tenant_usage(s->head, tenant, io_now_ms(), &u);
	buf_printf(&out, "{\"tenant\":");
	buf_json_string(&out, tenant);
	buf_printf(&out, ",\"series\":%" PRIu64 ",\"windows\":%" PRIu64 ",\"memoryBytes\":%" PRIu64 ",\"deletion\":", u.series, u.windows,
		u.memory_bytes);
	put_state(tenant, &out);
	buf_printf(&out, "}\n");
	if (out.failed)
		rc = err_set(&err, ERR_NOMEM, "no memory");
fail:
	if (rc == OK)
		http_answer(r, http_method(r) == HTTP_DELETE ? 202 : 200, "application/json", span_of(out.p, out.n));
	else {
		if (!err.id)
			err.id = errid_text(rc == ERR_NOSPACE ? ERRID_DISK_FULL : rc == ERR_IO ? ERRID_STORAGE_FAILED : ERRID_OVERLOADED);
		http_error_of(r, &err);
	}
	buf_free(&out);
}

/* What another node was asked for. */
void tenant_delete_hear(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	errc rc = OK;
	struct span tenant;
	int64_t asked_ms;
	TRY(link_check(s->trust, r, &err));
	TRY(http_tenant_of_peer(r, &tenant, &err));
	TRY(http_parse_params(r, &err));
	if (!span_to_i64(http_param(r, "asked", 0), &asked_ms) || asked_ms <= 0 || asked_ms > io_now_ms() + DELETE_AHEAD_MS) {
		rc = err_id(&err, ERRID_BAD_PARAMETER, ERR_INVALID, "asked=%.*s is no time that was", SPAN_ARG(http_param(r, "asked", 0)));
		goto fail;
	}
	TRY(tenant_delete(s, tenant, asked_ms, false, &err));
	http_answer(r, 202, NULL, SPAN("known\n"));
	return;
fail:
	if (!err.id)
		err.id = errid_text(ERRID_OVERLOADED);
	http_error_of(r, &err);
}
