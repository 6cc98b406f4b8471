"""The dashboard as data: its queries, its variables, and a query with the variables put in."""

from __future__ import annotations

import json

from deploy_names import MONITORING

DASHBOARD = json.loads((MONITORING / "grafana" / "dashboard.json").read_text("utf-8"))
PANELS = DASHBOARD["panels"]
QUERIES = [(panel["title"], each["expr"], each["legendFormat"]) for panel in PANELS for each in panel["targets"]]
VARIABLES = {
    each["name"]: each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"
}
ANNOTATION = DASHBOARD["annotations"]["list"][0]["expr"]
VALUES = {"job": "labkit-prod", "instance": ".*", "layer": "0", "__rate_interval": "2s", "datasource": "prometheus"}


def filled(query: str) -> str:
    """A query as Grafana would send it.

    Raises ValueError if a variable is unknown.
    """
    for name, value in VALUES.items():
        query = query.replace(f"${name}", value).replace(f"${{{name}}}", value)
    if "$" in query:
        raise ValueError(f"{query}: a variable is left")
    return query
