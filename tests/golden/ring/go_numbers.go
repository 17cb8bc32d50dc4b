// What Go says, for tests/unit/cluster_ring_random_test.c: math/rand's draws, crypto/md5, and filepath.Match.
package main

import (
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"math/rand"
	"path"
	"path/filepath"
	"strings"
)

func main() {
	for _, seed := range []int64{0, 1, -1, 42, 89482311, 2147483646, 2147483647, 2147483648, -2147483647, 1 << 62, -1 << 63, 1<<63 - 1, -5577006791947779410} {
		r := rand.New(rand.NewSource(seed))
		for i := 0; i < 2000; i++ {
			x := r.Uint64()
			if i < 3 || i == 333 || i == 334 || i == 606 || i == 607 || i == 1999 {
				fmt.Printf("random %d %d %d\n", seed, i, x)
			}
		}
	}
	for n := 0; n < 300; n++ {
		s := strings.Repeat("x", n)
		if n > 4 {
			s = "0123" + s[4:]
		}
		sum := md5.Sum([]byte(s))
		fmt.Printf("md5 %d %x %d\n", n, sum, int64(binary.BigEndian.Uint64(sum[:])))
	}
	// Short patterns and texts over few characters, so that every way through the matcher is taken.
	random := rand.New(rand.NewSource(7))
	seen := map[string]bool{}
	for n := 0; n < 3000; {
		p, s := "", ""
		for i := random.Intn(9); i > 0; i-- {
			p += string("aab*?[]^-\\/cä"[random.Intn(13):][:1])
		}
		if random.Intn(3) == 0 {
			p = []string{"[a-c]", "[^a]", "[\\]a]", "[ä-ö]", "a*b", "*", "**", "[^-a]", "[a-]"}[random.Intn(9)] + p
		}
		for i := random.Intn(7); i > 0; i-- {
			s += []string{"a", "a", "b", "c", "-", "/", "ä", "]", "^"}[random.Intn(9)]
		}
		if seen[p+" "+s] {
			continue
		}
		seen[p+" "+s] = true
		m, err := filepath.Match(p, s)
		// filepath.Match stops before a part that it need not look at; path.Match says whether all of it is well-formed.
		_, bad := path.Match(p, "")
		if !m && random.Intn(8) > 0 {
			continue
		}
		n++
		if bad != nil || err != nil {
			fmt.Printf("match %x %x bad\n", p, s)
		} else {
			fmt.Printf("match %x %x %v\n", p, s, m)
		}
	}
}
