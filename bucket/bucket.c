/* bucket/bucket.c - the front of every object store: keys are checked, operations are counted and timed, then the store's table is called. */
#include <stdlib.h>
#include "base/io.h"
#include "base/metrics.h"
#include "bucket/bucket_int.h"

enum op { OP_PUT, OP_PUT_IF_ABSENT, OP_GET, OP_GET_RANGE, OP_SIZE, OP_DELETE, OP_LIST, OP_CHECK, OP_ABORT_UPLOADS, OP_COUNT };
static const char *const op_names[OP_COUNT] = {"put", "put_if_absent", "get", "get_range", "size", "delete", "list", "check", "abort_uploads"};

/* Filled on first use: registering the same metric again gives the same pointer. */
static _Atomic(struct metric *) op_totals[OP_COUNT][ERR_CODES];
static _Atomic(struct metric *) op_seconds[OP_COUNT];
static _Atomic(struct metric *) bytes_sent, bytes_received;

static struct metric *once(_Atomic(struct metric *) *slot, struct metric *(*make)(enum op, errc), enum op op, errc rc)
{
	struct metric *m = atomic_load_explicit(slot, memory_order_acquire);
	if (!m) {
		m = make(op, rc);
		atomic_store_explicit(slot, m, memory_order_release);
	}
	return m;
}

static struct metric *make_total(enum op op, errc rc)
{
	return metric_counter_with2("varve_bucket_operations_total", "Object store operations by outcome, retries inside not counted.", "operation",
		op_names[op], "result", rc ? errc_name(rc) : "ok");
}

static struct metric *make_seconds(enum op op, errc rc)
{
	(void)rc;
	return metric_histogram_with("varve_bucket_operation_duration_seconds", "Time of object store operations, retries included.",
		metric_latency_bounds, metric_latency_bounds_n, "operation", op_names[op]);
}

static struct metric *make_sent(enum op op, errc rc)
{
	(void)op, (void)rc;
	return metric_counter("varve_bucket_sent_bytes_total", "Bytes of objects put, each object once.");
}

static struct metric *make_received(enum op op, errc rc)
{
	(void)op, (void)rc;
	return metric_counter("varve_bucket_received_bytes_total", "Bytes of objects read.");
}

static errc done(enum op op, int64_t began_ns, errc rc)
{
	ASSERT(rc < ERR_CODES);
	metric_add(once(&op_totals[op][rc], make_total, op, rc), 1);
	metric_observe(once(&op_seconds[op], make_seconds, op, rc), (double)(io_mono_ns() - began_ns) / 1e9);
	return rc;
}

static void sent(uint64_t n)
{
	metric_add(once(&bytes_sent, make_sent, OP_PUT, OK), n);
}

static void received(uint64_t n)
{
	metric_add(once(&bytes_received, make_received, OP_GET, OK), n);
}

/* ---- keys ---- */

static errc path_check(const char *what, const char *s, bool prefix, struct err *err)
{
	size_t n = strlen(s);
	if (n == 0)
		return prefix ? OK : err_set(err, ERR_INVALID, "an object's key is empty");
	if (n > LIMIT_BUCKET_KEY_BYTES)
		return err_set(err, ERR_INVALID, "%s of %zu bytes, at most %d: %.60s...", what, n, LIMIT_BUCKET_KEY_BYTES, s);
	for (size_t i = 0; i < n; i++) {
		if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
			return err_set(err, ERR_INVALID, "%s has control character 0x%02x at %zu", what, (unsigned char)s[i], i);
	}
	if (!span_is_utf8(span_of(s, n)))
		return err_set(err, ERR_INVALID, "%s is not UTF-8", what);
	for (const char *part = s;;) {
		size_t len = strcspn(part, "/");
		bool last = part[len] == 0;
		if (last && len == 0 && prefix)
			return OK; /* "a/b/" */
		if (len == 0)
			return err_set(err, ERR_INVALID, "%s has an empty part: %s", what, s);
		if ((len == 1 && part[0] == '.' && !(prefix && last)) || (len == 2 && part[0] == '.' && part[1] == '.'))
			return err_set(err, ERR_INVALID, "%s has a part \"%.*s\": %s", what, (int)len, part, s);
		if (last)
			return OK;
		part += len + 1;
	}
}

errc bucket_key_check(const char *key, struct err *err)
{
	return path_check("key", key, false, err);
}

errc bucket_prefix_check(const char *prefix, struct err *err)
{
	return path_check("prefix", prefix, true, err);
}

errc bucket_alive(const struct bucket *b, struct err *err)
{
	if (atomic_load_explicit(&b->canceled, memory_order_relaxed))
		return err_set(err, ERR_CANCELED, "%s: canceled, the process is stopping", b->describe);
	return OK;
}

/* ---- open and close ---- */

errc bucket_open(const char *name, struct span yaml, const char *default_dir, struct bucket **out, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct bucket_config cfg;

	arena_init(&arena, 4 * MIB);
	TRY(bucket_config_parse(name, yaml, default_dir, &arena, &cfg, err));
	if (cfg.type == BUCKET_FILESYSTEM)
		TRY(bucket_dir_open(&cfg, out, err));
	else
		TRY(bucket_s3_open(&cfg, out, err));
fail:
	arena_free(&arena);
	return rc;
}

void bucket_close(struct bucket *b)
{
	if (b)
		b->ops->close(b);
}

const char *bucket_describe(const struct bucket *b)
{
	return b->describe;
}

const char *bucket_dir(const struct bucket *b)
{
	return b->dir;
}

void bucket_cancel(struct bucket *b)
{
	atomic_store(&b->canceled, true);
	b->ops->cancel(b);
}

/* ---- operations ---- */

errc bucket_put_file(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err)
{
	int64_t began = io_mono_ns();
	struct bucket_put unused;
	errc rc = OK;
	if (!put)
		put = &unused;
	*put = (struct bucket_put){0};
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->put_file(b, key, path, put, err));
	sent(put->size_bytes);
fail:
	return done(OP_PUT, began, rc);
}

errc bucket_put_bytes(struct bucket *b, const char *key, struct span data, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->put_bytes(b, key, data, err));
	sent(data.n);
fail:
	return done(OP_PUT, began, rc);
}

errc bucket_put_if_absent(struct bucket *b, const char *key, struct span data, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->put_if_absent(b, key, data, err));
	sent(data.n);
fail:
	return done(OP_PUT_IF_ABSENT, began, rc);
}

errc bucket_get_range(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	CHECK(off <= INT64_MAX && n <= (uint64_t)INT64_MAX - off, ERR_INVALID, "%s: range of %zu bytes at %llu is beyond any object", key, n,
		(unsigned long long)off);
	TRY(bucket_alive(b, err));
	if (n)
		TRY(b->ops->get_range(b, key, off, n, buf, err));
	received(n);
fail:
	return done(OP_GET_RANGE, began, rc);
}

errc bucket_get(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->get(b, key, max_bytes, arena, out, err));
	received(out->n);
fail:
	return done(OP_GET, began, rc);
}

errc bucket_size(struct bucket *b, const char *key, uint64_t *size, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->size(b, key, size, err));
fail:
	return done(OP_SIZE, began, rc);
}

errc bucket_delete(struct bucket *b, const char *key, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_key_check(key, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->remove(b, key, err));
fail:
	return done(OP_DELETE, began, rc);
}

errc bucket_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
	uint64_t *pages, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	uint64_t unused;
	if (!pages)
		pages = &unused;
	*pages = 0;
	TRY(bucket_prefix_check(prefix, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->list(b, prefix, fn, arg, pages, err));
fail:
	return done(OP_LIST, began, rc);
}

errc bucket_check(struct bucket *b, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_alive(b, err));
	TRY(b->ops->check(b, err));
fail:
	return done(OP_CHECK, began, rc);
}

errc bucket_abort_uploads(struct bucket *b, const char *prefix, struct err *err)
{
	int64_t began = io_mono_ns();
	errc rc = OK;
	TRY(bucket_prefix_check(prefix, err));
	TRY(bucket_alive(b, err));
	TRY(b->ops->abort_uploads(b, prefix, err));
fail:
	return done(OP_ABORT_UPLOADS, began, rc);
}
