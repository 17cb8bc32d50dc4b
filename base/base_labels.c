/* base/base_labels.c - label sets: order, wire form, judgement. See base/labels.h. */
#include <stdio.h>
#include <stdlib.h>
#include "base/labels.h"

int labels_cmp(struct labels a, struct labels b)
{
	uint32_t n = a.n < b.n ? a.n : b.n;
	for (uint32_t i = 0; i < n; i++) {
		int c = span_cmp(a.v[i].name, b.v[i].name);
		if (c == 0)
			c = span_cmp(a.v[i].value, b.v[i].value);
		if (c != 0)
			return c;
	}
	return (a.n > b.n) - (a.n < b.n);
}

bool labels_eq(struct labels a, struct labels b)
{
	if (a.n != b.n)
		return false;
	for (uint32_t i = 0; i < a.n; i++)
		if (!span_eq(a.v[i].name, b.v[i].name) || !span_eq(a.v[i].value, b.v[i].value))
			return false;
	return true;
}

struct span labels_get(struct labels l, struct span name)
{
	for (uint32_t i = 0; i < l.n; i++)
		if (span_eq(l.v[i].name, name))
			return l.v[i].value;
	return (struct span){"", 0};
}

static int by_name(const void *a, const void *b)
{
	return span_cmp(((const struct label *)a)->name, ((const struct label *)b)->name);
}

void labels_sort(struct labels l)
{
	/* Senders sort; large unsorted sets come from nobody friendly, so they get the n log n. Equal names are refused later: stability is
	 * only needed for the message, and glibc's qsort is a merge sort at this size. */
	if (l.n > 32) {
		qsort(l.v, l.n, sizeof *l.v, by_name);
		return;
	}
	for (uint32_t i = 1; i < l.n; i++) {
		struct label x = l.v[i];
		uint32_t j = i;
		for (; j > 0 && span_cmp(l.v[j - 1].name, x.name) > 0; j--)
			l.v[j] = l.v[j - 1];
		l.v[j] = x;
	}
}

/* Skips one protobuf field of any wire type but groups, which no version of these messages has. */
static bool skip_field(struct rd *r, uint64_t tag)
{
	switch (tag & 7) {
	case 0:
		rd_uvarint(r);
		return r->ok;
	case 1:
		return rd_bytes(r, 8).n == 8;
	case 2:
		rd_str(r);
		return r->ok;
	case 5:
		return rd_bytes(r, 4).n == 4;
	default:
		return false;
	}
}

static bool label_decode(struct span body, struct label *out)
{
	struct rd r = rd_of(body.p, body.n);
	*out = (struct label){{"", 0}, {"", 0}};
	while (r.ok && rd_left(&r) > 0) {
		uint64_t tag = rd_uvarint(&r);
		if (tag == 0x0a)
			out->name = rd_str(&r);
		else if (tag == 0x12)
			out->value = rd_str(&r);
		else if (!r.ok || tag >> 3 == 0 || tag >> 3 <= 2 || !skip_field(&r, tag))
			return false;
	}
	return r.ok;
}

errc labels_from_wire(struct span wire, uint32_t max_labels, struct arena *arena, struct labels *out, struct err *err)
{
	uint32_t n = 0;
	struct rd count = rd_of(wire.p, wire.n);
	while (count.ok && rd_left(&count) > 0) {
		uint64_t tag = rd_uvarint(&count);
		if (tag == 0x0a) {
			rd_str(&count);
			if (++n > max_labels)
				return err_set(err, ERR_LIMIT, "more than %u labels", max_labels);
		} else if (tag >> 3 <= 1 || !skip_field(&count, tag)) {
			count.ok = false;
		}
	}
	if (!count.ok)
		return err_set(err, ERR_INVALID, "labels are not protobuf at byte %zu of %zu", wire.n - rd_left(&count), wire.n);

	struct label *v = arena_alloc(arena, n * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for %u labels", n);
	struct rd r = rd_of(wire.p, wire.n);
	uint32_t i = 0;
	while (rd_left(&r) > 0) {
		uint64_t tag = rd_uvarint(&r);
		if (tag == 0x0a) {
			if (!label_decode(rd_str(&r), &v[i++]))
				return err_set(err, ERR_INVALID, "label %u is not protobuf", i - 1);
		} else {
			skip_field(&r, tag);
		}
	}
	*out = (struct labels){v, n};
	return OK;
}

/* uvarint in its only shortest spelling: the last byte of a longer one is not zero. */
static uint64_t shortest(struct rd *r)
{
	const uint8_t *at = r->p;
	uint64_t x = rd_uvarint(r);
	if (r->ok && r->p - at > 1 && r->p[-1] == 0)
		r->ok = false;
	return x;
}

bool labels_from_canonical(struct span wire, struct label *v, uint32_t max, uint32_t *n)
{
	struct rd r = rd_of(wire.p, wire.n);
	for (*n = 0; rd_left(&r) > 0; ++*n) {
		struct label *l = &v[*n];
		if (*n == max || rd_u8(&r) != 0x0a)
			return false;
		uint64_t body = shortest(&r);
		const uint8_t *begin = r.p;
		if (rd_u8(&r) != 0x0a)
			return false;
		l->name = rd_bytes(&r, shortest(&r));
		if (rd_u8(&r) != 0x12)
			return false;
		l->value = rd_bytes(&r, shortest(&r));
		if (!r.ok || (uint64_t)(r.p - begin) != body || l->name.n == 0 || l->value.n == 0 ||
			(*n > 0 && span_cmp(v[*n - 1].name, l->name) >= 0))
			return false;
	}
	return *n > 0;
}

static size_t label_body_size(const struct label *l)
{
	return 1 + uvarint_size(l->name.n) + l->name.n + 1 + uvarint_size(l->value.n) + l->value.n;
}

size_t labels_wire_size(struct labels l)
{
	size_t n = 0;
	for (uint32_t i = 0; i < l.n; i++) {
		size_t body = label_body_size(&l.v[i]);
		n += 1 + uvarint_size(body) + body;
	}
	return n;
}

static uint8_t *put_text(uint8_t *p, uint8_t tag, struct span text)
{
	*p++ = tag;
	p = put_uvarint(p, text.n);
	if (text.n)
		memcpy(p, text.p, text.n);
	return p + text.n;
}

void labels_to_wire(struct labels l, struct buf *out)
{
	if (!buf_reserve(out, labels_wire_size(l)))
		return;
	uint8_t *p = out->p + out->n;
	for (uint32_t i = 0; i < l.n; i++) {
		*p++ = 0x0a;
		p = put_uvarint(p, label_body_size(&l.v[i]));
		p = put_text(p, 0x0a, l.v[i].name);
		p = put_text(p, 0x12, l.v[i].value);
	}
	out->n = (size_t)(p - out->p);
}

enum labels_fault labels_normalize(struct labels *l, const struct labels_limits *limits, uint32_t *which)
{
	uint32_t kept = 0;
	for (uint32_t i = 0; i < l->n; i++) {
		*which = kept;
		if (l->v[i].name.n == 0) {
			l->v[kept] = l->v[i];
			return LABELS_EMPTY_NAME;
		}
		if (l->v[i].value.n > 0)
			l->v[kept++] = l->v[i];
	}
	l->n = kept;
	*which = 0;
	if (kept == 0)
		return LABELS_EMPTY_SET;
	if (kept > limits->max_labels)
		return LABELS_TOO_MANY;
	labels_sort(*l);
	bool named = false;
	for (uint32_t i = 0; i < kept; i++) {
		const struct label *x = &l->v[i];
		*which = i;
		if (i > 0 && span_eq(l->v[i - 1].name, x->name))
			return LABELS_DUPLICATE_NAME;
		if (x->name.n > limits->max_name_bytes)
			return LABELS_NAME_TOO_LONG;
		if (x->value.n > limits->max_value_bytes)
			return LABELS_VALUE_TOO_LONG;
		if (!span_is_utf8(x->name) || !span_is_utf8(x->value))
			return LABELS_BAD_UTF8;
		named |= span_is(x->name, "__name__");
	}
	*which = 0;
	return named ? LABELS_OK : LABELS_NO_NAME;
}

/* Appends escaped text at *at, keeping room for the "...}" that a cut needs. */
static bool put_escaped(char *out, size_t size, size_t *at, struct span s)
{
	bool utf8 = span_is_utf8(s);
	for (size_t i = 0; i < s.n; i++) {
		uint8_t c = (uint8_t)s.p[i];
		char esc[8];
		int n;
		if (c >= 0x80 && utf8) {
			/* a character is there whole or not at all */
			n = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
			memcpy(esc, s.p + i, (size_t)n);
			i += (size_t)n - 1;
		} else if (c == '"' || c == '\\')
			n = snprintf(esc, sizeof esc, "\\%c", c);
		else if (c == '\n')
			n = snprintf(esc, sizeof esc, "\\n");
		else if (c < 0x20 || c >= 0x7f)
			n = snprintf(esc, sizeof esc, "\\x%02x", c);
		else
			n = snprintf(esc, sizeof esc, "%c", c);
		if (*at + (size_t)n + 5 > size)
			return false;
		memcpy(out + *at, esc, (size_t)n);
		*at += (size_t)n;
	}
	return true;
}

static bool put_plain(char *out, size_t size, size_t *at, const char *s)
{
	size_t n = strlen(s);
	if (*at + n + 5 > size)
		return false;
	memcpy(out + *at, s, n);
	*at += n;
	return true;
}

char *labels_format(struct labels l, char *out, size_t size)
{
	ASSERT(size >= 16);
	size_t at = 0;
	bool whole = put_plain(out, size, &at, "{");
	for (uint32_t i = 0; whole && i < l.n; i++)
		whole = (i == 0 || put_plain(out, size, &at, ", ")) && put_escaped(out, size, &at, l.v[i].name) && put_plain(out, size, &at, "=\"") &&
			put_escaped(out, size, &at, l.v[i].value) && put_plain(out, size, &at, "\"");
	memcpy(out + at, whole ? "}" : "...}", whole ? 2 : 5);
	return out;
}
