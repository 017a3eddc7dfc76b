"""Renders the chart once per case; a process of its own, because Helm brings Go's runtime with it.

Reads `{case: values}` from stdin as JSON and writes `{case: manifests, or the refusal}`.
"""

import json
import sys

import helm_python
import yaml

CHART = sys.argv[1]
RELEASE = "tideserve"
NAMESPACE = "llm"


def main() -> None:
    """Render every case, and lint the chart."""
    helm_python.disable_logging()
    chart = helm_python.Chart.load(CHART)
    answers: dict[str, object] = {"lint": helm_python.lint(CHART, strict=True)["messages"]}
    for case, values in json.load(sys.stdin).items():
        try:
            rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE)
        except helm_python.HelmError as refusal:
            answers[case] = str(refusal)
            continue
        manifests = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
        documents = yaml.safe_load_all("\n---\n".join(manifests))
        answers[case] = [document for document in documents if document is not None]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
