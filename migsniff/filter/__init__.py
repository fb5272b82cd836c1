"""Display filters: an expression over the fields of a record."""
