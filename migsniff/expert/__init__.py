"""EVENTS -> FINDINGS: what is worth knowing of a migration, each kind one registered rule; no I/O."""
