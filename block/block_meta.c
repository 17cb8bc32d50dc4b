/* block/block_meta.c - meta.json: what a block says about itself.
 *
 *     { ulid, minTime, maxTime, stats {...}, compaction {level, sources, parents}, version: 1,
 *       thanos { version: 1, labels, downsample {resolution}, source, segment_files, files, index_stats, extensions {varve {...}}, upload_time } }
 *
 * Written by hand in the key order, tabs and escapes of Go's encoder, so that a tool that rewrites the file leaves no difference
 * behind. Zero counts are left out as there. Read with jansson: key order and unknown keys don't matter, each known key is
 * checked, and a message names the key.
 *
 * extensions.varve { window, upto_seq, node }: the log range that the block holds. upto_seq is "all" or decimal text, because
 * readers that keep JSON numbers as doubles would round it when they rewrite the file.
 *
 * extensions.varve.crc32c: CRC-32C of this very text without that line, so that a flipped bit in a label or a time is damage and not another
 * tenant's block. What was read is written again and compared: spaces and key order don't matter to it, nor keys that are not known here.
 * Only where the source is still "receive": a tool that makes a new block of an old one's meta.json names itself there.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include "base/limits.h"
#include "block/block.h"

static const char HEX[] = "0123456789abcdef";

/* ---- writing ---- */

struct emitter {
	struct buf *out;
	int depth;
	bool first;	 /* nothing in the open object or array yet */
	const char *crc; /* NULL: without it */
};

static void text_emit(struct emitter *e, struct span s)
{
	buf_u8(e->out, '"');
	for (size_t i = 0; i < s.n; i++) {
		uint8_t c = (uint8_t)s.p[i];
		if (c == '"' || c == '\\') {
			buf_u8(e->out, '\\');
			buf_u8(e->out, c);
		} else if (c == '\n' || c == '\r' || c == '\t') {
			buf_u8(e->out, '\\');
			buf_u8(e->out, c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
		} else if (c < 0x20 || c == '<' || c == '>' || c == '&') {
			buf_printf(e->out, "\\u%04x", c);
		} else if (c == 0xe2 && s.n - i >= 3 && (uint8_t)s.p[i + 1] == 0x80 && ((uint8_t)s.p[i + 2] & 0xfe) == 0xa8) {
			/* U+2028 and U+2029 */
			buf_printf(e->out, "\\u202%c", HEX[(uint8_t)s.p[i + 2] & 15]);
			i += 2;
		} else {
			buf_u8(e->out, c);
		}
	}
	buf_u8(e->out, '"');
}

static void line_begin(struct emitter *e)
{
	if (!e->first)
		buf_u8(e->out, ',');
	if (e->depth > 0)
		buf_u8(e->out, '\n');
	for (int i = 0; i < e->depth; i++)
		buf_u8(e->out, '\t');
	e->first = false;
}

static void key_emit(struct emitter *e, const char *key)
{
	line_begin(e);
	if (key) {
		text_emit(e, span_cstr(key));
		buf_span(e->out, SPAN(": "));
	}
}

static void open_emit(struct emitter *e, const char *key, char bracket)
{
	key_emit(e, key);
	buf_u8(e->out, (uint8_t)bracket);
	e->depth++;
	e->first = true;
}

static void close_emit(struct emitter *e, char bracket)
{
	e->depth--;
	if (!e->first) {
		buf_u8(e->out, '\n');
		for (int i = 0; i < e->depth; i++)
			buf_u8(e->out, '\t');
	}
	buf_u8(e->out, (uint8_t)bracket);
	e->first = false;
}

static void string_emit(struct emitter *e, const char *key, struct span s)
{
	key_emit(e, key);
	text_emit(e, s);
}

static void ulid_emit(struct emitter *e, const char *key, struct ulid u)
{
	struct ulid_text t = ulid_text(u);
	string_emit(e, key, span_of(t.s, ULID_TEXT_BYTES));
}

static void int_emit(struct emitter *e, const char *key, int64_t x)
{
	key_emit(e, key);
	buf_printf(e->out, "%" PRId64, x);
}

static void count_emit(struct emitter *e, const char *key, uint64_t x)
{
	if (x == 0)
		return;
	key_emit(e, key);
	buf_printf(e->out, "%" PRIu64, x);
}

static void file_emit(struct emitter *e, const struct block_file *f)
{
	open_emit(e, NULL, '{');
	string_emit(e, "rel_path", f->rel_path);
	count_emit(e, "size_bytes", f->size_bytes);
	if (f->has_sha256) {
		char hex[64];
		for (int i = 0; i < 32; i++) {
			hex[2 * i] = HEX[f->sha256[i] >> 4];
			hex[2 * i + 1] = HEX[f->sha256[i] & 15];
		}
		open_emit(e, "hash", '{');
		string_emit(e, "hashFunc", SPAN("SHA256"));
		string_emit(e, "value", span_of(hex, sizeof hex));
		close_emit(e, '}');
	}
	close_emit(e, '}');
}

static void varve_emit(struct emitter *e, const struct block_meta *m)
{
	char seq[24];
	open_emit(e, "extensions", '{');
	open_emit(e, "varve", '{');
	ulid_emit(e, "window", m->window);
	snprintf(seq, sizeof seq, "%" PRIu64, m->upto_seq);
	string_emit(e, "upto_seq", m->upto_seq == UINT64_MAX ? SPAN("all") : span_cstr(seq));
	string_emit(e, "node", m->node);
	if (e->crc)
		string_emit(e, "crc32c", span_cstr(e->crc));
	close_emit(e, '}');
	close_emit(e, '}');
}

static const struct span CHUNKS = {"chunks/", 7};

static void thanos_emit(struct emitter *e, const struct block_meta *m)
{
	open_emit(e, "thanos", '{');
	int_emit(e, "version", 1);
	open_emit(e, "labels", '{');
	for (uint32_t i = 0; i < m->ext_labels.n; i++) {
		line_begin(e);
		text_emit(e, m->ext_labels.v[i].name);
		buf_span(e->out, SPAN(": "));
		text_emit(e, m->ext_labels.v[i].value);
	}
	close_emit(e, '}');
	open_emit(e, "downsample", '{');
	int_emit(e, "resolution", m->resolution_ms);
	close_emit(e, '}');
	string_emit(e, "source", m->source);
	bool segments = false;
	for (size_t i = 0; i < m->n_files; i++)
		segments = segments || span_has_prefix(m->files[i].rel_path, CHUNKS);
	if (segments) {
		open_emit(e, "segment_files", '[');
		for (size_t i = 0; i < m->n_files; i++) {
			struct span path = m->files[i].rel_path;
			if (span_has_prefix(path, CHUNKS))
				string_emit(e, NULL, span_of(path.p + CHUNKS.n, path.n - CHUNKS.n));
		}
		close_emit(e, ']');
	}
	if (m->n_files > 0) {
		open_emit(e, "files", '[');
		for (size_t i = 0; i < m->n_files; i++)
			file_emit(e, &m->files[i]);
		close_emit(e, ']');
	}
	open_emit(e, "index_stats", '{');
	close_emit(e, '}');
	if (m->has_varve)
		varve_emit(e, m);
	if (m->upload_time.n > 0)
		string_emit(e, "upload_time", m->upload_time);
	close_emit(e, '}');
}

/* A text that is not UTF-8 would come back as another one. */
static bool texts_are_utf8(const struct block_meta *m)
{
	bool ok = span_is_utf8(m->source) && span_is_utf8(m->node) && span_is_utf8(m->upload_time);
	for (uint32_t i = 0; i < m->ext_labels.n; i++)
		ok = ok && span_is_utf8(m->ext_labels.v[i].name) && span_is_utf8(m->ext_labels.v[i].value);
	for (size_t i = 0; i < m->n_files; i++)
		ok = ok && span_is_utf8(m->files[i].rel_path);
	return ok;
}

static void meta_emit(const struct block_meta *m, const char *crc, struct buf *out)
{
	struct emitter e = {.out = out, .first = true, .crc = crc};
	open_emit(&e, NULL, '{');
	ulid_emit(&e, "ulid", m->ulid);
	int_emit(&e, "minTime", m->mint);
	int_emit(&e, "maxTime", m->maxt);
	open_emit(&e, "stats", '{');
	count_emit(&e, "numSamples", m->n_samples);
	count_emit(&e, "numFloatSamples", m->n_float_samples);
	count_emit(&e, "numHistogramSamples", m->n_histogram_samples);
	count_emit(&e, "numSeries", m->n_series);
	count_emit(&e, "numChunks", m->n_chunks);
	count_emit(&e, "numTombstones", m->n_tombstones);
	close_emit(&e, '}');
	open_emit(&e, "compaction", '{');
	int_emit(&e, "level", m->level);
	if (m->n_sources > 0) {
		open_emit(&e, "sources", '[');
		for (size_t i = 0; i < m->n_sources; i++)
			ulid_emit(&e, NULL, m->sources[i]);
		close_emit(&e, ']');
	}
	if (m->n_parents > 0) {
		open_emit(&e, "parents", '[');
		for (size_t i = 0; i < m->n_parents; i++) {
			open_emit(&e, NULL, '{');
			ulid_emit(&e, "ulid", m->parents[i].ulid);
			int_emit(&e, "minTime", m->parents[i].mint);
			int_emit(&e, "maxTime", m->parents[i].maxt);
			close_emit(&e, '}');
		}
		close_emit(&e, ']');
	}
	close_emit(&e, '}');
	int_emit(&e, "version", 1);
	if (m->has_thanos)
		thanos_emit(&e, m);
	close_emit(&e, '}');
	buf_u8(out, '\n');
}

enum { CRC_TEXT_BYTES = 9 };

/* Of what meta_emit writes without it, put behind what `out` holds and taken away again. */
static errc meta_crc(const struct block_meta *m, struct buf *out, char text[CRC_TEXT_BYTES])
{
	size_t start = out->n;
	meta_emit(m, NULL, out);
	if (out->failed)
		return ERR_NOMEM;
	snprintf(text, CRC_TEXT_BYTES, "%08" PRIx32, crc32c(0, out->p + start, out->n - start));
	out->n = start;
	return OK;
}

errc block_meta_write(const struct block_meta *m, struct buf *out)
{
	char crc[CRC_TEXT_BYTES];
	bool with_crc = m->has_thanos && m->has_varve;
	if (!texts_are_utf8(m))
		return ERR_INVALID;
	if (with_crc && meta_crc(m, out, crc) != OK)
		return ERR_NOMEM;
	meta_emit(m, with_crc ? crc : NULL, out);
	return out->failed ? ERR_NOMEM : OK;
}

/* ---- reading ---- */

/* One parse: `where` is the path of the object being read, for messages ("thanos.downsample."). */
struct parse {
	const char *name;
	struct arena *arena;
	struct err *err;
	const char *where;
};

static errc wrong(const struct parse *p, const char *key, const char *must)
{
	return err_set(p->err, ERR_CORRUPT, "%s: %s%s must be %s", p->name, p->where, key, must);
}

static errc no_memory(const struct parse *p)
{
	return err_set(p->err, ERR_NOMEM, "%s: no memory for its %zu bytes", p->name, p->arena->max_bytes);
}

enum presence { OPTIONAL, REQUIRED };

static errc int_read(const struct parse *p, const json_t *o, const char *key, enum presence need, int64_t min, int64_t max, int64_t *out)
{
	const json_t *v = json_object_get(o, key);
	if (!v && need == OPTIONAL)
		return OK;
	if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
		return wrong(p, key, min == INT64_MIN ? "a whole number" : "a whole number in its range");
	*out = json_integer_value(v);
	return OK;
}

static errc count_read(const struct parse *p, const json_t *o, const char *key, uint64_t *out)
{
	int64_t x = 0;
	errc rc = int_read(p, o, key, OPTIONAL, 0, INT64_MAX, &x);
	*out = (uint64_t)x;
	return rc;
}

static errc string_copy(const struct parse *p, const json_t *v, struct span *out)
{
	*out = arena_dup(p->arena, span_of(json_string_value(v), json_string_length(v)));
	return out->p ? OK : no_memory(p);
}

static errc string_read(const struct parse *p, const json_t *o, const char *key, enum presence need, struct span *out)
{
	const json_t *v = json_object_get(o, key);
	*out = SPAN("");
	if (!v && need == OPTIONAL)
		return OK;
	if (!json_is_string(v))
		return wrong(p, key, "a string");
	return string_copy(p, v, out);
}

static errc ulid_of(const struct parse *p, const json_t *v, const char *key, struct ulid *out)
{
	if (!json_is_string(v) || !ulid_parse(span_of(json_string_value(v), json_string_length(v)), out))
		return wrong(p, key, "a ULID of 26 characters");
	return OK;
}

/* An object or array, or NULL when it is absent or null. */
static errc part_read(const struct parse *p, const json_t *o, const char *key, json_type type, enum presence need, const json_t **out)
{
	const json_t *v = json_object_get(o, key);
	*out = NULL;
	if ((!v || json_is_null(v)) && need == OPTIONAL)
		return OK;
	if (!v || json_typeof(v) != type)
		return wrong(p, key, type == JSON_ARRAY ? "an array" : "an object");
	*out = v;
	return OK;
}

static errc compaction_parse(const struct parse *p, const json_t *root, struct block_meta *m)
{
	errc rc = OK;
	struct err *err = p->err;
	struct parse in = *p;
	in.where = "compaction.";
	const json_t *c, *a;
	int64_t level = 0;
	TRY(part_read(p, root, "compaction", JSON_OBJECT, REQUIRED, &c));
	TRY(int_read(&in, c, "level", REQUIRED, 0, INT32_MAX, &level));
	m->level = (uint32_t)level;
	TRY(part_read(&in, c, "sources", JSON_ARRAY, OPTIONAL, &a));
	m->n_sources = json_array_size(a);
	m->sources = arena_calloc(p->arena, m->n_sources, sizeof *m->sources);
	CHECK(m->sources, ERR_NOMEM, "%s: no memory for %zu sources", p->name, m->n_sources);
	for (size_t i = 0; i < m->n_sources; i++)
		TRY(ulid_of(&in, json_array_get(a, i), "sources", &m->sources[i]));
	TRY(part_read(&in, c, "parents", JSON_ARRAY, OPTIONAL, &a));
	m->n_parents = json_array_size(a);
	m->parents = arena_calloc(p->arena, m->n_parents, sizeof *m->parents);
	CHECK(m->parents, ERR_NOMEM, "%s: no memory for %zu parents", p->name, m->n_parents);
	in.where = "compaction.parents.";
	for (size_t i = 0; i < m->n_parents; i++) {
		const json_t *v = json_array_get(a, i);
		struct block_parent *to = &m->parents[i];
		TRY(ulid_of(&in, json_object_get(v, "ulid"), "ulid", &to->ulid));
		TRY(int_read(&in, v, "minTime", REQUIRED, INT64_MIN, INT64_MAX, &to->mint));
		TRY(int_read(&in, v, "maxTime", REQUIRED, INT64_MIN, INT64_MAX, &to->maxt));
	}
fail:
	return rc;
}

/* Paths become file and object names: no way out of the block's directory. */
static bool path_stays_inside(struct span path)
{
	size_t begin = 0;
	for (size_t i = 0; i <= path.n; i++) {
		if (i < path.n && path.p[i] == 0)
			return false;
		if (i < path.n && path.p[i] != '/')
			continue;
		struct span part = span_of(path.p + begin, i - begin);
		if (part.n == 0 || span_is(part, ".") || span_is(part, ".."))
			return false;
		begin = i + 1;
	}
	return true;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static errc file_parse(const struct parse *p, const json_t *v, struct block_file *f)
{
	errc rc = OK;
	const json_t *hash;
	struct span func, value;
	if (!json_is_object(v))
		return wrong(p, "[]", "an object");
	TRY(string_read(p, v, "rel_path", REQUIRED, &f->rel_path));
	if (!path_stays_inside(f->rel_path))
		return wrong(p, "rel_path", "a path inside the block");
	TRY(count_read(p, v, "size_bytes", &f->size_bytes));
	TRY(part_read(p, v, "hash", JSON_OBJECT, OPTIONAL, &hash));
	if (!hash)
		return OK;
	TRY(string_read(p, hash, "hashFunc", OPTIONAL, &func));
	TRY(string_read(p, hash, "value", OPTIONAL, &value));
	if (!span_is(func, "SHA256"))
		return OK;
	if (value.n != 64)
		return wrong(p, "hash.value", "64 hexadecimal digits");
	for (int i = 0; i < 32; i++) {
		int high = hex_digit(value.p[2 * i]), low = hex_digit(value.p[2 * i + 1]);
		if (high < 0 || low < 0)
			return wrong(p, "hash.value", "64 hexadecimal digits");
		f->sha256[i] = (uint8_t)(high << 4 | low);
	}
	f->has_sha256 = true;
fail:
	return rc;
}

static errc labels_parse(const struct parse *p, const json_t *o, struct labels *out)
{
	errc rc = OK;
	struct err *err = p->err;
	const char *key;
	json_t *v;
	size_t n = json_object_size(o);
	out->n = 0;
	out->v = arena_calloc(p->arena, n, sizeof *out->v);
	CHECK(out->v && n <= UINT32_MAX, ERR_NOMEM, "%s: no memory for %zu labels", p->name, n);
	json_object_foreach((json_t *)(uintptr_t)o, key, v)
	{
		if (!json_is_string(v) || *key == 0)
			return wrong(p, "labels", "names with strings");
		if (json_string_length(v) == 0)
			continue;
		struct label *l = &out->v[out->n++];
		TRY(string_copy(p, v, &l->value));
		l->name = arena_dup(p->arena, span_cstr(key));
		if (!l->name.p)
			return no_memory(p);
	}
	labels_sort(*out);
fail:
	return rc;
}

static errc varve_parse(const struct parse *p, const json_t *thanos, struct block_meta *m)
{
	errc rc = OK;
	struct parse in = *p;
	in.where = "thanos.extensions.varve.";
	const json_t *v = json_object_get(json_object_get(thanos, "extensions"), "varve");
	struct span seq;
	if (!v)
		return OK;
	TRY(ulid_of(&in, json_object_get(v, "window"), "window", &m->window));
	TRY(string_read(&in, v, "upto_seq", REQUIRED, &seq));
	if (span_is(seq, "all")) {
		m->upto_seq = UINT64_MAX;
	} else {
		uint64_t x = 0;
		bool ok = seq.n > 0;
		for (size_t i = 0; i < seq.n && ok; i++) {
			ok = seq.p[i] >= '0' && seq.p[i] <= '9' && !__builtin_mul_overflow(x, 10, &x) &&
			     !__builtin_add_overflow(x, (uint64_t)(seq.p[i] - '0'), &x);
		}
		if (!ok)
			return wrong(&in, "upto_seq", "\"all\" or a decimal number in a string");
		m->upto_seq = x;
	}
	TRY(string_read(&in, v, "node", OPTIONAL, &m->node));
	m->has_varve = true;
fail:
	return rc;
}

static errc thanos_parse(const struct parse *p, const json_t *root, struct block_meta *m)
{
	errc rc = OK;
	struct err *err = p->err;
	struct parse in = *p;
	in.where = "thanos.";
	const json_t *t, *part;
	int64_t version = 1;
	TRY(part_read(p, root, "thanos", JSON_OBJECT, OPTIONAL, &t));
	if (!t)
		return OK;
	m->has_thanos = true;
	TRY(int_read(&in, t, "version", OPTIONAL, INT64_MIN, INT64_MAX, &version));
	if (version != 0 && version != 1)
		return wrong(&in, "version", "1");
	TRY(part_read(&in, t, "labels", JSON_OBJECT, OPTIONAL, &part));
	TRY(labels_parse(&in, part, &m->ext_labels));
	TRY(part_read(&in, t, "downsample", JSON_OBJECT, OPTIONAL, &part));
	TRY(int_read(&in, part, "resolution", OPTIONAL, 0, INT64_MAX, &m->resolution_ms));
	TRY(string_read(&in, t, "source", OPTIONAL, &m->source));
	TRY(string_read(&in, t, "upload_time", OPTIONAL, &m->upload_time));
	TRY(part_read(&in, t, "files", JSON_ARRAY, OPTIONAL, &part));
	m->n_files = json_array_size(part);
	m->files = arena_calloc(p->arena, m->n_files, sizeof *m->files);
	CHECK(m->files, ERR_NOMEM, "%s: no memory for %zu files", p->name, m->n_files);
	in.where = "thanos.files.";
	for (size_t i = 0; i < m->n_files; i++)
		TRY(file_parse(&in, json_array_get(part, i), &m->files[i]));
	TRY(varve_parse(p, t, m));
fail:
	return rc;
}

static errc crc_check(const struct parse *p, const json_t *root, const struct block_meta *m)
{
	errc rc = OK;
	struct err *err = p->err;
	const json_t *v = json_object_get(json_object_get(json_object_get(root, "thanos"), "extensions"), "varve");
	struct span said;
	char is[CRC_TEXT_BYTES];
	struct buf again;
	buf_init(&again, 8 * LIMIT_META_JSON_BYTES); /* a "<" is written as six bytes */
	if (!json_object_get(v, "crc32c") || !span_is(m->source, "receive"))
		return OK;
	TRY(string_read(p, v, "crc32c", REQUIRED, &said));
	rc = meta_crc(m, &again, is);
	CHECK(rc == OK, ERR_NOMEM, "%s: no memory for its checksum", p->name);
	CHECK(span_is(said, is), ERR_CORRUPT,
		"%s: its CRC-32C is %s, thanos.extensions.varve.crc32c says %.*s: it is damaged; if it was changed on purpose, remove that key",
		p->name, is, SPAN_ARG(said));
fail:
	buf_free(&again);
	return rc;
}

errc block_meta_parse(const char *name, struct span json, struct arena *arena, struct block_meta *out, struct err *err)
{
	errc rc = OK;
	json_error_t why;
	json_t *root = NULL;
	const json_t *stats;
	struct block_meta m = {0};
	const struct parse p = {.name = name, .arena = arena, .err = err, .where = ""};
	CHECK(json.n <= LIMIT_META_JSON_BYTES, ERR_LIMIT, "%s: %zu bytes, at most %" PRIu64 " are read", name, json.n, LIMIT_META_JSON_BYTES);
	root = json_loadb(json.p, json.n, 0, &why);
	if (!root && json_error_code(&why) == json_error_out_of_memory) {
		rc = no_memory(&p);
		goto fail;
	}
	CHECK(root, ERR_CORRUPT, "%s: not JSON: line %d: %s", name, why.line, why.text);
	CHECK(json_is_object(root), ERR_CORRUPT, "%s: not a JSON object", name);

	int64_t version = 0;
	TRY(int_read(&p, root, "version", REQUIRED, INT64_MIN, INT64_MAX, &version));
	CHECK(version == 1, ERR_CORRUPT, "%s: version is %" PRId64 ", must be 1", name, version);
	TRY(ulid_of(&p, json_object_get(root, "ulid"), "ulid", &m.ulid));
	TRY(int_read(&p, root, "minTime", REQUIRED, INT64_MIN, INT64_MAX, &m.mint));
	TRY(int_read(&p, root, "maxTime", REQUIRED, INT64_MIN, INT64_MAX, &m.maxt));
	CHECK(m.mint <= m.maxt, ERR_CORRUPT, "%s: minTime %" PRId64 " is after maxTime %" PRId64, name, m.mint, m.maxt);
	TRY(part_read(&p, root, "stats", JSON_OBJECT, OPTIONAL, &stats));
	struct parse in = p;
	in.where = "stats.";
	TRY(count_read(&in, stats, "numSamples", &m.n_samples));
	TRY(count_read(&in, stats, "numFloatSamples", &m.n_float_samples));
	TRY(count_read(&in, stats, "numHistogramSamples", &m.n_histogram_samples));
	TRY(count_read(&in, stats, "numSeries", &m.n_series));
	TRY(count_read(&in, stats, "numChunks", &m.n_chunks));
	TRY(count_read(&in, stats, "numTombstones", &m.n_tombstones));
	TRY(compaction_parse(&p, root, &m));
	TRY(thanos_parse(&p, root, &m));
	TRY(crc_check(&p, root, &m));
	*out = m;
fail:
	json_decref(root);
	return rc;
}
