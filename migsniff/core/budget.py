"""What descriptions may cost: the most that those of one migration may stand for."""

from typing import Final

from migsniff.core.errors import StreamProblem
from migsniff.core.wire import MAX_FIELDS

MAX_VALUES: Final = 4 * MAX_FIELDS
"""Array elements of a migration that get a value; behind that only raw bytes."""


class Budget:
    """How many fields and array values the descriptions of one migration may still stand for."""

    __slots__ = ("fields", "values")

    def __init__(self, fields: int = MAX_FIELDS, values: int = MAX_VALUES) -> None:
        self.fields = fields
        self.values = values

    def take_field(self) -> None:
        """Count one field; raises StreamProblem (description-nodes) when there were too many."""
        self.fields -= 1
        if self.fields < 0:
            raise StreamProblem("description-nodes", limit=MAX_FIELDS)

    def take_values(self, count: int) -> bool:
        """Count the values of an array; False: they are too many, it gets none."""
        if count > self.values:
            return False
        self.values -= count
        return True
