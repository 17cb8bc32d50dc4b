/* bucket/bucket_s3_list.c - listings, page by page: ListObjectsV2 (or version 1), and the multipart uploads that nobody finished.
 *
 * A page is read whole before its objects are handed out, so a slow reader never holds a connection, and a page that broke off is asked for again
 * without any object seen twice. Names come percent-encoded (encoding-type=url): XML can't carry every byte of a key. Servers that don't
 * know the parameter don't echo it, then names are taken as they are.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/log.h"
#include "bucket/bucket_s3_int.h"

#define PAGE_ARENA_BYTES (64 * MIB) /* 1,000 keys of 1,024 bytes, encoded and decoded, many times over */
#define PAGE_ITEMS_MAX 10000	    /* servers answer 1,000 */

struct reading {
	struct arena *arena;
	struct s3_page *page;
	bool encoded, root_seen;
	struct s3_item item;
	bool inside; /* of Contents or Upload */
};

static errc on_open(void *arg, int depth, const char *name, struct err *err)
{
	struct reading *g = arg;
	if (depth == 1) {
		if (strcmp(name, "ListBucketResult") != 0 && strcmp(name, "ListMultipartUploadsResult") != 0)
			return err_set(err, ERR_CORRUPT, "a listing was expected, got <%s>", name);
		g->root_seen = true;
	} else if (depth == 2 && (strcmp(name, "Contents") == 0 || strcmp(name, "Upload") == 0)) {
		g->item = (struct s3_item){.key = SPAN(""), .upload_id = SPAN("")};
		g->inside = true;
	}
	return OK;
}

static errc keep(struct reading *g, struct span text, struct span *out, struct err *err)
{
	*out = arena_dup(g->arena, text);
	return out->p ? OK : err_set(err, ERR_NOMEM, "out of memory");
}

static errc item_done(struct reading *g, struct err *err)
{
	struct s3_page *p = g->page;
	g->inside = false;
	if (g->item.key.n == 0)
		return err_set(err, ERR_CORRUPT, "an object without a key");
	if (p->n == PAGE_ITEMS_MAX)
		return err_set(err, ERR_CORRUPT, "more than %d objects on a page", PAGE_ITEMS_MAX);
	if (p->n == p->cap) {
		size_t cap = p->cap ? 2 * p->cap : 1024;
		struct s3_item *items = arena_calloc(g->arena, cap, sizeof *items);
		if (!items)
			return err_set(err, ERR_NOMEM, "out of memory");
		if (p->n)
			memcpy(items, p->items, p->n * sizeof *items);
		p->items = items;
		p->cap = cap;
	}
	p->items[p->n++] = g->item;
	return OK;
}

static errc on_close(void *arg, int depth, const char *parent, const char *name, struct span text, struct err *err)
{
	struct reading *g = arg;
	struct s3_page *p = g->page;
	int64_t n;
	if (depth == 2 && g->inside && (strcmp(name, "Contents") == 0 || strcmp(name, "Upload") == 0))
		return item_done(g, err);
	if (depth == 3 && g->inside) {
		if (strcmp(name, "Key") == 0)
			return keep(g, text, &g->item.key, err);
		if (strcmp(name, "UploadId") == 0)
			return keep(g, text, &g->item.upload_id, err);
		if (strcmp(name, "Size") == 0) {
			if (!span_to_i64(text, &n) || n < 0)
				return err_set(err, ERR_CORRUPT, "<Size>%.*s</Size>", SPAN_ARG(text));
			g->item.size_bytes = (uint64_t)n;
		} else if (strcmp(name, "LastModified") == 0) {
			if (!s3_time_parse(text, &g->item.mtime_ms))
				return err_set(err, ERR_CORRUPT, "<LastModified>%.*s</LastModified>", SPAN_ARG(text));
		}
		return OK;
	}
	if (depth != 2)
		return OK;
	(void)parent;
	if (strcmp(name, "IsTruncated") == 0)
		p->truncated = span_is(text, "true");
	else if (strcmp(name, "EncodingType") == 0)
		g->encoded = span_is(text, "url");
	else if (strcmp(name, "NextContinuationToken") == 0)
		return keep(g, text, &p->next_token, err);
	else if (strcmp(name, "NextMarker") == 0 || strcmp(name, "NextKeyMarker") == 0)
		return keep(g, text, &p->next_key, err);
	else if (strcmp(name, "NextUploadIdMarker") == 0)
		return keep(g, text, &p->next_upload, err);
	return OK;
}

static errc decode(struct reading *g, struct span *s, struct err *err)
{
	struct span d = s3_url_decode(*s, g->arena);
	if (!d.p)
		return err_set(err, ERR_CORRUPT, "listing: a name is badly encoded: %.*s", SPAN_ARG(*s));
	*s = d;
	return OK;
}

errc s3_page_parse(struct span xml, struct arena *arena, struct s3_page *out, struct err *err)
{
	errc rc = OK;
	struct reading g = {.arena = arena, .page = out};
	struct s3_xml handler = {on_open, on_close, &g};
	*out = (struct s3_page){.next_token = SPAN(""), .next_key = SPAN(""), .next_upload = SPAN("")};
	TRY(s3_xml_parse("listing", xml, &handler, err));
	/* EncodingType may stand behind the first Contents: names are decoded when all is read. */
	for (size_t i = 0; g.encoded && i < out->n; i++)
		TRY(decode(&g, &out->items[i].key, err));
	if (g.encoded)
		TRY(decode(&g, &out->next_key, err));
	for (size_t i = 0; i < out->n; i++)
		CHECK(!memchr(out->items[i].key.p, 0, out->items[i].key.n), ERR_CORRUPT, "listing: a key with a NUL byte");
fail:
	return rc;
}

/* ---- paging ---- */

struct page_check {
	struct arena *arena;
	struct s3_page *page;
};

static errc page_accept(void *arg, struct s3_request *r, struct err *err)
{
	struct page_check *c = arg;
	arena_reset(c->arena);
	return s3_page_parse(span_of(r->call.answer.p ? (char *)r->call.answer.p : "", r->call.answer.n), c->arena, c->page, err);
}

static errc objects_page(struct s3 *s, struct span prefix, struct span token, struct span after, struct page_check *check, struct err *err)
{
	errc rc = OK;
	struct s3_request r;
	s3_request_init(&r, "GET", NULL);
	if (!s->cfg.list_v1)
		s3_request_query(&r, "list-type", "2");
	s3_request_query(&r, "encoding-type", "url");
	s3_request_query(&r, "max-keys", "1000");
	r.query[r.n_query++] = (struct sigv4_pair){SPAN("prefix"), prefix};
	if (token.n)
		r.query[r.n_query++] = (struct sigv4_pair){SPAN("continuation-token"), token};
	else if (s->cfg.list_v1 && after.n)
		r.query[r.n_query++] = (struct sigv4_pair){SPAN("marker"), after};
	r.max_answer_bytes = LIMIT_S3_XML_BYTES;
	r.accept = page_accept;
	r.arg = check;
	rc = s3_send(s, &r, err);
	s3_request_free(&r);
	return rc;
}

/* A marker to go on from must outlive the page's arena. */
static errc remember(struct buf *b, struct span s, struct err *err)
{
	buf_clear(b);
	buf_span(b, s);
	return b->failed ? err_set(err, ERR_NOMEM, "listing: out of memory") : OK;
}

static struct span buf_text(const struct buf *b)
{
	return span_of(b->p ? (char *)b->p : "", b->n);
}

errc s3_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg, uint64_t *pages,
	struct err *err)
{
	errc rc = OK;
	struct s3 *s = (struct s3 *)b;
	struct arena arena;
	struct buf full = {0}, token = {0}, last = {0};
	struct s3_page page;
	struct page_check check = {&arena, &page};
	size_t strip = strlen(s->prefix);

	arena_init(&arena, PAGE_ARENA_BYTES);
	buf_init(&full, 4 * KIB);
	buf_init(&token, 16 * KIB);
	buf_init(&last, 4 * KIB);
	buf_printf(&full, "%s%s", s->prefix, prefix);
	CHECK(!full.failed, ERR_NOMEM, "listing: out of memory");
	for (;;) {
		TRY(objects_page(s, buf_text(&full), buf_text(&token), buf_text(&last), &check, err));
		++*pages;
		for (size_t i = 0; i < page.n; i++) {
			struct span key = page.items[i].key;
			CHECK(span_has_prefix(key, buf_text(&full)), ERR_CORRUPT, "%s: the listing of \"%.*s\" has \"%.*s\"", b->describe,
				SPAN_ARG(buf_text(&full)), SPAN_ARG(key));
			CHECK(last.n == 0 || span_cmp(buf_text(&last), key) < 0, ERR_CORRUPT,
				"%s: the listing is not in order: \"%.*s\" after \"%.*s\"", b->describe, SPAN_ARG(key), SPAN_ARG(buf_text(&last)));
			TRY(remember(&last, key, err));
			/* "a/" of zero bytes is how consoles make a folder. */
			if (key.p[key.n - 1] == '/' && page.items[i].size_bytes == 0)
				continue;
			struct bucket_object o = {span_of(key.p + strip, key.n - strip), page.items[i].size_bytes, page.items[i].mtime_ms};
			TRY(bucket_alive(b, err));
			TRY(fn(arg, &o, err));
		}
		if (!page.truncated)
			break;
		if (s->cfg.list_v1) {
			CHECK(page.n, ERR_CORRUPT, "%s: the listing says that there is more, and gives nothing to go on from", b->describe);
			continue;
		}
		CHECK(page.next_token.n && !span_eq(page.next_token, buf_text(&token)), ERR_CORRUPT,
			"%s: the listing says that there is more, and gives %s token to go on from", b->describe,
			page.next_token.n ? "the same" : "no");
		TRY(remember(&token, page.next_token, err));
	}
fail:
	buf_free(&full);
	buf_free(&token);
	buf_free(&last);
	arena_free(&arena);
	return rc;
}

/* ---- unfinished uploads ---- */

static bool upload_is_ours(struct s3 *s, struct span key)
{
	bool ours = false;
	size_t strip = strlen(s->prefix);
	key = span_of(key.p + strip, key.n - strip);
	pthread_mutex_lock(&s->mu);
	for (const struct s3_upload *u = s->uploads; u && !ours; u = u->next)
		ours = span_is(key, u->key);
	pthread_mutex_unlock(&s->mu);
	return ours;
}

static errc upload_abort(struct s3 *s, const struct s3_item *item, struct arena *arena, struct err *err)
{
	struct s3_request r;
	size_t strip = strlen(s->prefix);
	char *key = arena_cstr(arena, span_of(item->key.p + strip, item->key.n - strip)), *id = arena_cstr(arena, item->upload_id);
	if (!key || !id)
		return err_set(err, ERR_NOMEM, "aborting uploads: out of memory");
	s3_request_init(&r, "DELETE", key);
	s3_request_query(&r, "uploadId", id);
	errc rc = s3_send(s, &r, err);
	s3_request_free(&r);
	if (rc == ERR_NOTFOUND) /* finished or aborted meanwhile */
		rc = OK;
	else if (rc == OK)
		log_info("unfinished upload aborted", LSTR("bucket", s->base.describe), LSTR("key", key));
	return rc;
}

errc s3_abort_uploads(struct s3 *s, const char *prefix, bool exact, struct err *err)
{
	errc rc = OK;
	struct arena arena, ids;
	struct buf full = {0}, key_marker = {0}, id_marker = {0};
	struct s3_page page;
	struct page_check check = {&arena, &page};

	arena_init(&arena, PAGE_ARENA_BYTES);
	arena_init(&ids, MIB);
	buf_init(&full, 4 * KIB);
	buf_init(&key_marker, 4 * KIB);
	buf_init(&id_marker, 16 * KIB);
	buf_printf(&full, "%s%s", s->prefix, prefix);
	CHECK(!full.failed, ERR_NOMEM, "listing: out of memory");
	for (;;) {
		struct s3_request r;
		s3_request_init(&r, "GET", NULL);
		s3_request_query(&r, "uploads", "");
		s3_request_query(&r, "encoding-type", "url");
		r.query[r.n_query++] = (struct sigv4_pair){SPAN("prefix"), buf_text(&full)};
		if (key_marker.n)
			r.query[r.n_query++] = (struct sigv4_pair){SPAN("key-marker"), buf_text(&key_marker)};
		if (id_marker.n)
			r.query[r.n_query++] = (struct sigv4_pair){SPAN("upload-id-marker"), buf_text(&id_marker)};
		r.max_answer_bytes = LIMIT_S3_XML_BYTES;
		r.accept = page_accept;
		r.arg = &check;
		rc = s3_send(s, &r, err);
		s3_request_free(&r);
		TRY(rc);
		for (size_t i = 0; i < page.n; i++) {
			const struct s3_item *item = &page.items[i];
			bool match = exact ? span_eq(item->key, buf_text(&full)) : span_has_prefix(item->key, buf_text(&full));
			if (!match || item->upload_id.n == 0 || upload_is_ours(s, item->key))
				continue;
			arena_reset(&ids);
			TRY(upload_abort(s, item, &ids, err));
		}
		if (!page.truncated)
			break;
		CHECK(page.next_key.n && !(span_eq(page.next_key, buf_text(&key_marker)) && span_eq(page.next_upload, buf_text(&id_marker))),
			ERR_CORRUPT, "%s: the list of uploads says that there is more, and gives nothing to go on from", s->base.describe);
		TRY(remember(&key_marker, page.next_key, err));
		TRY(remember(&id_marker, page.next_upload, err));
	}
fail:
	buf_free(&full);
	buf_free(&key_marker);
	buf_free(&id_marker);
	arena_free(&ids);
	arena_free(&arena);
	return rc;
}
