/* When a node that drains may go: every combination of what it can know. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "cmd/cmd_leave_int.h"

static void it_goes_when_nobody_sends_it_anything(void **st)
{
	(void)st;
	static const int64_t times[] = {0, 1, LEAVE_AGREED_QUIET_MS - 1, LEAVE_AGREED_QUIET_MS, 14999, 15000, 600000};
	for (int in_ring = 0; in_ring < 2; in_ring++)
		for (int agreed = 0; agreed < 2; agreed++)
			for (size_t a = 0; a < 7; a++)
				for (size_t q = 0; q < 7; q++) {
					const struct leave_view v = {.in_ring = in_ring,
						.agreed = agreed,
						.agreed_ms = agreed ? times[a] : 0,
						.quiet_ms = times[q],
						.need_ms = 15000};
					bool may = !in_ring &&
						   (times[q] >= 15000 || (agreed && (times[q] >= LEAVE_AGREED_QUIET_MS || times[a] >= 15000)));
					assert_true(may == (leave_waits_for(&v) == NULL));
				}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(it_goes_when_nobody_sends_it_anything)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
