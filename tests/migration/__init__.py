"""Proofs of the migration table against the packages that people come from; `make migration-check` runs them."""
