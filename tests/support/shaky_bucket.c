/* tests/support/shaky_bucket.c - see shaky_bucket.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/shaky_bucket.h"

static struct shaky *of(struct bucket *b)
{
	return (struct shaky *)b;
}

/* Counts; true: this call fails. */
static bool fails(struct shaky *s, atomic_uint_fast64_t *kind)
{
	uint64_t n = atomic_fetch_add(&s->calls, 1) + 1, from = atomic_load(&s->fail_from);
	atomic_fetch_add(kind, 1);
	return from > 0 && n >= from && n <= atomic_load(&s->fail_to);
}

static errc failure(struct shaky *s, const char *operation, const char *key, struct err *err)
{
	int code = atomic_load(&s->fail_code);
	return err_set(err, code ? (errc)code : ERR_NET, "%s %s: connection reset by the test", operation, key);
}

#define SHAKE(kind, operation, key, call)                                                                                                            \
	do {                                                                                                                                         \
		struct shaky *s = of(b);                                                                                                             \
		if (s->before && (&s->kind == &s->puts || &s->kind == &s->deletes))                                                                  \
			s->before(s->arg, operation, key);                                                                                           \
		bool bad = fails(s, &s->kind);                                                                                                       \
		if (bad && !atomic_load(&s->lost_answer))                                                                                            \
			return failure(s, operation, key, err);                                                                                      \
		errc rc = call;                                                                                                                      \
		return bad && rc == OK ? failure(s, operation, key, err) : rc;                                                                       \
	} while (0)

static void shaky_close(struct bucket *b)
{
	bucket_close(of(b)->inner);
	free(b);
}
static void shaky_cancel(struct bucket *b)
{
	bucket_cancel(of(b)->inner);
}
static errc shaky_put_file(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err)
{
	SHAKE(puts, "put", key, bucket_put_file(s->inner, key, path, put, err));
}
static errc shaky_put_bytes(struct bucket *b, const char *key, struct span data, struct err *err)
{
	SHAKE(puts, "put", key, bucket_put_bytes(s->inner, key, data, err));
}
static errc shaky_put_if_absent(struct bucket *b, const char *key, struct span data, struct err *err)
{
	SHAKE(puts, "put", key, bucket_put_if_absent(s->inner, key, data, err));
}
static errc shaky_get_range(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err)
{
	SHAKE(gets, "get", key, bucket_get_range(s->inner, key, off, n, buf, err));
}
static errc shaky_get(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	SHAKE(gets, "get", key, bucket_get(s->inner, key, max_bytes, arena, out, err));
}
static errc shaky_size(struct bucket *b, const char *key, uint64_t *size, struct err *err)
{
	SHAKE(sizes, "head", key, bucket_size(s->inner, key, size, err));
}
static errc shaky_remove(struct bucket *b, const char *key, struct err *err)
{
	SHAKE(deletes, "delete", key, bucket_delete(s->inner, key, err));
}
static errc shaky_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
	uint64_t *pages, struct err *err)
{
	SHAKE(lists, "list", prefix, bucket_list(s->inner, prefix, fn, arg, pages, err));
}
static errc shaky_check(struct bucket *b, struct err *err)
{
	return bucket_check(of(b)->inner, err);
}
static errc shaky_abort_uploads(struct bucket *b, const char *prefix, struct err *err)
{
	SHAKE(lists, "list", prefix, bucket_abort_uploads(s->inner, prefix, err));
}

static const struct bucket_ops shaky_ops = {
	.close = shaky_close,
	.cancel = shaky_cancel,
	.put_file = shaky_put_file,
	.put_bytes = shaky_put_bytes,
	.put_if_absent = shaky_put_if_absent,
	.get_range = shaky_get_range,
	.get = shaky_get,
	.size = shaky_size,
	.remove = shaky_remove,
	.list = shaky_list,
	.check = shaky_check,
	.abort_uploads = shaky_abort_uploads,
};

struct bucket *shaky_bucket(struct bucket *inner, struct shaky **out)
{
	struct shaky *s = calloc(1, sizeof *s);
	assert_non_null(s);
	s->base = (struct bucket){.ops = &shaky_ops, .describe = "a shaky bucket", .dir = inner->dir};
	s->inner = inner;
	*out = s;
	return &s->base;
}
