"""Fakes that are products: a link in memory, injected faults, tiny models. For tests of fedsplit and of its users."""
