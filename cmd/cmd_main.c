/* cmd/cmd_main.c - the first word decides: a subcommand, or the server. */
#include <stdio.h>
#include <string.h>
#include "cmd/cmd_int.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{"wal", cmd_wal},
	{"bucket", cmd_bucket},
	{"bench", cmd_bench},
	{"ring", cmd_ring},
	{"control", cmd_control},
	{"drain", cmd_drain},
	{"digest", cmd_digest},
	{"tenants", cmd_tenants},
	{"server", cmd_server},
};

int cmd_fail(int code, const struct err *err)
{
	fprintf(stderr, "varve: %s\n", err->msg);
	return code;
}

int main(int argc, char **argv)
{
	if (argc < 2 || argv[1][0] == '-')
		return cmd_server(argc, argv);
	const char *names[sizeof commands / sizeof commands[0]];
	for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
		if (strcmp(argv[1], commands[i].name) == 0)
			return commands[i].run(argc - 1, argv + 1);
		names[i] = commands[i].name;
	}
	if (strcmp(argv[1], "version") == 0) {
		printf("varve %s\n", VARVE_VERSION);
		return EXIT_CLEAN;
	}
	if (strcmp(argv[1], "help") == 0) {
		char *help[] = {argv[0], (char *)(uintptr_t) "--help", NULL};
		return cmd_server(2, help);
	}
	const char *meant = did_you_mean(argv[1], names, sizeof names / sizeof names[0]);
	fprintf(stderr, "varve: no subcommand '%s'%s%s%s; see varve --help\n", argv[1], meant ? ", did you mean '" : "", meant ? meant : "",
		meant ? "'?" : "");
	return EXIT_USAGE;
}
