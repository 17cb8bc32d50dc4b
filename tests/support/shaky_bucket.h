/* tests/support/shaky_bucket.h - a bucket in front of another one: it counts what is asked, and fails any call.
 *
 *     struct bucket *b = shaky_bucket(directory_bucket, &sh);       // takes the inner one over
 *     sh->fail_from = sh->fail_to = 7;                              // the 7th operation fails ...
 *     sh->lost_answer = true;                                       // ... after it was done: only the answer is lost
 */
#pragma once
#include <stdatomic.h>
#include "bucket/bucket.h"
#include "bucket/bucket_int.h"

struct shaky {
	struct bucket base;
	struct bucket *inner;
	/* operations since the start: all, and by kind */
	atomic_uint_fast64_t calls, puts, gets, sizes, lists, deletes;
	/* operations fail_from ... fail_to of `calls` fail; 0: none */
	atomic_uint_fast64_t fail_from, fail_to;
	atomic_int fail_code; /* errc; 0 = ERR_NET */
	atomic_bool lost_answer;
	/* called before each put and delete, for tests that look at the bucket between two operations; may be NULL */
	void (*before)(void *arg, const char *operation, const char *key);
	void *arg;
};

struct bucket *shaky_bucket(struct bucket *inner, struct shaky **out);
