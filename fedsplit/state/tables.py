"""The journal's SQL: tables, the two views, and one statement a row type."""

from __future__ import annotations

from fedsplit.state.rows import BytesRow, ClientRow, MetricRow, NoteRow, PlanRow, RoundRow, Row, StepRow, Totals

VERSION = 1

COLUMNS = {
    "rounds_opened": "round INTEGER, era INTEGER, at_s REAL, clients TEXT",
    "rounds_closed": "round INTEGER, era INTEGER, at_s REAL, arrived TEXT, late TEXT, seconds REAL, committed INTEGER,"
    " reason TEXT",
    "steps": "at_s REAL, round INTEGER, step INTEGER, client TEXT, loss REAL, seconds REAL, up_bytes INTEGER,"
    " down_bytes INTEGER, committed INTEGER",
    "metrics": "at_s REAL, round INTEGER, phase TEXT, client TEXT, name TEXT, value REAL, examples INTEGER",
    "clients": "at_s REAL, client TEXT, what TEXT, topology TEXT, c1 INTEGER, c2 INTEGER, public_key TEXT, reason TEXT",
    "plans": "at_s REAL, round INTEGER, client TEXT, plan TEXT",
    "notes": "at_s REAL, client TEXT, text TEXT, warning INTEGER",
    "bytes": "at_s REAL, round INTEGER, client TEXT, what TEXT, up_bytes INTEGER, down_bytes INTEGER",
}

# The last era of a round is the one that counts; an earlier one was cut off by a crash.
VIEWS = """
CREATE VIEW round_summary AS
SELECT o.round, max(o.era) AS era, o.at_s AS opened_s, c.at_s AS closed_s, o.clients, c.arrived, c.late, c.seconds,
       coalesce(c.committed, 0) AS committed, coalesce(c.reason, '') AS reason
FROM rounds_opened o LEFT JOIN rounds_closed c ON c.round = o.round AND c.era = o.era
GROUP BY o.round ORDER BY o.round;
CREATE VIEW totals AS
SELECT client, sum(steps) AS steps, sum(seconds) AS seconds, sum(up_bytes) AS up_bytes, sum(down_bytes) AS down_bytes
FROM (SELECT client, 1 AS steps, seconds, up_bytes, down_bytes FROM steps
      UNION ALL SELECT client, 0, 0.0, up_bytes, down_bytes FROM bytes)
GROUP BY client ORDER BY client;
"""

SCHEMA = "BEGIN IMMEDIATE;\n{tables}\n{views}PRAGMA user_version = {version};\nCOMMIT;".format(
    tables="\n".join(
        f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {columns});" for table, columns in COLUMNS.items()
    ),
    views=VIEWS,
    version=VERSION,
)

NAMES = {table: [column.split()[0] for column in columns.split(", ")] for table, columns in COLUMNS.items()}
INSERT = {
    table: f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    for table, names in NAMES.items()
}

_SOURCES: dict[type[Row], str] = {
    RoundRow: "round_summary",
    StepRow: "steps ORDER BY id",
    MetricRow: "metrics ORDER BY id",
    ClientRow: "clients ORDER BY id",
    PlanRow: "plans ORDER BY id",
    NoteRow: "notes ORDER BY id",
    BytesRow: "bytes ORDER BY id",
    Totals: "totals",
}
SELECT = {row: f"SELECT {', '.join(row.__struct_fields__)} FROM {source}" for row, source in _SOURCES.items()}
