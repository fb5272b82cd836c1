"""TWO MIGRATIONS: what differs, and whether one will load where the other would."""
