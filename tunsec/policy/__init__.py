"""The operator's YAML -> Intent (whole cluster) -> Desired (what one host's kernel must hold)."""
