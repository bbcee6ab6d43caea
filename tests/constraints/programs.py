"""Programs in each language of `Language`, complete ones and broken ones."""

from __future__ import annotations

GO = r"""
// Package shapes is a sample.
package shapes

import (
	"errors"
	m "math"
)

type Number interface{ ~int | ~float64 }

type Shape interface {
	Area() (float64, error)
}

type Circle struct {
	Radius float64 `json:"radius"`
	next   *Circle
}

const (
	first = iota
	second
)

var origin = [2]int{0, 0x1F}

func (c *Circle) Area() (float64, error) {
	if c == nil || c.Radius < 0 {
		return 0, errors.New("no circle")
	} else if r := c.Radius; r > 1e9 {
		panic('x')
	}
	return m.Pi * c.Radius * c.Radius, nil
}

func Sum[T Number](values ...T) (total T) {
	for _, v := range values {
		total += v
	}
	for i := 0; i < 3; i++ {
		switch {
		case i&^1 == 0:
			continue
		default:
			break
		}
	}
	return
}

func run(ch chan<- int, done <-chan struct{}) {
	defer func() { recover() }()
	go func() { ch <- 1 }()
	select {
	case <-done:
	case ch <- 2:
	}
	var any interface{} = map[string][]int{"a": {1, 2}}
	switch v := any.(type) {
	case map[string][]int:
		_ = v["a"][0:1]
	}
loop:
	for {
		break loop
	}
}
"""

C = r"""
#include <stdio.h>
#define LIMIT 10 /* of all */
#if defined(LIMIT) && LIMIT > 3
typedef struct node { int value; struct node *next; } node;
#else
# error "no limit"
#endif

enum colour { RED, GREEN = 2, };
static const char *names[] = { [RED] = "red", "green" "ish" };

static inline unsigned long long twice(register int x) { return 2ULL * (unsigned) x; }

int compare(const void *a, const void *b)
{
    const int *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

int main(int argc, char **argv)
{
    int (*f)(const void *, const void *) = &compare;
    node n = { .value = 3, .next = NULL };
    // a comment
    for (int i = 0; i < LIMIT; ++i) {
        switch (i % 3) {
        case 0: continue;
        case '\n': goto end;
        default: n.value += i ? sizeof(int) : ~0x1F;
        }
    }
    do { argc--; } while (argc > 0 && argv[argc] != 0);
    while (n.next) n.next = n.next->next;
    printf("%d %s\n", n.value, names[RED]);
end:
    return f == 0 ? 1 : 0;
}
"""

SQL = r"""
CREATE TABLE IF NOT EXISTS users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL DEFAULT 'nobody',  -- as shown
    team REFERENCES teams (id) ON DELETE CASCADE,
    CHECK (length(name) > 0)
);
INSERT OR IGNORE INTO users (name, team) VALUES ('it''s', 1), ("quoted", NULL);
WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 10)
SELECT u.name AS who, count(DISTINCT u.id), max(n) OVER (PARTITION BY team ORDER BY n DESC)
FROM users AS u LEFT OUTER JOIN up ON u.id = up.n, (SELECT * FROM teams) t
WHERE u.name LIKE 'a%' AND n NOT BETWEEN 1 AND 5 OR team IN (1, 2, 3) AND NOT EXISTS (SELECT 1)
GROUP BY u.team HAVING count(*) >= 2 ORDER BY who COLLATE nocase ASC LIMIT 10 OFFSET 5;
UPDATE users SET name = upper(name) || x'0F', team = CASE WHEN id > 3 THEN 1 ELSE -2.5e3 END WHERE id IS NOT NULL;
DELETE FROM users WHERE id = ?1;
CREATE UNIQUE INDEX by_name ON users (name, team DESC) WHERE team > 1;
ALTER TABLE users RENAME COLUMN team TO side;
BEGIN TRANSACTION; COMMIT
"""

JSON = '{"a": [1, -2.5e+3, true, null, "\\u00e9\\n \u00e9"], "": {}, "b": [[], {"c": 0}]}\n'

PYTHON = r'''
"""A sample."""
from __future__ import annotations
import os.path as path, sys
from . import (a, b as c,)

@decorated.with_(1)
class A(B, metaclass=C):
    x: int = 3; y = z = [i for j in range(3) if j if j > 1 for i in (j, *rest)]

    async def f(self, p, /, q: int = 0, *args, r, s=1, **rest) -> dict[str, int]:
        """Says."""
        async with open(p) as g, h:
            await g
        return {**rest, "a": -q ** 2, r: lambda u, *v, w=1: (yield)}

    if True: pass
    else:
        del x, y[0]

def odd(n):
  # any column
    while (n := n - 2) > 0: continue
    try:
        return not n in (1, 2) is not None
    except (TypeError, ValueError) as error:
        raise KeyError from error
    finally:
        print(f"{n!r:>{w}} {{}} {n + 1 = }", rf'\{n}', end=''
              if n else "\
\x41\N{DIGIT ONE}")
    match n:
        case {"a": [1, *_], **rest} if rest: pass
        case A(x, y=1) | -1 as z:
            global k

ifx = 0xFF if 1_000.5e-3j else b'\x00' rb"\d"
x >>= 1 if a<b else-1
a, *b[0], c.d = yield
'''

PROGRAMS = {"python": PYTHON, "go": GO, "c": C, "sql": SQL, "json": JSON}
