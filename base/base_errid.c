/* base/base_errid.c - the catalogue of refusals as tables. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "base/errid.h"

static const struct {
	const char *text;
	int status;
} table[ERRID_COUNT] = {
#define ERRID_ROW(name, http, t) [ERRID_##name] = {.text = "err-varve-" t, .status = http},
	ERRIDS(ERRID_ROW)
#undef ERRID_ROW
};

const char *errid_text(enum errid id)
{
	ASSERT((unsigned)id < ERRID_COUNT);
	return table[id].text;
}

int errid_status(enum errid id)
{
	ASSERT((unsigned)id < ERRID_COUNT);
	return id == ERRID_NONE ? 500 : table[id].status;
}

enum errid errid_of(const char *text)
{
	for (unsigned i = 1; text && i < ERRID_COUNT; i++)
		if (table[i].text == text || strcmp(table[i].text, text) == 0)
			return (enum errid)i;
	return ERRID_NONE;
}

errc err_id(struct err *err, enum errid id, errc code, const char *fmt, ...)
{
	if (err) {
		char msg[ERR_MSG_BYTES];
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(msg, sizeof msg, fmt, ap);
		va_end(ap);
		err_set(err, code, "%s", msg);
		err->id = errid_text(id);
	}
	return code;
}
