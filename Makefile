# varve: `make` builds build/varve, `make test` tests it, `make demo` shows it. `make help` lists the rest.
#
# One static library per folder (build/lib/lib<folder>.a), so that a folder builds and tests without the folders above it.
# SANITIZE=address,undefined or thread builds into a directory of its own; CC=clang-14 works the same.
# What is missing on the machine is installed by tools/setup.sh, part by part, once: a stamp in build/.setup says that it was.

VERSION   := 0.1.0

# As many jobs as cores, unless somebody says otherwise; a make inside a make shares its jobs.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell nproc)
endif

CC        ?= gcc
ifeq ($(origin CC),default)
CC        := gcc
endif
CXX       := $(if $(findstring clang,$(CC)),$(subst clang,clang++,$(CC)),g++)
SANITIZE  ?=
OPT       ?= -O2
empty     :=
comma     := ,
B         ?= build$(if $(SANITIZE),/san-$(subst $(comma),-,$(SANITIZE)))$(if $(findstring clang,$(CC)),/clang)

FOLDERS   := base proto net wal block head bucket shipper cluster ingest query
# What each folder may stand on, in link order (docs/architecture.md has the table, tools/check_includes.py holds it).
NEED_base    := base
NEED_proto   := proto base
NEED_net     := net base
NEED_wal     := wal base
NEED_block   := block base
NEED_head    := head wal block base
NEED_bucket  := bucket net block base
NEED_shipper := shipper bucket net block base
NEED_cluster := cluster wal net proto base
NEED_ingest  := ingest cluster head wal block proto net base
NEED_query   := query cluster head wal bucket block proto net base
NEED_cmd     := cmd query ingest cluster shipper bucket head wal block proto net base
NEED_all     := query ingest cluster shipper bucket head wal block proto net base

WARN      := -Wall -Wextra -Wconversion -Werror -Wformat=2 -Wvla -Wshadow -Wstrict-prototypes -Wmissing-prototypes
HARDEN    := -fstack-protector-strong -fPIE $(if $(SANITIZE),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
SAN       := $(if $(SANITIZE),-fsanitize=$(subst fuzzer,fuzzer-no-link,$(SANITIZE)) -fno-sanitize-recover=all -fno-omit-frame-pointer)
CPPFLAGS  += -I. -I$(B)/gen -D_GNU_SOURCE
CFLAGS    += -std=gnu11 $(OPT) -g -fno-strict-overflow -fno-strict-aliasing -ffp-contract=off $(WARN) $(HARDEN) $(SAN)
CXXFLAGS  += -std=c++17 $(OPT) -g -fno-exceptions -Wall -Wextra -Werror $(HARDEN) $(SAN)
LDFLAGS   += -pie -Wl,-z,relro,-z,now,-z,noexecstack $(SAN)
LIBS_base    := -lisal -lxxhash -lyaml -lm -lpthread
LIBS_proto   := -lsnappy -lprotobuf-c
LIBS_net     := -lresolv -lmicrohttpd -lgnutls -lcurl -lssl -lcrypto -lz -lcrypt
LIBS_wal     := -llz4
LIBS_block   := -ljansson -lre2 -lcrypto -lstdc++
LIBS_cluster := -ljansson -lcrypto
LIBS_bucket  := -lsqlite3 -lexpat -lcrypto -ljansson -llz4
LIBS_query   := -ljansson
libs      = $(foreach f,$(1),$(LIBS_$(f)))
archives  = $(foreach f,$(1),$(B)/lib/lib$(f).a)

srcs      = $(sort $(wildcard $(1)/*.c $(1)/*.cc))
objs      = $(patsubst %,$(B)/obj/%.o,$(call srcs,$(1)))

.PHONY: all
all: $(B)/varve

# One short line per step; V=1 shows the commands.
Q         := $(if $(V),,@)
note       = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),@:,@printf '  %-4s %s\n' $(1) $(2))

# ---- set-up: make SETUP=no when the machine is prepared by other means ----
SETUP     ?= yes
ready      = $(if $(filter yes,$(SETUP)),$(patsubst %,build/.setup/%,$(1)))
build/.setup/%: tools/setup.sh
	@tools/setup.sh $*
	@mkdir -p $(@D)
	@touch $@
build/.setup/venv: tests/requirements.txt

$(B)/varve: $(call objs,cmd) $(call archives,$(NEED_all))
	@mkdir -p $(@D)
	$(call note,LD,$@)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $(call objs,cmd) -Wl,--start-group $(call archives,$(NEED_all)) -Wl,--end-group $(call libs,$(NEED_all))

$(B)/obj/base/base_flags.c.o: CPPFLAGS += -DVARVE_VERSION='"$(VERSION)"'
$(B)/obj/base/base_flags.c.o: Makefile

define folder_rule
$(B)/lib/lib$(1).a: $(call objs,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	$(Q)ar rcs $$@ $$^
endef
# cmd/ is a library, too, so that tests can stand on its parts; the program takes its objects whole.
$(foreach f,$(FOLDERS) cmd,$(eval $(call folder_rule,$(f))))

$(B)/lib/libsupport.a: $(call objs,tests/support)
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)ar rcs $@ $^

# Cold protobuf messages, and the tests' oracle of the hot one: protobuf-c, generated into $(B)/gen.
$(B)/gen/%.pb-c.c: %.proto | $(call ready,build)
	@mkdir -p $(@D)
	$(Q)protoc-c --c_out=$(B)/gen $<

$(B)/obj/gen/%.pb-c.c.o: $(B)/gen/%.pb-c.c
	@mkdir -p $(@D)
	$(call note,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-conversion -c -o $@ $<

$(B)/lib/libproto.a: $(B)/obj/gen/proto/remote.pb-c.c.o
$(B)/lib/libsupport.a: $(B)/obj/gen/tests/support/write_oracle.pb-c.c.o
$(B)/obj/proto/proto_read.c.o: $(B)/gen/proto/remote.pb-c.c
$(B)/obj/tests/support/oracle_write.c.o: $(B)/gen/tests/support/write_oracle.pb-c.c
$(patsubst %,$(B)/obj/%.o,$(wildcard tests/unit/proto_*.c tests/fuzz/fuzz_r*.c)): $(B)/gen/tests/support/write_oracle.pb-c.c
.PRECIOUS: $(B)/gen/%.pb-c.c

$(B)/obj/%.c.o: %.c | $(call ready,build)
	@mkdir -p $(@D)
	$(call note,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(B)/obj/%.cc.o: %.cc | $(call ready,build)
	@mkdir -p $(@D)
	$(call note,CXX,$<)
	$(Q)$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

# The catalog's schema as a C string.
$(B)/gen/catalog_schema.inc: bucket/catalog_schema.sql
	@mkdir -p $(@D)
	$(Q)sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$$/\\n"/' $< > $@
$(B)/obj/bucket/bucket_catalog_sql.c.o: $(B)/gen/catalog_schema.inc

# ---- unit tests: tests/unit/<folder>_<what>_test.c, cmocka, one program each, linked against what the folder may stand on ----
UNIT      := $(sort $(wildcard tests/unit/*_test.c))
UNIT_BIN  := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT))
unit_need  = $(NEED_$(firstword $(subst _, ,$(notdir $(1)))))
# tests/support/fail_alloc.h makes the n-th allocation fail.
WRAP      := $(foreach f,malloc calloc realloc aligned_alloc posix_memalign strdup strndup,-Wl,--wrap=$(f))
# $(1) target, $(2) objects, $(3) folders, $(4) more flags
define link_rule
$(1): $(2) $(B)/lib/libsupport.a $(call archives,$(3))
	@mkdir -p $$(@D)
	$(call note,LD,$$@)
	$(Q)$(CXX) $(LDFLAGS) $(WRAP) -o $$@ $(2) -Wl,--start-group $(B)/lib/libsupport.a $(call archives,$(3)) -Wl,--end-group $(call libs,$(3)) $(4)
endef
$(foreach t,$(patsubst tests/unit/%.c,%,$(UNIT)),$(eval $(call link_rule,$(B)/unit/$(t),$(B)/obj/tests/unit/$(t).c.o,$(call unit_need,$(t)),-lcmocka -ljansson)))
$(patsubst %,$(B)/obj/%.o,$(UNIT)): | $(call ready,test)

.PHONY: unit
unit: $(UNIT_BIN)
	@$(TEST_ENV) tools/run_tests.py --results $(B)/results --unit $(UNIT_BIN)

# run one: make unit/wal_frame_test
unit/%: $(B)/unit/%
	$<

# ---- fuzz targets: tests/fuzz/fuzz_<what>.c, corpus in tests/fuzz/corpus/<what>; the first line names the folder they stand on ----
FUZZ      := $(patsubst tests/fuzz/fuzz_%.c,%,$(sort $(filter-out tests/fuzz/fuzz_main.c,$(wildcard tests/fuzz/fuzz_*.c))))
FUZZ_BIN  := $(patsubst %,$(B)/fuzz/fuzz_%,$(FUZZ))
FUZZ_SECONDS ?= 60
fuzz_need  = $(NEED_$(shell sed -n '1s/.*fuzz: needs \([a-z]*\).*/\1/p' tests/fuzz/fuzz_$(1).c))
# With libFuzzer it has a main of its own; without, fuzz_main.c runs the files it is given.
FUZZ_MAIN := $(if $(findstring fuzzer,$(SANITIZE)),,$(B)/obj/tests/fuzz/fuzz_main.c.o)
FUZZ_LINK := $(if $(findstring fuzzer,$(SANITIZE)),-fsanitize=$(SANITIZE))
$(foreach t,$(FUZZ),$(eval $(call link_rule,$(B)/fuzz/fuzz_$(t),$(B)/obj/tests/fuzz/fuzz_$(t).c.o $(FUZZ_MAIN),$(call fuzz_need,$(t)),$(FUZZ_LINK))))

.PHONY: fuzz fuzz-all
fuzz: $(call ready,build check)
	@$(MAKE) --no-print-directory CC=clang-14 SANITIZE=fuzzer,address,undefined B=build/fuzzing fuzz-all
fuzz-all: $(patsubst %,fuzz-run/%,$(FUZZ))
# run one: make fuzz-run/rw1 CC=clang-14 SANITIZE=fuzzer,address,undefined B=build/fuzzing
fuzz-run/%: $(B)/fuzz/fuzz_%
	@mkdir -p $(B)/corpus/$* $(B)/found/$*
	@ASAN_OPTIONS=allocator_may_return_null=1 $< -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 \
		-artifact_prefix=$(B)/found/$*/ $(B)/corpus/$* tests/fuzz/corpus/$* >$(B)/found/$*.log 2>&1 \
		&& echo "fuzz $*: nothing found, $$(sed -n 's/^Done \([0-9]* runs in [0-9]* second\).*/\1/p' $(B)/found/$*.log)(s)" \
		|| { tail -n 40 $(B)/found/$*.log; echo "fuzz $*: FOUND, see $(B)/found/$*"; exit 1; }

# ---- benchmarks in C: tests/bench/<folder>_<what>.c ----
# query_check is the demo's checker, too: it stands on nothing that only tests need.
BENCH     := $(patsubst tests/bench/%.c,%,$(filter-out tests/bench/query_check.c tests/bench/floor.c,$(sort $(wildcard tests/bench/*.c))))
$(B)/bench/query_check: $(B)/obj/tests/bench/query_check.c.o $(call archives,$(NEED_cmd))
	@mkdir -p $(@D)
	$(call note,LD,$@)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $< -Wl,--start-group $(call archives,$(NEED_cmd)) -Wl,--end-group $(call libs,$(NEED_cmd))
# floor stands on nothing of varve: it is what varve is measured by.
$(B)/bench/floor: $(B)/obj/tests/bench/floor.c.o
	@mkdir -p $(@D)
	$(call note,LD,$@)
	$(Q)$(CC) $(LDFLAGS) -o $@ $< -lsnappy -lxxhash
$(foreach t,$(BENCH),$(eval $(call link_rule,$(B)/bench/$(t),$(B)/obj/tests/bench/$(t).c.o,$(call unit_need,$(t)),)))
bench/%: $(B)/bench/%
	$<

# ---- programs that end-to-end tests drive: tests/e2e/<folder>_<what>.c ----
TOOL      := $(patsubst tests/e2e/%.c,%,$(sort $(wildcard tests/e2e/*.c)))
TOOL_BIN  := $(patsubst %,$(B)/tool/%,$(TOOL))
$(foreach t,$(TOOL),$(eval $(call link_rule,$(B)/tool/$(t),$(B)/obj/tests/e2e/$(t).c.o,$(call unit_need,$(t)),)))

# Preloaded into the real binary: what it does to its files, and a kill before any of it; a clock that runs ahead.
TOOL_BIN  += $(B)/tool/recorder.so $(B)/tool/fast_clock.so $(B)/bench/query_check $(B)/bench/floor
$(B)/tool/%.so: tests/crash/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -std=gnu11 $(OPT) -g $(WARN) -shared -fPIC -o $@ $< -ldl

# ---- everything that is tested ----
PYTHON    := build/venv/bin/python
VARVE_CACHE ?= $(HOME)/.cache/varve
export VARVE_CACHE
TEST_READY := test venv minio prometheus prometheus-sid
# What the programs of the tests find: the binary under test, the servers of the cache, sanitizers that stop at the first fault.
TEST_ENV   = VARVE_BIN=$(abspath $(B)/varve) VARVE_TOOLS=$(abspath $(B)/tool) PATH="$(abspath build/venv/bin):$$PATH:$(VARVE_CACHE)/bin:$(VARVE_CACHE)/prometheus/usr/bin" \
	$(if $(SANITIZE),VARVE_SANITIZED=1) ASAN_OPTIONS=abort_on_error=1:allocator_may_return_null=1:verify_asan_link_order=0:$$ASAN_OPTIONS \
	UBSAN_OPTIONS=print_stacktrace=1:$$UBSAN_OPTIONS TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1:$$TSAN_OPTIONS
E2E       := $(wildcard tests/e2e/test_*.py)
PYTEST_ARGS ?=

.PHONY: test test-full e2e
test: $(UNIT_BIN) $(FUZZ_BIN) $(TOOL_BIN) $(B)/varve $(call ready,$(TEST_READY))
	@$(TEST_ENV) tools/run_tests.py --results $(B)/results --unit $(UNIT_BIN) \
		--replay $(foreach t,$(FUZZ),$(B)/fuzz/fuzz_$(t)=tests/fuzz/corpus/$(t)) \
		$(if $(E2E),--pytest $(PYTHON) -m pytest -q tests/e2e $(PYTEST_ARGS))
test-full: export VARVE_FULL = 1
test-full: export VARVE_UNIT_TIMEOUT = 7200
test-full: test
e2e: $(TOOL_BIN) $(B)/varve $(call ready,$(TEST_READY))
	@$(TEST_ENV) tools/run_tests.py --results $(B)/results --pytest $(PYTHON) -m pytest -q tests/e2e $(PYTEST_ARGS)

# The ring controller against a real Kubernetes API; a target of its own, because the control plane takes twelve minutes to build, once.
.PHONY: test-kubernetes
test-kubernetes: $(B)/varve $(call ready,test venv kubernetes)
	@$(TEST_ENV) tools/run_tests.py --results $(B)/results/kubernetes --pytest $(PYTHON) -m pytest -q tests/kubernetes $(PYTEST_ARGS)

# A fleet of real processes under load, faults and change; some twenty minutes, because what it watches takes its time. VARVE_FULL=1 takes longer ones.
.PHONY: cluster-test
cluster-test: $(TOOL_BIN) $(B)/varve $(call ready,test venv prometheus)
	@$(TEST_ENV) tools/run_tests.py --results $(B)/results/cluster --pytest $(PYTHON) -m pytest -q -rs tests/cluster $(PYTEST_ARGS)

# ---- longer programs, each with its own words under --help ----
N         ?= 200
SEED      ?=
BUCKET    ?= directory
.PHONY: crash power bench bench-flat bench-sync bench-pause bench-profile bench-ring bench-cut bench-docs demo
STATES    ?= 2400
power: $(B)/varve $(TOOL_BIN) $(call ready,$(TEST_READY))
	@$(TEST_ENV) $(PYTHON) tests/crash/power.py --states $(STATES) $(if $(SEED),--seed $(SEED))
crash: $(B)/varve $(call ready,$(TEST_READY))
	@$(TEST_ENV) $(PYTHON) tests/crash/crash.py --kills $(N) $(if $(SEED),--seed $(SEED))
# BENCH_SCALE=small BENCH_RUNS=5; results in build/results, bench-docs writes the last ones into docs/performance.md.
BENCH_READY := $(B)/varve $(B)/bench/floor $(call ready,venv prometheus victoria-metrics)
bench: $(BENCH_READY)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench.py
bench-flat: $(BENCH_READY)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench_flat.py
bench-sync: $(BENCH_READY)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench_sync.py
bench-pause: $(BENCH_READY)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench_pause.py
bench-profile: $(BENCH_READY)
	@$(TEST_ENV) BENCH_RUNS=1 $(PYTHON) tests/bench/bench_profile.py
bench-ring: $(BENCH_READY)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench_ring.py
bench-cut: $(B)/bench/head_cut_bench
	@for n in 200000 1000000; do for k in "9 float" "480 float"; do $< $(B)/bench-data/cut $$n $$k && rm -rf $(B)/bench-data/cut || exit 1; done; done
	@for k in late histogram; do $< $(B)/bench-data/cut 20000 480 $$k && rm -rf $(B)/bench-data/cut || exit 1; done
bench-docs: $(B)/varve $(call ready,venv)
	@$(TEST_ENV) $(PYTHON) tests/bench/bench_docs.py
demo: $(B)/varve $(B)/bench/query_check $(call ready,venv $(if $(filter minio,$(BUCKET)),minio))
	@$(TEST_ENV) $(PYTHON) tools/demo.py --bucket $(BUCKET)

# ---- what is checked without running anything ----
TEST_C    := $(wildcard tests/unit/*.c tests/support/*.c tests/fuzz/*.c tests/bench/*.c tests/crash/*.c tests/e2e/*.c)
ALL_SRC    = $(foreach f,$(FOLDERS) cmd,$(call srcs,$(f))) $(TEST_C)
HEADERS    = $(wildcard $(patsubst %,%/*.h,$(FOLDERS) cmd tests/support tests/unit tests/bench tests/crash))
.PHONY: objs check check-format check-plan check-gcc check-clang check-cppcheck format
objs: $(patsubst %,$(B)/obj/%.o,$(ALL_SRC))
check: check-format check-plan check-gcc check-clang check-cppcheck
check-format: $(call ready,check)
	@clang-format-14 --dry-run -Werror $(ALL_SRC) $(HEADERS)
check-plan: $(call ready,build)
	@tools/check_includes.py && tools/check_seam.py && tools/check_words.py
check-gcc: objs
check-clang: $(call ready,build check test)
	@$(MAKE) --no-print-directory CC=clang-14 SANITIZE= B=$(B)/clang objs
check-cppcheck: $(call ready,check) $(patsubst %,$(B)/gen/%,catalog_schema.inc proto/remote.pb-c.c tests/support/write_oracle.pb-c.c)
	@mkdir -p $(B)/cppcheck
	@cppcheck -q -j $(shell nproc) --enable=warning,portability --inline-suppr --suppressions-list=tools/cppcheck.txt --error-exitcode=1 \
		--std=c11 --cppcheck-build-dir=$(B)/cppcheck -I. -I$(B)/gen -D_GNU_SOURCE -D__cppcheck__=1 \
		-DPROTOBUF_C_VERSION_NUMBER=1004001 -DPROTOBUF_C_MIN_COMPILER_VERSION=1000000 $(filter %.c,$(ALL_SRC))
format: $(call ready,check)
	clang-format-14 -i $(ALL_SRC) $(HEADERS)

.PHONY: clean distclean help
clean:
	rm -rf $(addprefix $(B)/,varve obj lib gen unit fuzz fuzzing bench results cppcheck clang) build/san-*
distclean:
	rm -rf build
help:
	@echo "make                      build/varve"
	@echo "make test                 unit tests, fuzz corpora, end-to-end tests; installs what they need, once"
	@echo "make test-full            the same with every sweep in full (hours)"
	@echo "make unit                 unit tests only; one of them: make unit/NAME"
	@echo "make e2e                  end-to-end tests only; PYTEST_ARGS='-k crash -x' chooses"
	@echo "make test-kubernetes      the ring controller and deploy/ against a real control plane; builds it, once"
	@echo "make cluster-test         a fleet of real processes: growth under load, restarts, kill -9, slow and dead peers, bad ring files, clocks, forgeries"
	@echo "make check                formatting, include table, seam, word lists, gcc and clang warnings, cppcheck"
	@echo "make fuzz                 every fuzz target for FUZZ_SECONDS=60 under ASan and UBSan"
	@echo "make crash N=200 SEED=7   kill -9 under load, N times, nothing acknowledged may be lost"
	@echo "make power STATES=2400    the same for power cuts: what a lost disk cache leaves of a recorded run"
	@echo "make bench                side by side with Prometheus and VictoriaMetrics; BENCH_SCALE=small for a look, BENCH_RUNS=5; one in C: make bench/NAME"
	@echo "make bench-flat           what a sample costs with more series, connections, tenants, churn;  make bench-sync  what fdatasync costs;  make bench-pause  what requests notice of a cut;  make bench-cut  a block;  make bench-ring  a router and its nodes"
	@echo "make bench-docs           the last results of these into docs/performance.md"
	@echo "make demo BUCKET=minio    the main job on the terminal, in a minute; BUCKET=directory is the default"
	@echo "make format clean distclean"
	@echo "SANITIZE=address,undefined or SANITIZE=thread, CC=clang-14, OPT=-O0: build and test that way"

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
