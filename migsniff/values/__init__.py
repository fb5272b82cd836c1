"""FIELDS -> MEANING: images and registers under their names, each one registered function; no I/O."""
