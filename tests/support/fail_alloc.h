/* tests/support/fail_alloc.h - the n-th allocation fails.
 *
 * Every unit test is linked with --wrap for malloc, calloc, realloc, aligned_alloc, posix_memalign, strdup, strndup: what varve's own code
 * allocates is counted and can be made to fail; what libraries allocate inside is not touched.
 *
 *     for (uint64_t n = 1;; n++) {
 *             fail_alloc_at(n, false);
 *             errc rc = thing_under_test();
 *             uint64_t hits = fail_alloc_off();
 *             if (hits == 0)
 *                     break;                  // it needs fewer than n allocations: swept
 *             assert_int_equal(rc, ERR_NOMEM); // or whatever it promises
 *     }
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* From now on count, over all threads; the nth fails (from 1), and with sticky all behind it. */
void fail_alloc_at(uint64_t nth, bool sticky);
/* Stops failing; how many failed since fail_alloc_at. */
uint64_t fail_alloc_off(void);
/* Allocations seen since fail_alloc_at. */
uint64_t fail_alloc_count(void);

/* This thread's allocations between the two neither count nor fail: for the test's own. They nest. */
void fail_alloc_pause(void);
void fail_alloc_resume(void);
