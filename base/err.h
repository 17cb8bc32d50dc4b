/* base/err.h - how functions fail: a checked code, and the detail in one struct that the caller owns.
 *
 *     errc do_it(const char *path, struct err *err)
 *     {
 *             errc rc = OK;
 *             int fd = -1;
 *             TRY(io_open(path, IO_READ, &fd, err));
 *             CHECK(size >= 8, ERR_CORRUPT, "%s: %zu bytes, a header needs 8", path, size);
 *     fail:
 *             io_close(fd);
 *             return rc;
 *     }
 *
 * Bytes from disk, network, bucket or configuration are CHECKed; our own invariants are ASSERTed, and the asserts stay on
 * in release builds. Never the other way round. `err` may be NULL wherever it is a parameter.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

#define CHECKED __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Classes are what a caller acts on, not where the error arose. */
typedef enum errc {
	OK = 0,
	ERR_NOTFOUND,	 /* the named thing is not there */
	ERR_EXISTS,	 /* create-if-absent found it there */
	ERR_CORRUPT,	 /* bytes are not what their format says: quarantine, name file and offset */
	ERR_INVALID,	 /* the caller's input is wrong and will stay wrong: 400, or exit 1 for configuration */
	ERR_UNSUPPORTED, /* well formed, but not something this build does: 415 */
	ERR_LIMIT,	 /* above a named limit (base/limits.h or a flag): 413, 429 or 400 */
	ERR_AGAIN,	 /* transient: the same call may succeed later: 503 + Retry-After */
	ERR_NOSPACE,	 /* ENOSPC, EDQUOT or below the disk reserve: 503 + Retry-After, nothing was lost */
	ERR_IO,		 /* a device or system call failed; after a failed sync this is final */
	ERR_NET,	 /* the peer or bucket could not be reached or broke off: retry */
	ERR_DENIED,	 /* credentials refused, or permission missing */
	ERR_TIMEOUT,	 /* a deadline passed */
	ERR_CANCELED,	 /* the client went away or the process is stopping */
	ERR_NOMEM,	 /* an allocation failed or the memory budget is used up */
	ERR_CODES
} errc;

enum { ERR_MSG_BYTES = 480 };

/* Owned by the caller, no allocation; zero-initialised means "no error". msg is one line, UTF-8, without secrets. */
struct err {
	errc code;
	const char *id; /* static string from base/errid.h when a client will see this error, else NULL */
	char msg[ERR_MSG_BYTES];
};

/* Sets code and message (replacing what was there) and returns code, so that `return err_set(...)` reads well. */
errc err_set(struct err *err, errc code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* The same from errno `e`: ENOSPC/EDQUOT -> ERR_NOSPACE, ENOENT -> ERR_NOTFOUND, EEXIST -> ERR_EXISTS, ENOMEM -> ERR_NOMEM,
 * EACCES/EPERM/EROFS -> ERR_DENIED, anything else ERR_IO; ": <strerror>" is appended. */
errc err_errno(struct err *err, int e, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "<text>: " before the message that is there; returns the code that is there, which only a caller that owns `err` may use: without
 * one (NULL) it is ERR_IO, whatever went wrong. */
errc err_wrap(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Short stable word of a class ("corrupt", "no-space"), for logs and metrics. */
const char *errc_name(errc code);

/* Needs `errc rc`, `struct err *err` and a label `fail:` in scope. */
#define TRY(call)                                                                                                                                    \
	do {                                                                                                                                         \
		rc = (call);                                                                                                                         \
		if (UNLIKELY(rc))                                                                                                                    \
			goto fail;                                                                                                                   \
	} while (0)

#define CHECK(cond, code, ...)                                                                                                                       \
	do {                                                                                                                                         \
		if (UNLIKELY(!(cond))) {                                                                                                             \
			rc = err_set(err, code, __VA_ARGS__);                                                                                        \
			goto fail;                                                                                                                   \
		}                                                                                                                                    \
	} while (0)

/* Our own invariants; on in release. Prints file, line and expression to stderr and aborts. */
_Noreturn void assert_failed(const char *expr, const char *file, int line);
#define ASSERT(expr) (LIKELY(expr) ? (void)0 : assert_failed(#expr, __FILE__, __LINE__))
