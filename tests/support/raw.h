/* tests/support/raw.h - an HTTP client that does exactly what it is told, byte by byte: for what no decent client would send. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct raw {
	int fd;
	char *in; /* received and not taken yet */
	size_t n, cap;
	bool closed; /* end of stream or reset seen */
	bool reset;
};

struct raw_answer {
	int status;    /* 0: none came */
	char *headers; /* lines with \n, as sent */
	char *body;
	size_t body_n;
	bool cut; /* the body ended before its end */
};

struct raw raw_open(uint16_t port);	/* ends the program when nobody listens */
struct raw raw_try_open(uint16_t port); /* fd is -1 then */
void raw_close(struct raw *c);
/* False when the peer does not take it any more. */
bool raw_send(struct raw *c, const void *p, size_t n);
bool raw_puts(struct raw *c, const char *s);
bool raw_printf(struct raw *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The next answer; `head` when it has no body although headers say so. status 0 after timeout_ms or at the end. */
struct raw_answer raw_answer(struct raw *c, bool head, int timeout_ms);
void raw_answer_free(struct raw_answer *a);
/* Value of a header, malloc'ed, or NULL. */
char *raw_header(const struct raw_answer *a, const char *name);
/* Waits until the peer has closed; false after timeout_ms. */
bool raw_wait_closed(struct raw *c, int timeout_ms);
int64_t raw_now_ms(void);
