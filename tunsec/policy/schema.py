"""The JSON Schema of the policy language, for editors: `python3 -m tunsec.policy.schema`.

Made from language.py, kept in policies/schema.json. It knows each key alone; contradictions
between keys are found by `tunsec check`.
"""

import json
import sys
from enum import StrEnum
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tunsec.policy.language import PolicyFile


class _Schema(GenerateJsonSchema):
    """Without null (a key has a value or is left out), and names kept to their pattern."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = self.generate_inner(schema["schema"])
        default = schema.get("default")
        return {**made, "default": str(default)} if isinstance(default, StrEnum) else made

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        made: JsonSchemaValue = {
            "type": "object",
            "propertyNames": self.generate_inner(schema["keys_schema"]),
            "additionalProperties": self.generate_inner(schema["values_schema"]),
        }
        return {**made, "minProperties": schema["min_length"]} if "min_length" in schema else made


def json_schema() -> dict[str, Any]:
    """The schema as a JSON object (draft 2020-12)."""
    made = PolicyFile.model_json_schema(schema_generator=_Schema, mode="validation")
    return {"$schema": _Schema.schema_dialect, **_untitled(made), "title": "tunsec policy"}


def schema_text() -> str:
    """policies/schema.json as it must be."""
    return json.dumps(json_schema(), indent=2) + "\n"


def _untitled(value: Any) -> Any:
    """Without the titles that pydantic makes from names: they say nothing new."""
    if isinstance(value, dict):
        return {
            key: _untitled(inner)
            for key, inner in value.items()
            if not (key == "title" and isinstance(inner, str))
        }
    return [_untitled(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.stdout.write(schema_text())
