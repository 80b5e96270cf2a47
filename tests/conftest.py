"""Fixtures and the property-test profile shared by all tests."""

from hypothesis import HealthCheck, settings

# Kernels compile at their first call, so no deadline is meaningful.
settings.register_profile("exact", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("exact")
