"""What all request bodies share: no field is ignored, and a refusal says what would be taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rest_framework import serializers

NAME_FORMAT = 'Write a name of lower-case letters, digits, "-" and "_", e.g. mid-range-cpu.'
SHA256_FORMAT = "Write the SHA-256 as 64 lower-case hexadecimal digits."
SHOWN_NAME = 100  # characters of a field's name that an answer repeats


class RequestSerializer(serializers.Serializer):
    """The body of a request, or a part of it: fields that it does not take are refused."""

    def to_internal_value(self, data: Any) -> Any:
        taken = [name for name, field in self.fields.items() if not field.read_only]
        if isinstance(data, Mapping) and (unknown := [name for name in data if name not in taken]):
            message = f"There is no such field. Known are: {', '.join(taken)}."
            raise serializers.ValidationError({str(name)[:SHOWN_NAME]: [message] for name in unknown})
        return super().to_internal_value(data)


class NameField(serializers.SlugField):
    """A short name, as in addresses."""

    default_error_messages = {"invalid": NAME_FORMAT}


class NamedChoiceField(serializers.ChoiceField):
    """A choice whose refusal lists the choices.

    Args:
        names: what is taken.
    """

    def __init__(self, names: Iterable[str], **kwargs: Any) -> None:
        known = [str(name) for name in names]
        super().__init__(choices=[(name, name) for name in known], **kwargs)
        self.error_messages["invalid_choice"] = f'"{{input}}" is not one of {", ".join(known)}.'
