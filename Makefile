# varve: `make` builds build/varve, `make test` tests it, `make demo` shows it. `make help` lists the rest.
#
# One static library per folder (build/lib/lib<folder>.a), so that a folder builds and tests without the folders above it.
# SANITIZE=address,undefined or thread builds into a directory of its own; CC=clang-14 works the same.

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

FOLDERS   := base proto net wal block head bucket shipper ingest query
# What each folder may stand on, in link order (docs/architecture.md has the table, tools/check_includes.py holds it).
NEED_base    := base
NEED_proto   := proto base
NEED_net     := net base
NEED_wal     := wal base
NEED_block   := block base
NEED_head    := head wal block base
NEED_bucket  := bucket net block base
NEED_shipper := shipper bucket net block base
NEED_ingest  := ingest head wal block proto net base
NEED_query   := query head wal bucket block proto net base
NEED_all     := query ingest shipper bucket head wal block proto net base

WARN      := -Wall -Wextra -Wconversion -Werror -Wformat=2 -Wvla -Wshadow -Wstrict-prototypes -Wmissing-prototypes
HARDEN    := -fstack-protector-strong -fPIE $(if $(SANITIZE),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
SAN       := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
CPPFLAGS  += -I. -I$(B)/gen -D_GNU_SOURCE
CFLAGS    += -std=gnu11 $(OPT) -g -fno-strict-overflow -fno-strict-aliasing -ffp-contract=off $(WARN) $(HARDEN) $(SAN)
CXXFLAGS  += -std=c++17 $(OPT) -g -fno-exceptions -Wall -Wextra -Werror $(HARDEN) $(SAN)
LDFLAGS   += -pie -Wl,-z,relro,-z,now,-z,noexecstack $(SAN)
LIBS_base    := -lisal -lxxhash -lyaml -lm -lpthread
LIBS_proto   := -lsnappy -lprotobuf-c
LIBS_net     := -lmicrohttpd -lgnutls -lcurl -lssl -lcrypto -lz -lcrypt
LIBS_wal     := -llz4
LIBS_block   := -ljansson -lre2 -lcrypto -lstdc++
LIBS_bucket  := -lsqlite3 -lexpat -lcrypto -ljansson
LIBS_query   := -ljansson
libs      = $(foreach f,$(1),$(LIBS_$(f)))
archives  = $(foreach f,$(1),$(B)/lib/lib$(f).a)

srcs      = $(sort $(wildcard $(1)/*.c $(1)/*.cc))
objs      = $(patsubst %,$(B)/obj/%.o,$(call srcs,$(1)))

.PHONY: all
all: $(B)/varve

$(B)/varve: $(call objs,cmd) $(call archives,$(NEED_all))
	@mkdir -p $(@D)
	$(CXX) $(LDFLAGS) -o $@ $(call objs,cmd) -Wl,--start-group $(call archives,$(NEED_all)) -Wl,--end-group $(call libs,$(NEED_all))

define folder_rule
$(B)/lib/lib$(1).a: $(call objs,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	ar rcs $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rule,$(f))))

$(B)/lib/libsupport.a: $(call objs,tests/support)
	@mkdir -p $(@D)
	@rm -f $@
	ar rcs $@ $^

# Cold protobuf messages, and the tests' oracle of the hot one: protobuf-c, generated into $(B)/gen.
$(B)/gen/%.pb-c.c: %.proto
	@mkdir -p $(@D)
	protoc-c --c_out=$(B)/gen $<

$(B)/obj/gen/%.pb-c.c.o: $(B)/gen/%.pb-c.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-conversion -c -o $@ $<

$(B)/lib/libproto.a: $(B)/obj/gen/proto/remote.pb-c.c.o
$(B)/lib/libsupport.a: $(B)/obj/gen/tests/support/write_oracle.pb-c.c.o
$(B)/obj/proto/proto_read.c.o: $(B)/gen/proto/remote.pb-c.c
$(B)/obj/tests/support/oracle_write.c.o: $(B)/gen/tests/support/write_oracle.pb-c.c
$(patsubst %,$(B)/obj/%.o,$(wildcard tests/unit/proto_*.c tests/fuzz/fuzz_r*.c)): $(B)/gen/tests/support/write_oracle.pb-c.c
.PRECIOUS: $(B)/gen/%.pb-c.c

$(B)/obj/%.c.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(B)/obj/%.cc.o: %.cc
	@mkdir -p $(@D)
	$(CXX) $(CPPFLAGS) $(CXXFLAGS) -MMD -MP -c -o $@ $<

# The catalog's schema as a C string.
$(B)/gen/catalog_schema.inc: bucket/catalog_schema.sql
	@mkdir -p $(@D)
	sed 's/\\/\\\\/g; s/"/\\"/g; s/^/"/; s/$$/\\n"/' $< > $@
$(B)/obj/bucket/bucket_catalog_sql.c.o: $(B)/gen/catalog_schema.inc

# ---- unit tests: tests/unit/<folder>_<what>_test.c, cmocka, one program each, linked against what the folder may stand on ----
UNIT      := $(sort $(wildcard tests/unit/*_test.c))
UNIT_BIN  := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT))
unit_need  = $(NEED_$(firstword $(subst _, ,$(notdir $(1)))))
# tests/support/fail_alloc.h makes the n-th allocation fail.
WRAP      := $(foreach f,malloc calloc realloc aligned_alloc posix_memalign strdup strndup,-Wl,--wrap=$(f))
define unit_rule
$(B)/unit/$(1): $(B)/obj/tests/unit/$(1).c.o $(B)/lib/libsupport.a $(call archives,$(call unit_need,$(1)))
	@mkdir -p $$(@D)
	$(CXX) $(LDFLAGS) $(WRAP) -o $$@ $$< -Wl,--start-group $(B)/lib/libsupport.a $(call archives,$(call unit_need,$(1))) -Wl,--end-group $(call libs,$(call unit_need,$(1))) -lcmocka
endef
$(foreach t,$(patsubst tests/unit/%.c,%,$(UNIT)),$(eval $(call unit_rule,$(t))))

.PHONY: unit
unit: $(UNIT_BIN)
	@fail=0; for t in $(UNIT_BIN); do $$t || fail=1; done; exit $$fail

# run one: make unit/wal_frame_test
unit/%: $(B)/unit/%
	$<

-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
