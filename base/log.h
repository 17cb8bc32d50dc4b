/* base/log.h - one line per event on stderr, logfmt or JSON.
 *
 *     log_info("segment removed", LU64("segment", n), LSTR("path", path));
 *     ts=2026-11-23T08:00:00.000Z level=info caller=wal_segment.c:88 msg="segment removed" segment=12 path=data/wal/00000012.wal
 *
 * Values are escaped; newlines never leave as newlines. Any thread; a line is written with one write(2).
 */
#pragma once
#include "base/err.h"
#include "base/span.h"
#include "base/ulid.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum log_format { LOG_LOGFMT, LOG_JSON };

struct log_field {
	const char *key; /* NULL ends the list */
	enum { LOG_F_STR, LOG_F_SPAN, LOG_F_I64, LOG_F_U64, LOG_F_F64, LOG_F_ULID } kind;
	union {
		const char *str;
		struct span span;
		int64_t i64;
		uint64_t u64;
		double f64;
		struct ulid ulid;
	};
};

#define LSTR(k, v) ((struct log_field){.key = (k), .kind = LOG_F_STR, .str = (v)})
#define LSPAN(k, v) ((struct log_field){.key = (k), .kind = LOG_F_SPAN, .span = (v)})
#define LI64(k, v) ((struct log_field){.key = (k), .kind = LOG_F_I64, .i64 = (v)})
#define LU64(k, v) ((struct log_field){.key = (k), .kind = LOG_F_U64, .u64 = (v)})
#define LF64(k, v) ((struct log_field){.key = (k), .kind = LOG_F_F64, .f64 = (v)})
#define LULID(k, v) ((struct log_field){.key = (k), .kind = LOG_F_ULID, .ulid = (v)})
#define LERR(e) ((struct log_field){.key = "err", .kind = LOG_F_STR, .str = (e)->msg})

/* Process-wide; set once before threads start. Default: info, logfmt, stderr. */
void log_setup(enum log_level level, enum log_format format);
bool log_level_parse(const char *s, enum log_level *out);
bool log_format_parse(const char *s, enum log_format *out);
bool log_enabled(enum log_level level);

/* A word that every following line of this thread carries as req=..., or NULL. Borrowed: keep it alive, then set NULL. */
void log_thread_request(const char *request_id);

void log_write(enum log_level level, const char *file, int line, const char *msg, const struct log_field *fields);

#ifdef __cppcheck__ /* does not know __VA_OPT__ */
#define LOG_AT(level, ...) log_write(level, __FILE__, __LINE__, __VA_ARGS__, NULL)
#else
#define LOG_AT(level, msg, ...)                                                                                                                      \
	do {                                                                                                                                         \
		if (log_enabled(level))                                                                                                              \
			log_write(level, __FILE__, __LINE__, msg, (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ){.key = NULL}});              \
	} while (0)
#endif
#define log_debug(...) LOG_AT(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) LOG_AT(LOG_INFO, __VA_ARGS__)
#define log_warn(...) LOG_AT(LOG_WARN, __VA_ARGS__)
#define log_error(...) LOG_AT(LOG_ERROR, __VA_ARGS__)
