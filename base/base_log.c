/* base/base_log.c - one event, one line, one write.
 *
 * A line is built in a buffer on the stack (no allocation: running out of memory must be loggable) and handed to the unbuffered
 * stderr in a single fwrite, which glibc turns into a single write(2). So lines of several threads never mix, and a line is at
 * most LINE_BYTES long: values are cut at VALUE_BYTES with "...", and fields that no longer fit are replaced by truncated=true.
 *
 * What reaches a terminal or a log collector is always valid UTF-8 without control characters: quotes, backslashes, C0, DEL and
 * C1 controls are escaped, bytes that are not UTF-8 become U+FFFD. So a label value can neither forge a line nor move a cursor.
 */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include "base/io.h"
#include "base/log.h"

enum {
	LINE_BYTES = 8192,
	VALUE_BYTES = 2048, /* of the escaped form */
	TAIL_BYTES = 32,    /* kept free for ` truncated=true` and the line's end */
};

static _Atomic int log_min_level = LOG_INFO;
static _Atomic int log_style = LOG_LOGFMT;
static __thread const char *thread_request;

struct line {
	char p[LINE_BYTES];
	size_t n;
	size_t end; /* writing stops here */
	bool full;
};

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_setup(enum log_level level, enum log_format format)
{
	atomic_store_explicit(&log_min_level, (int)level, memory_order_relaxed);
	atomic_store_explicit(&log_style, (int)format, memory_order_relaxed);
}

bool log_level_parse(const char *s, enum log_level *out)
{
	for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++) {
		if (strcmp(s, level_names[i]) == 0) {
			*out = (enum log_level)i;
			return true;
		}
	}
	return false;
}

bool log_format_parse(const char *s, enum log_format *out)
{
	if (strcmp(s, "logfmt") == 0)
		*out = LOG_LOGFMT;
	else if (strcmp(s, "json") == 0)
		*out = LOG_JSON;
	else
		return false;
	return true;
}

bool log_enabled(enum log_level level)
{
	return (int)level >= atomic_load_explicit(&log_min_level, memory_order_relaxed);
}

void log_thread_request(const char *request_id)
{
	thread_request = request_id;
}

static void put(struct line *l, const char *p, size_t n)
{
	if (l->full || l->end - l->n < n) {
		l->full = true;
		return;
	}
	memcpy(l->p + l->n, p, n);
	l->n += n;
}

static void put_cstr(struct line *l, const char *s)
{
	put(l, s, strlen(s));
}

/* The length of the well-formed UTF-8 sequence at p, 0 when there is none. */
static size_t utf8_step(const char *p, size_t n)
{
	unsigned char c = (unsigned char)*p;
	size_t len = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
	return len && len <= n && span_is_utf8(span_of(p, len)) ? len : 0;
}

/* The escaped text of s without quotes, at most VALUE_BYTES. The escapes are those that JSON and logfmt readers share. */
static void put_escaped(struct line *l, struct span s)
{
	size_t start = l->n;
	for (size_t i = 0; i < s.n && !l->full;) {
		if (l->n - start > VALUE_BYTES) {
			put_cstr(l, "...");
			return;
		}
		unsigned char c = (unsigned char)s.p[i];
		size_t step = utf8_step(s.p + i, s.n - i);
		char esc[8];
		if (step == 0) {
			put_cstr(l, "\xef\xbf\xbd");
			step = 1;
		} else if (c == '"' || c == '\\') {
			put(l, (const char[]){'\\', (char)c}, 2);
		} else if (c == '\n') {
			put_cstr(l, "\\n");
		} else if (c == '\r') {
			put_cstr(l, "\\r");
		} else if (c == '\t') {
			put_cstr(l, "\\t");
		} else if (c < 0x20 || c == 0x7f) {
			snprintf(esc, sizeof esc, "\\u%04x", (unsigned)c);
			put_cstr(l, esc);
		} else if (c == 0xc2 && (unsigned char)s.p[i + 1] < 0xa0) {
			snprintf(esc, sizeof esc, "\\u%04x", (unsigned)(unsigned char)s.p[i + 1]);
			put_cstr(l, esc);
		} else {
			put(l, s.p + i, step);
		}
		i += step;
	}
}

static bool needs_quotes(struct span s)
{
	if (s.n == 0)
		return true;
	for (size_t i = 0; i < s.n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		if (c <= ' ' || c == '=' || c == '"' || c == '\\' || c >= 0x7f)
			return true;
	}
	return false;
}

static void put_text(struct line *l, bool json, struct span s)
{
	bool quotes = json || needs_quotes(s);
	if (quotes)
		put(l, "\"", 1);
	put_escaped(l, s);
	if (quotes)
		put(l, "\"", 1);
}

static void put_key(struct line *l, bool json, const char *key)
{
	if (json) {
		put(l, l->n == 0 ? "{\"" : ",\"", 2);
		put_cstr(l, key);
		put(l, "\":", 2);
		return;
	}
	if (l->n > 0)
		put(l, " ", 1);
	put_cstr(l, key);
	put(l, "=", 1);
}

static void put_field(struct line *l, bool json, const struct log_field *f)
{
	char num[64];
	put_key(l, json, f->key);
	switch (f->kind) {
	case LOG_F_STR:
		put_text(l, json, span_cstr(f->str ? f->str : ""));
		return;
	case LOG_F_SPAN:
		put_text(l, json, f->span);
		return;
	case LOG_F_ULID:
		put_text(l, json, span_cstr(ulid_text(f->ulid).s));
		return;
	case LOG_F_I64:
		snprintf(num, sizeof num, "%" PRId64, f->i64);
		break;
	case LOG_F_U64:
		snprintf(num, sizeof num, "%" PRIu64, f->u64);
		break;
	case LOG_F_F64:
		snprintf(num, sizeof num, json && !isfinite(f->f64) ? "\"%g\"" : "%g", f->f64);
		break;
	}
	put_cstr(l, num);
}

/* 2026-11-23T08:00:00.000Z */
static void format_time(char *out, size_t size, int64_t now_ms)
{
	time_t s = (time_t)(now_ms / 1000);
	struct tm tm;
	if (!gmtime_r(&s, &tm))
		memset(&tm, 0, sizeof tm);
	size_t n = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out + n, size - n, ".%03dZ", (int)(now_ms % 1000));
}

void log_write(enum log_level level, const char *file, int line, const char *msg, const struct log_field *fields)
{
	bool json = atomic_load_explicit(&log_style, memory_order_relaxed) == LOG_JSON;
	struct line l;
	l.n = 0;
	l.end = LINE_BYTES - TAIL_BYTES;
	l.full = false;

	char ts[40], caller[80];
	int64_t now_ms = io_now_ms();
	format_time(ts, sizeof ts, now_ms < 0 ? 0 : now_ms);
	const char *base = strrchr(file, '/');
	snprintf(caller, sizeof caller, "%s:%d", base ? base + 1 : file, line);

	put_field(&l, json, &LSTR("ts", ts));
	put_field(&l, json, &LSTR("level", level_names[level]));
	put_field(&l, json, &LSTR("caller", caller));
	put_field(&l, json, &LSTR("msg", msg));
	if (thread_request)
		put_field(&l, json, &LSTR("req", thread_request));
	for (const struct log_field *f = fields; f->key; f++) {
		size_t before = l.n;
		put_field(&l, json, f);
		if (l.full) {
			l.n = before;
			l.full = false;
			l.end = LINE_BYTES;
			put_cstr(&l, json ? ",\"truncated\":true" : " truncated=true");
			break;
		}
	}
	l.end = LINE_BYTES;
	put_cstr(&l, json ? "}\n" : "\n");
	fwrite(l.p, 1, l.n, stderr);
}
