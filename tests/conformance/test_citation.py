"""CITATION.cff before the schema of its format."""

from __future__ import annotations

import json

import pytest
from support import conformance, launch

pytestmark = pytest.mark.conformance

#: Prints a line for each place where a file is not as the schema has it.
CHECK = """
import importlib.util, json, pathlib, sys
import jsonschema, yaml
package = pathlib.Path(importlib.util.find_spec("cffconvert").origin).parent
schema = package / "schemas" / "1.2.0" / "schema.json"
# Dates are texts in JSON.
cited = json.loads(json.dumps(yaml.safe_load(pathlib.Path(sys.argv[1]).read_text()), default=str))
checks = jsonschema.Draft7Validator(json.loads(schema.read_text()))
print(json.dumps([[list(map(str, one.path)), one.message] for one in checks.iter_errors(cited)]))
"""


def test_the_citation_is_as_its_schema_has_it(tmp_path):
    assert json.loads(conformance.python("-c", CHECK, launch.REPOSITORY / "CITATION.cff")) == []


def test_the_schema_finds_what_is_wrong(tmp_path):
    text = (launch.REPOSITORY / "CITATION.cff").read_text()
    spoilt = tmp_path / "CITATION.cff"
    spoilt.write_text(text.replace("authors:", "writers:"))
    found = json.loads(conformance.python("-c", CHECK, spoilt))
    assert any("authors" in message for _, message in found)
