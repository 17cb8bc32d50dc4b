/* What a call of http_sender costs: processor time of the process that calls, with the server in another.
 *
 *     net_sender_bench [CALLS [BODY_BYTES [AT_ONCE [STUCK]]]]    20000 40000 16 0
 *
 * AT_ONCE calls are kept on their way to one server; STUCK more stand still beside them at a peer that never answers.
 */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "net/net.h"

static struct http_sender *sender;
static struct http_send call;
static atomic_long left, ended, bad;

static void take(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, "application/octet-stream", SPAN("0123456789012345678901234567890123456789"));
}

static void done(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	(void)arg;
	(void)answer;
	if (rc || status != 200) {
		bad++;
		fprintf(stderr, "%d %s\n", status, err->msg);
	}
	ended++;
	call.deadline_mono_ns = io_mono_ns() + 10000000000;
	if (atomic_fetch_sub(&left, 1) > 0 && http_send(sender, &call, NULL))
		bad++;
}

static void given_up(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	(void)arg;
	(void)rc;
	(void)status;
	(void)answer;
	(void)err;
}

static double cpu_s(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	long calls = argc > 1 ? atol(argv[1]) : 20000, bytes = argc > 2 ? atol(argv[2]) : 40000, at_once = argc > 3 ? atol(argv[3]) : 16;
	long stuck = argc > 4 ? atol(argv[4]) : 0;
	struct err err = {0};
	int to_parent[2];
	log_setup(LOG_ERROR, LOG_LOGFMT);
	if (pipe(to_parent))
		return 1;
	pid_t child = fork();
	if (child == 0) {
		static const struct http_route route = {HTTP_POST, "/take", 0, 64 * MIB, take, NULL};
		struct http_server_config cfg = {.address = "127.0.0.1:0", .threads = 1};
		struct http_server *s;
		uint16_t port = 0;
		if (http_server_start(&cfg, &route, 1, &s, &err) == OK)
			port = http_server_port(s);
		if (write(to_parent[1], &port, sizeof port) != sizeof port)
			return 1;
		for (;;)
			pause();
	}
	uint16_t port = 0;
	if (read(to_parent[0], &port, sizeof port) != sizeof port || !port)
		return 1;
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof sa;
	int mute = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(mute, (struct sockaddr *)&sa, sizeof sa) || listen(mute, 4096) || getsockname(mute, (struct sockaddr *)&sa, &n))
		return 1;
	struct http_sender_config cfg = {.max_connections_per_host = (uint32_t)(stuck > at_once ? stuck : at_once)};
	if (http_sender_open(&cfg, &sender, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		return 1;
	}
	char url[64], mute_url[64], *body = calloc(1, (size_t)bytes + 1);
	snprintf(url, sizeof url, "http://127.0.0.1:%u/take", port);
	snprintf(mute_url, sizeof mute_url, "http://127.0.0.1:%u/take", ntohs(sa.sin_port));
	const char *headers[] = {"Content-Type: application/octet-stream", "X-Request-Id: 0123456789abcdef"};
	call = (struct http_send){.method = "POST", .headers = headers, .n_headers = 2, .max_answer_bytes = 1000};
	call.url = mute_url;
	call.done = given_up;
	for (long i = 0; i < stuck; i++)
		bad += http_send(sender, &call, NULL) != OK;
	call.url = url;
	call.done = done;
	call.body = span_of(body, (size_t)bytes);
	for (int round = 0; round < 2; round++) { /* the first warms up */
		double cpu = cpu_s();
		int64_t begin = io_mono_ns();
		ended = 0;
		left = calls - at_once;
		struct http_send first = call;
		for (long i = 0; i < at_once; i++)
			bad += http_send(sender, &first, NULL) != OK;
		while (ended < calls && !bad)
			usleep(1000);
		if (round)
			printf("%ld calls of %ld bytes, %ld at once, %ld stuck beside: %.2f us of processor time and %.2f us each, %ld bad\n", calls,
				bytes, at_once, stuck, (cpu_s() - cpu) / (double)calls * 1e6, (double)(io_mono_ns() - begin) / (double)calls / 1e3,
				(long)bad);
	}
	http_sender_close(sender);
	kill(child, SIGTERM);
	waitpid(child, NULL, 0);
	free(body);
	return bad != 0;
}
