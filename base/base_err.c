/* base/base_err.c - filling in struct err, and the assert that stays on. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/err.h"
#include "base/span.h"

/* What a message quotes may be anything: one line of UTF-8 is left of it, also when it was cut at its end. */
static void tidy(char *msg)
{
	for (char *p = msg; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	if (span_is_utf8(span_cstr(msg)))
		return;
	for (size_t i = 0, n = strlen(msg); i < n;) {
		size_t len = 1;
		while (len <= 4 && i + len <= n && !span_is_utf8(span_of(msg + i, len)))
			len++;
		if (len <= 4 && i + len <= n)
			i += len;
		else
			msg[i++] = '?';
	}
}

static PRINTF_LIKE(3, 0) void set_v(struct err *err, errc code, const char *fmt, va_list ap)
{
	err->code = code;
	err->id = NULL;
	vsnprintf(err->msg, sizeof err->msg, fmt, ap);
	tidy(err->msg);
}

errc err_set(struct err *err, errc code, const char *fmt, ...)
{
	if (err) {
		va_list ap;
		va_start(ap, fmt);
		set_v(err, code, fmt, ap);
		va_end(ap);
	}
	return code;
}

static errc code_of_errno(int e)
{
	switch (e) {
	case ENOSPC:
	case EDQUOT:
		return ERR_NOSPACE;
	case ENOENT:
		return ERR_NOTFOUND;
	case EEXIST:
		return ERR_EXISTS;
	case ENOMEM:
		return ERR_NOMEM;
	case EACCES:
	case EPERM:
	case EROFS:
		return ERR_DENIED;
	default:
		return ERR_IO;
	}
}

errc err_errno(struct err *err, int e, const char *fmt, ...)
{
	errc code = code_of_errno(e);
	if (err) {
		va_list ap;
		va_start(ap, fmt);
		set_v(err, code, fmt, ap);
		va_end(ap);
		char text[128];
		const char *why = strerror_r(e, text, sizeof text);
		size_t n = strlen(err->msg);
		snprintf(err->msg + n, sizeof err->msg - n, ": %s", why);
		tidy(err->msg);
	}
	return code;
}

errc err_wrap(struct err *err, const char *fmt, ...)
{
	if (!err)
		return ERR_IO;
	char old[ERR_MSG_BYTES];
	memcpy(old, err->msg, sizeof old);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof err->msg, fmt, ap);
	va_end(ap);
	size_t n = strlen(err->msg);
	snprintf(err->msg + n, sizeof err->msg - n, ": %s", old);
	tidy(err->msg);
	return err->code;
}

const char *errc_name(errc code)
{
	static const char *const names[ERR_CODES] = {
		[OK] = "ok",
		[ERR_NOTFOUND] = "not-found",
		[ERR_EXISTS] = "exists",
		[ERR_CORRUPT] = "corrupt",
		[ERR_INVALID] = "invalid",
		[ERR_UNSUPPORTED] = "unsupported",
		[ERR_LIMIT] = "limit",
		[ERR_AGAIN] = "again",
		[ERR_NOSPACE] = "no-space",
		[ERR_IO] = "io",
		[ERR_NET] = "net",
		[ERR_DENIED] = "denied",
		[ERR_TIMEOUT] = "timeout",
		[ERR_CANCELED] = "canceled",
		[ERR_NOMEM] = "no-memory",
	};
	return (unsigned)code < ERR_CODES ? names[code] : "unknown";
}

void assert_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "varve: %s:%d: invariant broken: %s\n", file, line, expr);
	abort();
}
