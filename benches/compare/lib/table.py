"""The table: medians, ratios made within each round, and the goals they are held against."""

import statistics

HEADER = ["row", "proxy", "figure", "ratio", "lowest–highest", "goal", "req/s", "p50 ms", "p99 ms", "RSS MiB"]


def median(results, field):
    """The median of one field over the rounds that have it, or None."""
    values = [getattr(result, field) for result in results if result is not None and getattr(result, field) is not None]
    return statistics.median(values) if values else None


def ratios(subject, other):
    """Subject over other, for each round in which both were measured."""
    return [mine.figure / theirs.figure for mine, theirs in zip(subject, other) if mine and theirs and theirs.figure > 0]


def summary(row, results):
    """The row's outcome as plain data, for the table and for --json."""
    names = list(results)
    lines = []
    for name in names:
        within = ratios(results[names[0]], results[name]) if name != names[0] else []
        ratio = statistics.median(within) if within else None
        goal, value = (row.limit, median(results[name], "figure")) if name == names[0] == "tollgate" else (row.goals.get(name), ratio)
        # Goals are Tollgate's: they say nothing about a comparison of peers.
        goal = goal if names[0].startswith("tollgate") else None
        lines.append({
            "proxy": name,
            "figure": median(results[name], "figure"),
            "ratio": ratio,
            "ratio_min": min(within, default=None),
            "ratio_max": max(within, default=None),
            "goal": goal,
            "reached": None if goal is None or value is None else value <= goal,
            "rps": median(results[name], "rps"),
            "p50_ms": median(results[name], "p50"),
            "p99_ms": median(results[name], "p99"),
            "rss_mib": median(results[name], "rss_mib"),
            "rounds": sum(result is not None for result in results[name]),
        })
    return {"row": row.name, "about": row.about, "unit": row.unit, "proxies": lines}


def markdown(summaries):
    """The table as Markdown that is also readable as it is."""
    cells = [HEADER, ["-" * len(name) for name in HEADER]]
    for row in summaries:
        for index, line in enumerate(row["proxies"]):
            cells.append(_cells(row, line, first=index == 0))
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    cells[1] = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells)


def _cells(row, line, first):
    figure = "failed" if line["figure"] is None else f"{_number(line['figure'])} {row['unit']}"
    spread = "" if line["ratio"] is None else f"{line['ratio_min']:.2f}–{line['ratio_max']:.2f}"
    goal = "" if line["goal"] is None else f"≤ {line['goal']:g}" + {True: " ✓", False: " ✗", None: ""}[line["reached"]]
    ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
    return [row["row"] if first else "", line["proxy"], figure, ratio, spread, goal,
            _number(line["rps"]), _number(line["p50_ms"]), _number(line["p99_ms"]), _number(line["rss_mib"])]


def _number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"
