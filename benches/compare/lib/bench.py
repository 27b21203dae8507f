"""The run: rows, rounds within a row, proxies within a round, in turn."""

import sys
import time

from .errors import CompareError
from .fleet import CHAIN
from .rows import Result
from .scale import SIZES

WARM_UP_SECONDS = 1
RATE_CONNECTIONS = 64


class Bench:
    """Measures rows on a fleet. Everybody stays up for the whole run; who is not measured is idle."""

    def __init__(self, fleet, loads, subject, peers, seconds):
        self._fleet, self._loads, self._seconds = fleet, loads, seconds
        self.subject, self._peers = subject, peers
        self._proxies = {}
        self._broken = {}
        self._saturation = None

    def names(self, row):
        """Who is measured in a row, the one the ratios are about first."""
        if row.subjects is None:
            return [self.subject, *self._peers]
        if self.subject != "tollgate":
            return []
        return [name for name in row.subjects if name.removesuffix("-same") in (CHAIN, self.subject, *self._peers, *SIZES)]

    def measure(self, row, rounds):
        """{name: [Result or None per round]}, and the first error of each name that had one."""
        results, errors = {name: [] for name in self.names(row)}, {}
        for round_number in range(rounds):
            self._saturation = None
            names = self.names(row)
            # Nobody is always the one who comes first.
            turn = round_number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                try:
                    results[name].append(row.measure(self, name))
                except CompareError as error:
                    results[name].append(None)
                    errors.setdefault(name, str(error))
                except OSError as error:
                    results[name].append(None)
                    errors.setdefault(name, f"{type(error).__name__}: {error}")
            _progress(row, round_number, rounds, results)
        return results, errors

    def cpu_per_request(self, name, load):
        """CPU time of the proxy's process tree over the requests it served, in µs."""
        proxy = self._proxy(name)
        load(proxy.target, WARM_UP_SECONDS)
        before = proxy.cpu()
        seen = load(proxy.target, self._seconds)
        used = proxy.cpu() - before
        proxy.forget_log()
        return Result(used / seen.requests * 1e6, seen.requests / seen.seconds, seen.p50, seen.p99, proxy.memory() / 1024)

    def latency_at(self, name, part):
        """p99 in ms at a part of the saturation rate of the reference: nginx if it takes part, else the subject."""
        reference = "nginx" if "nginx" in (self.subject, *self._peers) else self.subject
        if self._saturation is None:
            # Of this round, with the same generator: the machine's speed drifts.
            seen = self._loads.rate(RATE_CONNECTIONS, 0)(self._proxy(reference).target, max(2, self._seconds / 2))
            self._saturation = seen.requests / seen.seconds
        load = self._loads.rate(RATE_CONNECTIONS, self._saturation * part)
        target = self._proxy(name).target
        load(target, WARM_UP_SECONDS)
        seen = load(target, self._seconds)
        return Result(seen.p99, seen.requests / seen.seconds, seen.p50, seen.p99)

    def latency_disturbed(self, name, part):
        """p99 in ms at a part of the plain Tollgate's saturation rate, with what disturbs this one's clients going on."""
        if self._saturation is None:
            seen = self._loads.rate(RATE_CONNECTIONS, 0)(self._proxy(self.subject).target, max(2, self._seconds / 2))
            self._saturation = seen.requests / seen.seconds
        load = self._loads.rate(RATE_CONNECTIONS, self._saturation * part)
        proxy = self._proxy(name)
        # The disturbance outlasts what it disturbs.
        with self._fleet.disturbed(proxy, WARM_UP_SECONDS + self._seconds + 5):
            load(proxy.target, WARM_UP_SECONDS)
            seen = load(proxy.target, self._seconds)
        return Result(seen.p99, seen.requests / seen.seconds, seen.p50, seen.p99)

    def beyond_max_connections(self, name):
        """ms until clients that found no place are served."""
        return Result(self._fleet.beyond_max_connections(name))

    def idle_memory(self, name, connections, kind="http"):
        """KiB per idle connection of a fresh process."""
        return Result(self._fleet.idle_memory(name, connections, kind))

    def startup_memory(self, name):
        """MiB of a fresh process."""
        return Result(self._fleet.startup_memory(name) / 1024)

    def _proxy(self, name):
        """The running proxy of that name, started when it is first needed. One that fails to start is not tried again."""
        if name in self._broken:
            raise self._broken[name]
        if name not in self._proxies:
            try:
                self._proxies[name] = self._fleet.start(name)
            except CompareError as error:
                self._broken[name] = error
                raise
            time.sleep(0.2)
        return self._proxies[name]


def _progress(row, round_number, rounds, results):
    last = ", ".join(f"{name} {of[-1].figure:.1f}" if of[-1] else f"{name} failed" for name, of in results.items())
    print(f"{row.name} {round_number + 1}/{rounds}: {last} {row.unit}", file=sys.stderr, flush=True)
