/* base/base_ulid.c - see base/ulid.h. Monotonic within a process: in the same millisecond the random part counts up. */
#include <pthread.h>
#include "base/io.h"
#include "base/ulid.h"

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

struct ulid ulid_new(void)
{
	static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
	static struct ulid last;

	struct ulid u;
	uint64_t ms = (uint64_t)io_now_ms();
	for (int i = 0; i < 6; i++)
		u.b[i] = (uint8_t)(ms >> (40 - 8 * i));
	io_random(u.b + 6, 10);
	pthread_mutex_lock(&mu);
	if (memcmp(u.b, last.b, 6) == 0 && ulid_cmp(u, last) <= 0) {
		u = last;
		for (int i = 15; i >= 6 && ++u.b[i] == 0; i--)
			;
	}
	last = u;
	pthread_mutex_unlock(&mu);
	return u;
}

int64_t ulid_time_ms(struct ulid u)
{
	uint64_t ms = 0;
	for (int i = 0; i < 6; i++)
		ms = ms << 8 | u.b[i];
	return (int64_t)ms;
}

bool ulid_is_zero(struct ulid u)
{
	static const struct ulid zero;
	return ulid_eq(u, zero);
}

/* 26 characters of 5 bits are 130 bits: the first carries only 3. */
struct ulid_text ulid_text(struct ulid u)
{
	struct ulid_text t;
	unsigned __int128 x = 0;
	for (int i = 0; i < 16; i++)
		x = x << 8 | u.b[i];
	for (int i = ULID_TEXT_BYTES - 1; i >= 0; i--) {
		t.s[i] = alphabet[(unsigned)(x & 31)];
		x >>= 5;
	}
	t.s[ULID_TEXT_BYTES] = 0;
	return t;
}

bool ulid_parse(struct span s, struct ulid *out)
{
	if (s.n != ULID_TEXT_BYTES || s.p[0] < '0' || s.p[0] > '7')
		return false;
	unsigned __int128 x = 0;
	for (size_t i = 0; i < s.n; i++) {
		const char *at = s.p[i] ? strchr(alphabet, s.p[i]) : NULL;
		if (!at)
			return false;
		x = x << 5 | (unsigned)(at - alphabet);
	}
	for (int i = 15; i >= 0; i--) {
		out->b[i] = (uint8_t)x;
		x >>= 8;
	}
	return true;
}
